"""What an onlooker sees of a call between browsers: over REST, and at ``/metrics``."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.browser.stage import BrowserTestCase


class StatsTests(BrowserTestCase):
    def stats(self, **more: str) -> list[dict[str, Any]]:
        asked = "".join(f"&{name}={value}" for name, value in more.items())
        headers = {"X-API-Key": self.node().key}
        status, body = self.node().request(
            "GET", f"/v1/webrtc/rooms?room_id={self.room}&stats=1{asked}", headers=headers
        )
        self.assertEqual(status, 200, body)
        peers: list[dict[str, Any]] = json.loads(body)["rooms"][0]["stats"]["peers"]
        return peers

    def samples(self) -> dict[str, float]:
        text = self.node().request("GET", "/metrics")[1].decode()
        return {name: float(value) for name, value in re.findall(r"(?m)^(orama_sfu\S+) (\S+)$", text)}

    def test_call(self) -> None:
        """Rates, round trips and estimates of a call are there within seconds and agree with each other; the
        browser's own count of what came is ours of what was sent."""
        page = self.client_page()
        page.run(
            """
            window.a = await enter({ userId: "ada" });
            window.b = await enter({ userId: "bob" });
            await a.publish(noise(320, 240, 15), { source: "screen" });
            await a.publish(tone());
            await received({ audio: 1, video: 1 }, b.connection);
            """
        )
        page.run(
            """
            // Receiver reports come about once a second, and rates take two readings.
            await until("a second and a half of video", async () => {
              const [video] = (await statistics(b.connection, "inbound-rtp")).filter(({ kind }) => kind === "video");
              window.begun ??= video.framesDecoded;
              return video.framesDecoded - begun >= 30;
            });
            """
        )
        ada, bob = self.stats()
        states = [(each["user_id"], each["state"]) for each in (ada, bob)]
        self.assertEqual(states, [("ada", "connected"), ("bob", "connected")])
        tracks = {track["kind"]: track for track in ada["tracks"]}
        picture, sound = tracks["video"], tracks["audio"]
        self.assertEqual((picture["source"], picture["subscribers"], sound["codec"]), ("screen", 1, "opus"))
        (stream,) = picture["streams"]
        self.assertGreaterEqual(stream["keyframes"], 1)
        self.assertLess(stream["silent_for"], 2)
        got = {each["kind"]: each for each in bob["subscriptions"]}
        for kind, track in tracks.items():
            self.assertEqual((got[kind]["state"], got[kind]["track_id"]), ("forwarding", track["track_id"]))
            self.assertGreater(got[kind]["bitrate"], 0)
            self.assertGreater(track["streams"][0]["bitrate"], 0)
            self.assertLessEqual(got[kind]["packets"], track["streams"][0]["packets"])
        self.assertLess(bob["round_trip"], 2)
        self.assertGreater(bob["estimate"], 100_000)
        (alone,) = self.stats(peer_id=bob["peer_id"])
        self.assertEqual(alone["user_id"], "bob")
        samples = self.samples()
        for name in ("bitrate", "subscriptions", "transit_seconds_count", "forwarded_packets_total"):
            self.assertGreater(sum(value for key, value in samples.items() if key.startswith(f"orama_sfu_{name}")), 0)
        seen = page.run(
            """
            const rtp = await statistics(b.connection, "inbound-rtp");
            return Object.fromEntries(rtp.map(({ kind, packetsReceived }) => [kind, packetsReceived]));
            """
        )
        for kind, packets in seen.items():
            self.assertGreaterEqual(packets, got[kind]["packets"] - got[kind]["lost"] - 50)
