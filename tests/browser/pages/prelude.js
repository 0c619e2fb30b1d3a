/** Waits until a check gives something true, and gives that. */
async function until(what, check, ms = 40_000) {
  const end = performance.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (performance.now() > end) throw new Error(`not seen within ${ms} ms: ${what}\n${account()}`);
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
}

/** Every statistic of one type. */
async function statistics(connection, type) {
  return [...(await connection.getStats()).values()].filter((entry) => entry.type === type);
}

/** What a failed test should say of the page: how its connection stands, and what has happened where it was witnessed. */
function account() {
  const { signalingState, iceGatheringState, iceConnectionState, connectionState } = connection() ?? {};
  const state = JSON.stringify({ signalingState, iceGatheringState, iceConnectionState, connectionState });
  return [state, ...(window.faults ?? []), ...(window.story ?? [])].join("\n");
}

/** The connection of the page: the room page's, the client's or the bare one. */
function connection() {
  return window.room?.connection ?? window.pc;
}

async function localCandidate(pc) {
  const report = await pc.getStats();
  const entries = [...report.values()];
  const transport = entries.find(({ selectedCandidatePairId }) => selectedCandidatePairId);
  const pair = transport
    ? report.get(transport.selectedCandidatePairId)
    : entries.find(({ type, selected, nominated, state }) => type === "candidate-pair" && (selected || (nominated && state === "succeeded")));
  const local = pair && report.get(pair.localCandidateId);
  return local ? { type: local.candidateType, relayProtocol: local.relayProtocol ?? null } : null;
}

/** Waits for media on so many tracks, see Page.media. */
async function received({ audio, video }, pc = null) {
  let tracks = [];
  const enough = async () => {
    const source = pc ?? connection();
    if (!source) return false;
    tracks = (await statistics(source, "inbound-rtp")).map((entry) => ({
      kind: entry.kind,
      mid: entry.mid,
      packets: entry.packetsReceived,
      frames: entry.framesDecoded ?? 0,
      width: entry.frameWidth ?? 0,
      lost: entry.packetsLost,
    }));
    const count = (kind, check) => tracks.filter((track) => track.kind === kind && check(track)).length;
    return count("audio", ({ packets }) => packets >= 80) >= audio && count("video", ({ frames }) => frames >= 30) >= video;
  };
  try {
    await until("media", enough);
  } catch (error) {
    throw new Error(`${JSON.stringify(tracks)}, wanted ${audio} audio and ${video} video: ${error.message}`);
  }
  return { tracks, local: await localCandidate(pc ?? connection()) };
}
