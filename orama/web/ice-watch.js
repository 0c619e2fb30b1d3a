/**
 * Watches over one peer connection's way to the relay, and restarts ICE where it breaks.
 * @module ice-watch
 */

/** How long ICE may be `disconnected` before it is restarted; a lost packet or two is no reason. */
const DISCONNECTED_MS = 1_000;
/** Restarts without success after which the whole connection is made anew. */
const MAX_RESTARTS = 3;

export class IceWatch {
  #connection;
  #giveUp;
  #timer = undefined;
  #restarts = 0;

  /** @param {RTCPeerConnection} connection @param {() => void} giveUp restarting does not help. */
  constructor(connection, giveUp) {
    this.#connection = connection;
    this.#giveUp = giveUp;
    connection.oniceconnectionstatechange = () => this.#changed(connection.iceConnectionState);
  }

  /** Does no media flow, though it has? */
  get stalled() {
    return ["disconnected", "failed"].includes(this.#connection.iceConnectionState);
  }

  /** The relay may be another one now, or our own address. */
  moved() {
    if (this.#connection.iceConnectionState !== "new") this.#connection.restartIce();
  }

  close() {
    clearTimeout(this.#timer);
    this.#connection.oniceconnectionstatechange = null;
  }

  #changed(state) {
    clearTimeout(this.#timer);
    if (state === "connected" || state === "completed") this.#restarts = 0;
    else if (state === "disconnected") this.#timer = setTimeout(() => this.#restart(), DISCONNECTED_MS);
    else if (state === "failed") this.#restart();
  }

  #restart() {
    if (this.#restarts++ < MAX_RESTARTS) this.#connection.restartIce();
    else this.#giveUp();
  }
}
