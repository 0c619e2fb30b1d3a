/**
 * A veil over encoded frames, as end-to-end encryption puts one: a worker for RTCRtpScriptTransform.
 *
 * Every byte is XORed with a key, and one more byte at the end says with which: a frame under another key, or under none,
 * goes no further, as with a cipher that authenticates. What stays readable: the first bytes of VP8 with `clear`, where an SFU finds keyframes that has no
 * dependency descriptor; and of AV1 the heads of OBUs, since browsers cut frames into packets along them.
 */
const MARK = 0xe2;
/** OBUs of AV1 that hold pictures: frame header, tile group, frame (AV1, 6.2.2). */
const PICTURES = [3, 4, 6];

/** From where to where pictures lie in a frame of AV1. */
function* pictures(bytes) {
  for (let at = 0; at < bytes.length; ) {
    const head = bytes[at];
    at += head & 4 ? 2 : 1;
    let size = head & 2 ? 0 : bytes.length - at;
    if (head & 2) {
      for (let shift = 0, more = true; more; shift += 7, at += 1) {
        size += (bytes[at] & 0x7f) * 2 ** shift;
        more = bytes[at] >= 0x80;
      }
    }
    if (PICTURES.includes((head >> 3) & 15)) yield [at, at + size];
    at += size;
  }
}

function turn(bytes, frame, { key, clear, obus }) {
  const heads = clear && frame.type ? (frame.type === "key" ? 10 : 3) : 0;
  const ranges = obus && frame.type ? pictures(bytes) : [[heads, bytes.length]];
  for (const [from, to] of ranges) {
    for (let at = from; at < to; at += 1) bytes[at] ^= key;
  }
  return bytes;
}

/** What of a frame is sent. */
function veil(frame, options) {
  const bytes = turn(new Uint8Array(frame.data), frame, options);
  const marked = options.obus ? bytes : Uint8Array.of(...bytes, MARK ^ options.key);
  frame.data = marked.buffer;
  return true;
}

/** Whether a frame that came was veiled; it is not any more. */
function unveil(frame, options) {
  const bytes = new Uint8Array(frame.data);
  if (!options.obus && bytes.at(-1) !== (MARK ^ options.key)) return false;
  frame.data = turn(options.obus ? bytes : bytes.slice(0, -1), frame, options).buffer;
  return true;
}

onrtctransform = ({ transformer }) => {
  const { options } = transformer;
  const pass = options.side === "send" ? veil : unveil;
  transformer.readable
    .pipeThrough(
      new TransformStream({
        transform(frame, controller) {
          if (pass(frame, options)) controller.enqueue(frame);
        },
      }),
    )
    .pipeTo(transformer.writable);
};
