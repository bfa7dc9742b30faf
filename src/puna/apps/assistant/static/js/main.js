// The start of the page: language, signing in, models, the two views, and addresses.
import { address } from "/static/web/js/address.js";
import * as chat from "./chat.js";
import { compareView } from "./compare.js";
import { composerView } from "./composer.js";
import { el, workerAddress } from "/static/web/js/dom.js";
import { headerView } from "./header.js";
import { loadLanguage, sentence, t } from "/static/web/js/i18n.js";
import { watchKeys } from "./keys.js";
import { loadModels, watchModels } from "./models.js";
import { signIn } from "/static/web/js/sign_in.js";
import { closeDrawer, load, sidebarView } from "./sidebar.js";
import { emit, on, state } from "./state.js";
import { copySources, watchAddresses } from "/static/web/js/rich_text.js";
import { threadView } from "./thread.js";

const app = document.getElementById("app");
let main = null;
let comparing = null;

function build() {
  const skip = document.getElementById("skip");
  skip.textContent = t("skip");
  skip.addEventListener("click", (event) => (event.preventDefault(), emit("focus")));
  const side = sidebarView();
  const chatPlace = el("div", { class: "chat" }, threadView(), composerView());
  comparing = el("div", { class: "compare-place scroller", hidden: true });
  main = el("main", { class: "main" }, headerView(), chatPlace, comparing);
  app.replaceChildren(side, el("div", { class: "shade", onclick: closeDrawer }), main);
  on("view", view);
}

function view(name) {
  const compare = name === "compare";
  main.querySelector(".chat").hidden = compare;
  comparing.hidden = !compare;
  if (compare) {
    if (!comparing.children.length) comparing.append(compareView());
    main.querySelector("h1").textContent = t("compare.title");
  }
  main.classList.toggle("comparing", compare);
}

async function follow() {
  const found = /^#\/c\/([\w-]+)$/.exec(location.hash);
  closeDrawer();
  if (location.hash === "#/compare") {
    view("compare");
    return;
  }
  view("chat");
  if (!found) chat.begin();
  else if (found[1] !== state.conversation?.id) {
    try {
      await chat.open(found[1]);
    } catch (error) {
      if (error.name === "AbortError") return;
      chat.begin();
      emit("failure", { text: sentence(error), retry: null });
    }
  } else emit("conversation");
}

async function start() {
  await loadLanguage("/static/i18n");
  for (;;) {
    try {
      await loadModels();
      break;
    } catch (error) {
      if (error.status === 401) await signIn();
      else {
        app.replaceChildren(el("main", { class: "gate" }, el("p", { role: "alert", text: sentence(error) })));
        return;
      }
    }
  }
  build();
  watchKeys();
  watchModels();
  watchAddresses(document.body);
  copySources(document.body);
  window.addEventListener("hashchange", follow);
  window.addEventListener("puna:signin", () => location.reload(), { once: true });
  await Promise.all([load(), follow()]);
  if ("serviceWorker" in navigator) {
    navigator.serviceWorker.addEventListener("controllerchange", cacheFiles, { once: true });
    navigator.serviceWorker.register(workerAddress()).catch(() => {});
  }
}

// The worker has not seen what was loaded before it was installed: request it again, so that it is cached.
function cacheFiles() {
  const loaded = performance.getEntriesByType("resource").map((entry) => new URL(entry.name).pathname);
  const ours = loaded.filter((path) => path.startsWith(address("/static/")));
  for (const path of new Set([address("/"), ...ours])) fetch(path).catch(() => {});
}

start();
