"""RED for Opus in a browser: who takes it gets it, who does not hears all the same."""

from __future__ import annotations

from tests.browser.stage import BrowserTestCase


class RedundancyTests(BrowserTestCase):
    def test_both_kinds(self) -> None:
        """A microphone that sends RED is heard by who takes it, each frame twice, and by who does not, each once.

        Chromium names Opus in its statistics also where it sends RED; the size of packets tells them apart.
        """
        page = self.client_page()
        seen = page.run(
            """
            const ordered = (names) => {
              const { codecs } = RTCRtpReceiver.getCapabilities("audio");
              const named = (name) => codecs.filter(({ mimeType }) => mimeType.toLowerCase() === `audio/${name}`);
              return names.flatMap(named);
            };
            const a = await enter();
            const takes = await enter();
            const refuses = await enter();
            // The event comes before the answer is made.
            refuses.connection.addEventListener("signalingstatechange", () => {
              if (refuses.connection.signalingState !== "have-remote-offer") return;
              for (const transceiver of refuses.connection.getTransceivers()) {
                if (transceiver.receiver.track.kind === "audio") transceiver.setCodecPreferences(ordered(["opus"]));
              }
            });
            a.publish(tone()).transceiver.setCodecPreferences(ordered(["red", "opus"]));
            const heard = async ({ connection }) => {
              await received({ audio: 1, video: 0 }, connection);
              const { track } = connection.getReceivers().find(({ track }) => track.kind === "audio");
              await Object.assign(new Audio(), { srcObject: new MediaStream([track]) }).play();
              const sound = async () => (await statistics(connection, "inbound-rtp"))[0];
              await until("sound", async () => (await sound()).totalAudioEnergy > 0);
              const { bytesReceived, packetsReceived, packetsLost } = await sound();
              const offered = connection.remoteDescription.sdp.split("m=audio").at(-1);
              return {
                size: bytesReceived / packetsReceived,
                lost: packetsLost,
                red: / red\\/48000/.test(connection.localDescription.sdp),
                fmtp: /fmtp:111 .*useinbandfec=1/.test(offered),
              };
            };
            return { takes: await heard(takes), refuses: await heard(refuses) };
            """
        )
        takes, refuses = seen["takes"], seen["refuses"]
        self.assertEqual((takes["red"], refuses["red"]), (True, False))
        self.assertEqual((takes["fmtp"], refuses["fmtp"]), (True, True))
        self.assertGreater(takes["size"], 1.5 * refuses["size"])
        self.assertEqual((takes["lost"], refuses["lost"]), (0, 0))
