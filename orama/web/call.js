/**
 * The screen of a running call: it shows what the room says and tells the room what the person does.
 * @module call
 */

import { Chat } from "./chat.js";
import { capture, choice, fillSelects, reason } from "./devices.js";
import { paintToggle } from "./lobby.js";
import { banner, toast } from "./notices.js";
import { Quality, describe } from "./quality.js";
import { Tiles } from "./tiles.js";

const QUALITY_MS = 2_000;
const CHAT = "chat";
/** A small picture beside the whole one, for those whose line has no room for that; nobody is sent what nobody watches. */
const SMALL = { rid: "l", scaleResolutionDownBy: 2, maxBitrate: 150_000 };
const BITRATES = { 360: 700_000, 540: 1_500_000, 720: 2_500_000 };
const ICONS = { camera: ["camera", "cam"], microphone: ["mic", "mic"] };

const byId = (id) => document.getElementById(id);

export class Call {
  #tiles = new Tiles(byId("tiles"));
  #chat = new Chat((text) => this.#channel.send(text));
  #room = null;
  #name = "";
  #channel = null;
  #sounds = new Map();
  #quality = new Quality();
  #timer = undefined;
  #own = { camera: null, microphone: null, screen: null };
  #busy = new Set();
  #left;

  /** @param {() => void} left the person wants to go. */
  constructor(left) {
    this.#left = left;
    byId("mic").addEventListener("click", () => this.#toggle("microphone"));
    byId("cam").addEventListener("click", () => this.#toggle("camera"));
    byId("share").addEventListener("click", () => this.#share());
    byId("leave").addEventListener("click", () => this.#left());
    byId("settings-open").addEventListener("click", () => this.#settings());
    byId("help-open").addEventListener("click", () => byId("help").showModal());
    for (const id of ["copy", "invite-copy"]) byId(id).addEventListener("click", () => this.#copyLink());
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
    const chosen = (id, listener) => byId(id).addEventListener("change", ({ target }) => listener(target.value));
    chosen("set-camera", (id) => this.#change("camera", "videoinput", id));
    chosen("set-height", (height) => this.#change("camera", "height", height));
    chosen("set-microphone", (id) => this.#change("microphone", "audioinput", id));
    chosen("set-speaker", (id) => this.#changeSpeaker(id));
    byId("share").hidden = !navigator.mediaDevices?.getDisplayMedia;
    byId("speaker-field").hidden = !("setSinkId" in HTMLMediaElement.prototype);
    document.addEventListener("keydown", (event) => this.#key(event));
    // A page that nobody has touched may not make a sound: the first touch starts it.
    for (const touch of ["pointerdown", "keydown"]) document.addEventListener(touch, () => this.#resumeSounds(), true);
  }

  /**
   * Shows a room, before it is joined, so that nothing is missed.
   * @param {import("./orama-webrtc.js").Room} room
   * @param {string} name the person's own.
   */
  open(room, name) {
    this.#room = room;
    this.#name = name;
    byId("room-name").textContent = room.roomId;
    this.#chat.clear();
    this.#tiles.clear();
    this.#tiles.add("own", name, { own: true }).sound(false);
    this.#channel = room.data(CHAT);
    const on = (type, listener) => room.addEventListener(type, ({ detail }) => this.#room === room && listener(detail));
    on("state", (detail) => this.#state(detail));
    on("peer-joined", ({ peer }) => this.#joined(peer));
    on("peer-left", ({ peer, reason: why }) => this.#gone(peer, why));
    on("track-added", ({ peer, track }) => this.#added(peer, track));
    on("track-removed", ({ peer, track }) => this.#removed(peer, track));
    on("track-state", ({ peer, publication }) => (peer ? this.#paintPeer(peer) : this.#mutedByOwner(publication)));
    on("active-speakers", ({ peers }) => this.#speakers(peers));
    on("data", ({ peer, label, data }) => {
      if (label === CHAT && typeof data === "string") this.#chat.received(nameOf(peer), data);
    });
    on("draining", () => banner("This server is about to close. You are being moved…"));
    on("error", ({ error }) => toast(error.message));
    this.#paintOwn();
    this.#paintCount();
    this.#timer = setInterval(() => this.#look(), QUALITY_MS);
  }

  /** Publishes what the lobby took. @param {{video: ?MediaStreamTrack, audio: ?MediaStreamTrack}} media */
  publish({ video, audio }) {
    if (audio) this.#publish("microphone", audio, !audio.enabled);
    if (video) this.#publish("camera", video);
    this.#paintOwn();
  }

  close() {
    clearInterval(this.#timer);
    banner(null);
    for (const publication of Object.values(this.#own)) publication?.track.stop();
    this.#own = { camera: null, microphone: null, screen: null };
    for (const id of [...this.#sounds.keys()]) this.#silence(id);
    this.#tiles.clear();
    this.#room = null;
    for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  }

  // The others.

  #joined(peer) {
    const tile = this.#tiles.add(peer.peerId, nameOf(peer));
    tile.sound(false);
    this.#paintCount();
    if (this.#room.state === "connected") this.#say(`${nameOf(peer)} joined`);
  }

  #gone(peer, why) {
    this.#tiles.remove(peer.peerId);
    this.#paintCount();
    if (this.#room.state !== "connected") return;
    const verb = { timeout: "lost the connection", kicked: "was removed" }[why] ?? "left";
    this.#say(`${nameOf(peer)} ${verb}`);
  }

  #say(text) {
    toast(text);
    this.#chat.note(text);
  }

  #added(peer, track) {
    if (track.kind === "audio") this.#play(track);
    else if (track.source === "screen") {
      this.#tiles.add(screenKey(track), nameOf(peer), { screen: true }).show(track.mediaTrack);
      this.#say(`${nameOf(peer)} is sharing a screen`);
    }
    this.#paintPeer(peer);
  }

  #removed(peer, track) {
    if (track.kind === "audio") this.#silence(track.trackId);
    else if (track.source === "screen") this.#tiles.remove(screenKey(track));
    this.#paintPeer(peer);
  }

  #paintPeer(peer) {
    const tile = this.#tiles.get(peer.peerId);
    const tracks = [...peer.tracks.values()].filter(({ muted, mediaTrack }) => !muted && mediaTrack);
    tile?.show(tracks.findLast(({ kind, source }) => kind === "video" && source !== "screen")?.mediaTrack ?? null);
    tile?.sound(tracks.some(({ kind }) => kind === "audio"));
  }

  #speakers(peers) {
    const loud = new Set(peers.map(({ peerId }) => peerId));
    this.#tiles.get("own")?.speaking(loud.has(this.#room.peerId));
    for (const id of this.#room.peers.keys()) this.#tiles.get(id)?.speaking(loud.has(id));
  }

  #play({ trackId, mediaTrack }) {
    this.#silence(trackId);
    const element = document.createElement("audio");
    element.srcObject = new MediaStream([mediaTrack]);
    element.setSinkId?.(choice.get("audiooutput")).catch(() => {});
    byId("sounds").append(element);
    this.#sounds.set(trackId, element);
    element.play().catch(({ name }) => {
      if (name === "NotAllowedError") toast("Click anywhere to hear the others.");
    });
  }

  #silence(trackId) {
    const element = this.#sounds.get(trackId);
    if (!element) return;
    element.srcObject = null;
    element.remove();
    this.#sounds.delete(trackId);
  }

  #resumeSounds() {
    for (const element of this.#sounds.values()) if (element.paused) element.play().catch(() => {});
  }

  // What the person sends.

  #publish(source, track, muted = false) {
    const maxBitrate = BITRATES[choice.get("height")] ?? BITRATES[540];
    const encodings = source === "camera" ? [SMALL, { rid: "h", maxBitrate }] : undefined;
    this.#own[source] = this.#room.publish(track, { source, muted, encodings });
    track.addEventListener("ended", () => this.#lost(source, track));
  }

  /** A device was pulled out. */
  #lost(source, track) {
    const publication = this.#own[source];
    if (publication?.track !== track || publication.muted) return;
    publication.mute();
    this.#paintOwn();
    toast(`Your ${source} has gone.`);
  }

  /** Does one thing at a time with a source: people press twice. */
  async #once(source, work) {
    if (this.#busy.has(source) || !this.#room) return;
    this.#busy.add(source);
    try {
      await work();
    } catch (error) {
      toast(reason(error, source === "camera" ? "video" : "audio"));
    } finally {
      this.#busy.delete(source);
      if (this.#room) this.#paintOwn();
    }
  }

  #toggle(source) {
    return this.#once(source, async () => {
      const publication = this.#own[source];
      if (publication && !publication.muted) {
        await publication.mute();
        if (source === "camera") publication.track.stop(); // its light goes out
      } else if (publication && publication.track.readyState === "live") {
        await publication.unmute();
      } else {
        await this.#take(source);
        await this.#own[source].unmute();
      }
    });
  }

  /** Takes a device as chosen, and puts it in place of the one before. */
  async #take(source) {
    const track = await capture(source === "camera" ? "video" : "audio");
    const publication = this.#own[source];
    if (!publication) {
      this.#publish(source, track);
      return;
    }
    const former = publication.track;
    await publication.replaceTrack(track);
    former.stop();
    track.addEventListener("ended", () => this.#lost(source, track));
  }

  #change(source, kind, value) {
    choice.set(kind, value);
    return this.#once(source, async () => {
      if (this.#own[source] && !this.#own[source].muted) await this.#take(source);
    });
  }

  #changeSpeaker(id) {
    choice.set("audiooutput", id);
    for (const element of this.#sounds.values()) element.setSinkId(id).catch(({ message }) => toast(message));
  }

  async #share() {
    if (this.#own.screen) {
      this.#own.screen.track.stop();
      this.#room.unpublish(this.#own.screen);
      this.#shareEnded();
      return;
    }
    try {
      const room = this.#room;
      const publication = await room.publishScreen();
      this.#own.screen = publication;
      publication.track.addEventListener("ended", () => this.#own.screen === publication && this.#shareEnded());
      this.#tiles.add("own:screen", this.#name, { own: true, screen: true }).show(publication.track);
      this.#paintOwn();
    } catch (error) {
      if (error.name !== "NotAllowedError") toast("Your screen cannot be shared here.");
    }
  }

  #shareEnded() {
    this.#own.screen = null;
    this.#tiles.remove("own:screen");
    this.#paintOwn();
  }

  #mutedByOwner(publication) {
    toast(`Your ${publication.source} was turned off by the host.`);
    this.#paintOwn();
  }

  // Around the call.

  #paintOwn() {
    const { camera, microphone, screen } = this.#own;
    const tile = this.#tiles.get("own");
    tile?.show(camera && !camera.muted ? camera.track : null);
    tile?.sound(Boolean(microphone && !microphone.muted));
    const labels = { camera: ["Stop video", "Start video"], microphone: ["Mute", "Unmute"] };
    for (const [source, [icon, id]] of Object.entries(ICONS)) {
      const on = Boolean(this.#own[source] && !this.#own[source].muted);
      paintToggle(byId(id), on, icon, source === "camera" ? "Camera" : "Microphone");
      byId(id).querySelector("span").textContent = labels[source][on ? 0 : 1];
    }
    byId("share").setAttribute("aria-pressed", String(Boolean(screen)));
    byId("share").querySelector("span").textContent = screen ? "Stop sharing" : "Share screen";
  }

  #paintCount() {
    byId("count").textContent = this.#room.peers.size + 1;
    byId("invite").hidden = this.#room.peers.size > 0;
  }

  #state({ state, media }) {
    if (state === "reconnecting") banner("Connection lost. Reconnecting…");
    else if (["failed", "disconnected"].includes(media)) banner("Sound and picture are interrupted. Trying again…");
    else banner(null);
  }

  async #look() {
    const { connection, peers } = this.#room;
    if (!connection) return;
    const seen = await this.#quality.look(connection);
    if (!this.#room) return;
    byId("relay").hidden = !seen.relay;
    byId("relay").querySelector("span").textContent = `Relayed over ${seen.relay?.toUpperCase()}`;
    const paint = (key, mids) => {
      this.#tiles.get(key)?.quality(describe(mids.map((mid) => seen.tracks.get(mid)), seen));
    };
    const { camera, microphone, screen } = this.#own;
    paint("own", [camera, microphone].map((publication) => publication?.mid));
    if (screen) paint("own:screen", [screen.mid]);
    for (const { peerId, tracks } of peers.values()) {
      const shared = [...tracks.values()].filter(({ kind, source }) => kind === "video" && source === "screen");
      const person = [...tracks.values()].filter((track) => !shared.includes(track));
      paint(peerId, person.map(({ mid }) => mid));
      for (const track of shared) paint(screenKey(track), [track.mid]);
    }
  }

  async #settings() {
    await fillSelects();
    byId("set-height").value = choice.get("height") || "540";
    byId("settings").showModal();
  }

  async #copyLink() {
    const link = new URL(`?room=${encodeURIComponent(this.#room.roomId)}`, location.origin + location.pathname).href;
    try {
      await navigator.clipboard.writeText(link);
      toast("The link is copied.");
    } catch {
      toast(link);
    }
  }

  #key(event) {
    if (!this.#room || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && this.#chat.shown) this.#chat.show(false);
    if (event.target.closest?.("input, textarea, select")) return;
    const actions = {
      m: () => this.#toggle("microphone"),
      v: () => this.#toggle("camera"),
      s: () => !byId("share").hidden && this.#share(),
      c: () => this.#chat.show(!this.#chat.shown),
      "?": () => byId("help").showModal(),
    };
    const action = actions[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

function nameOf(peer) {
  const name = peer?.metadata?.name;
  return (typeof name === "string" && name.trim().slice(0, 60)) || peer?.userId || "Somebody";
}

function screenKey({ peerId, trackId }) {
  return `${peerId}:${trackId}`;
}
