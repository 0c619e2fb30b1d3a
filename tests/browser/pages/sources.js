/** A track of sound: cheaper than a microphone, and as many as one wants. */
export function tone(hertz = 440) {
  const context = new AudioContext();
  const oscillator = new OscillatorNode(context, { frequency: hertz });
  const destination = context.createMediaStreamDestination();
  oscillator.connect(destination);
  oscillator.start();
  return destination.stream.getAudioTracks()[0];
}

/** A track of pictures that no codec can make small. */
export function noise(width = 640, height = 480, fps = 30) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  let seed = 1;
  setInterval(() => {
    for (let index = 0; index < pixels.length; index += 1) {
      seed = (seed * 1664525 + 1013904223) >>> 0;
      pixels[index] = seed | 0xff000000;
    }
    context.putImageData(image, 0, 0);
  }, 1000 / fps);
  return canvas.captureStream(fps).getVideoTracks()[0];
}

/** Watches what a connection receives: the longest time in which not one packet of a kind came. */
export class Watch {
  constructor(connection, kind) {
    this.longest = 0;
    this.packets = 0;
    let quiet = 0;
    let last = performance.now();
    const look = async () => {
      let packets = 0;
      for (const entry of (await connection.getStats()).values()) {
        if (entry.type === "inbound-rtp" && entry.kind === kind) packets += entry.packetsReceived;
      }
      const now = performance.now();
      quiet = packets > this.packets ? 0 : quiet + now - last;
      this.longest = Math.max(this.longest, quiet);
      this.packets = packets;
      last = now;
      if (!this.stopped) this.timer = setTimeout(look, 50);
    };
    look();
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    return { longest: this.longest, packets: this.packets };
  }
}
