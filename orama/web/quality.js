/**
 * How well the call runs, in numbers a person can read: differences between two looks at the statistics.
 * @module quality
 */

/**
 * @typedef {object} TrackQuality
 * @property {?number} bitrate bits per second since the last look; null at the first.
 * @property {?number} loss part of the packets lost since then, 0 to 1.
 * @property {number} [width]
 * @property {number} [height]
 * @property {number} [fps]
 */

export class Quality {
  #before = new Map();
  #connection = null;

  /**
   * Looks at a connection.
   * @param {RTCPeerConnection} connection
   * @returns {Promise<{relay: ?string, roundTrip: ?number, tracks: Map<string, TrackQuality>}>} the transport
   *   to the relay (`udp`, `tcp`, `tls`), the round trip in seconds, and each m-line's quality by mid.
   */
  async look(connection) {
    if (this.#connection !== connection) this.#before.clear();
    this.#connection = connection;
    const report = await connection.getStats();
    const pair = selectedPair(report);
    const tracks = new Map();
    for (const entry of report.values()) {
      if (entry.mid === undefined || entry.mid === null) continue;
      if (entry.type === "inbound-rtp") this.#add(tracks, entry, this.#received(entry));
      else if (entry.type === "outbound-rtp") this.#add(tracks, entry, this.#sent(entry, report));
    }
    const relay = pair ? (report.get(pair.localCandidateId)?.relayProtocol ?? null) : null;
    return { relay, roundTrip: pair?.currentRoundTripTime ?? null, tracks };
  }

  /** Simulcast layers of one m-line count together; the largest gives the picture's size. */
  #add(tracks, { mid, kind, frameWidth, frameHeight, framesPerSecond }, { bitrate, loss }) {
    const sum = tracks.get(mid) ?? { bitrate: null, loss: null };
    if (bitrate !== null) sum.bitrate += bitrate;
    if (loss !== null) sum.loss = Math.max(sum.loss ?? 0, loss);
    if (kind === "video" && frameWidth && frameWidth > (sum.width ?? 0)) {
      Object.assign(sum, { width: frameWidth, height: frameHeight, fps: framesPerSecond ?? 0 });
    }
    tracks.set(mid, sum);
  }

  #since(entry, fields) {
    const last = this.#before.get(entry.id);
    const now = { timestamp: entry.timestamp };
    for (const field of fields) now[field] = entry[field] ?? 0;
    this.#before.set(entry.id, now);
    if (!last || entry.timestamp <= last.timestamp) return null;
    return Object.fromEntries(Object.keys(now).map((field) => [field, now[field] - last[field]]));
  }

  #received(entry) {
    const since = this.#since(entry, ["bytesReceived", "packetsReceived", "packetsLost"]);
    if (!since) return { bitrate: null, loss: null };
    const lost = Math.max(0, since.packetsLost);
    const all = lost + since.packetsReceived;
    return { bitrate: (since.bytesReceived * 8000) / since.timestamp, loss: all ? lost / all : null };
  }

  #sent(entry, report) {
    const since = this.#since(entry, ["bytesSent"]);
    const loss = report.get(entry.remoteId)?.fractionLost ?? null;
    return { bitrate: since ? (since.bytesSent * 8000) / since.timestamp : null, loss };
  }
}

/** The candidate pair in use: by the transport where the browser says so, else the one that is nominated. */
export function selectedPair(report) {
  for (const entry of report.values()) {
    if (entry.type === "transport" && entry.selectedCandidatePairId) return report.get(entry.selectedCandidatePairId);
  }
  const pairs = [...report.values()].filter(({ type }) => type === "candidate-pair");
  const inUse = ({ nominated, state }) => nominated && state === "succeeded";
  return pairs.find(({ selected }) => selected) ?? pairs.find(inUse);
}

/**
 * Words for one participant's tracks.
 * @returns {{grade: 1|2|3, parts: string[]}} 3 is good; the last parts may be left out where room is short.
 */
export function describe(qualities, { relay, roundTrip }) {
  const all = qualities.filter((quality) => quality && quality.bitrate !== null);
  if (!all.length) return { grade: 3, parts: [] };
  const bitrate = all.reduce((sum, { bitrate: one }) => sum + one, 0);
  const losses = all.map(({ loss }) => loss).filter((loss) => loss !== null);
  const loss = losses.length ? Math.max(...losses) : 0;
  const picture = all.find(({ width, fps }) => width && fps);
  const parts = [bitrate < 1e6 ? `${Math.round(bitrate / 1000)} kbit/s` : `${(bitrate / 1e6).toFixed(1)} Mbit/s`];
  parts.push(`${(loss * 100).toFixed(loss && loss < 0.1 ? 1 : 0)} % lost`);
  if (roundTrip !== null) parts.push(`${Math.max(1, Math.round(roundTrip * 1000))} ms`);
  if (picture) parts.push(`${picture.width}×${picture.height}`, `${Math.round(picture.fps)} fps`);
  if (relay) parts.push(relay.toUpperCase());
  const grade = loss > 0.08 || roundTrip > 0.6 ? 1 : loss > 0.02 || roundTrip > 0.3 ? 2 : 3;
  return { grade, parts };
}
