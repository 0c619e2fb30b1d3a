"""The room page, as people use it."""

from __future__ import annotations

from tests.browser.page import Page
from tests.browser.stage import BrowserTestCase, certificates, end, node_process
from tests.node import NodeProcess


class CallTests(BrowserTestCase):
    def check_pair(self, transport: str) -> None:
        pages = [self.room_page(name, transport) for name in ("Ada", "Ben")]
        for page in pages:
            found = page.media(audio=1, video=1)
            self.assertEqual(found["local"], {"type": "relay", "relayProtocol": transport})
        self.check_chat(*pages)

    def check_chat(self, first: Page, second: Page) -> None:
        """What one types, the other reads."""
        first.run(
            """
            document.getElementById("chat-toggle").click();
            document.getElementById("chat-input").value = "hello from here";
            document.getElementById("chat-form").requestSubmit();
            """
        )
        second.run(
            'await until("the unread badge", () => document.getElementById("unread").textContent === "1");'
            'document.getElementById("chat-toggle").click();'
        )
        read = second.run('return [...document.querySelectorAll(".message")].map((message) => message.textContent)')
        self.assertEqual(read, ["hello from here"])

    def test_udp(self) -> None:
        """Two people see and hear each other and chat, through the relay over UDP."""
        self.check_pair("udp")

    def test_tcp(self) -> None:
        """Two people see and hear each other and chat, through the relay over TCP."""
        self.check_pair("tcp")

    def test_tls(self) -> None:
        """Two people see and hear each other and chat, through the relay over TLS."""
        self.check_pair("tls")

    def test_four(self) -> None:
        """Four people see and hear all the others, and the page has a tile with a name and a quality for each."""
        pages = [self.room_page(name) for name in ("Ada", "Ben", "Cem", "Dea")]
        for page in pages:
            page.media(audio=3, video=3)
        tiles = pages[0].run(
            """
            const lines = () => [...document.querySelectorAll(".tile")].map((tile) => ({
              name: tile.querySelector(".caption-name").textContent,
              quality: tile.querySelector(".quality-text").textContent,
              picture: tile.querySelector("video").videoWidth > 0,
            }));
            await until("a quality for each", () => lines().every(({ quality }) => /bit.*lost.*ms.*UDP/.test(quality)));
            return lines();
            """
        )
        self.assertEqual({tile["name"] for tile in tiles}, {"Ada (you)", "Ben", "Cem", "Dea"})
        self.assertTrue(all(tile["picture"] for tile in tiles), tiles)

    def test_mute_share_leave(self) -> None:
        """Muting, sharing a screen and leaving by keyboard and button show on the other's page."""
        ada, ben = self.room_page("Ada"), self.room_page("Ben")
        for page in (ada, ben):
            page.media(audio=1, video=1)
        ada.run('for (const key of "mvs") document.dispatchEvent(new KeyboardEvent("keydown", { key }))')
        ben.run(
            """
            const tile = () => document.querySelector('.tile:not([data-tile="own"])');
            await until("a muted tile", () => tile().matches(".no-sound:not(.has-video)"));
            const screen = () => document.querySelector(".tile.screen-share video");
            await until("the screen", () => screen()?.videoWidth > 0);
            """
        )
        ada.run('document.getElementById("mic").click(); document.getElementById("cam").click();')
        ben.run(
            """
            const tile = () => document.querySelector('.tile:not([data-tile="own"], .screen-share)');
            await until("a tile with sound and picture", () => tile().matches(".has-video:not(.no-sound)"));
            """
        )
        ada.run('document.getElementById("share").click()')
        ben.run('await until("no screen", () => !document.querySelector(".tile.screen-share"))')
        ada.run('document.getElementById("leave").click()')
        ben.run('await until("one tile", () => document.querySelectorAll(".tile").length === 1)')
        title = ada.run('return document.getElementById("ended-title").textContent')
        self.assertEqual(title, "You left the room")

    def test_lobby(self) -> None:
        """Without ``join=1`` there is a lobby with a picture of oneself; Enter joins."""
        page = self.page().open(self.node().url.partition("?")[0] + f"?room={self.room}&name=Ada")
        page.run(
            """
            await until("a preview", () => document.getElementById("preview").videoWidth > 0);
            document.getElementById("lobby-form").requestSubmit();
            await until("the call", () => window.room?.state === "connected");
            await until("two publications", () => window.room.publications.size === 2);
            """
        )
        self.assertEqual(page.run('return document.getElementById("call").hidden'), False)

    def test_key(self) -> None:
        """A key in the fragment leaves the address bar at once; a wrong one is said in words, and can be mended."""
        base = self.node().url.partition("?")[0]
        page = self.page().open(f"{base}?room={self.room}&name=Ada&join=1#key=ak_wrong:default")
        seen = page.run(
            """
            const problem = document.getElementById("lobby-problem");
            await until("a refusal", () => /not accepted/.test(problem.textContent));
            return { address: location.href, field: document.getElementById("key-field").hidden };
            """
        )
        self.assertNotIn("wrong", seen["address"])
        self.assertFalse(seen["field"])
        page.run(
            """
            document.getElementById("key-input").value = args[0];
            document.getElementById("lobby-form").requestSubmit();
            await until("the call", () => window.room?.state === "connected");
            """,
            self.node().key,
        )


class SecureTests(BrowserTestCase):
    def setUp(self) -> None:
        super().setUp()
        issued = certificates()
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={issued.private_key}:certKey={issued.certificate}"
        self._node = node_process("secure", "--http", endpoint).start()
        self.addCleanup(end, self._node)

    def node(self) -> NodeProcess:
        return self._node

    def test_https(self) -> None:
        """The page over https and its signalling over wss make the same call."""
        pages = [self.room_page(name, "tls") for name in ("Ada", "Ben")]
        for page in pages:
            self.assertEqual(page.run("return location.protocol"), "https:")
            self.assertEqual(page.media(audio=1, video=1)["local"]["relayProtocol"], "tls")
