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

/** Closing codes of the signalling socket after which another attempt would end the same way. */
const FINAL_CODES = new Map([
  [4401, ["not_authenticated", "The key or token was not accepted."]],
  [4403, ["forbidden", "This key or token may not join this room."]],
  [4404, ["not_found", "There is no such room or namespace."]],
  [4409, ["replaced", "This place in the room was taken over by another connection."]],
]);
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 10_000;
/** How long an offer of ours may stay unanswered before it is sent again. */
const OFFER_TIMEOUT_MS = 6_000;
/** How long ICE may be `disconnected` before it is restarted; a lost packet or two is no reason. */
const DISCONNECTED_MS = 2_500;
/** Restarts without success after which the whole connection is made anew. */
const MAX_RESTARTS = 3;
/** Bytes that a data channel keeps while it is not open yet. */
const MAX_QUEUED_BYTES = 1 << 20;

/** An error with one of the contract's stable codes. */
export class RoomError extends Error {
  /** @param {string} code @param {string} message @param {boolean} [fatal] */
  constructor(code, message, fatal = false) {
    super(message);
    this.name = "RoomError";
    this.code = code;
    this.fatal = fatal;
  }
}

/**
 * @typedef {object} ConnectOptions
 * @property {string} room room id: 1–128 of `[A-Za-z0-9_.:-]`.
 * @property {string} [url] base address of the node, `https://host`; the page's own origin by default.
 * @property {string} [apiKey] a namespace key, `ak_…:namespace`.
 * @property {string | (() => string | Promise<string>)} [token] a JWT, or what fetches a fresh one.
 * @property {string} [userId] who this is; a token's `sub` goes before it.
 * @property {*} [metadata] anything that JSON carries: the other peers get it as it is.
 * @property {"udp"|"tcp"|"tls"} [transport] use only this way to the relay; all of them by default.
 */

/**
 * @typedef {object} RemoteTrack
 * @property {string} trackId
 * @property {string} peerId whose it is.
 * @property {"audio"|"video"} kind
 * @property {string} source `camera`, `microphone`, `screen`, …
 * @property {?string} mid of this client's own connection; null while not forwarded.
 * @property {string[]} layers what {@link Room#subscribe} can choose from.
 * @property {boolean} muted
 * @property {?MediaStreamTrack} mediaTrack null until the browser has it.
 */

/**
 * @typedef {object} Peer
 * @property {string} peerId
 * @property {string} userId
 * @property {*} metadata
 * @property {Map<string, RemoteTrack>} tracks by track id.
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

/** One track that this client publishes, on a transceiver of its own. */
export class Publication {
  #room;

  constructor(room, track, options) {
    this.#room = room;
    /** @type {string} */
    this.source = options.source;
    /** @type {"audio"|"video"} */
    this.kind = track.kind;
    /** @type {MediaStreamTrack} */
    this.track = track;
    /** @type {boolean} */
    this.muted = options.muted ?? false;
    /** @type {RTCRtpEncodingParameters[] | undefined} */
    this.encodings = options.encodings;
    /** @type {?RTCRtpTransceiver} */
    this.transceiver = null;
  }

  /** The m-line this is on; null before it has been negotiated. */
  get mid() {
    return this.transceiver?.mid ?? null;
  }

  /** Sends nothing (video) or silence (audio), and says so to the others. */
  mute() {
    return this.#setMuted(true);
  }

  unmute() {
    return this.#setMuted(false);
  }

  /** Sends another track of the same kind in place of this one: a changed device, without negotiation. */
  async replaceTrack(track) {
    this.track = track;
    this.applyMute();
    await this.transceiver?.sender.replaceTrack(this.#outgoing());
  }

  async #setMuted(muted) {
    if (this.muted === muted) return;
    this.muted = muted;
    this.applyMute();
    await this.transceiver?.sender.replaceTrack(this.#outgoing());
    this.#room.announceMute(this);
  }

  /** Silences or revives the source itself. */
  applyMute() {
    this.track.enabled = !this.muted;
  }

  #outgoing() {
    return this.muted && this.kind === "video" ? null : this.track;
  }
}

/**
 * A data channel of one label: what is sent here reaches every other peer in the room.
 *
 * It outlives the connection under it. Events: `open`, `close`. What others send on the label arrives as
 * the room's `data` event.
 */
export class Channel extends EventTarget {
  #queue = [];
  #queued = 0;
  #under = null;

  /** @param {string} label @param {RTCDataChannelInit} options */
  constructor(label, options) {
    super();
    this.label = label;
    this.options = options;
  }

  /** `connecting`, `open`, `closing` or `closed`. */
  get readyState() {
    return this.#under?.readyState ?? "connecting";
  }

  /** Bytes given to send that have not left yet. */
  get bufferedAmount() {
    return this.#queued + (this.#under?.bufferedAmount ?? 0);
  }

  /**
   * Sends text or bytes; what comes before the channel is open is kept, up to 1 MiB.
   * @param {string | ArrayBuffer | ArrayBufferView} data
   */
  send(data) {
    if (this.#under?.readyState === "open") return this.#under.send(data);
    const size = typeof data === "string" ? data.length : data.byteLength;
    if (this.#queued + size > MAX_QUEUED_BYTES) throw new RoomError("queue_full", "The channel is not open yet.");
    this.#queue.push(data);
    this.#queued += size;
  }

  close() {
    this.#under?.close();
    this.#queue.length = this.#queued = 0;
  }

  /** Puts a fresh RTCDataChannel under this one. */
  attach(under) {
    this.#under = under;
    under.binaryType = "arraybuffer";
    under.onopen = () => {
      for (const data of this.#queue.splice(0)) under.send(data);
      this.#queued = 0;
      this.dispatchEvent(new Event("open"));
    };
    under.onclose = () => {
      if (this.#under === under) this.dispatchEvent(new Event("close"));
    };
  }
}

/**
 * A place in a room. Every event is a CustomEvent; what `detail` holds:
 *
 * | event | detail |
 * |---|---|
 * | `state` | `{state, media}`: `new`, `connecting`, `connected`, `reconnecting`, `closed`; the peer connection's own state |
 * | `peer-joined` | `{peer}` |
 * | `peer-left` | `{peer, reason}` |
 * | `track-added` | `{peer, track}`, once `track.mediaTrack` is there |
 * | `track-removed` | `{peer, track}` |
 * | `track-state` | `{peer, track, muted}` of another peer, `{publication, muted}` when an owner muted us |
 * | `active-speakers` | `{peers: [{peerId, level}]}`, loudest first |
 * | `data` | `{peer, peerId, label, data}`: text as string, bytes as ArrayBuffer |
 * | `draining` | `{reason, deadlineMs, reconnectUrl}` |
 * | `room-closed`, `kicked` | `{reason}`; the room is closed then |
 * | `error` | `{error}`, a {@link RoomError} |
 */
export class Room extends EventTarget {
  /** @type {Map<string, Peer>} the others, by peer id. */
  peers = new Map();
  /** @type {Set<Publication>} what this client publishes. */
  publications = new Set();
  /** @type {?string} */
  peerId = null;
  /** @type {?string} */
  userId = null;
  /** `new`, `connecting`, `connected`, `reconnecting` or `closed`. */
  state = "new";

  #options;
  #url;
  #socket = null;
  #former = null;
  #resume = undefined;
  #connection = null;
  #iceServers = [];
  #steps = Promise.resolve();
  #joining = null;
  #attempt = 0;
  #retryTimer = undefined;
  #offerTimer = undefined;
  #iceTimer = undefined;
  #restarts = 0;
  #wantsOffer = false;
  #tokenRenewed = false;
  #channels = new Map();
  #senders = new Map();
  #unnamed = new Map();
  #online = () => this.state === "reconnecting" && this.#open();

  /** @param {ConnectOptions} options */
  constructor(options) {
    super();
    this.#options = options;
    this.#url = options.url ?? globalThis.location.origin;
  }

  get roomId() {
    return this.#options.room;
  }

  /** @type {?RTCPeerConnection} for statistics; what it negotiates is this object's business. */
  get connection() {
    return this.#connection;
  }

  /** Enters the room; {@link connect} does it. */
  join() {
    if (this.state !== "new") throw new RoomError("invalid_join", "A Room is joined once.");
    globalThis.addEventListener?.("online", this.#online);
    this.#setState("connecting");
    return new Promise((resolve, reject) => {
      this.#joining = { resolve, reject };
      this.#open();
    });
  }

  /** Leaves for good: the others see it at once, local tracks stay with who made them. */
  leave() {
    this.#send({ type: "leave" });
    this.#finish();
  }

  // ---- publishing

  /**
   * Publishes a track on a transceiver of its own.
   * @param {MediaStreamTrack} track
   * @param {object} [options]
   * @param {string} [options.source] `camera`, `microphone`, `screen` or a name of yours.
   * @param {boolean} [options.muted] begin muted.
   * @param {RTCRtpEncodingParameters[]} [options.encodings] for simulcast, or a cap on the bitrate.
   * @returns {Publication}
   */
  publish(track, options = {}) {
    const source = options.source ?? (track.kind === "audio" ? "microphone" : "camera");
    const publication = new Publication(this, track, { ...options, source });
    this.publications.add(publication);
    publication.applyMute();
    if (this.#connection) this.#transmit(publication);
    return publication;
  }

  /** @param {MediaTrackConstraints | boolean} [constraints] @param {object} [options] see {@link publish} */
  async publishCamera(constraints = true, options = {}) {
    const media = await navigator.mediaDevices.getUserMedia({ video: constraints });
    return this.publish(media.getVideoTracks()[0], { ...options, source: "camera" });
  }

  /** @param {MediaTrackConstraints | boolean} [constraints] @param {object} [options] see {@link publish} */
  async publishMicrophone(constraints = true, options = {}) {
    const media = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    return this.publish(media.getAudioTracks()[0], { ...options, source: "microphone" });
  }

  /** Asks which screen to show. Ends by itself when the person stops sharing. */
  async publishScreen(constraints = { video: true }, options = {}) {
    const media = await navigator.mediaDevices.getDisplayMedia(constraints);
    const track = media.getVideoTracks()[0];
    if ("contentHint" in track) track.contentHint = "detail";
    const publication = this.publish(track, { ...options, source: "screen" });
    track.addEventListener("ended", () => this.unpublish(publication));
    return publication;
  }

  /** Stops sending a track and frees its m-line. The track itself is not stopped. */
  unpublish(publication) {
    if (!this.publications.delete(publication)) return;
    publication.transceiver?.stop();
    publication.transceiver = null;
  }

  // ---- subscribing

  /**
   * Takes a track that was unsubscribed, or chooses how much of it to take.
   * @param {string} trackId
   * @param {{layer?: "low"|"mid"|"high"|"auto", priority?: number}} [how]
   */
  subscribe(trackId, how = {}) {
    this.#send({ type: "subscribe", trackId, ...how });
  }

  /** Everything is subscribed until it is not. */
  unsubscribe(trackId) {
    this.#send({ type: "unsubscribe", trackId });
  }

  // ---- data

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
      if (this.#connection) this.#openChannel(channel);
    }
    return channel;
  }

  // ---- what owners may do

  kick(peerId) {
    this.#send({ type: "kick", peerId });
  }

  /** Mutes another peer's track. */
  mute(trackId) {
    this.#send({ type: "mute", trackId });
  }

  /** Tells the others about a publication's mute; {@link Publication#mute} does it. */
  announceMute(publication) {
    if (publication.mid !== null) this.#send({ type: "track-state", trackId: publication.mid, muted: publication.muted });
  }

  // ---- the signalling socket

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #setState(state) {
    this.state = state;
    this.#emit("state", { state, media: this.#connection?.connectionState ?? "new" });
  }

  /** Runs steps one after the other; one that fails is told and does not stop the next. */
  #enqueue(step) {
    this.#steps = this.#steps.then(step).catch((error) => {
      if (this.state !== "closed") this.#emit("error", { error });
    });
  }

  #send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  async #open() {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = undefined;
    const { room, apiKey, token, userId, metadata } = this.#options;
    let credential;
    try {
      credential = apiKey ?? (typeof token === "function" ? await token() : token);
    } catch (error) {
      return this.#dropped(1006, error);
    }
    if (this.state === "closed") return;
    const url = new URL(`/v1/webrtc/signal?room=${encodeURIComponent(room)}`, this.#url);
    url.protocol = url.protocol.replace("http", "ws");
    // A subprotocol is an HTTP token: a key's colon has to be percent-encoded.
    const protocols = credential ? ["orama", `auth.${encodeURIComponent(credential)}`] : ["orama"];
    const socket = new WebSocket(url, protocols);
    this.#socket = socket;
    socket.onopen = () => {
      const resume = this.#resume;
      socket.send(JSON.stringify({ type: "join", roomId: room, userId, metadata, resume }));
    };
    socket.onmessage = ({ data }) =>
      this.#enqueue(() => (this.#socket === socket ? this.#receive(JSON.parse(data)) : undefined));
    socket.onclose = ({ code, reason }) =>
      this.#enqueue(() => (this.#socket === socket ? this.#dropped(code, reason) : undefined));
  }

  #dropped(code, reason) {
    if (this.state === "closed") return;
    this.#socket = null;
    const { token } = this.#options;
    const renew = code === 4401 && typeof token === "function" && !this.#tokenRenewed;
    if (FINAL_CODES.has(code) && !renew) {
      const [name, text] = FINAL_CODES.get(code);
      return this.#finish(new RoomError(name, text, true));
    }
    if (this.#joining && !renew) {
      const text = code === 1001 ? "The server is shutting down." : "The server cannot be reached.";
      const fault = reason instanceof Error ? reason : new RoomError("unreachable", text, true);
      return this.#finish(fault);
    }
    this.#tokenRenewed ||= renew;
    if (this.state !== "reconnecting" && !this.#joining) this.#setState("reconnecting");
    const longest = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#attempt++);
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#open(), longest * (0.5 + Math.random() / 2));
  }

  #finish(error = null) {
    if (this.state === "closed") return;
    for (const timer of [this.#retryTimer, this.#offerTimer, this.#iceTimer]) clearTimeout(timer);
    globalThis.removeEventListener?.("online", this.#online);
    this.#dropConnection();
    this.#former?.close();
    this.#socket?.close(1000);
    this.#socket = this.#former = null;
    this.state = "closed";
    if (this.#joining) this.#joining.reject(error ?? new RoomError("left", "The room was left."));
    else if (error) this.#emit("error", { error });
    this.#joining = null;
    this.#setState("closed");
  }

  /** Takes a new place in the room, here or on another node; the old one goes once the new one is there. */
  #rejoin(url = this.#url) {
    this.#url = url;
    this.#resume = undefined;
    this.#former?.close();
    this.#former = this.#socket;
    this.#attempt = 0;
    if (this.state !== "reconnecting") this.#setState("reconnecting");
    this.#open();
  }

  async #receive(message) {
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
        return this.#candidate(message);
      case "peer-joined":
        return this.#peerJoined(message);
      case "peer-left":
        return this.#peerLeft(message.peerId, message.reason);
      case "track-added":
        return this.#trackAdded(message);
      case "track-removed":
        return this.#trackRemoved(message.trackId);
      case "track-state":
        return this.#trackState(message);
      case "active-speakers":
        return this.#emit("active-speakers", { peers: message.peers });
      case "data-channel":
        return this.#nameChannel(message);
      case "server-draining":
        this.#emit("draining", message);
        if (message.reconnectUrl) this.#rejoin(message.reconnectUrl);
        return undefined;
      case "room-closed":
      case "kicked":
        this.#emit(message.type, { reason: message.reason });
        return this.#finish(this.#joining ? new RoomError(message.type, "The room is closed.", true) : null);
      case "error":
        return this.#failed(message);
      default:
        return undefined; // a newer server may say more than this client knows
    }
  }

  async #failed({ code, message, fatal }) {
    const error = new RoomError(code, message, fatal);
    if (this.#joining) return this.#finish(error);
    if (this.#resume && this.state === "reconnecting") {
      this.#resume = undefined; // the place is gone: the next attempt joins afresh
      if (!fatal) this.#rejoin();
      return undefined;
    }
    if (code === "invalid_offer" && this.#connection?.signalingState === "have-local-offer") {
      clearTimeout(this.#offerTimer);
      await this.#connection.setLocalDescription({ type: "rollback" });
    }
    this.#emit("error", { error });
    return undefined;
  }

  #welcome({ peerId, userId, resume, peers }) {
    this.#former?.send(JSON.stringify({ type: "leave" }));
    this.#former?.close(1000);
    this.#former = null;
    if (this.peerId !== peerId) this.#dropConnection();
    this.peerId = peerId;
    this.userId = userId;
    this.#resume = resume;
    const present = new Set(peers.map((peer) => peer.peerId));
    for (const id of [...this.peers.keys()]) if (!present.has(id)) this.#peerLeft(id, "left");
    for (const peer of peers) {
      this.#peerJoined(peer);
      const tracks = peer.tracks ?? [];
      const known = this.peers.get(peer.peerId).tracks;
      for (const id of [...known.keys()]) if (!tracks.some((track) => track.trackId === id)) this.#trackRemoved(id);
      for (const track of tracks) this.#trackAdded({ ...track, peerId: peer.peerId });
    }
  }

  async #credentials({ uris, username, password }) {
    const { transport } = this.#options;
    const wanted = {
      udp: (uri) => uri.startsWith("turn:") && !uri.includes("transport=tcp"),
      tcp: (uri) => uri.startsWith("turn:") && uri.includes("transport=tcp"),
      tls: (uri) => uri.startsWith("turns:"),
    };
    const urls = transport ? uris.filter(wanted[transport]) : uris;
    this.#iceServers = [{ urls, username, credential: password }];
    if (this.#connection) this.#connection.setConfiguration(this.#configuration());
    else this.#startConnection();
    if (this.state === "connected") return;
    this.#attempt = 0;
    this.#tokenRenewed = false;
    this.#setState("connected");
    this.#joining?.resolve();
    this.#joining = null;
    if (this.#connection.signalingState === "have-local-offer") this.#sendOffer();
    else if (this.#wantsOffer) this.#enqueue(() => this.#offer());
    for (const publication of this.publications) if (publication.muted) this.announceMute(publication);
    await new Promise((resolve) => setTimeout(resolve)); // whoever waited for join() listens before more happens
  }

  // ---- the peer connection

  #configuration() {
    return { iceServers: this.#iceServers, iceTransportPolicy: "relay", bundlePolicy: "max-bundle" };
  }

  #startConnection() {
    const connection = new RTCPeerConnection(this.#configuration());
    this.#connection = connection;
    connection.onnegotiationneeded = () => this.#enqueue(() => this.#offer());
    connection.onicecandidate = ({ candidate }) => {
      if (candidate) this.#send({ type: "ice-candidate", ...candidate.toJSON() });
      else this.#send({ type: "ice-candidate", candidate: "", sdpMid: null, sdpMLineIndex: null });
    };
    connection.ondatachannel = ({ channel }) => this.#incoming(channel);
    connection.oniceconnectionstatechange = () => this.#iceChanged(connection);
    connection.onconnectionstatechange = () => {
      if (this.#connection === connection) this.#setState(this.state);
    };
    for (const publication of this.publications) this.#transmit(publication);
    for (const channel of this.#channels.values()) this.#openChannel(channel);
  }

  /** Forgets all that hung on the peer connection; what is published comes back with the next one. */
  #dropConnection() {
    const connection = this.#connection;
    this.#connection = null;
    this.#wantsOffer = false;
    this.#restarts = 0;
    clearTimeout(this.#offerTimer);
    clearTimeout(this.#iceTimer);
    for (const publication of this.publications) publication.transceiver = null;
    for (const id of [...this.peers.keys()]) this.#peerLeft(id, "left");
    this.#senders.clear();
    this.#unnamed.clear();
    connection?.close();
  }

  #transmit(publication) {
    const { track, encodings, muted, kind } = publication;
    const stream = new MediaStream([track]);
    const init = { direction: "sendonly", streams: [stream] };
    if (encodings) init.sendEncodings = encodings;
    publication.transceiver = this.#connection.addTransceiver(track, init);
    if (muted && kind === "video") publication.transceiver.sender.replaceTrack(null);
  }

  async #offer() {
    const connection = this.#connection;
    if (!connection || connection.signalingState !== "stable") return; // it asks again when it is stable
    this.#wantsOffer = this.#socket?.readyState !== WebSocket.OPEN || this.state !== "connected";
    if (this.#wantsOffer) return;
    await connection.setLocalDescription();
    if (this.#connection === connection && connection.signalingState === "have-local-offer") this.#sendOffer();
  }

  #sendOffer() {
    const connection = this.#connection;
    const sources = {};
    for (const publication of this.publications) if (publication.mid !== null) sources[publication.mid] = publication.source;
    this.#send({ type: "offer", sdp: connection.localDescription.sdp, sources });
    clearTimeout(this.#offerTimer);
    this.#offerTimer = setTimeout(
      () =>
        this.#enqueue(() => {
          if (this.#connection === connection && connection.signalingState === "have-local-offer") this.#sendOffer();
        }),
      OFFER_TIMEOUT_MS,
    );
  }

  async #answered({ sdp }) {
    if (this.#connection?.signalingState !== "have-local-offer") return;
    clearTimeout(this.#offerTimer);
    await this.#connection.setRemoteDescription({ type: "answer", sdp });
    for (const publication of this.publications) if (publication.muted) this.announceMute(publication);
  }

  async #offered({ sdp }) {
    const connection = this.#connection;
    if (!connection || connection.signalingState === "have-local-offer") return; // glare: the SFU yields and offers again
    await connection.setRemoteDescription({ type: "offer", sdp });
    await connection.setLocalDescription();
    this.#send({ type: "answer", sdp: connection.localDescription.sdp });
    this.#attachTracks();
  }

  async #candidate({ candidate, sdpMid, sdpMLineIndex, usernameFragment }) {
    if (!this.#connection?.remoteDescription || !candidate) return;
    try {
      await this.#connection.addIceCandidate({ candidate, sdpMid, sdpMLineIndex, usernameFragment });
    } catch {
      // It belongs to an offer that was ignored on glare; the next offer carries it again.
    }
  }

  #iceChanged(connection) {
    if (this.#connection !== connection) return;
    clearTimeout(this.#iceTimer);
    const state = connection.iceConnectionState;
    if (state === "connected" || state === "completed") this.#restarts = 0;
    else if (state === "disconnected") this.#iceTimer = setTimeout(() => this.#restartIce(connection), DISCONNECTED_MS);
    else if (state === "failed") this.#restartIce(connection);
  }

  #restartIce(connection) {
    if (this.#connection !== connection) return;
    if (this.#restarts++ < MAX_RESTARTS) connection.restartIce();
    else if (this.state === "connected") this.#rejoin();
  }

  // ---- peers and their tracks

  #peerJoined({ peerId, userId, metadata }) {
    if (this.peers.has(peerId)) return;
    const peer = { peerId, userId, metadata, tracks: new Map() };
    this.peers.set(peerId, peer);
    this.#emit("peer-joined", { peer });
  }

  #peerLeft(peerId, reason) {
    const peer = this.peers.get(peerId);
    if (!peer) return;
    for (const trackId of [...peer.tracks.keys()]) this.#trackRemoved(trackId);
    this.peers.delete(peerId);
    this.#emit("peer-left", { peer, reason });
  }

  #find(trackId) {
    for (const peer of this.peers.values()) {
      const track = peer.tracks.get(trackId);
      if (track) return { peer, track };
    }
    return {};
  }

  #trackAdded({ peerId, trackId, kind, source, mid = null, layers = [], muted }) {
    const peer = this.peers.get(peerId);
    if (!peer) return;
    const track = peer.tracks.get(trackId) ?? { trackId, peerId, kind, source, mediaTrack: null, muted: false };
    Object.assign(track, { mid: mid ?? track.mid ?? null, layers, muted: muted ?? track.muted });
    peer.tracks.set(trackId, track);
    this.#attachTracks();
  }

  #trackRemoved(trackId) {
    const { peer, track } = this.#find(trackId);
    if (!track) return;
    peer.tracks.delete(trackId);
    this.#emit("track-removed", { peer, track });
  }

  /**
   * Gives each remote track the browser's own. They meet by `mid` and msid of the SFU's last description,
   * as an m-line that is used again brings a MediaStreamTrack whose id is from its former life.
   */
  #attachTracks() {
    if (!this.#connection?.remoteDescription) return;
    const sections = streamIds(this.#connection.remoteDescription.sdp);
    const receivers = new Map(this.#connection.getTransceivers().map(({ mid, receiver }) => [mid, receiver]));
    for (const peer of this.peers.values()) {
      for (const track of peer.tracks.values()) {
        const section = sections.get(track.mid);
        if (section?.streamId !== track.peerId || section.trackId !== track.trackId) continue;
        const mediaTrack = receivers.get(track.mid)?.track;
        if (!mediaTrack || mediaTrack === track.mediaTrack) continue;
        track.mediaTrack = mediaTrack;
        this.#emit("track-added", { peer, track });
      }
    }
  }

  #trackState({ trackId, muted }) {
    const { peer, track } = this.#find(trackId);
    if (track) {
      track.muted = muted;
      return this.#emit("track-state", { peer, track, muted });
    }
    const own = streamIds(this.#connection?.localDescription?.sdp ?? "");
    for (const publication of this.publications) {
      if (publication.mid !== trackId && own.get(publication.mid)?.trackId !== trackId) continue;
      if (publication.muted === muted) continue;
      publication.muted = muted;
      publication.applyMute();
      this.#emit("track-state", { publication, muted });
    }
    return undefined;
  }

  // ---- data channels

  #openChannel(channel) {
    channel.attach(this.#connection.createDataChannel(channel.label, channel.options));
  }

  /** A channel that the SFU opened: `data-channel` says whose it is, before or after it opens. */
  #incoming(channel) {
    channel.binaryType = "arraybuffer";
    const early = [];
    if (!this.#senders.has(channel.id)) this.#unnamed.set(channel.id, early);
    channel.onmessage = ({ data }) => {
      const sender = this.#senders.get(channel.id);
      if (sender) this.#deliver(sender, data);
      else early.push(data);
    };
    channel.onclose = () => {
      this.#senders.delete(channel.id);
      this.#unnamed.delete(channel.id);
    };
  }

  #nameChannel({ peerId, label, id }) {
    const sender = { peerId, label };
    this.#senders.set(id, sender);
    for (const data of this.#unnamed.get(id) ?? []) this.#deliver(sender, data);
    this.#unnamed.delete(id);
  }

  #deliver({ peerId, label }, data) {
    this.#emit("data", { peer: this.peers.get(peerId) ?? null, peerId, label, data });
  }
}

/** What `a=msid` says on each m-line of a description: mid → {streamId, trackId}. */
function streamIds(sdp) {
  const found = new Map();
  for (const section of sdp.split(/^m=/m).slice(1)) {
    const mid = /^a=mid:(\S+)/m.exec(section)?.[1];
    const msid = /^a=msid:(\S+)(?: (\S+))?/m.exec(section);
    if (mid && msid) found.set(mid, { streamId: msid[1], trackId: msid[2] });
  }
  return found;
}
