"""What the client library does on a line that loses packets, by statistics that are made up."""

from __future__ import annotations

from tests.browser.stage import BrowserTestCase

#: ``line`` with a connection whose statistics the test sets, and a clock that it moves.
LINE = """
    const receiver = { jitterBufferTarget: null };
    const counts = { lost: 0, nackCount: 0, framesDropped: 0, packetsReceived: 0 };
    const connection = {
      getTransceivers: () => [{ mid: "7", receiver }],
      getStats: async () => new Map(Object.entries({
        transport: { type: "transport", selectedCandidatePairId: "pair", packetsReceived: counts.packetsReceived },
        pair: { type: "candidate-pair", currentRoundTripTime: 0.11 },
        sound: { type: "remote-inbound-rtp", kind: "audio", fractionLost: counts.lost },
        pictures: { type: "inbound-rtp", kind: "video", mid: "7", ...counts },
      })),
    };
    let now = 0;
    const said = [];
    const on = { lossy: (lossy) => said.push([lossy, now]), silent: () => said.push(["silent", now]) };
    const line = new LineWatch(connection, on, () => now);
    line.close();
    const look = async (seconds, changes = {}) => {
      now += 1000 * seconds;
      counts.lost = changes.lost ?? counts.lost;
      for (const name of ["nackCount", "framesDropped"]) counts[name] += changes[name] ?? 0;
      for (let looks = 0; looks < 4; looks += 1) await line.look();
      return receiver.jitterBufferTarget;
    };
"""


class LineWatchTests(BrowserTestCase):
    def test_sound(self) -> None:
        """Sound is to go twice as soon as 2 % of it were lost, until for half a minute it was not."""
        said = self.client_page().run(
            LINE
            + """
            await look(2, { lost: 0.01 });
            await look(2, { lost: 0.03 });
            await look(2, { lost: 0 });
            await look(26, { lost: 0.1 });
            await look(20, { lost: 0.01 });
            await look(9);
            await look(2);
            return said;
            """
        )
        self.assertEqual(said, [[True, 4000], [False, 63000]])

    def test_pictures(self) -> None:
        """Where frames are dropped while packets come again, a round trip's worth is kept back, then more, to a bound;
        where nothing was lost, or nothing dropped, it stays; and after half a minute without loss it is as before."""
        kept = self.client_page().run(
            LINE
            + """
            const kept = [await look(2), await look(2, { framesDropped: 9 }), await look(2, { nackCount: 5 })];
            kept.push(await look(2, { nackCount: 5, framesDropped: 3 }));
            kept.push(await look(2, { nackCount: 5, framesDropped: 1 }));
            kept.push(await look(2, { nackCount: 5, framesDropped: 2 }));
            for (let i = 0; i < 9; i += 1) await look(2, { nackCount: 5, framesDropped: 9 });
            kept.push(await look(29));
            kept.push(await look(2));
            return kept;
            """
        )
        self.assertEqual(kept, [None, None, None, 150, 150, 200, 400, None])

    def test_silence(self) -> None:
        """When all that came stops at once that is said a second later, once in 10 s; where little came it is not."""
        said = self.client_page().run(
            LINE
            + """
            const hear = async (...packets) => {
              for (const came of packets) {
                now += 500;
                counts.packetsReceived += came;
                await line.look();
              }
            };
            await hear(0, 0, 0, 3, 1, 0, 0, 0, 0);
            await hear(30, 30, 2, 0, 0, 0, 0);
            await hear(30, 0, 0, 0, 30, 0, 30);
            await hear(...Array(20).fill(30), 0, 0, 0);
            return said;
            """
        )
        self.assertEqual(said, [["silent", 7000], ["silent", 22500]])

    def test_twice(self) -> None:
        """On a line that loses for real a microphone turns to RED by an offer; who hears it is offered nothing.

        Chromium names Opus in its statistics also where it sends RED; the size of packets tells them apart.
        """
        seen = self.client_page().run(
            """
            const a = await enter();
            const b = await enter();
            a.publish(tone());
            await received({ audio: 1, video: 0 }, b.connection);
            const { getStats } = RTCPeerConnection.prototype;
            const counted = async () => [...(await getStats.call(b.connection)).values()];
            const heard = async () => (await counted()).find(({ type }) => type === "inbound-rtp");
            const size = async () => {
              const before = await heard();
              let now = before;
              await until("packets", async () => (now = await heard()).packetsReceived > before.packetsReceived + 9);
              return (now.bytesReceived - before.bytesReceived) / (now.packetsReceived - before.packetsReceived);
            };
            const once = await size();
            const offered = b.connection.remoteDescription.sdp;
            const loss = { type: "remote-inbound-rtp", kind: "audio", fractionLost: 0.1 };
            a.connection.getStats = async () => new Map([["loss", loss]]);
            await until("it goes twice", async () => (await size()) > 1.5 * once);
            const [, first] = /m=audio \\S+ \\S+ (\\d+)/.exec(a.connection.remoteDescription.sdp);
            return { first, same: b.connection.remoteDescription.sdp === offered, lost: (await heard()).packetsLost };
            """
        )
        self.assertEqual(seen, {"first": "63", "same": True, "lost": 0})
