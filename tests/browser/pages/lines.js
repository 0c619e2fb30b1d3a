/**
 * What is published over a bad line, and what is seen and heard of it at the other end.
 * @module lines
 */

/** The camera, as a track. */
export async function camera(width, height, frameRate) {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width, height, frameRate } });
  return stream.getVideoTracks()[0];
}

/** Lets a transceiver offer one codec, and what goes with any. */
export function prefer(transceiver, mimeType) {
  const { codecs } = RTCRtpSender.getCapabilities("video");
  const ours = codecs.filter((codec) => codec.mimeType.toLowerCase() === mimeType);
  transceiver.setCodecPreferences([...ours, ...codecs.filter((codec) => codec.mimeType === "video/rtx")]);
}

/** Plays a track, as people would. */
export function show(track) {
  const element = Object.assign(document.createElement(track.kind), { srcObject: new MediaStream([track]), autoplay: true });
  document.body.append(element);
}

/** Three layers: by rids, or in one stream by a scalability mode. */
export function encodings(scalabilityMode = "", bitrates = [120_000, 400_000, 1_200_000]) {
  if (scalabilityMode) return [{ scalabilityMode, maxBitrate: bitrates.reduce((sum, each) => sum + each) }];
  return bitrates.map((maxBitrate, index) => ({ rid: "qhf"[index], maxBitrate, scaleResolutionDownBy: 2 ** (2 - index) }));
}

/** Layers that are sent just now, the widest last: their width, frame rate and bytes. */
export async function sent(connection) {
  const outbound = [...(await connection.getStats()).values()].filter(({ type, kind }) => type === "outbound-rtp" && kind === "video");
  return outbound
    .map(({ rid, frameWidth = 0, framesPerSecond = 0, framesEncoded, bytesSent, encoderImplementation, scalabilityMode, qualityLimitationReason }) => (
      { rid, width: frameWidth, fps: framesPerSecond, frames: framesEncoded, bytes: bytesSent, encoderImplementation, scalabilityMode, limited: qualityLimitationReason }))
    .sort((one, other) => one.width - other.width);
}

/** Looks at what a connection receives, between `begin` and `end`. */
export class Sight {
  #pause = { longest: 0, since: 0, frames: -1 };

  /** @param {() => RTCPeerConnection} connection that of the moment. */
  constructor(connection) {
    this.connection = connection;
  }

  async begin() {
    this.began = await this.look();
    this.at = performance.now();
    this.#pause = { longest: 0, since: this.at, frames: this.began.video?.framesDecoded ?? 0 };
    this.timer = setInterval(() => this.#watch(), 50);
  }

  async end() {
    clearInterval(this.timer);
    await this.#watch();
    const seconds = (performance.now() - this.at) / 1000;
    const now = await this.look();
    const since = (kind, name) => (now[kind]?.[name] ?? 0) - (this.began[kind]?.[name] ?? 0);
    return {
      seconds,
      fps: since("video", "framesDecoded") / seconds,
      width: now.video?.frameWidth ?? 0,
      kbps: (since("video", "bytesReceived") * 8) / seconds / 1000,
      freezes: since("video", "freezeCount"),
      frozen: since("video", "totalFreezesDuration"),
      longest: this.#pause.longest / 1000,
      dropped: since("video", "framesDropped"),
      keyframes: since("video", "keyFramesDecoded"),
      lost: since("video", "packetsLost"),
      nacks: since("video", "nackCount"),
      plis: since("video", "pliCount"),
      audio_kbps: (since("audio", "bytesReceived") * 8) / seconds / 1000,
      concealed: since("audio", "concealedSamples") / Math.max(1, since("audio", "totalSamplesReceived")),
      concealments: since("audio", "concealmentEvents"),
      rtt: now.pair?.currentRoundTripTime ?? null,
    };
  }

  /** Entries of the video and the audio that flow (the last ones, where there were others before), and of the pair in use. */
  async look() {
    const found = {};
    const report = await this.connection().getStats();
    for (const entry of report.values()) {
      if (entry.type === "inbound-rtp" && (entry.packetsReceived ?? 0) >= (found[entry.kind]?.packetsReceived ?? 0)) found[entry.kind] = entry;
      if (entry.type === "transport" && entry.selectedCandidatePairId) found.pair = report.get(entry.selectedCandidatePairId);
    }
    return found;
  }

  async #watch() {
    const frames = (await this.look()).video?.framesDecoded ?? 0;
    const now = performance.now();
    this.#pause.longest = Math.max(this.#pause.longest, now - this.#pause.since);
    if (frames !== this.#pause.frames) Object.assign(this.#pause, { since: now, frames });
  }
}
