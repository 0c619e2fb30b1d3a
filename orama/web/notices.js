/**
 * What the page says beside the call: short notices that go by themselves, and a banner that stays.
 * @module notices
 */

const TOAST_MS = 5_000;

/** Says something in passing; screen readers read it too. */
export function toast(text) {
  const element = document.createElement("p");
  element.className = "toast";
  element.textContent = text;
  const list = document.getElementById("toasts");
  list.append(element);
  while (list.childElementCount > 3) list.firstElementChild.remove();
  setTimeout(() => element.remove(), TOAST_MS);
}

/** Says something until it is over: null takes it away. */
export function banner(text) {
  const element = document.getElementById("banner");
  document.getElementById("banner-text").textContent = text ?? "";
  element.hidden = !text;
}

/** What went wrong, for a person who did not write the program. */
export function explain(error) {
  switch (error.code) {
    case "not_authenticated":
      return "The key or token was not accepted. It may be wrong or too old.";
    case "forbidden":
      return "You are not allowed into this room with this key or token.";
    case "not_found":
      return "There is no such room here.";
    case "room_full":
      return "The room is full. Try again when somebody has left.";
    case "replaced":
      return "You joined this room from another window, so this one has left it.";
    case "unreachable":
      return "The server cannot be reached. Check your connection and try again.";
    case "rate_limited":
      return "That was too often in a short time. Wait a moment and try again.";
    default:
      return error.message || "Something went wrong.";
  }
}
