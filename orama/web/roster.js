/**
 * Who is in the room beside us, and which of their tracks the browser has.
 * @module roster
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

export class Roster {
  /** @type {Map<string, Peer>} by peer id. */
  peers = new Map();
  /** What slots show: mid → track id. */
  #slots = new Map();
  #emit;

  /** @param {(type: string, detail: object) => void} emit tells what has changed. */
  constructor(emit) {
    this.#emit = emit;
  }

  /** Makes it what `welcome` says: some may have come or gone while there was no socket. */
  reconcile(peers) {
    this.#slots.clear(); // what they show is told anew
    const present = new Set(peers.map(({ peerId }) => peerId));
    for (const id of [...this.peers.keys()]) if (!present.has(id)) this.left(id, "left");
    for (const peer of peers) {
      this.joined(peer);
      const there = new Set(peer.tracks.map(({ trackId }) => trackId));
      for (const id of [...this.peers.get(peer.peerId).tracks.keys()]) if (!there.has(id)) this.trackRemoved(id);
      for (const track of peer.tracks) this.trackAdded({ ...track, peerId: peer.peerId });
    }
  }

  joined({ peerId, userId, metadata }) {
    if (this.peers.has(peerId)) return;
    const peer = { peerId, userId, metadata, tracks: new Map() };
    this.peers.set(peerId, peer);
    this.#emit("peer-joined", { peer });
  }

  left(peerId, reason) {
    const peer = this.peers.get(peerId);
    if (!peer) return;
    for (const trackId of [...peer.tracks.keys()]) this.trackRemoved(trackId);
    this.peers.delete(peerId);
    this.#emit("peer-left", { peer, reason });
  }

  clear() {
    this.#slots.clear();
    for (const id of [...this.peers.keys()]) this.left(id, "left");
  }

  /** Keeps what is known of a track; {@link attach} tells when the browser has it. */
  trackAdded({ peerId, trackId, kind, source, mid, layers = [], muted = false }) {
    const peer = this.peers.get(peerId);
    if (!peer) return;
    const track = peer.tracks.get(trackId) ?? { trackId, peerId, kind, source, mid: null, mediaTrack: null };
    Object.assign(track, { mid: mid ?? track.mid, layers, muted });
    peer.tracks.set(trackId, track);
  }

  trackRemoved(trackId) {
    const { peer, track } = this.#find(trackId);
    if (!track) return;
    peer.tracks.delete(trackId);
    this.#emit("track-removed", { peer, track });
  }

  /** A slot shows another track from now on, or none. */
  slot({ mid, trackId }, connection) {
    const { peer, track } = this.#find(this.#slots.get(mid));
    if (trackId) this.#slots.set(mid, trackId);
    else this.#slots.delete(mid);
    if (track?.mid === mid && track.trackId !== trackId) {
      track.mid = null;
      this.#hide(peer, track);
    }
    this.attach(connection);
  }

  /** The browser has it no more; it may come back. */
  #hide(peer, track) {
    if (!track.mediaTrack) return;
    track.mediaTrack = null;
    this.#emit("track-removed", { peer, track });
  }

  /** @returns {boolean} is it a track of one of these? */
  trackState({ trackId, muted, layers }) {
    const { peer, track } = this.#find(trackId);
    if (!track) return false;
    Object.assign(track, { muted, layers: layers ?? track.layers });
    this.#emit("track-state", { peer, track, muted });
    return true;
  }

  /**
   * Gives each track the browser's own. They meet by `mid` and msid of the SFU's last description, as an
   * m-line that is used again brings a MediaStreamTrack whose id is from its former life.
   * @param {?RTCPeerConnection} connection
   */
  attach(connection) {
    if (!connection?.remoteDescription) return;
    const sections = streamIds(connection.remoteDescription.sdp);
    const receivers = new Map(connection.getTransceivers().map(({ mid, receiver }) => [mid, receiver]));
    for (const [mid, trackId] of this.#slots) {
      const { track } = this.#find(trackId);
      if (track) track.mid = mid;
    }
    for (const peer of this.peers.values()) {
      for (const track of peer.tracks.values()) {
        const section = sections.get(track.mid);
        const own = section?.streamId === track.peerId && section.trackId === track.trackId;
        if (!own && !(section?.streamId && this.#slots.get(track.mid) === track.trackId)) {
          if (section) this.#hide(peer, track); // the m-line is another's now, or nobody's
          continue;
        }
        const mediaTrack = receivers.get(track.mid)?.track;
        if (!mediaTrack || mediaTrack === track.mediaTrack) continue;
        track.mediaTrack = mediaTrack;
        this.#emit("track-added", { peer, track });
      }
    }
  }

  #find(trackId) {
    for (const peer of this.peers.values()) {
      const track = peer.tracks.get(trackId);
      if (track) return { peer, track };
    }
    return {};
  }
}

/** What `a=msid` says on each m-line of a description: mid → {streamId, trackId}, empty where nothing is sent. */
export function streamIds(sdp) {
  const found = new Map();
  for (const section of sdp.split(/^m=/m).slice(1)) {
    const mid = /^a=mid:(\S+)/m.exec(section)?.[1];
    const msid = /^a=msid:(\S+)(?: (\S+))?/m.exec(section);
    if (mid) found.set(mid, msid ? { streamId: msid[1], trackId: msid[2] } : {});
  }
  return found;
}
