"""Firefox and Chromium in one call."""

from __future__ import annotations

import atexit
from functools import cache

from tests.browser import chromium, firefox
from tests.browser.firefox import Firefox
from tests.browser.stage import BrowserTestCase, certificates, end, node_process
from tests.browser.test_room_page import SMALL_PICTURE
from tests.node import NodeProcess


@cache
def browser() -> Firefox:
    made = Firefox(certificates().authority)
    atexit.register(made.quit)
    return made


@cache
def named() -> NodeProcess:
    """A node with a domain: Firefox takes TLS to a relay only where the relay has a name."""
    made = node_process("named", "--base-domain", "localhost").start()
    atexit.register(end, made)
    return made


class FirefoxTests(BrowserTestCase):
    skip = chromium.MISSING or firefox.MISSING or None

    def node(self) -> NodeProcess:
        return named()

    def check(self, transport: str) -> None:
        fox = browser().page()
        self.addCleanup(fox.close)
        pages = [self.room_page("Fox", transport, fox), self.room_page("Chrome", transport)]
        for page in pages:
            found = page.media(audio=1, video=1)
            self.assertEqual(found["local"], {"type": "relay", "relayProtocol": transport})
        for number, (one, other) in enumerate([pages, pages[::-1]]):
            one.run(
                """
                document.getElementById("chat-input").value = args[0];
                document.getElementById("chat-form").requestSubmit();
                """,
                f"message {number}",
            )
            other.run(
                """
                const texts = () => [...document.querySelectorAll(".message:not(.own)")].map((one) => one.textContent);
                await until("the message", () => texts().includes(args[0]));
                """,
                f"message {number}",
            )

    def test_udp(self) -> None:
        """Firefox and Chromium see and hear each other and chat, through the relay over UDP."""
        self.check("udp")

    def test_tcp(self) -> None:
        """Firefox and Chromium see and hear each other and chat, through the relay over TCP."""
        self.check("tcp")

    def test_tls(self) -> None:
        """Firefox and Chromium see and hear each other and chat, through the relay over TLS."""
        self.check("tls")

    def test_small_picture(self) -> None:
        """Firefox's camera has a small picture too, which is what who asks for it gets; and so for Firefox."""
        fox = browser().page()
        self.addCleanup(fox.close)
        pages = self.room_page("Fox", page=fox), self.room_page("Chrome")
        for page in pages:
            page.media(audio=1, video=1)
        for page, other in ((pages[0], "Chrome"), (pages[1], "Fox")):
            self.assertEqual(page.run(SMALL_PICTURE, other), ["low", "high"])

    def test_bare(self) -> None:
        """The bare client runs in Firefox too."""
        self.check_bare()

    def test_devices_during_an_offer(self) -> None:
        """Tracks that Firefox has just when it takes an offer of the SFU's reach the others like any."""
        self.check_bare(awkward="late")

    def test_glare(self) -> None:
        """Firefox takes its own offer, an ICE restart, back for one of the SFU's, and is heard and seen afterwards."""
        self.check_bare(awkward="glare")

    def check_bare(self, **more: str) -> None:
        fox = browser().page()
        self.addCleanup(fox.close)
        for page in (self.bare_page("udp", fox, **more), self.bare_page("udp")):
            page.media(audio=1, video=1)
