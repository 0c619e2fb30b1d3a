"""The room page, as people use it."""

from __future__ import annotations

from tests.browser.chromium import Chromium
from tests.browser.page import Page
from tests.browser.stage import BrowserTestCase, certificates, chromium, end, node_process
from tests.node import NodeProcess

#: Takes the small picture of somebody's camera, by name, and waits for frames of it. The whole one a browser sends
#: only where it believes that the line has room.
SMALL_PICTURE = """
    const [name] = args;
    const peer = () => [...room.peers.values()].find(({ metadata }) => metadata?.name === name);
    const camera = () => [...(peer()?.tracks.values() ?? [])].find(({ source }) => source === "camera");
    await until("both layers", () => camera()?.layers.length === 2);
    room.subscribe(camera().trackId, { layer: "low" });
    const inbound = async () =>
      (await statistics(room.connection, "inbound-rtp")).find(({ mid }) => mid === camera().mid) ?? {};
    await until("a small picture", async () => (await inbound()).frameWidth === 320);
    const { framesDecoded } = await inbound();
    await until("frames of it", async () => (await inbound()).framesDecoded > framesDecoded + 10);
    return camera().layers;
"""


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

    def test_small_picture(self) -> None:
        """The page's camera has a small picture too, for who asks for it; the whole one is sent to who wants that."""
        ada, ben = self.room_page("Ada"), self.room_page("Ben")
        for page in (ada, ben):
            page.media(audio=1, video=1)
        sent = """
            const [camera] = [...room.publications].filter(({ source }) => source === "camera");
            const sent = () => camera.transceiver.sender.getParameters().encodings.filter(({ active }) => active);
            await until(args[0], () => sent().map(({ rid }) => rid).join() === args[0]);
        """
        ada.run(sent, "l,h")
        self.assertEqual(ben.run(SMALL_PICTURE, "Ada"), ["low", "high"])
        ada.run(sent, "l")
        ben.run("for (const { tracks } of room.peers.values()) for (const id of tracks.keys()) room.subscribe(id);")
        ada.run(sent, "l,h")

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


class AccessTests(BrowserTestCase):
    def controls(self, page: Page) -> list[dict[str, str]]:
        """Role and name of everything that can be operated, as a screen reader is told."""
        driver = chromium().driver
        page.run("return null")
        nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "textbox", "combobox", "link", "DisclosureTriangle", "Video"}
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in roles
        ]

    def test_names(self) -> None:
        """Every control and every picture has a name for those who do not see it."""
        lobby = self.page().open(self.node().url.partition("?")[0] + f"?room={self.room}&name=Ada")
        lobby.run('await until("a preview", () => document.getElementById("preview").videoWidth > 0)')
        found = self.controls(lobby)
        self.assertTrue({"Microphone", "Camera", "Your name", "Join"} <= {one["name"] for one in found}, found)
        self.assertEqual([one for one in found if not one["name"]], [])
        call = self.room_page("Ben")
        call.media(audio=0, video=0)
        call.run('document.getElementById("chat-toggle").click()')
        found = self.controls(call)
        names = {one["name"] for one in found}
        self.assertTrue({"Microphone", "Camera", "Chat", "Message", "Send", "Video of Ben (you)"} <= names, found)
        self.assertEqual([one for one in found if not one["name"]], [])

    def test_keyboard(self) -> None:
        """Tab reaches every control of a call, each with a visible focus, and Escape closes the chat."""
        from selenium.webdriver.common.keys import Keys

        page = self.room_page("Ada")
        page.media(audio=0, video=0)
        page.run('await until("the call", () => room.state === "connected"); document.body.focus();')
        driver = chromium().driver
        seen: dict[str, str] = {}
        for _ in range(14):
            driver.switch_to.active_element.send_keys(Keys.TAB)
            focus = page.run(
                """
                const { id, className } = document.activeElement;
                return [id || className, getComputedStyle(document.activeElement).outlineStyle];
                """
            )
            seen[focus[0]] = focus[1]
        expected = {"copy", "pin", "invite-copy", "mic", "cam", "share", "chat-toggle", "settings-open", "leave"}
        self.assertTrue(expected <= set(seen), seen)
        self.assertEqual({seen[name] for name in expected}, {"solid"})
        driver.switch_to.active_element.send_keys("c")
        self.assertEqual(page.run("return document.activeElement.id"), "chat-input")
        driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        self.assertEqual(page.run("return document.activeElement.id"), "chat-toggle")

    def test_narrow(self) -> None:
        """On a phone of 360 pixels nothing is cut off or has to be scrolled sideways, in lobby, call and chat."""
        page = self.page()
        driver = chromium().driver
        screen = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        outside = """
            const all = document.querySelectorAll("button, input, textarea, h1, .tile, .chip");
            const wide = [...all].filter((element) => {
              const { left, right, width } = element.getBoundingClientRect();
              return width > 0 && (left < 0 || right > innerWidth);
            });
            const names = wide.map(({ id, className }) => id || className);
            return [document.documentElement.scrollWidth > innerWidth, ...names];
        """
        page.open(self.node().url.partition("?")[0] + f"?room={self.room}&name=Ada")
        page.run('await until("a preview", () => document.getElementById("preview").videoWidth > 0)')
        self.assertEqual(page.run(outside), [False])
        self.room_page("Ada with quite a long name", page=page)
        page.run('await until("the call", () => window.room?.state === "connected")')
        self.assertEqual(page.run(outside), [False])
        page.run('document.getElementById("chat-toggle").click()')
        self.assertEqual(page.run(outside), [False])

    def test_refused_devices(self) -> None:
        """Without permission for devices one joins all the same, and is told why nobody sees or hears one."""
        browser = Chromium(devices=False)
        self.addCleanup(browser.quit)
        page = browser.page()
        self.room_page("Ada", page=page)
        said = page.run(
            """
            await until("the call", () => window.room?.state === "connected");
            return until("a reason", () => document.getElementById("toasts").textContent);
            """
        )
        self.assertIn("may not use your camera and microphone", said)
        self.assertEqual(page.run('return document.getElementById("mic").getAttribute("aria-pressed")'), "false")


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
