"""Simulcast and scalable video from one Chromium to another: the layer that was asked for is the one that plays."""

from __future__ import annotations

from typing import Any

from tests.browser.stage import BrowserTestCase

#: Packets that a busy machine may lose; numbers that were not closed up would be hundreds.
MOST_LOST = 20
#: ``a`` publishes a camera as *args* say, ``b`` sees it; ``seen`` waits for a width and for frames of it.
CALL = """
    const [mime, encodings, described] = args;
    window.a = await enter();
    window.b = await enter();
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 360 } });
    const publication = a.publish(stream.getVideoTracks()[0], { encodings });
    const { transceiver } = publication;
    const { codecs } = RTCRtpSender.getCapabilities("video");
    transceiver.setCodecPreferences(
      codecs.filter((codec) => [mime, "video/rtx"].includes(codec.mimeType.toLowerCase())));
    if (!described) {
      transceiver.setHeaderExtensionsToNegotiate(transceiver.getHeaderExtensionsToNegotiate().map((each) => (
        each.uri.includes("dependency-descriptor") ? { ...each, direction: "stopped" } : each)));
    }
    const inbound = async () =>
      (await statistics(b.connection, "inbound-rtp")).find(({ kind }) => kind === "video") ?? {};
    const seen = async (width) => {
      await until(`a width of ${width}`, async () => (await inbound()).frameWidth === width);
      const { framesDecoded } = await inbound();
      await until("frames of it", async () => (await inbound()).framesDecoded > framesDecoded + 10);
    };
    const active = () => transceiver.sender.getParameters().encodings.map(({ active }) => active);
    const track = () => [...[...b.peers.values()][0].tracks.values()][0];
    const choose = (layer) => b.subscribe(track().trackId, { layer });
"""


class LayerTests(BrowserTestCase):
    def call(self, mime: str, encodings: list[dict[str, Any]], described: bool, script: str) -> Any:
        return self.client_page().run(CALL + script, mime, encodings, described)

    def test_simulcast(self) -> None:
        """Each layer is shown when it is asked for; one that nobody watches is not sent until somebody wants it.

        Without dependency descriptors, so that VP8 has ids that have to go on over each switch.
        """
        encodings = [
            {"rid": "l", "scaleResolutionDownBy": 2, "maxBitrate": 150_000},
            {"rid": "h", "maxBitrate": 600_000},
        ]
        seen = self.call(
            "video/vp8",
            encodings,
            False,
            """
            await seen(640);
            const { layers } = track();
            choose("low");
            await seen(320);
            await until("one layer alone", () => !active()[1]);
            await seen(320);
            choose("high");
            await seen(640);
            b.leave();
            await until("no layer at all", () => !active()[0] && !active()[1]);
            window.b = await enter();
            await seen(640);
            const { packetsLost, nackCount } = await inbound();
            return { layers, lost: packetsLost + nackCount, active: active() };
            """,
        )
        self.assertEqual((seen["layers"], seen["active"]), (["low", "high"], [True, True]))
        self.assertLess(seen["lost"], MOST_LOST)

    def scalable(self, mime: str, mode: str) -> None:
        seen = self.call(
            mime,
            [{"scalabilityMode": mode, "maxBitrate": 900_000}],
            True,
            """
            await seen(640);
            for (const [layer, width] of [["low", 320], ["high", 640]]) {
              choose(layer);
              await seen(width);
            }
            const { packetsLost, nackCount } = await inbound();
            return { layers: track().layers, lost: packetsLost + nackCount };
            """,
        )
        self.assertEqual(seen["layers"], ["low", "high"])
        self.assertLess(seen["lost"], MOST_LOST)

    def test_vp9(self) -> None:
        """Spatial layers of VP9 that need each other in key pictures alone."""
        self.scalable("video/vp9", "L2T3_KEY")

    def test_av1(self) -> None:
        """Spatial layers of AV1."""
        self.scalable("video/av1", "L2T3_KEY")
