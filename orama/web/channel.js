/**
 * Data channels by label.
 * @module channel
 */

import { RoomError } from "./signaling.js";

/** Bytes that a channel keeps while it is not open yet. */
const MAX_QUEUED_BYTES = 1 << 20;

/**
 * What is sent here reaches every other peer in the room; what they send on the label arrives as the room's
 * `data` event. It outlives the connection under it. Events: `open`, `close`.
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
   * Sends text or bytes, up to 256 KiB; what comes before the channel is open is kept, up to 1 MiB.
   * @param {string | ArrayBuffer | ArrayBufferView} data
   */
  send(data) {
    if (this.readyState === "open") {
      this.#under.send(data);
      return;
    }
    const size = typeof data === "string" ? data.length : data.byteLength;
    if (this.#queued + size > MAX_QUEUED_BYTES) throw new RoomError("queue_full", "The channel is not open yet.");
    this.#queue.push(data);
    this.#queued += size;
  }

  /** Puts a fresh RTCDataChannel under this one. */
  transmit(connection) {
    const under = connection.createDataChannel(this.label, this.options);
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

/** The channels that the SFU opens towards us: whose is which. */
export class Incoming {
  #senders = new Map();
  #early = new Map();
  #deliver;

  /** @param {(peerId: string, label: string, data: string | ArrayBuffer) => void} deliver */
  constructor(deliver) {
    this.#deliver = deliver;
  }

  /** A channel has opened; `name` says whose it is, before or after. */
  opened(channel) {
    channel.binaryType = "arraybuffer";
    channel.onmessage = ({ data }) => {
      const sender = this.#senders.get(channel.id);
      if (sender) this.#deliver(sender.peerId, sender.label, data);
      else this.#early.set(channel.id, [...(this.#early.get(channel.id) ?? []), data]);
    };
    channel.onclose = () => {
      this.#senders.delete(channel.id);
      this.#early.delete(channel.id);
    };
  }

  name({ peerId, label, id }) {
    this.#senders.set(id, { peerId, label });
    for (const data of this.#early.get(id) ?? []) this.#deliver(peerId, label, data);
    this.#early.delete(id);
  }
}
