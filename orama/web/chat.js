/**
 * The chat panel: plain text to everybody, over a data channel of the room.
 * @module chat
 */

const SAME_SPEAKER_MS = 120_000;
const LINK = /https?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]}]/g;

export class Chat {
  #panel = document.getElementById("chat");
  #log = document.getElementById("chat-log");
  #input = document.getElementById("chat-input");
  #toggle = document.getElementById("chat-toggle");
  #badge = document.getElementById("unread");
  #unread = 0;
  #last = { name: undefined, at: 0 };
  #send;

  /** @param {(text: string) => void} send */
  constructor(send) {
    this.#send = send;
    const form = document.getElementById("chat-form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    this.#toggle.addEventListener("click", () => this.show(!this.shown));
    document.getElementById("chat-close").addEventListener("click", () => this.show(false));
  }

  get shown() {
    return !this.#panel.hidden;
  }

  show(shown) {
    const held = this.#panel.contains(document.activeElement);
    this.#panel.hidden = !shown;
    this.#toggle.setAttribute("aria-pressed", String(shown));
    if (shown) {
      this.#count(0);
      this.#log.scrollTop = this.#log.scrollHeight;
      this.#input.focus();
    } else if (held) {
      this.#toggle.focus();
    }
  }

  clear() {
    this.#log.replaceChildren();
    this.#last = { name: undefined, at: 0 };
    this.#count(0);
    this.show(false);
  }

  /** A message has come. */
  received(name, text) {
    this.#add(name, text, false);
    if (!this.shown) this.#count(this.#unread + 1);
  }

  /** A line that nobody wrote: who came and went. */
  note(text) {
    if (!this.#log.childElementCount) return;
    const line = document.createElement("li");
    line.className = "chat-note";
    line.textContent = text;
    this.#append(line);
    this.#last = { name: undefined, at: 0 };
  }

  #submit() {
    const text = this.#input.value.trim();
    if (!text) return;
    this.#send(text);
    this.#input.value = "";
    this.#add(null, text, true);
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #count(unread) {
    this.#unread = unread;
    this.#badge.hidden = unread === 0;
    this.#badge.textContent = unread > 99 ? "99+" : unread;
    const label = unread === 1 ? "Chat, 1 unread message" : `Chat, ${unread} unread messages`;
    this.#toggle.setAttribute("aria-label", unread ? label : "Chat");
  }

  #add(name, text, own) {
    const now = new Date();
    const first = this.#last.name !== name || now - this.#last.at > SAME_SPEAKER_MS || !this.#log.childElementCount;
    this.#last = { name, at: now };
    const item = document.createElement("li");
    item.className = "message";
    item.classList.toggle("own", own);
    item.classList.toggle("first", first);
    item.append(...linked(text));
    if (first) {
      const head = document.createElement("li");
      head.className = "message-head";
      head.classList.toggle("own", own);
      const who = document.createElement("b");
      who.textContent = own ? "You" : name;
      const time = document.createElement("time");
      time.dateTime = now.toISOString();
      time.textContent = now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      head.append(who, " ", time);
      this.#append(head);
    }
    this.#append(item);
  }

  /** Stays at the newest message unless the person reads further up. */
  #append(item) {
    const log = this.#log;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
    log.append(item);
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}

/** Text with its addresses as links. */
function linked(text) {
  const parts = [];
  let from = 0;
  for (const { 0: address, index } of text.matchAll(LINK)) {
    const link = document.createElement("a");
    Object.assign(link, { href: address, textContent: address, target: "_blank", rel: "noopener noreferrer" });
    parts.push(text.slice(from, index), link);
    from = index + address.length;
  }
  parts.push(text.slice(from));
  return parts;
}
