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
    const held = [];
    let there = false;
    devices.getUserMedia = async (...what) => {
      const stream = await open(...what);
      there = true;
      const taken = new Promise((resolve) =>
        pc.addEventListener("signalingstatechange", () => pc.signalingState === "have-remote-offer" && resolve()),
      );
      for (const next of held.splice(0)) next();
      await taken;
      return stream;
    };
    globalThis.WebSocket = class extends WebSocket {
      set onmessage(listener) {
        super.onmessage = (event) => {
          if (!there && (held.length || JSON.parse(event.data).type === "offer")) held.push(() => listener(event));
          else listener(event);
        };
      }
    };
  }

  if (how === "glare") {
    let held = null;
    let done = false;
    globalThis.WebSocket = class extends WebSocket {
      set onmessage(listener) {
        super.onmessage = (event) => {
          if (!done && !held && JSON.parse(event.data).type === "offer") {
            // Where an offer of the page's is on its way already, this is what we want.
            done = pc.signalingState === "have-local-offer";
            if (!done) {
              held = [];
              pc.restartIce();
            }
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
