/**
 * As little of a client for Janus' VideoRoom as a call takes: one session a connection, over a WebSocket.
 * @module janus
 */

const KEEP_ALIVE_MS = 20_000;

export class Janus {
  /** @type {?RTCPeerConnection} */
  connection = null;
  #ids = {};
  #waiting = new Map();

  /** @param {{url: string, room: number, iceServers: RTCIceServer[]}} options */
  static async connect({ url, room, iceServers }) {
    const janus = new Janus();
    janus.room = room;
    janus.configuration = { iceServers, iceTransportPolicy: "relay" };
    janus.socket = new WebSocket(url, "janus-protocol");
    janus.socket.onmessage = ({ data }) => janus.#heard(JSON.parse(data));
    await new Promise((resolve, reject) => Object.assign(janus.socket, { onopen: resolve, onerror: reject }));
    janus.#ids.session_id = (await janus.#ask("create")).data.id;
    janus.#ids.handle_id = (await janus.#ask("attach", { plugin: "janus.plugin.videoroom" })).data.id;
    setInterval(() => janus.#ask("keepalive"), KEEP_ALIVE_MS);
    return janus;
  }

  /** Makes the room for one video codec, unless it is there. */
  async create(videocodec, more = {}) {
    await this.#say({ request: "create", room: this.room, publishers: 10, videocodec, ...more });
  }

  /** Publishes what *prepare* puts on a connection; the publisher's id. */
  async publish(prepare) {
    const { id } = await this.#say({ request: "join", ptype: "publisher", room: this.room });
    this.#open();
    prepare(this.connection);
    const jsep = await this.#local();
    const { jsep: answer } = await this.#say({ request: "publish" }, jsep, true);
    await this.connection.setRemoteDescription(answer);
    return id;
  }

  /** Receives all of a publisher; *ontrack* is the connection's. */
  async subscribe(feed, ontrack) {
    const body = { request: "join", ptype: "subscriber", room: this.room, streams: [{ feed }] };
    const { jsep: offer } = await this.#say(body, undefined, true);
    this.#open();
    this.connection.ontrack = ontrack;
    await this.connection.setRemoteDescription(offer);
    await this.#say({ request: "start", room: this.room }, await this.#local());
  }

  close() {
    this.connection?.close();
    this.socket.close();
  }

  #open() {
    this.connection = new RTCPeerConnection(this.configuration);
  }

  /** A local description with all of its candidates. */
  async #local() {
    const connection = this.connection;
    await connection.setLocalDescription();
    while (connection.iceGatheringState !== "complete") {
      await new Promise((resolve) => connection.addEventListener("icegatheringstatechange", resolve, { once: true }));
    }
    const { type, sdp } = connection.localDescription;
    return { type, sdp };
  }

  async #say(body, jsep, whole = false) {
    const { plugindata, ...more } = await this.#ask("message", { body, ...(jsep && { jsep }) });
    if (plugindata.data.error_code) throw new Error(plugindata.data.error);
    return whole ? more : plugindata.data;
  }

  #ask(janus, fields = {}) {
    const transaction = crypto.randomUUID();
    this.socket.send(JSON.stringify({ janus, transaction, ...this.#ids, ...fields }));
    return new Promise((resolve, reject) => this.#waiting.set(transaction, { resolve, reject, keep: janus === "keepalive" }));
  }

  #heard(message) {
    const waiting = this.#waiting.get(message.transaction);
    if (!waiting || (message.janus === "ack" && !waiting.keep)) return;
    this.#waiting.delete(message.transaction);
    if (message.janus === "error") waiting.reject(new Error(message.error.reason));
    else waiting.resolve(message);
  }
}
