/**
 * Offer and answer on one peer connection, from the client's side.
 *
 * The client offers what it publishes, the SFU what it forwards. When both offer at once this side keeps to its own: it
 * ignores the SFU's offer, knowing that it will be made again. The caller runs the methods strictly one after the other.
 * @module negotiation
 */

/** How long an offer of ours may stay unanswered before it is sent again. */
const OFFER_TIMEOUT_MS = 6_000;
/** How long to wait after an offer that was refused, doubled with each refusal in a row. */
const REFUSED_MS = 1_000;
const MAX_REFUSED_MS = 30_000;
/** How long an offer may stay unanswered while no media flows, until the socket itself is given up. */
const SILENT_MS = 2_500;

export class Negotiation {
  #connection;
  #on;
  #timer = undefined;
  #refusals = 0;
  #wantsOffer = false;
  #wantsAnother = false;
  #closed = false;

  /**
   * @param {RTCPeerConnection} connection
   * @param {object} on
   * @param {(step: () => *) => void} on.enqueue runs a step after those that are waiting.
   * @param {() => boolean} on.ready would the SFU hear us?
   * @param {(message: object) => void} on.send
   * @param {() => object} on.sources what the m-lines are that we send on: mid to source.
   * @param {() => boolean} on.encrypted is anything that we send encrypted end to end?
   * @param {() => boolean} on.stalled does no media flow, though it has?
   * @param {() => void} on.deaf neither media nor an answer comes: the socket is no good.
   */
  constructor(connection, on) {
    this.#connection = connection;
    this.#on = on;
    connection.onnegotiationneeded = () => on.enqueue(() => (this.#refusals ? undefined : this.offer()));
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#connection.onnegotiationneeded = null;
  }

  get #offering() {
    return !this.#closed && this.#connection.signalingState === "have-local-offer";
  }

  /** Offers what has changed; where nobody hears it, {@link resumed} does. */
  async offer() {
    if (this.#closed || this.#connection.signalingState !== "stable") return; // it asks again when it is
    this.#wantsOffer = !this.#on.ready();
    if (this.#wantsOffer) return;
    await this.#connection.setLocalDescription();
    if (this.#offering) this.#send();
  }

  /** Offers once more, when an offer that waits has been answered: the browser does not know that something changed. */
  renew() {
    this.#wantsAnother = this.#offering;
    return this.offer();
  }

  /** There is a socket again: what was said into a dead one is said once more. */
  resumed() {
    if (this.#offering) this.#send();
    else if (this.#wantsOffer) this.#on.enqueue(() => this.offer());
  }

  #send() {
    const { sdp } = this.#connection.localDescription;
    this.#on.send({ type: "offer", sdp, sources: this.#on.sources(), encrypted: this.#on.encrypted() });
    clearTimeout(this.#timer);
    const stalled = this.#on.stalled();
    const again = () => {
      if (!this.#offering) return;
      if (stalled) this.#on.deaf();
      else this.#send();
    };
    this.#timer = setTimeout(() => this.#on.enqueue(again), stalled ? SILENT_MS : OFFER_TIMEOUT_MS);
  }

  /** The SFU cannot use our offer. */
  async refused() {
    if (!this.#offering) return;
    clearTimeout(this.#timer);
    const wait = Math.min(MAX_REFUSED_MS, REFUSED_MS * 2 ** this.#refusals++);
    this.#timer = setTimeout(() => this.#on.enqueue(() => this.offer()), wait);
    await this.#connection.setLocalDescription({ type: "rollback" }); // so that the SFU's offers get through
  }

  /** The SFU has answered. @returns {Promise<boolean>} was it an answer to our offer? */
  async answered(sdp) {
    if (!this.#offering) return false;
    clearTimeout(this.#timer);
    this.#refusals = 0;
    await this.#connection.setRemoteDescription({ type: "answer", sdp });
    if (this.#wantsAnother) this.#on.enqueue(() => this.renew());
    return true;
  }

  /** The SFU offers. @returns {Promise<boolean>} was it taken? */
  async offered(sdp) {
    if (this.#offering) {
      this.#send(); // glare: said again it tells the SFU that we keep to ours; its own comes again
      return false;
    }
    await this.#connection.setRemoteDescription({ type: "offer", sdp });
    await this.#connection.setLocalDescription();
    this.#on.send({ type: "answer", sdp: this.#connection.localDescription.sdp });
    return true;
  }

  async candidate({ candidate, sdpMid, sdpMLineIndex, usernameFragment }) {
    if (!this.#connection.remoteDescription || !candidate) return;
    try {
      await this.#connection.addIceCandidate({ candidate, sdpMid, sdpMLineIndex, usernameFragment });
    } catch {
      // It belongs to an offer that was ignored on glare; the next offer carries it again.
    }
  }
}
