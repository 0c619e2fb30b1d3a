/**
 * The browser's side of an Orama room: signalling, one relay-only peer connection, data channels.
 *
 * One WebSocket carries JSON messages, one RTCPeerConnection carries everything this client sends and
 * receives. The client offers what it publishes, the SFU offers what it forwards. When both offer at once
 * the SFU yields: this side ignores the SFU's offer, knowing that it will be made again. Messages and our
 * own offers are handled strictly one after the other, because a browser is deaf to an offer that reaches
 * it while it still applies the answer before.
 *
 *     import { connect } from "./orama-webrtc.js";
 *     const room = await connect({ room: "standup", token });
 *     room.addEventListener("track-added", ({ detail: { track } }) => show(track.mediaTrack));
 *     await room.publishCamera();
 *
 * No dependencies and no build step; it runs in every browser with RTCPeerConnection and private fields.
 * @module orama-webrtc
 */

import { Channel, Incoming } from "./channel.js";
import { IceWatch } from "./ice-watch.js";
import { LineWatch } from "./line-watch.js";
import { Negotiation } from "./negotiation.js";
import { Publication } from "./publication.js";
import { Roster, streamIds } from "./roster.js";
import { RoomError, Signaling } from "./signaling.js";

export { Channel, Publication, RoomError };

/** What a source may be called. */
const SOURCE = /^[a-z0-9-]{1,32}$/;
/** Which of the relay's addresses are of which transport. */
const TRANSPORTS = {
  udp: (uri) => uri.startsWith("turn:") && !uri.includes("transport=tcp"),
  tcp: (uri) => uri.startsWith("turn:") && uri.includes("transport=tcp"),
  tls: (uri) => uri.startsWith("turns:"),
};

/**
 * @typedef {object} ConnectOptions
 * @property {string} room room id: 1–128 of `[A-Za-z0-9_.:-]`.
 * @property {string} [url] base address of the node, `https://host`; the page's own origin by default.
 * @property {string[]} [urls] those of several nodes, where there are some: when one goes the next is tried.
 * @property {string} [apiKey] a namespace key, `ak_…:namespace`.
 * @property {string | (() => string | Promise<string>)} [token] a JWT, or what fetches a fresh one.
 * @property {string} [userId] who this is; a token's `sub` goes before it.
 * @property {*} [metadata] anything that JSON carries: the other peers get it as it is.
 * @property {{audio?: Reception, video?: Reception}} [receive] what to receive, see {@link Room#receive}.
 * @property {Transforms} [transforms] called for each sender and receiver before anything flows, on every new connection.
 * @property {"udp"|"tcp"|"tls"} [transport] use only this way to the relay; all of them by default.
 */

/**
 * @typedef {object} Reception
 * @property {number} [lastN] as many tracks as this, of those who spoke last; as many as `tracks` without it.
 * @property {string[]} [tracks] track ids that come before others: a page of a gallery, somebody pinned.
 */

/**
 * What end-to-end encryption needs: set `transform` of what is given.
 * @typedef {object} Transforms
 * @property {(sender: RTCRtpSender, publication: Publication) => void} [send]
 * @property {(receiver: RTCRtpReceiver) => void} [receive] again when the receiver gets another track.
 */

/**
 * @typedef {import("./roster.js").Peer} Peer
 * @typedef {import("./roster.js").RemoteTrack} RemoteTrack
 */

/**
 * Joins a room.
 * @param {ConnectOptions} options
 * @returns {Promise<Room>} once the SFU has said welcome and given relay credentials.
 * @throws {RoomError} when the SFU refuses or cannot be reached.
 */
export async function connect(options) {
  const room = new Room(options);
  await room.join();
  return room;
}

/**
 * A place in a room. Every event is a CustomEvent; what `detail` holds:
 *
 * | event | detail |
 * |---|---|
 * | `state` | `{state, media}`: {@link Room#state} and the peer connection's own |
 * | `peer-joined` | `{peer}` |
 * | `peer-left` | `{peer, reason}` |
 * | `track-added` | `{peer, track}`, once `track.mediaTrack` is there |
 * | `track-removed` | `{peer, track}` |
 * | `track-state` | `{peer, track, muted}` of another peer, `{publication, muted}` when an owner muted us |
 * | `active-speakers` | `{peers: [{peerId, level}]}`, loudest first |
 * | `data` | `{peer, peerId, label, data}`: text as string, bytes as ArrayBuffer |
 * | `draining` | `{reason, deadlineMs, reconnectUrl}` |
 * | `room-closed`, `kicked` | `{reason}`; the room is closed then |
 * | `error` | `{error}`, a {@link RoomError} or what the browser threw |
 */
export class Room extends EventTarget {
  /** @type {Set<Publication>} what this client publishes. */
  publications = new Set();
  /** @type {?string} */
  peerId = null;
  /** @type {?string} */
  userId = null;
  /** `new`, `connecting`, `connected`, `reconnecting` or `closed`. */
  state = "new";

  #options;
  #signaling;
  #resume = undefined;
  #connection = null;
  #iceServers = [];
  #steps = Promise.resolve();
  #joining = null;
  #watch = null;
  #line = null;
  #negotiation = null;
  #receptions;
  #moving = false;
  #channels = new Map();
  #incoming = null;
  #roster = new Roster((type, detail) => this.#emit(type, detail));
  #online = () => {
    this.#watch?.moved();
    if (this.state === "reconnecting") this.#signaling.connect();
  };

  /** @param {ConnectOptions} options */
  constructor(options) {
    super();
    this.#options = options;
    const { room, userId, metadata, receive = {} } = options;
    this.#receptions = new Map(Object.entries(receive));
    const urls = [...(options.url ? [options.url] : []), ...(options.urls ?? [])];
    this.#signaling = new Signaling(
      { ...options, urls: urls.length ? urls : [globalThis.location.origin] },
      {
        hello: () => ({ type: "join", roomId: room, userId, metadata, resume: this.#resume }),
        message: (message) => this.#enqueue(() => this.#receive(message)),
        lost: (error, again) => this.#enqueue(() => this.#lost(error, again)),
      },
    );
  }

  get roomId() {
    return this.#options.room;
  }

  /** @type {Map<string, Peer>} the others, by peer id. */
  get peers() {
    return this.#roster.peers;
  }

  /** @type {?RTCPeerConnection} for statistics; what it negotiates is this object's business. */
  get connection() {
    return this.#connection;
  }

  /** Enters the room, once; {@link connect} does it. */
  join() {
    if (this.state !== "new") throw new RoomError("invalid_join", "A Room is joined once.");
    globalThis.addEventListener("online", this.#online);
    this.#setState("connecting");
    return new Promise((resolve, reject) => {
      this.#joining = { resolve, reject };
      this.#signaling.connect();
    });
  }

  /** Leaves for good: the others see it at once. Local tracks stay with who made them. */
  leave() {
    this.#signaling.send({ type: "leave" });
    this.#finish(null);
  }

  // Publishing.

  /**
   * Publishes a track on a transceiver of its own.
   * @param {MediaStreamTrack} track
   * @param {object} [options]
   * @param {string} [options.source] `camera`, `microphone`, `screen` or a name of yours (`a-z 0-9 -`).
   * @param {boolean} [options.muted] begin muted.
   * @param {boolean} [options.redundant] send sound twice, so that a lost packet is not missed.
   * @param {RTCRtpEncodingParameters[]} [options.encodings] for simulcast, or a cap on the bitrate.
   * @returns {Publication}
   */
  publish(track, options = {}) {
    const source = options.source ?? (track.kind === "audio" ? "microphone" : "camera");
    if (!SOURCE.test(source)) throw new RoomError("invalid_source", "The source's name is not made of a-z, 0-9 and -.");
    const publication = new Publication(track, { ...options, source }, () => this.#announceMute(publication));
    this.publications.add(publication);
    if (this.#connection) publication.transmit(this.#connection, this.#options.transforms?.send);
    return publication;
  }

  /** @param {MediaTrackConstraints | boolean} [constraints] @param {object} [options] see {@link Room#publish} */
  async publishCamera(constraints = true, options = {}) {
    const media = await navigator.mediaDevices.getUserMedia({ video: constraints });
    return this.publish(media.getVideoTracks()[0], { ...options, source: "camera" });
  }

  /** @param {MediaTrackConstraints | boolean} [constraints] @param {object} [options] see {@link Room#publish} */
  async publishMicrophone(constraints = true, options = {}) {
    const media = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    return this.publish(media.getAudioTracks()[0], { ...options, source: "microphone" });
  }

  /** Asks which screen to show, and unpublishes it when the person stops sharing. */
  async publishScreen(constraints = { video: true }, options = {}) {
    const media = await navigator.mediaDevices.getDisplayMedia(constraints);
    const track = media.getVideoTracks()[0];
    track.contentHint = "detail";
    const publication = this.publish(track, { ...options, source: "screen" });
    track.addEventListener("ended", () => this.unpublish(publication));
    return publication;
  }

  /** Stops sending and frees the m-line. The track itself goes on. */
  unpublish(publication) {
    if (!this.publications.delete(publication)) return;
    publication.transceiver?.stop();
    publication.transceiver = null;
  }

  // Subscribing, data, and what owners may do.

  /**
   * Takes a track that was unsubscribed, or chooses how much of it to take.
   * @param {string} trackId
   * @param {{layer?: "low"|"mid"|"high"|"auto", priority?: number}} [how]
   */
  subscribe(trackId, how = {}) {
    this.#signaling.send({ type: "subscribe", trackId, ...how });
  }

  /** Everything is subscribed until it is not. */
  unsubscribe(trackId) {
    this.#signaling.send({ type: "unsubscribe", trackId });
  }

  /**
   * Receives some of a kind at a time instead of everything; tracks come and go as `track-added` and `track-removed`.
   * @param {"audio"|"video"} kind
   * @param {Reception} [some] everything without it.
   */
  receive(kind, some) {
    if (some) this.#receptions.set(kind, some);
    else this.#receptions.delete(kind);
    this.#signaling.send({ type: "receive", kind, ...some });
  }

  /**
   * The channel of a label, opened on first use.
   * @param {string} label
   * @param {RTCDataChannelInit} [options] `{ordered, maxRetransmits}` as of the first use.
   * @returns {Channel}
   */
  data(label, options = {}) {
    let channel = this.#channels.get(label);
    if (!channel) {
      channel = new Channel(label, options);
      this.#channels.set(label, channel);
      if (this.#connection) channel.transmit(this.#connection);
    }
    return channel;
  }

  /** Sends a peer out of the room. */
  kick(peerId) {
    this.#signaling.send({ type: "kick", peerId });
  }

  /** Mutes another peer's track. */
  mute(trackId) {
    this.#signaling.send({ type: "mute", trackId });
  }

  // Signalling.

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #setState(state) {
    this.state = state;
    this.#emit("state", { state, media: this.#connection?.connectionState ?? "new" });
  }

  /** Runs steps one after the other; one that fails is told and does not stop the next. */
  #enqueue(step) {
    this.#steps = this.#steps
      .then(() => (this.state === "closed" ? undefined : step()))
      .catch((error) => this.#emit("error", { error }));
  }

  #lost(error, again) {
    if (error) return this.#finish(error);
    if (this.#joining && this.#signaling.untried) return again();
    if (this.#joining) return this.#finish(new RoomError("unreachable", "The server cannot be reached.", true));
    if (this.state !== "reconnecting") this.#setState("reconnecting");
    return again();
  }

  #finish(error) {
    if (this.state === "closed") return;
    globalThis.removeEventListener("online", this.#online);
    this.#signaling.close();
    this.state = "closed";
    this.#dropConnection();
    if (this.#joining) this.#joining.reject(error ?? new RoomError("left", "The room was left."));
    else if (error) this.#emit("error", { error });
    this.#joining = null;
    this.#setState("closed");
  }

  /** Takes a new place in the room, which is made anew with all that is in it. */
  #rejoin() {
    this.#resume = undefined;
    this.#move(this.#signaling.url);
  }

  /** Goes through another gateway; what is here goes once it is there. */
  #move(url) {
    this.#moving = true;
    this.#setState(this.#joining ? "connecting" : "reconnecting");
    this.#signaling.move(url);
  }

  #receive(message) {
    switch (message.type) {
      case "welcome":
        return this.#welcome(message);
      case "turn-credentials":
      case "refresh-credentials":
        return this.#credentials(message);
      case "offer":
        return this.#offered(message);
      case "answer":
        return this.#answered(message);
      case "ice-candidate":
        return this.#negotiation?.candidate(message);
      case "peer-joined":
        return this.#roster.joined(message);
      case "peer-left":
        return this.#roster.left(message.peerId, message.reason);
      case "track-added":
        this.#roster.trackAdded(message);
        return this.#roster.attach(this.#connection);
      case "track-removed":
        return this.#roster.trackRemoved(message.trackId);
      case "slot":
        return this.#roster.slot(message, this.#connection);
      case "track-state":
        return this.#trackState(message);
      case "layers":
        return this.#watched(message);
      case "active-speakers":
        return this.#emit("active-speakers", { peers: message.peers });
      case "data-channel":
        return this.#incoming?.name(message);
      case "server-draining":
        this.#emit("draining", message);
        return message.reconnectUrl ? this.#move(message.reconnectUrl) : undefined;
      case "room-closed":
      case "kicked":
        this.#emit(message.type, { reason: message.reason });
        return this.#finish(null);
      case "error":
        return this.#refused(message);
      default:
        return undefined; // a newer server may say more than this client knows
    }
  }

  async #refused({ code, message, fatal }) {
    const error = new RoomError(code, message, fatal);
    if (this.#joining) return this.#finish(error);
    if (code === "invalid_offer") await this.#negotiation?.refused();
    return this.#emit("error", { error });
  }

  #welcome({ peerId, userId, resume, peers }) {
    this.#signaling.settled();
    const fresh = this.peerId !== peerId;
    if (fresh) this.#dropConnection();
    Object.assign(this, { peerId, userId });
    if (fresh) for (const [kind, some] of this.#receptions) this.#signaling.send({ type: "receive", kind, ...some });
    this.#resume = resume;
    this.#roster.reconcile(peers);
    this.#roster.attach(this.#connection);
  }

  async #credentials({ uris, username, password }) {
    const { transport } = this.#options;
    const urls = transport ? uris.filter(TRANSPORTS[transport]) : uris;
    this.#iceServers = [{ urls, username, credential: password }];
    if (this.#connection) this.#connection.setConfiguration(this.#configuration());
    else this.#startConnection();
    if (this.state === "connected") return;
    this.#setState("connected");
    this.#joining?.resolve();
    this.#joining = null;
    // The node that goes down may be the one that relays for us.
    if (this.#moving) this.#watch.moved();
    this.#moving = false;
    this.#negotiation.resumed();
    for (const publication of this.publications) this.#announceMute(publication);
    await new Promise((resolve) => setTimeout(resolve)); // whoever waited for join() listens before more happens
  }

  // The peer connection.

  #configuration() {
    return { iceServers: this.#iceServers, iceTransportPolicy: "relay", bundlePolicy: "max-bundle" };
  }

  #startConnection() {
    const connection = new RTCPeerConnection(this.#configuration());
    this.#connection = connection;
    this.#incoming = new Incoming((peerId, label, data) => {
      this.#emit("data", { peer: this.peers.get(peerId) ?? null, peerId, label, data });
    });
    connection.onicecandidate = ({ candidate }) => {
      const end = { candidate: "", sdpMid: null, sdpMLineIndex: null };
      this.#signaling.send({ type: "ice-candidate", ...(candidate?.toJSON() ?? end) });
    };
    connection.ondatachannel = ({ channel }) => this.#incoming.opened(channel);
    const watch = new IceWatch(connection, () => this.state === "connected" && this.#rejoin());
    this.#watch = watch;
    const line = new LineWatch(connection, { lossy: (lossy) => this.#repeat(lossy), silent: () => watch.moved() });
    this.#line = line;
    this.#negotiation = new Negotiation(connection, {
      enqueue: (step) => this.#enqueue(step),
      ready: () => this.state === "connected" && this.#signaling.open,
      send: (message) => this.#signaling.send(message),
      sources: () => this.#sources(),
      encrypted: () => Boolean(this.#options.transforms?.send),
      stalled: () => watch.stalled || line.silent,
      deaf: () => this.#signaling.distrust(),
    });
    connection.onconnectionstatechange = () => {
      if (this.#connection === connection) this.#setState(this.state);
    };
    // Nothing is ever sent on this one: it makes room for data now, so that the first message of others finds it.
    connection.createDataChannel("", { negotiated: true, id: 0 });
    const { send, receive } = this.#options.transforms ?? {};
    if (receive) connection.addEventListener("track", ({ receiver }) => receive(receiver));
    for (const publication of this.publications) {
      publication.repeat(false);
      publication.transmit(connection, send);
    }
    for (const channel of this.#channels.values()) channel.transmit(connection);
  }

  /** Forgets all that hung on the peer connection; what is published comes back with the next one. */
  #dropConnection() {
    const connection = this.#connection;
    this.#connection = this.#incoming = null;
    this.#watch?.close();
    this.#line?.close();
    this.#negotiation?.close();
    this.#watch = this.#line = this.#negotiation = null;
    for (const publication of this.publications) publication.transceiver = null;
    this.#roster.clear();
    connection?.close();
  }

  #sources() {
    const published = [...this.publications].filter((publication) => publication.mid !== null);
    return Object.fromEntries(published.map(({ mid, source }) => [mid, source]));
  }

  async #answered({ sdp }) {
    if (!(await this.#negotiation?.answered(sdp))) return;
    for (const publication of this.publications) if (publication.muted) this.#announceMute(publication);
  }

  async #offered({ sdp }) {
    if (await this.#negotiation?.offered(sdp)) this.#roster.attach(this.#connection);
  }

  #trackState(message) {
    const { trackId, muted } = message;
    if (this.#roster.trackState(message)) return;
    const own = streamIds(this.#connection?.localDescription?.sdp ?? "");
    for (const publication of this.publications) {
      const { mid } = publication;
      if (publication.muted === muted || (mid !== trackId && own.get(mid)?.trackId !== trackId)) continue;
      publication.silence(muted);
      this.#emit("track-state", { publication, muted });
    }
  }

  /** Nobody has to send what nobody watches. */
  async #watched({ mid, layers, rids }) {
    for (const publication of this.publications) if (publication.mid === mid) await publication.confine(layers, rids);
  }

  /** Sends sound twice while the line loses packets. */
  #repeat(lossy) {
    const changed = [...this.publications].filter((publication) => publication.repeat(lossy));
    if (changed.length) this.#enqueue(() => this.#negotiation?.renew());
  }

  #announceMute({ mid, muted }) {
    if (mid !== null) this.#signaling.send({ type: "track-state", trackId: mid, muted });
  }
}
