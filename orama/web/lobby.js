/**
 * The screen before the call: a look in the mirror, a name, devices, and a key where one is needed.
 * @module lobby
 */

import { capture, captureBoth, choice, fillSelects, reason, showLevel } from "./devices.js";
import { paintAvatar } from "./tiles.js";

const byId = (id) => document.getElementById(id);

export class Lobby {
  #media = { video: null, audio: null };
  #wanted = { video: true, audio: true };
  #stopLevel = () => {};
  #joined;
  #open = false;
  #capturing = Promise.resolve();

  /** @param {(entry: {room: string, name: string, key: string}) => void} joined */
  constructor(joined) {
    this.#joined = joined;
    byId("lobby-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("preview-mic").addEventListener("click", () => this.#toggle("audio"));
    byId("preview-cam").addEventListener("click", () => this.#toggle("video"));
    byId("name-input").addEventListener("input", () => this.#paint());
    byId("lobby-camera").addEventListener("change", ({ target }) => this.#change("video", target));
    byId("lobby-microphone").addEventListener("change", ({ target }) => this.#change("audio", target));
  }

  /** Shows the lobby for a room; without one it asks for it. */
  async show({ room, name, problem = "", needsKey = false }) {
    const bold = Object.assign(document.createElement("b"), { textContent: room });
    byId("lobby-room").replaceChildren(...(room ? ["Room ", bold] : ["Choose a room, or make up a new one."]));
    byId("room-field").hidden = Boolean(room);
    byId("room-input").value = room;
    byId("name-input").value = name;
    this.problem(problem);
    this.needKey(needsKey);
    this.busy(false);
    this.#paint();
    const first = ["room-field", "key-field"].find((id) => !byId(id).hidden);
    (first ? byId(first).querySelector("input") : byId("name-input")).focus();
    if (this.#open) return;
    this.#open = true;
    this.#capturing = this.#capture();
    await this.#capturing;
    await fillSelects();
    this.#paint();
    if (this.#open) this.#listen();
  }

  async #capture() {
    const { problem, ...media } = await captureBoth();
    this.#media = media;
    for (const kind of ["video", "audio"]) this.#wanted[kind] = Boolean(media[kind]);
    if (problem) this.problem(byId("lobby-problem").textContent || problem);
  }

  problem(text) {
    byId("lobby-problem").textContent = text;
    byId("lobby-problem").hidden = !text;
  }

  needKey(needed) {
    byId("key-field").hidden = !needed;
    byId("key-input").required = needed;
    if (needed) byId("key-input").focus();
  }

  busy(busy) {
    byId("join").disabled = busy;
    byId("join").textContent = busy ? "Joining…" : "Join";
  }

  /** Gives the devices away, once the browser has them: whoever takes them stops them. */
  async hand() {
    this.#open = false;
    this.#stopLevel();
    byId("preview").srcObject = null;
    await this.#capturing;
    const media = this.#media;
    this.#media = { video: null, audio: null };
    return media;
  }

  #submit() {
    this.busy(true);
    this.problem("");
    const name = byId("name-input").value.trim() || "Guest";
    choice.set("name", name);
    this.#joined({ room: byId("room-input").value.trim(), name, key: byId("key-input").value.trim() });
  }

  async #toggle(kind) {
    this.#wanted[kind] = !this.#wanted[kind];
    if (this.#wanted[kind] && !this.#media[kind]) {
      try {
        this.#media[kind] = await capture(kind);
        this.problem("");
        await fillSelects();
      } catch (error) {
        this.#wanted[kind] = false;
        this.problem(reason(error, kind));
      }
    } else if (kind === "video" && !this.#wanted.video) {
      this.#media.video?.stop();
      this.#media.video = null;
    }
    if (this.#media.audio) this.#media.audio.enabled = this.#wanted.audio;
    this.#paint();
    this.#listen();
  }

  async #change(kind, select) {
    choice.set(select.dataset.device, select.value);
    if (!this.#media[kind]) return;
    this.#media[kind].stop();
    this.#media[kind] = null;
    this.#wanted[kind] = false;
    await this.#toggle(kind);
  }

  #listen() {
    this.#stopLevel();
    this.#stopLevel = this.#media.audio ? showLevel(this.#media.audio, byId("preview-level")) : () => {};
  }

  #paint() {
    const name = byId("name-input").value.trim();
    paintAvatar(byId("preview-avatar"), name || "Guest");
    const { video } = this.#media;
    const preview = byId("preview");
    if ((preview.srcObject?.getTracks()[0] ?? null) !== video) {
      preview.srcObject = video ? new MediaStream([video]) : null;
    }
    byId("preview-off").hidden = Boolean(video);
    paintToggle(byId("preview-mic"), this.#wanted.audio, "mic", "Microphone");
    paintToggle(byId("preview-cam"), this.#wanted.video, "camera", "Camera");
  }
}

/** Shows a device button as on or off. */
export function paintToggle(button, on, icon, label) {
  button.setAttribute("aria-pressed", String(on));
  button.setAttribute("aria-label", label);
  button.title = `${label} ${on ? "on" : "off"}`;
  button.querySelector("use").setAttribute("href", `icons.svg#${on ? icon : `${icon}-off`}`);
}
