/**
 * One track that this client publishes.
 * @module publication
 */

/** Puts RED (RFC 2198), where each packet carries the one before it as well, first, last or nowhere: could it? */
function place(transceiver, where) {
  const codecs = RTCRtpSender.getCapabilities("audio")?.codecs ?? [];
  const red = codecs.filter(({ mimeType }) => mimeType.toLowerCase() === "audio/red");
  if (!red.length || !transceiver.setCodecPreferences) return false;
  const others = codecs.filter((codec) => !red.includes(codec));
  transceiver.setCodecPreferences({ first: [...red, ...others], last: [...others, ...red], nowhere: others }[where]);
  return true;
}

/** How long a mute waits for a black picture to go out, at most; frames that make one; how often it looks. */
const BLACK_MS = 300;
const BLACK_FRAMES = 2;
const LOOK_MS = 20;

/** It has a transceiver of its own, which a new connection replaces without anybody outside noticing. */
export class Publication {
  #announce;
  #repeats = false;
  #opaque = false;

  /**
   * @param {MediaStreamTrack} track
   * @param {{source: string, muted?: boolean, redundant?: boolean, encodings?: RTCRtpEncodingParameters[]}} options
   * @param {(publication: Publication) => void} announce tells the room that `muted` has changed.
   */
  constructor(track, { source, muted = false, redundant = false, encodings }, announce) {
    this.#announce = announce;
    /** `camera`, `microphone`, `screen` or a name of the application's. */
    this.source = source;
    /** `audio` or `video`. */
    this.kind = track.kind;
    /** @type {MediaStreamTrack} */
    this.track = track;
    this.muted = muted;
    this.redundant = redundant;
    this.encodings = encodings;
    /** @type {?RTCRtpTransceiver} */
    this.transceiver = null;
    track.enabled = !muted;
  }

  /** The m-line this is on; null before it has been negotiated. */
  get mid() {
    return this.transceiver?.mid ?? null;
  }

  /** Sends nothing (video, after a black picture, so that no other stays on a screen) or silence, and says so. */
  async mute() {
    if (this.muted) return;
    this.muted = true;
    this.track.enabled = false;
    await this.#blackened();
    if (!this.muted) return; // unmuted meanwhile
    await this.silence(true);
    this.#announce(this);
  }

  async unmute() {
    if (!this.muted) return;
    await this.silence(false);
    this.#announce(this);
  }

  /** Sends another track of the same kind in place of this one: a changed device, without negotiation. */
  async replaceTrack(track) {
    this.track = track;
    track.enabled = !this.muted;
    await this.transceiver?.sender.replaceTrack(this.#outgoing());
  }

  /** Puts the track on a connection; its sender is prepared before it sends anything. */
  transmit(connection, prepare = undefined) {
    const init = { direction: "sendonly", streams: [new MediaStream([this.track])] };
    if (this.encodings) init.sendEncodings = this.encodings;
    this.transceiver = connection.addTransceiver(this.track, init);
    this.#opaque = prepare !== undefined;
    if (this.kind === "audio") {
      if (this.redundant || (this.#repeats && !this.#opaque)) place(this.transceiver, "first");
      // What is encrypted must not be put together by the SFU either, for those whose lines lose packets.
      else if (this.#opaque) place(this.transceiver, "nowhere");
    }
    prepare?.(this.transceiver.sender, this);
    if (!this.#outgoing()) this.transceiver.sender.replaceTrack(null);
  }

  /** Sends sound twice from now on, or not any more, as the line needs it. @returns {boolean} is it to be negotiated? */
  repeat(repeats) {
    if (this.kind !== "audio" || this.redundant || this.#repeats === repeats) return false;
    this.#repeats = repeats;
    return Boolean(this.transceiver) && !this.#opaque && place(this.transceiver, repeats ? "first" : "last");
  }

  /** Mutes or unmutes without a word to the others: the SFU did it, and has told them. */
  async silence(muted) {
    this.muted = muted;
    this.track.enabled = !muted;
    await this.transceiver?.sender.replaceTrack(this.#outgoing());
  }

  /**
   * Sends only what somebody watches: these of its encodings, or where they have no names all of them or none.
   * @param {string[]} layers those that are watched, lowest first.
   * @param {string[]} rids their names.
   */
  async confine(layers, rids) {
    const { sender } = this.transceiver ?? {};
    const parameters = sender?.getParameters();
    if (!parameters?.encodings?.length) return;
    const wanted = ({ rid }) => (rid ? rids.includes(rid) : layers.length > 0);
    for (const [place, encoding] of parameters.encodings.entries()) {
      encoding.active = wanted(encoding) && (this.encodings?.[place]?.active ?? true);
    }
    await sender.setParameters(parameters);
  }

  /** Waits until the browser has sent black pictures, as it does for a track that is not enabled. */
  async #blackened() {
    const { sender } = this.transceiver ?? {};
    if (this.kind !== "video" || !sender?.track) return;
    const sent = async () => {
      const counts = [...(await sender.getStats()).values()].filter(({ type }) => type === "outbound-rtp");
      return Math.max(0, ...counts.map(({ framesSent, framesEncoded }) => framesSent ?? framesEncoded ?? 0));
    };
    const enough = (await sent()) + BLACK_FRAMES;
    const end = performance.now() + BLACK_MS;
    while (this.muted && performance.now() < end && (await sent()) < enough) {
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  #outgoing() {
    return this.muted && this.kind === "video" ? null : this.track;
  }
}
