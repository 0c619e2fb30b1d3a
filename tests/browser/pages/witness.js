/**
 * Writes down what passes between a page and the node, for the message of a test that fails: loaded before the page's
 * own script, it stands in front of WebSocket, RTCPeerConnection and getUserMedia, and changes nothing of what they do.
 */
window.story = [];
(() => {
  const tell = (what) => story.push(`${Math.round(performance.now())} ${what}`);

  globalThis.WebSocket = class extends WebSocket {
    constructor(...how) {
      super(...how);
      tell("socket made");
      this.addEventListener("open", () => tell("socket open"));
      this.addEventListener("close", ({ code, reason }) => tell(`socket closed ${code} ${reason}`));
      this.addEventListener("message", ({ data }) => tell(`heard ${short(data)}`));
    }

    send(data) {
      tell(`said ${short(data)}${this.readyState === WebSocket.OPEN ? "" : ", not open"}`);
      super.send(data);
    }
  };

  globalThis.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...how) {
      super(...how);
      tell("connection made");
      for (const state of ["signalingState", "iceGatheringState", "iceConnectionState", "connectionState"])
        this.addEventListener(state.toLowerCase() + "change", () => tell(`${state} ${this[state]}`));
      this.addEventListener("negotiationneeded", () => tell("negotiation needed"));
      this.addEventListener("icecandidateerror", (event) => tell(`${event.url}: ${event.errorCode} ${event.errorText}`));
    }
  };

  const devices = navigator.mediaDevices;
  const open = devices?.getUserMedia.bind(devices);
  if (open)
    devices.getUserMedia = async (...how) => {
      tell("devices asked for");
      const stream = await open(...how);
      tell("devices there");
      return stream;
    };

  function short(text) {
    const { type, sdp, candidate, code, message } = JSON.parse(text);
    const lines = sdp?.match(/^m=\w+ \d+|^a=(sendrecv|sendonly|recvonly|inactive)/gm)?.join(" ");
    return [type, lines, candidate, code, message].filter(Boolean).join(": ");
  }
})();
