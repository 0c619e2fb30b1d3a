"""Two people with Chromium, at different gateways, with the client library: they talk; the room's node is killed."""

from __future__ import annotations

import time
from typing import Any

from tests.browser.chromium import MISSING
from tests.browser.page import Page
from tests.lab import addresses
from tests.lab.browser import FarChromium
from tests.lab.stage import ClusterTestCase, key

#: Seconds within which media is back, as the client library promises.
BACK = 5.0
#: Seconds that a busy machine adds to that here.
_SLACK = 5.0
_ENTER = """
    await until("the modules", () => document.title === "ready");
    window.events = [];
    window.room = await orama.connect(args[0]);
    for (const type of ["state", "draining", "error", "track-added"]) {
      room.addEventListener(type, ({ detail }) =>
        events.push([Math.round(performance.now()), type, String(detail?.state ?? detail?.error?.code ?? "")]));
    }
    await room.publishMicrophone();
    await room.publishCamera({ width: 320, height: 240 });
"""
#: Over all connections that the room ever has: how long nothing of a kind arrived.
_WATCH = """
    window.quiet = { audio: { longest: 0 }, video: { longest: 0 } };
    const look = async () => {
      const now = performance.now();
      const sums = { audio: 0, video: 0 };
      for (const entry of (await room.connection.getStats()).values()) {
        const { type, kind, packetsReceived = 0, framesDecoded = 0 } = entry;
        if (type === "inbound-rtp") sums[kind] += kind === "audio" ? packetsReceived : framesDecoded;
      }
      for (const [kind, state] of Object.entries(quiet)) {
        state.since ??= now;
        if (sums[kind] !== state.sum && sums[kind] > 0) state.since = now;
        state.sum = sums[kind];
        state.longest = Math.max(state.longest, now - state.since);
      }
      setTimeout(look, 50);
    };
    look();
"""
_SEEN = """
    const states = Object.values(quiet);
    const now = performance.now();
    return { longest: states.map(({ longest }) => longest), now: states.map(({ since }) => now - since), events };
"""


class BrowserTests(ClusterTestCase):
    needs = ("Caddy",)
    if MISSING:
        skip = MISSING

    def browsers(self) -> list[Page]:
        pages = []
        for machine in self.lab.clients:
            browser = FarChromium(machine)
            self.addCleanup(browser.quit)
            pages.append(browser.page())
        return pages

    def enter(self, page: Page, *gateways: int) -> None:
        urls = [f"https://{addresses.site(number)}" for number in gateways]
        page.open(f"{urls[0]}/pages/client.html")
        page.run(_ENTER, {"url": urls[0], "urls": urls, "room": self.room, "apiKey": key()})

    def test_call_and_kill(self) -> None:
        """Both see and hear each other, by relays alone. Then the node with their room is killed, by which
        one of them came in: within five seconds they see and hear each other again."""
        pages = self.browsers()
        began = time.monotonic()
        self.enter(pages[0], 3, 1, 2)
        owner = self.owner()
        second = next(number for number in addresses.NODES if number != owner)
        third = next(number for number in addresses.NODES if number not in (owner, second))
        self.enter(pages[1], second, third, owner)
        for page in pages:
            found = page.media(audio=1, video=1)
            self.assertEqual(found["local"]["type"], "relay")
            self.assertTrue(all(track["width"] == 320 for track in found["tracks"] if track["kind"] == "video"), found)
        self.report.milliseconds("Two Chromium", "from the first page to 30 frames on both", time.monotonic() - began)
        for page in pages:
            page.run(_WATCH)
        before = [page.media(audio=1, video=1)["tracks"] for page in pages]
        self.nodes[owner].process.kill()
        for page in pages:
            page.run(
                """
                const back = ({ longest, since }) => longest > 500 && performance.now() - since < 300;
                await until("sound and pictures", () => Object.values(quiet).every(back), 30_000);
                """
            )
        time.sleep(2.0)  # that it stays so
        self.assertEqual([len(tracks) for tracks in before], [2, 2])
        for name, page in zip(("at the killed node's gateway", "at another gateway"), pages, strict=True):
            seen: dict[str, Any] = page.run(_SEEN)
            for kind, longest in zip(("sound", "picture"), seen["longest"], strict=True):
                self.report.milliseconds(
                    "Two Chromium, the node of the room killed", f"no {kind} {name}", longest / 1000
                )
                self.assertLess(longest / 1000, BACK + _SLACK, seen)
            self.assertLess(max(seen["now"]), 1000, seen)
