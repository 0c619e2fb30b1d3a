/**
 * The signalling socket of a room: opening it, telling good endings from bad ones, and opening it again.
 *
 * It knows the address, the credential and the closing codes; what the messages mean is the room's business.
 * @module signaling
 */

/** Closing codes after which another attempt would end the same way. */
const FINAL_CODES = new Map([
  [4401, ["not_authenticated", "The key or token was not accepted."]],
  [4403, ["forbidden", "This key or token may not join this room."]],
  [4404, ["not_found", "There is no such room or namespace."]],
  [4409, ["replaced", "This place in the room was taken over by another connection."]],
]);
const FIRST_RETRY_MS = 250;
const LAST_RETRY_MS = 10_000;
/** How long a socket may take until the SFU has let us in. */
const SETTLE_MS = 10_000;

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

/** One WebSocket after the other to the same room. */
export class Signaling {
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
   * @param {string} options.url base address of the node.
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
  constructor({ url, room, apiKey, token }, on) {
    this.url = url;
    this.on = on;
    this.#room = room;
    this.#apiKey = apiKey;
    this.#token = token;
  }

  /** @returns {boolean} can something be sent now? */
  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
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
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => {
      socket.close();
      this.#lost(socket, 1006, null);
    }, SETTLE_MS);
    socket.onopen = () => {
      if (this.#socket === socket) socket.send(JSON.stringify(this.on.hello()));
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
    this.url = url;
    this.#attempts = 0;
    this.connect();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#deadline);
    this.#retire(false);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  #retire(leave) {
    if (leave && this.#former?.readyState === WebSocket.OPEN) this.#former.send('{"type":"leave"}');
    this.#former?.close(1000);
    this.#former = null;
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
      const longest = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#attempts++);
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.connect(), longest * (0.5 + Math.random() / 2));
    });
  }
}
