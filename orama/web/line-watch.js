/**
 * Watches over what is lost on the line of one peer connection, and does what helps.
 *
 * Sound that we send: while the SFU misses some of it each packet carries the one before it as well.
 * Pictures that we receive: a packet that was lost comes again a round trip later, and browsers keep pictures back for
 * less than that, so that on long lines they drop frames although all of them arrive. Where that is seen, more is kept
 * back: a delay of about a round trip, for sound too, which stays with its pictures.
 * Everything: when all that came stops at once the way is gone, as when a telephone leaves the house and its address
 * changes. ICE takes 6 s or more to notice.
 * @module line-watch
 */

/** How often to look whether anything comes, and at how many of these looks at what. */
const LOOK_MS = 500;
const CLOSELY = 4;
/** Packets that come between two looks, so that none between the next three means that the way is gone. */
const FLOWING = 10;
const SILENT = 2;
/** How long to wait until that is said once more. */
const AGAIN_MS = 10_000;
/** The share of packets lost from which sound is sent twice. */
const LOSSY = 0.02;
/** How long nothing may be lost until all is as it was before. */
const CALM_MS = 30_000;
/** Frames dropped between two looks, while packets were asked for again, from which more is kept back. */
const DROPPED = 2;
/** What is kept back: the round trip and so much more, and with frames dropped all the same another step; at most. */
const BEYOND_MS = 40;
const STEP_MS = 50;
const MOST_MS = 400;

export class LineWatch {
  #connection;
  #on;
  #now;
  #timer;
  #looks = 0;
  /** Packets that had come at the last look, and between it and the one before; looks since at which none had. */
  #received = 0;
  #came = 0;
  #flowing = false;
  #silent = 0;
  #said = Number.NEGATIVE_INFINITY;
  #lossy = false;
  #lost = Number.NEGATIVE_INFINITY;
  /** By mid: what was counted at the last look, and when packets were asked for again. */
  #pictures = new Map();

  /**
   * @param {RTCPeerConnection} connection
   * @param {object} on
   * @param {(lossy: boolean) => void} on.lossy whether sound is to be sent twice from now on.
   * @param {() => void} on.silent nothing comes any more.
   * @param {() => number} [now] milliseconds.
   */
  constructor(connection, on, now = () => performance.now()) {
    this.#connection = connection;
    this.#on = on;
    this.#now = now;
    this.#timer = setInterval(() => this.look(), LOOK_MS);
  }

  /** Has all that came stopped? */
  get silent() {
    return this.#flowing && this.#silent >= SILENT;
  }

  close() {
    clearInterval(this.#timer);
  }

  /** Does what the statistics of the moment call for. */
  async look() {
    const report = await this.#connection.getStats();
    const entries = [...report.values()];
    const transport = entries.find(({ type }) => type === "transport");
    if (transport) this.#hear(transport.packetsReceived);
    this.#looks += 1;
    if (this.#looks % CLOSELY) return;
    this.#listen(entries.filter(({ type, kind }) => type === "remote-inbound-rtp" && kind === "audio"));
    const pair = report.get(transport?.selectedCandidatePairId);
    for (const entry of entries) {
      if (entry.type === "inbound-rtp" && entry.kind === "video") this.#see(entry, (pair?.currentRoundTripTime ?? 0) * 1000);
    }
  }

  /** So many packets have come, of any kind: who sends hears 20 times a second what arrives of it. */
  #hear(packets = 0) {
    const came = packets - this.#received;
    this.#received = packets;
    if (came > 0) {
      this.#flowing = Math.max(came, this.#came) >= FLOWING;
      this.#came = came;
      this.#silent = 0;
      return;
    }
    this.#silent += 1;
    const now = this.#now();
    if (!this.#flowing || this.#silent !== SILENT || now - this.#said < AGAIN_MS) return;
    this.#said = now;
    this.#on.silent();
  }

  /** What the SFU reports of our sound. */
  #listen(reports) {
    const now = this.#now();
    if (reports.some(({ fractionLost = 0 }) => fractionLost >= LOSSY)) this.#lost = now;
    const lossy = now - this.#lost < CALM_MS;
    if (lossy === this.#lossy) return;
    this.#lossy = lossy;
    this.#on.lossy(lossy);
  }

  /** How one video is received. */
  #see({ mid, nackCount = 0, framesDropped = 0 }, roundTrip) {
    const receiver = this.#connection.getTransceivers().find((transceiver) => transceiver.mid === mid)?.receiver;
    if (!receiver || !("jitterBufferTarget" in receiver)) return;
    const now = this.#now();
    const before = this.#pictures.get(mid) ?? { nackCount, framesDropped, asked: Number.NEGATIVE_INFINITY };
    const asked = nackCount > before.nackCount ? now : before.asked;
    this.#pictures.set(mid, { nackCount, framesDropped, asked });
    if (now - asked > CALM_MS) {
      if (receiver.jitterBufferTarget !== null) receiver.jitterBufferTarget = null;
    } else if (asked === now && framesDropped - before.framesDropped >= DROPPED) {
      const kept = receiver.jitterBufferTarget;
      receiver.jitterBufferTarget = Math.min(MOST_MS, kept === null ? Math.round(roundTrip + BEYOND_MS) : kept + STEP_MS);
    }
  }
}
