// What a person has written and not sent survives a reload. It is kept in this tab, until it is sent or the tab closes.

const PREFIX = "puna.draft.";

/** The draft of a place, such as a conversation's id; empty when there is none. */
export const draftOf = (place) => sessionStorage.getItem(PREFIX + place) ?? "";

/** Keep the draft of a place; an empty text forgets it. */
export function keepDraft(place, text) {
  try {
    if (text) sessionStorage.setItem(PREFIX + place, text);
    else sessionStorage.removeItem(PREFIX + place);
  } catch {
    // The browser's storage is full: the draft lasts as long as the page.
  }
}

/** Fill a field with its draft, and keep what is written in it. */
export function keepField(field, place) {
  field.value = draftOf(place) || field.value;
  field.addEventListener("input", () => keepDraft(place, field.value));
}

/** Forget all drafts: on signing out, the next person must not find them. */
export function forgetDrafts() {
  for (const key of Object.keys(sessionStorage)) if (key.startsWith(PREFIX)) sessionStorage.removeItem(key);
}
