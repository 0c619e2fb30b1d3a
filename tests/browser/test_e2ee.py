"""End-to-end encryption: what the SFU cannot read goes through it all the same, to those who can.

The cipher of these tests is a toy; what matters is that the frames are opaque to everything between the two ends.
"""

from __future__ import annotations

from typing import Any

from tests.browser.page import Page
from tests.browser.stage import BrowserTestCase, files


class VeiledTests(BrowserTestCase):
    def opened(self) -> Page:
        page = self.page().open(f"{files().origin}/secret.html")
        page.run('await until("the modules", () => document.title === "ready")')
        return page

    def see(self, codec: str, descriptor: bool, **veil: Any) -> dict[str, Any]:
        """Somebody publishes; one with the key, one without and one with another look on, and one with it is late."""
        base = self.node().url.partition("/?")[0]
        options = {"url": base, "room": self.room, "apiKey": self.node().key, "transport": "udp"}
        seen: dict[str, Any] = self.opened().run(
            """
            const [options, veil, codec, descriptor] = args;
            const sender = await secret.enter(options, veil, (room) => room.publish(tone()));
            const friend = await secret.enter(options, veil);
            const stranger = await secret.enter(options);
            const enemy = await secret.enter(options, { ...veil, key: veil.key ^ 0xff });
            secret.publishPictures(sender, codec, descriptor);
            const early = await secret.watch(friend, { frames: 15 });
            await secret.listen(friend);
            const late = await secret.enter(options, veil);
            await secret.watch(late, { frames: 8 });
            return {
              descriptor: secret.described(sender),
              early: early.frames,
              stranger: await secret.watch(stranger, { packets: early.packets }),
              enemy: await secret.watch(enemy, { packets: early.packets }),
            };
            """,
            options,
            {"key": 0x5B, **veil},
            codec,
            descriptor,
        )
        self.assertGreaterEqual(seen["early"], 15)
        # A decoder that is given noise may take some of it for pictures.
        self.assertLess(seen["stranger"]["frames"], 5)
        self.assertLess(seen["enemy"]["frames"], 5)
        self.assertGreater(seen["stranger"]["packets"], 0)
        self.assertEqual(seen["descriptor"], descriptor)
        return seen

    def test_vp8_with_readable_heads(self) -> None:
        """VP8 whose first bytes stay readable is seen by those who have the key alone, also when they come late."""
        self.see("video/vp8", descriptor=False, clear=True)

    def test_vp8(self) -> None:
        """VP8 without a readable byte goes through by the dependency descriptor."""
        self.see("video/vp8", descriptor=True)

    def test_vp9(self) -> None:
        """VP9 without a readable byte goes through by the dependency descriptor."""
        self.see("video/vp9", descriptor=True)

    def test_av1(self) -> None:
        """AV1 whose pictures are opaque goes through by the dependency descriptor; browsers need its OBUs' heads."""
        self.see("video/av1", descriptor=True, obus=True)
