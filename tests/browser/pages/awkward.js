/**
 * Moments that come by chance, made certain by ``?awkward=``:
 *
 * - ``late``: the devices are there just when the page takes an offer of the SFU's, before its answer is made.
 * - ``glare``: the SFU's first offer reaches the page when an offer of its own, an ICE restart, has just gone.
 */
(() => {
  const how = new URLSearchParams(location.search).get("awkward");

  if (how === "late") {
    const devices = navigator.mediaDevices;
    const open = devices.getUserMedia.bind(devices);
    devices.getUserMedia = async (...what) => {
      const stream = await open(...what);
      await new Promise((resolve) =>
        pc.addEventListener("signalingstatechange", () => pc.signalingState === "have-remote-offer" && resolve()),
      );
      return stream;
    };
  }

  if (how === "glare") {
    let held = null;
    let done = false;
    globalThis.WebSocket = class extends WebSocket {
      set onmessage(listener) {
        super.onmessage = (event) => {
          if (!done && !held && JSON.parse(event.data).type === "offer") {
            held = [];
            pc.restartIce();
          }
          if (held) held.push(() => listener(event));
          else listener(event);
        };
      }

      send(text) {
        super.send(text);
        if (!held || JSON.parse(text).type !== "offer") return;
        done = true;
        for (const next of held.splice(0)) next();
        held = null;
      }
    };
  }
})();
