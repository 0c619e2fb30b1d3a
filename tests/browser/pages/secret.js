/**
 * Ends of a room that veil what they send, each with a key of its own choice.
 * @module secret
 */
import { Room } from "./orama-webrtc.js";
import { noise } from "./sources.js";

const worker = () => new Worker("./veil.js");

/** Enters a room; with a `veil` ({ key, clear, obus }) what is sent and received goes through it. */
export async function enter(options, veil = null, before = () => {}) {
  const through = (side) => new RTCRtpScriptTransform(worker(), { side, ...veil });
  const transforms = veil && {
    send: (sender) => (sender.transform = through("send")),
    receive: (receiver) => (receiver.transform ??= through("receive")),
  };
  const room = new Room({ ...options, ...(transforms && { transforms }) });
  before(room);
  await room.join();
  // What nobody plays is not decoded.
  room.addEventListener("track-added", ({ detail: { track } }) => track.kind === "audio" && play(track.mediaTrack));
  return room;
}

function play(track) {
  const element = Object.assign(new Audio(), { srcObject: new MediaStream([track]) });
  document.body.append(element);
  return element.play();
}

/** Publishes moving pictures in one codec; `descriptor` asks for the dependency descriptor, or for none. */
export function publishPictures(room, mimeType, descriptor) {
  const publication = room.publish(noise(160, 120, 15), { source: "camera" });
  const { transceiver } = publication;
  const { codecs } = RTCRtpSender.getCapabilities("video");
  transceiver.setCodecPreferences(codecs.filter((codec) => [mimeType, "video/rtx"].includes(codec.mimeType.toLowerCase())));
  transceiver.setHeaderExtensionsToNegotiate(
    transceiver.getHeaderExtensionsToNegotiate().map((extension) => ({
      ...extension,
      direction: extension.uri.includes("dependency-descriptor") ? (descriptor ? "sendrecv" : "stopped") : extension.direction,
    })),
  );
  return publication;
}

/** Waits until a room has shown so many pictures, or with `packets` has got so much of them that cannot be shown. */
export async function watch(room, { frames = 0, packets = 0 }) {
  let seen = {};
  await until(`${frames} frames, ${packets} packets`, async () => {
    const { framesDecoded = 0, packetsReceived = 0 } = (await inbound(room, "video")) ?? {};
    seen = { frames: framesDecoded, packets: packetsReceived };
    return framesDecoded >= frames && packetsReceived >= packets;
  });
  return seen;
}

/** Waits until something is heard in a room: the energy of a tone. */
export function listen(room) {
  return until("a tone", async () => ((await inbound(room, "audio"))?.totalAudioEnergy ?? 0) > 0.001);
}

async function inbound(room, kind) {
  const entries = [...((await room.connection?.getStats())?.values() ?? [])];
  return entries.find((entry) => entry.type === "inbound-rtp" && entry.kind === kind);
}

async function until(what, check) {
  for (const end = performance.now() + 40_000; performance.now() < end; ) {
    const value = await check();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
  throw new Error(`not seen: ${what}`);
}

/** Whether the dependency descriptor was agreed on for what a room sends. */
export function described(room) {
  return /^a=extmap:\S+ \S*dependency-descriptor/m.test(room.connection.currentRemoteDescription.sdp);
}
