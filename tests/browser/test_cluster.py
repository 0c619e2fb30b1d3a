"""Three nodes on one database, callers at different gateways: they meet, and lose a node without losing the call."""

from __future__ import annotations

import json
import shutil
import signal
import time
from typing import Any

from tests.browser.page import Page
from tests.browser.stage import BrowserTestCase, directory, end, files, node_process
from tests.node import NodeProcess
from tests.store.databases import OnPostgres

#: Seconds within which media is back when the node of a room was killed.
BACK = 5.0
#: The same for a node that hangs, whose clients only find out by the media that does not come.
HUNG = 20.0
#: Seconds that a busy machine adds to either.
SLACK = 5.0
#: Seconds in which three nodes have learnt of each other and taken up their roles.
SETTLED = 120.0
#: ``gaps(room)`` keeps the longest time, in ms, in which *room* heard nothing, whatever its connection is.
GAPS = """
    window.gaps = (room) => {
      const seen = { last: Date.now(), longest: 0 };
      let connection = null;
      let packets = 0;
      const look = async () => {
        let now = 0;
        if (room.connection !== connection) [connection, packets] = [room.connection, 0];
        for (const entry of connection ? (await connection.getStats()).values() : []) {
          if (entry.type === "inbound-rtp" && entry.kind === "audio") now += entry.packetsReceived;
        }
        if (now > packets && connection === room.connection) {
          seen.longest = Math.max(seen.longest, Date.now() - seen.last);
          [seen.last, packets] = [Date.now(), now];
        }
        setTimeout(look, 50);
      };
      look();
      return seen;
    };
"""


class ClusterTests(BrowserTestCase):
    def setUp(self) -> None:
        super().setUp()
        database = OnPostgres().new_url()
        self.nodes: list[NodeProcess] = []
        for number in (1, 2, 3):
            ip = f"127.0.0.{number}"
            home = f"{self.id().rpartition('.')[2]}-{number}"
            node = node_process(
                home,
                *("--database", database, "--internal-ip", ip, "--public-ip", ip, "--http", f"tcp:0:interface={ip}"),
            )
            if self.nodes:
                node.data.mkdir(mode=0o700)
                shutil.copy(self.nodes[0].data / "cluster.key", node.data)
            self.addCleanup(self.finish, node)
            self.nodes.append(node.start())
        self.urls = [f"http://{node.authority}" for node in self.nodes]
        self.key = self.nodes[0].key
        self.await_roles()

    def finish(self, node: NodeProcess) -> None:
        if node.process.poll() is None:
            end(node)
        shutil.rmtree(directory() / node.directory.name, ignore_errors=True)

    def await_roles(self) -> None:
        """Wait until each node says that it serves what it is to serve."""
        deadline = time.monotonic() + SETTLED
        while time.monotonic() < deadline:
            seen = self.asked("/v1/namespace/webrtc/status")["observed"]["nodes"]
            if [sum(bool(each.get(name)) for each in seen) for name in ("sfu_up", "turn_up")] == [3, 2]:
                return
            time.sleep(0.2)
        self.fail(f"the nodes have not taken up their roles: {seen}")

    def asked(self, path: str) -> Any:
        """What the first node that runs answers."""
        node = next(node for node in self.nodes if node.process.poll() is None)
        status, body = node.request("GET", path, headers={"X-API-Key": self.key})
        self.assertEqual(status, 200, body)
        return json.loads(body)

    def caller(self, number: int) -> Page:
        """A page whose ``room`` is joined by the gateway of node *number*, and heard from there on."""
        page = self.client_page()
        urls = self.urls[number - 1 :] + self.urls[: number - 1]
        page.run(
            GAPS
            + """
            window.room = await orama.connect({ urls: args[0], room: args[1], apiKey: args[2], transport: "udp" });
            room.publish(tone(300), { source: "voice" });
            """,
            urls,
            self.room,
            self.key,
        )
        return page

    def client_page(self, page: Page | None = None) -> Page:
        made = (page or self.page()).open(f"{files().origin}/client.html")
        made.run("""await until("the modules", () => document.title === "ready");""")
        return made

    def heard(self, *pages: Page) -> None:
        """Wait until each hears the other, and begin to watch."""
        for page in pages:
            page.run(
                """
                await received({ audio: 1, video: 0 }, room.connection);
                Object.assign(window, { seen: gaps(room), before: room.connection });
                """
            )

    def moved(self, *pages: Page) -> list[float]:
        """Wait until each hears the other on a new connection; the longest silence of each in seconds."""
        return [
            page.run(
                """
                await until("a new connection", () => room.connection && room.connection !== before);
                const since = Date.now();
                await until("sound", () => seen.last > since + 1000);
                return seen.longest / 1000;
                """
            )
            for page in pages
        ]

    def owner(self) -> NodeProcess:
        """The node that has the room."""
        (room,) = [each for each in self.asked("/v1/webrtc/rooms")["rooms"] if each["room_id"] == self.room]
        return next(node for node in self.nodes if (node.data / "node.id").read_text().strip() == room["node_id"])

    def test_owner_is_killed(self) -> None:
        """``kill -9`` of the node that has the room and that one caller came by: both hear each other within 5 s."""
        one, two = self.caller(1), self.caller(2)
        self.heard(one, two)
        owner = self.owner()
        self.assertIs(owner, self.nodes[0])
        owner.signal(signal.SIGKILL)
        silence = self.moved(one, two)
        print(f"silent for {silence} s")
        self.assertLess(max(silence), BACK + SLACK)
        self.assertIsNot(self.owner(), owner)

    def test_owner_of_others_is_killed(self) -> None:
        """So they do when both came by other gateways."""
        first = self.caller(3)
        one, two = self.caller(1), self.caller(2)
        first.run("room.leave();")
        self.heard(one, two)
        owner = self.owner()
        self.assertIs(owner, self.nodes[2])
        owner.signal(signal.SIGKILL)
        silence = self.moved(one, two)
        print(f"silent for {silence} s")
        self.assertLess(max(silence), BACK + SLACK)

    def test_owner_hangs(self) -> None:
        """A node that stops without closing anything is noticed by what does not come: they hear each other again."""
        one, two = self.caller(1), self.caller(2)
        self.heard(one, two)
        owner = self.owner()
        self.addCleanup(owner.process.kill)
        owner.signal(signal.SIGSTOP)
        self.nodes.remove(owner)
        silence = self.moved(two, one)
        print(f"silent for {silence} s")
        self.assertLess(max(silence), HUNG + SLACK)

    def test_owner_goes_down(self) -> None:
        """A node that is told to go down sends its callers away, waits for them, and is missed for a moment at most."""
        one, two = self.caller(1), self.caller(2)
        self.heard(one, two)
        owner = self.owner()
        began = time.monotonic()
        owner.signal(signal.SIGTERM)
        silence = self.moved(one, two)
        print(f"silent for {silence} s")
        self.assertEqual(owner.wait(), 0)
        self.assertLess(time.monotonic() - began, 15.0 + SLACK)
        self.assertLess(max(silence), SLACK)
