/**
 * Two node-datachannel clients in one room, of which one sends to the other. They may use any way they find.
 *
 * Argument: JSON with `packages` (where node-datachannel is installed), `url`, `room`, `key` and `count`.
 * Prints one line of JSON when so many messages have come: the candidate pair and the errors of each.
 */
import { createRequire } from "node:module";

const { packages, url, room, key, count } = JSON.parse(process.argv[2]);
const datachannel = createRequire(`${packages}/`)("node-datachannel");

class Client {
  errors = [];
  received = 0;

  constructor(name) {
    this.name = name;
    this.socket = new datachannel.WebSocket();
    this.socket.onOpen(() => this.say({ type: "join", roomId: room, userId: name }));
    this.socket.onMessage((text) => this.heard(JSON.parse(text)));
    this.socket.open(`${url.replace("http", "ws")}/v1/webrtc/signal?room=${room}&api_key=${encodeURIComponent(key)}`);
    this.open = new Promise((resolve) => (this.opened = resolve));
  }

  say(message) {
    this.socket.sendMessage(JSON.stringify(message));
  }

  heard(message) {
    switch (message.type) {
      case "turn-credentials": return this.connect(message);
      case "answer": return this.connection.setRemoteDescription(message.sdp, "answer");
      case "offer": return this.connection.setRemoteDescription(message.sdp, "offer");
      case "error": return this.errors.push(message.code);
      default: return undefined;
    }
  }

  connect({ uris, username, password }) {
    const [, hostname, port] = /^turn:([^:]+):(\d+)/.exec(uris[0]);
    const iceServers = [{ hostname, port: Number(port), username, password, relayType: "TurnUdp" }];
    this.connection = new datachannel.PeerConnection(this.name, { iceServers, iceTransportPolicy: "all" });
    this.connection.onLocalDescription((sdp, type) => this.say({ type, sdp }));
    this.connection.onLocalCandidate((candidate, sdpMid) =>
      this.say({ type: "ice-candidate", candidate: candidate.replace(/^a=/, ""), sdpMid, sdpMLineIndex: 0 }));
    this.connection.onDataChannel((channel) => channel.onMessage(() => (this.received += 1)));
    this.channel = this.connection.createDataChannel("probe");
    this.channel.onOpen(() => this.opened());
  }
}

const [sender, receiver] = [new Client("sender"), new Client("receiver")];
await Promise.all([sender.open, receiver.open]);
const timer = setInterval(() => {
  if (receiver.received < count) {
    sender.channel.sendMessage("x".repeat(200));
    return;
  }
  clearInterval(timer);
  const told = [sender, receiver].map(({ connection, errors }) => ({ pair: connection.getSelectedCandidatePair(), errors }));
  console.log(JSON.stringify(told));
  process.exit(0);
}, 5);
