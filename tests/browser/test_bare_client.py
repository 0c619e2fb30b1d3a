"""A client of the published protocol alone, as an application's programmer would write it from the documentation."""

from __future__ import annotations

from tests.browser.stage import BrowserTestCase


class BareClientTests(BrowserTestCase):
    def check(self, count: int, transport: str) -> None:
        pages = [self.bare_page(transport) for _ in range(count)]
        for page in pages:
            found = page.media(audio=count - 1, video=count - 1)
            self.assertEqual(found["local"], {"type": "relay", "relayProtocol": transport})
        for index, page in enumerate(pages):
            page.run(
                """
                await until("the channel", () => window.channel.readyState === "open");
                channel.send(args[0]);
                channel.send(new Uint8Array([0, 255, args[1]]));
                """,
                f"text of {index}",
                index,
            )
        for index, page in enumerate(pages):
            others = [other for other in range(count) if other != index]
            heard = page.run(
                'await until("all messages", () => heard.length >= args[0]); return heard', 2 * (count - 1)
            )
            texts = sorted(message["data"] for message in heard if isinstance(message["data"], str))
            binaries = sorted(message["data"] for message in heard if isinstance(message["data"], list))
            self.assertEqual(texts, [f"text of {other}" for other in others])
            self.assertEqual(binaries, [[0, 255, other] for other in others])
            self.assertEqual({message["label"] for message in heard}, {"chat"})

    def test_udp(self) -> None:
        """Two bare clients exchange sound, pictures, text and bytes through the relay over UDP."""
        self.check(2, "udp")

    def test_tcp(self) -> None:
        """Two bare clients exchange sound, pictures, text and bytes through the relay over TCP."""
        self.check(2, "tcp")

    def test_tls(self) -> None:
        """Two bare clients exchange sound, pictures, text and bytes through the relay over TLS."""
        self.check(2, "tls")

    def test_four(self) -> None:
        """Four bare clients that come in one rush each get everything of the three others."""
        self.check(4, "udp")

    def test_devices_during_an_offer(self) -> None:
        """Tracks that a page has just when it takes an offer of the SFU's reach the others like any."""
        for page in (self.bare_page(), self.bare_page(awkward="late")):
            page.media(audio=1, video=1)

    def test_glare(self) -> None:
        """A page that takes its own offer, an ICE restart, back for one of the SFU's is heard and seen afterwards."""
        for page in (self.bare_page(), self.bare_page(awkward="glare")):
            page.media(audio=1, video=1)

    def test_with_the_room_page(self) -> None:
        """A bare client and the room page understand each other."""
        bare, page = self.bare_page(), self.room_page("Ada")
        bare.media(audio=1, video=1)
        page.media(audio=1, video=1)
        bare.run('await until("the channel", () => channel.readyState === "open"); channel.send("plain text")')
        read = page.run(
            """
            await until("the unread badge", () => document.getElementById("unread").textContent === "1");
            return document.querySelector(".message").textContent;
            """
        )
        self.assertEqual(read, "plain text")
