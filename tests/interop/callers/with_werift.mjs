/**
 * A call with werift, WebRTC in TypeScript; see the package. Its media are packets with headers that are right and
 * payloads that are not: a VP8 keyframe in each.
 *
 * Argument: the directory in which werift is installed.
 */
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const werift = createRequire(`${process.argv[2]}/`)("werift");
const { MediaStreamTrack, RTCPeerConnection, RTCRtpCodecParameters, RtpHeader, RtpPacket } = werift;

const say = (message) => console.log(JSON.stringify(message));
const seen = { state: "new", audio: 0, video: 0, frames: 0, heard: [] };
const KEYFRAME = Buffer.from("10500200 9d012a80026801", "hex");

let connection;

function send(track, payload, interval, step) {
  let sequenceNumber = 0;
  let timestamp = 0;
  setInterval(() => {
    sequenceNumber = (sequenceNumber + 1) & 0xffff;
    timestamp = (timestamp + step) >>> 0;
    const header = new RtpHeader({ sequenceNumber, timestamp, marker: true, payloadType: 96, ssrc: 1 });
    track.writeRtp(new RtpPacket(header, payload));
  }, interval);
}

async function start({ uri, username, password, name }) {
  connection = new RTCPeerConnection({
    iceServers: [{ urls: uri, username, credential: password }],
    iceTransportPolicy: "relay",
    codecs: {
      audio: [new RTCRtpCodecParameters({ mimeType: "audio/opus", clockRate: 48000, channels: 2 })],
      video: [
        new RTCRtpCodecParameters({
          mimeType: "video/VP8",
          clockRate: 90000,
          rtcpFeedback: [{ type: "nack" }, { type: "nack", parameter: "pli" }],
        }),
      ],
    },
  });
  connection.connectionStateChange.subscribe((state) => (seen.state = state));
  connection.onTrack.subscribe((track) => track.onReceiveRtp.subscribe(() => (seen[track.kind] += 1)));
  const listen = (channel) =>
    channel.onMessage.subscribe((data) => {
      if (!seen.heard.includes(String(data))) seen.heard.push(String(data));
    });
  connection.onDataChannel.subscribe(listen);
  const tracks = ["audio", "video"].map((kind) => new MediaStreamTrack({ kind }));
  for (const track of tracks) connection.addTransceiver(track, { direction: "sendonly" });
  const chat = connection.createDataChannel("chat");
  listen(chat);
  await connection.setLocalDescription(await connection.createOffer());
  say({ type: "offer", sdp: connection.localDescription.sdp });
  send(tracks[0], Buffer.alloc(60, 1), 20, 960);
  send(tracks[1], Buffer.concat([KEYFRAME, Buffer.alloc(600, 2)]), 40, 3600);
  setInterval(() => {
    if (chat.readyState === "open") chat.send(`hello from ${name}`);
    say({ seen });
  }, 200);
}

async function handle(message) {
  if (message.type === "answer") {
    await connection.setRemoteDescription(message);
  } else if (message.type === "offer" && connection.signalingState === "stable") {
    // Else both have offered at once, and the SFU yields.
    await connection.setRemoteDescription(message);
    await connection.setLocalDescription(await connection.createAnswer());
    say({ type: "answer", sdp: connection.localDescription.sdp });
  }
}

let work = Promise.resolve();
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const message = JSON.parse(line);
  work = work.then(() => (connection ? handle(message) : start(message)));
  work.catch((error) => {
    console.error(error);
    process.exit(1);
  });
});
lines.on("close", () => process.exit(0));
