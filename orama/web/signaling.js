/**
 * The signalling socket of a room: opening it, telling good endings from bad ones, and opening it again.
 *
 * It knows the gateways, the credential and the closing codes; what the messages mean is the room's business. A socket
 * that is lost is opened again at once at the gateway where it was, then once at each of the others, and only then
 * with pauses.
 * @module signaling
 */

/** Closing codes after which another attempt would end the same way. */
const FINAL_CODES = new Map([
  [4401, ["not_authenticated", "The key or token was not accepted."]],
  [4403, ["forbidden", "This key or token may not join this room."]],
  [4404, ["not_found", "There is no such room or namespace."]],
  [4409, ["replaced", "This place in the room was taken over by another connection."]],
]);
/** The node goes down. */
const GOING_AWAY = 1001;
/** The node is there and has too much to do. */
const BUSY = new Set([1013, 4429]);
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 10_000;
/** How long a socket may take until the SFU has let us in. */
const SETTLE_MS = 10_000;
/** How long it may take to open where there is another gateway to try, and twice that on each further round. */
const OPEN_MS = 2_000;

/** An error with one of the contract's stable codes, or `unreachable`, `queue_full`, `left`. */
export class RoomError extends Error {
  /** @param {string} code @param {string} message @param {boolean} [fatal] */
  constructor(code, message, fatal = false) {
    super(message);
    this.name = "RoomError";
    this.code = code;
    this.fatal = fatal;
  }
}

/** The base address of a gateway, whether it was given for HTTP or for WebSockets. */
function gateway(address) {
  const url = new URL(address, globalThis.location?.href);
  url.protocol = url.protocol.replace("ws", "http");
  return url.origin;
}

/** One WebSocket after the other to the same room. */
export class Signaling {
  #gateways;
  #room;
  #apiKey;
  #token;
  #credential = null;
  #renewed = false;
  #socket = null;
  #former = null;
  #timer = undefined;
  #deadline = undefined;
  #attempts = 0;
  #closed = false;

  /**
   * @param {object} options
   * @param {string[]} options.urls base addresses of the gateways, the first one to begin with.
   * @param {string} options.room
   * @param {string} [options.apiKey]
   * @param {string | (() => string | Promise<string>)} [options.token] a function is asked once, and again when
   *   the server does not accept the token any more.
   * @param {object} on what happens:
   * @param {() => object} on.hello gives the first message on a fresh socket.
   * @param {(message: object) => void} on.message
   * @param {(error: ?RoomError, again: () => void) => void} on.lost the socket is gone; with an error for good,
   *   without one `again` plans the next attempt.
   */
  constructor({ urls, room, apiKey, token }, on) {
    this.#gateways = [...new Set(urls.map(gateway))];
    this.url = this.#gateways[0];
    this.on = on;
    this.#room = room;
    this.#apiKey = apiKey;
    this.#token = token;
  }

  /** @returns {boolean} can something be sent now? */
  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** @returns {boolean} is there a gateway that has not been tried since we were last let in? */
  get untried() {
    return this.#attempts < this.#gateways.length;
  }

  /** Sends a message; false when there is no socket to send it on. */
  send(message) {
    if (!this.open) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Opens a socket now, in place of any attempt that waits for its time. */
  async connect() {
    clearTimeout(this.#timer);
    if (this.#socket?.readyState === WebSocket.CONNECTING) return undefined;
    let credential;
    try {
      credential = this.#apiKey ?? (this.#credential ??= await this.#ask());
    } catch (error) {
      return this.#lost(null, 0, error);
    }
    if (this.#closed) return undefined;
    const address = new URL(`/v1/webrtc/signal?room=${encodeURIComponent(this.#room)}`, this.url);
    address.protocol = address.protocol.replace("http", "ws");
    // A subprotocol is an HTTP token (RFC 9110, 5.6.2): the colon of a key has to be percent-encoded.
    const protocols = credential ? ["orama", `auth.${encodeURIComponent(credential)}`] : ["orama"];
    const socket = new WebSocket(address, protocols);
    this.#socket = socket;
    const rounds = Math.floor(this.#attempts / this.#gateways.length);
    this.#expect(socket, this.#gateways.length > 1 ? Math.min(SETTLE_MS, OPEN_MS * 2 ** rounds) : SETTLE_MS);
    socket.onopen = () => {
      if (this.#socket !== socket) return;
      this.#expect(socket, SETTLE_MS);
      socket.send(JSON.stringify(this.on.hello()));
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket === socket) this.on.message(JSON.parse(data));
    };
    socket.onclose = ({ code }) => this.#lost(socket, code, null);
    return undefined;
  }

  /** The SFU has let us in: the next loss starts with short waits, and the socket before may go. */
  settled() {
    clearTimeout(this.#deadline);
    this.#attempts = 0;
    this.#renewed = false;
    this.#retire(true);
  }

  /** Opens a socket to *url* while the one there is stays, until {@link settled}. */
  move(url) {
    this.#retire(false);
    this.#former = this.#socket;
    this.#socket = null;
    this.url = gateway(url);
    if (!this.#gateways.includes(this.url)) this.#gateways.push(this.url);
    this.#attempts = 0;
    this.connect();
  }

  /** Gives the socket up, because nothing comes out of it any more, and turns to the next gateway. */
  distrust() {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) return;
    socket.close();
    this.#lost(socket, GOING_AWAY, null);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#deadline);
    this.#retire(false);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  /** Gives *socket* so long until something comes of it. */
  #expect(socket, patience) {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => {
      socket.close();
      this.#lost(socket, 1006, null);
    }, patience);
  }

  #retire(leave) {
    if (leave && this.#former?.readyState === WebSocket.OPEN) this.#former.send('{"type":"leave"}');
    this.#former?.close(1000);
    this.#former = null;
  }

  /** Turns to the gateway whose turn it is, and gives the milliseconds to wait for it. */
  #pause(code) {
    const all = this.#gateways.length;
    const attempt = this.#attempts++;
    // After 1001 the gateway itself goes away: the next one is first.
    if (attempt > 0 || code === GOING_AWAY) this.url = this.#gateways[(this.#gateways.indexOf(this.url) + 1) % all];
    if (attempt < all && !BUSY.has(code)) return 0;
    const longest = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.max(0, attempt - all));
    return longest * (0.5 + Math.random() / 2);
  }

  #ask() {
    return typeof this.#token === "function" ? this.#token() : this.#token;
  }

  #lost(socket, code, fault) {
    if (this.#closed || this.#socket !== socket) return;
    this.#socket = null;
    clearTimeout(this.#deadline);
    const renew = code === 4401 && typeof this.#token === "function" && !this.#renewed;
    if (renew) {
      this.#credential = null;
      this.#renewed = true;
      this.connect();
      return;
    }
    const final = FINAL_CODES.get(code);
    const error = fault ?? (final ? new RoomError(final[0], final[1], true) : null);
    this.on.lost(error, () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.connect(), this.#pause(code));
    });
  }
}
