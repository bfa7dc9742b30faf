// The models that are served. They can change while the page is open: the server was started again with others.
import { get } from "/static/web/js/api.js";
import { card, emit, state } from "./state.js";

/** Load the models, and choose the default one for a new conversation whose model is not there (any more). */
export async function loadModels() {
  const before = JSON.stringify(state.models);
  const known = await get("/app/models");
  Object.assign(state, { models: known.models, user: known.user, signedIn: known.signed_in });
  if (!card(state.draft.model)) state.draft.model = known.models[0]?.id ?? null;
  if (JSON.stringify(known.models) !== before) emit("models");
}

/** Load them again when a person comes back to the page. */
export function watchModels() {
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && loadModels().catch(() => {}));
}
