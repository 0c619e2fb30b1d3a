/**
 * Cameras and microphones: getting them, naming them, and saying in words why one could not be had.
 * @module devices
 */

const WIDTHS = { 360: 640, 540: 960, 720: 1280 };
const NAMES = { video: "camera", audio: "microphone" };

/** What was chosen, kept in this browser: ids by kind, and the height of the picture. */
export const choice = {
  get(kind) {
    return localStorage.getItem(`orama.${kind}`) ?? "";
  },
  set(kind, value) {
    localStorage.setItem(`orama.${kind}`, value);
  },
};

/** The constraints for `video` or `audio` as chosen. */
export function constraints(kind) {
  const id = choice.get(kind === "video" ? "videoinput" : "audioinput");
  const device = id ? { deviceId: { ideal: id } } : {};
  if (kind === "audio") return { ...device, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  const height = Number(choice.get("height")) || 540;
  return { ...device, width: { ideal: WIDTHS[height] ?? 960 }, height: { ideal: height }, frameRate: { ideal: 30 } };
}

/** Why there is no device, for a person. @param {DOMException} error @param {"video"|"audio"|"both"} kind */
export function reason(error, kind) {
  const what = kind === "both" ? "camera and microphone" : NAMES[kind];
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return `The browser may not use your ${what}. Allow it beside the address bar, or join without.`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `No ${kind === "both" ? "camera or microphone" : what} was found.`;
    case "NotReadableError":
    case "AbortError":
      return `Your ${what} is in use by another program.`;
    default:
      return `Your ${what} cannot be used here${error?.message ? `: ${error.message}` : "."}`;
  }
}

/**
 * Takes one device.
 * @param {"video"|"audio"} kind
 * @returns {Promise<MediaStreamTrack>}
 */
export async function capture(kind) {
  if (!navigator.mediaDevices) throw new Error("the page has to come over https");
  const media = await navigator.mediaDevices.getUserMedia({ [kind]: constraints(kind) });
  return media.getTracks()[0];
}

/**
 * Takes camera and microphone, with one question to the person where possible.
 * @returns {Promise<{video: ?MediaStreamTrack, audio: ?MediaStreamTrack, problem: string}>}
 */
export async function captureBoth() {
  if (!navigator.mediaDevices) {
    return { video: null, audio: null, problem: "Camera and microphone need a page that came over https." };
  }
  try {
    const wanted = { video: constraints("video"), audio: constraints("audio") };
    const media = await navigator.mediaDevices.getUserMedia(wanted);
    return { video: media.getVideoTracks()[0], audio: media.getAudioTracks()[0], problem: "" };
  } catch (error) {
    if (error.name === "NotAllowedError") return { video: null, audio: null, problem: reason(error, "both") };
  }
  const [video, audio] = await Promise.allSettled([capture("video"), capture("audio")]);
  const problems = [];
  if (video.status === "rejected") problems.push(reason(video.reason, "video"));
  if (audio.status === "rejected") problems.push(reason(audio.reason, "audio"));
  return { video: video.value ?? null, audio: audio.value ?? null, problem: problems.join(" ") };
}

/** Fills every `<select data-device>` on the page with what there is. */
export async function fillSelects() {
  const found = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  for (const select of document.querySelectorAll("select[data-device]")) {
    const kind = select.dataset.device;
    const devices = found.filter((device) => device.kind === kind && device.deviceId);
    const options = devices.map(({ deviceId, label }, index) => {
      const option = new Option(label || `${select.labels[0]?.textContent ?? kind} ${index + 1}`, deviceId);
      option.selected = deviceId === choice.get(kind);
      return option;
    });
    if (!options.length) options.push(new Option(kind === "audiooutput" ? "System default" : "None found", ""));
    select.replaceChildren(...options);
    select.disabled = devices.length < 2;
  }
}

/** Shows a microphone's level on a meter, until the returned function is called. */
export function showLevel(track, meter) {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 512 });
  context.createMediaStreamSource(new MediaStream([track])).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    meter.value = track.enabled ? Math.min(1, Math.max(0, 1 + Math.log10(power + 1e-9) / 5)) : 0;
  }, 100);
  return () => {
    clearInterval(timer);
    context.close();
    meter.value = 0;
  };
}
