"""The client library with several gateways: when one goes the next is taken, and the call goes on."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.browser.page import Page
from tests.browser.proxy import Proxy
from tests.browser.stage import BrowserTestCase


class GatewayTests(BrowserTestCase):
    """Two ways to one node stand for two gateways, of which none has the room itself."""

    def setUp(self) -> None:
        super().setUp()
        port = urlsplit(self.node().url).port or 0
        self.first, self.second = Proxy(port), Proxy(port)
        for proxy in (self.first, self.second):
            self.addCleanup(proxy.close)

    def pair(self, *urls: str) -> Page:
        """``a`` by *urls*, ``b`` beside them; ``watch`` looks at what b gets of a."""
        page = self.client_page()
        page.run(
            """
            window.a = await enter({ url: undefined, urls: args });
            window.b = await enter();
            a.publish(tone(200), { source: "first" });
            await received({ audio: 1, video: 0 }, b.connection);
            window.states = [];
            window.since = performance.now();
            a.addEventListener("state", ({ detail }) => states.push(detail.state));
            window.before = { peerId: a.peerId, connection: a.connection };
            window.watch = new Watch(b.connection, "audio");
            """,
            *urls,
        )
        return page

    #: Waits until ``a`` is in again and tells how it went.
    BACK = """
        await until("reconnecting", () => states.includes("reconnecting"));
        await until("connected", () => states.at(-1) === "connected");
        const took = performance.now() - since;
        a.publish(tone(500), { source: "after" });
        const [peer] = b.peers.values();
        await until("a new track", () => [...peer.tracks.values()].some(({ source }) => source === "after"));
        await received({ audio: 2, video: 0 }, b.connection);
        return {
          took,
          same: a.peerId === before.peerId && a.connection === before.connection,
          longest: watch.stop().longest,
        };
    """

    def test_next_gateway(self) -> None:
        """A gateway that is gone costs no media: the place is taken again through the next, at once."""
        page = self.pair(self.first.url, self.second.url)
        page.run("window.since = performance.now();")
        self.first.block()
        seen = page.run(self.BACK)
        self.assertTrue(seen["same"])
        self.assertLess(seen["longest"], 500)
        self.assertLess(seen["took"], 5000)

    def test_first_gateway_is_gone_already(self) -> None:
        """Who joins finds the gateway that works."""
        self.first.block()
        page = self.client_page()
        seen = page.run(
            "const room = await enter({ url: args[0], urls: args });"
            "await until('let in', () => room.peerId); return room.state;",
            self.first.url,
            self.second.url,
        )
        self.assertEqual(seen, "connected")

    def test_nobody_there(self) -> None:
        """When none works, joining fails as ``unreachable``."""
        for proxy in (self.first, self.second):
            proxy.block()
        seen = self.client_page().run(
            "try { await enter({ url: undefined, urls: args }); } catch (error) { return error.code; }",
            self.first.url,
            self.second.url,
        )
        self.assertEqual(seen, "unreachable")
