"""Trunks for real: nodes on loopback addresses of their own, signed handshakes, and nodes that vanish."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource

from orama.cluster.keyring import ClusterKey, Keyring
from orama.cluster.signing import Verifier, sign
from orama.rest.auth import Authenticator
from orama.rest.internal import Gate
from orama.rest.site import Site
from orama.rest.tokens import Tokens, new_key
from orama.settings import AuthSettings, LimitSettings, Settings, SignalingSettings
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from orama.signaling.session import State
from orama.signaling.trunks import PROBE_TIMEOUT, Inward, Trunks
from orama.signaling.visitors import write_visitor
from tests.signaling.doubles import Node, Somebody
from tests.signaling.test_resource import KEY, Keys, webrtc
from tests.signaling.wire import Page, open_page, reactor

MAX_FRAME = 65536


@frozen
class Place:
    node_id: str
    ip: str
    signaling_port: int


@define(eq=False)
class Member:
    """A node: its gateway, which is the address of its SFU too, and what runs behind it."""

    node_id: str
    node: Node
    service: SignalingService
    listening: Any
    keys: Keys

    @property
    def place(self) -> Place:
        host = self.listening.getHost()
        return Place(self.node_id, host.host, host.port)


class TrunkCase(TestCase):
    timeout = 30
    signaling = SignalingSettings()

    async def setUp(self) -> None:
        self.places: dict[str, Place] = {}
        self.owners: dict[str, str] = {}
        self.dead: set[str] = set()
        self.pages: list[Page] = []
        self.keyring = Keyring([ClusterKey(0, bytes(range(32)))])
        self.members = [await self.start(f"node-{number}", f"127.0.0.{number}") for number in (1, 2, 3)]
        self.addCleanup(self.stop)

    async def start(self, node_id: str, ip: str, door: str = "", processes: Inward | None = None) -> Member:
        """A node; or, with *door*, a process of one, which is behind that Unix socket."""
        limits = LimitSettings(request_rate=10_000, request_burst=10_000)
        settings = Settings(signaling=self.signaling, limits=limits)
        node = Node(settings, node_id=node_id)
        node.owners = self.owners
        trunks = Trunks(
            reactor,
            settings.signaling,
            lambda namespace: tuple(self.places.values()),
            lambda method, target: sign(self.keyring, method, target, b"", node_id, reactor.seconds()),
            lambda name: name not in self.dead,
            processes,
        )
        service = SignalingService(reactor, settings, node.rooms, node, node, trunks=trunks)
        keys = Keys()
        gate = Gate(Verifier(self.keyring, reactor), node_id)
        authenticator = Authenticator(keys, Tokens(AuthSettings(), new_key(), reactor))
        root = tree = Resource()
        for name in (b"v1", b"webrtc"):
            child = Resource()
            tree.putChild(name, child)
            tree = child
        tree.putChild(b"signal", SignalResource(service, settings, authenticator, webrtc, gate))
        service.startService()
        site = Site(root, settings, reactor)
        listening = reactor.listenUNIX(door, site) if door else reactor.listenTCP(0, site, interface=ip)
        member = Member(node_id, node, service, listening, keys)
        if not door:
            self.places[node_id] = member.place
        return member

    async def stop(self) -> None:
        for page in self.pages:
            page.transport.abortConnection()
        for member in self.members:
            await member.listening.stopListening()
            await member.service.stopService()
            self.assertEqual((len(member.service.sockets), len(member.service._trunks)), (0, 0))

    async def page(self, member: Member, query: str = f"?room=room&api_key={KEY}", **how: Any) -> Page:
        page = await open_page(member.place.signaling_port, query, host=member.place.ip, **how)
        self.pages.append(page)
        await page.until_open()
        return page

    async def joined(self, member: Member, **fields: Any) -> Page:
        page = await self.page(member)
        page.say("join", **fields)
        await page.until("turn-credentials")
        return page

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await deferLater(reactor, 0.01, lambda: None)

    def kill(self, member: Member) -> None:
        """What the kernel does for a process that is killed: nobody listens, and every connection is reset."""
        self.members.remove(member)
        member.listening.stopListening()
        for socket in tuple(member.service.sockets):
            socket.abort()
        member.service.stopService()
        for trunk in tuple(member.service._trunks._trunks):  # type: ignore[union-attr]
            trunk.abort()


class ForwardingTests(TrunkCase):
    async def test_clients_of_three_gateways_meet(self) -> None:
        """Whichever gateway they come to, clients of a room are in it together, on the node that has it."""
        self.owners["room"] = "node-2"
        pages = [await self.joined(member, metadata={"n": n}) for n, member in enumerate(self.members)]
        for page in pages[:2]:
            await page.until("peer-joined")
        self.assertEqual(len(pages[2].received[0]["peers"]), 2)
        one, two, three = (member.node for member in self.members)
        self.assertEqual([len(node.rooms.everybody) for node in (one, two, three)], [0, 3, 0])
        pages[0].say("track-state", trackId="t", muted=True)
        pages[0].say("leave")
        self.assertEqual(await pages[0].until_closed(), 1000)
        left = await pages[2].until("peer-left")
        self.assertEqual(left["reason"], "left")
        self.assertIn(("track_state", "t", True), two.rooms.everybody[0].calls)

    async def test_resume_by_another_gateway(self) -> None:
        """A client whose gateway vanishes takes its place again through another: the others do not notice."""
        self.owners["room"] = "node-2"
        first = await self.joined(self.members[0])
        other = await self.joined(self.members[1])
        welcome = first.received[0]
        self.kill(self.members[0])
        await first.until_closed()
        again = await self.joined(self.members[-1], resume=welcome["resume"])
        self.assertEqual(again.received[0]["peerId"], welcome["peerId"])
        self.assertNotIn("peer-left", [message["type"] for message in other.received])

    async def test_owner_is_killed(self) -> None:
        """When the node of a room is killed, its clients elsewhere hear it at once, and meet again on another node."""
        self.owners["room"] = "node-2"
        pages = [await self.joined(member) for member in (self.members[0], self.members[2])]
        began = reactor.seconds()
        self.kill(self.members[1])
        for page in pages:
            self.assertEqual(await page.until_closed(), 1012)
        again = [await self.joined(member) for member in self.members]
        self.assertLess(reactor.seconds() - began, 2.0)
        await again[0].until("peer-joined")
        self.assertEqual(self.owners["room"], "node-1")

    async def test_large_messages(self) -> None:
        """What an SFU says may be longer than what a client may."""
        self.owners["room"] = "node-2"
        page = await self.joined(self.members[0])
        peer = self.members[1].node.rooms.everybody[0]
        peer.metadata = "x" * (3 * MAX_FRAME)
        other = await self.joined(self.members[2])
        self.assertEqual(len(other.received[0]["peers"][0]["metadata"]), 3 * MAX_FRAME)
        page.say("join", metadata="ü" * 1000)
        self.assertEqual((await page.until("error"))["code"], "invalid_join")

    async def test_token_for_some_rooms(self) -> None:
        """The rights of a token go with its owner."""
        self.owners["room"] = "node-2"
        rights = Somebody(user_id="ann", rooms=frozenset({"room", "b"}), permissions=frozenset({"subscribe"}))
        page = await self.page(self.members[0])
        session = next(iter(self.members[0].service.lobby))
        session.visitor = rights
        page.say("join")
        self.assertEqual((await page.until("welcome"))["userId"], "ann")
        there = next(iter(self.members[1].service.lobby))
        self.assertEqual((there.visitor.rooms, there.visitor.permissions), (frozenset({"room"}), rights.permissions))
        self.assertTrue(there.from_node)


class Processes:
    """Those of node-2, each behind a door; *rooms* has the numbers of their rooms."""

    node_id = "node-2"

    def __init__(self, directory: str) -> None:
        self.doors = [f"{directory}/{number}" for number in range(2)]
        self.rooms: dict[str, int | None] = {}

    def way(self, namespace: str, room_id: str) -> str | None:
        number = self.rooms[room_id]
        return None if number is None else self.doors[number]


class InwardTests(TrunkCase):
    """A node whose rooms are in several processes of it."""

    async def setUp(self) -> None:
        directory = mkdtemp(prefix="orama-")  # a socket's path has room for 107 bytes
        self.addCleanup(rmtree, directory)
        await super().setUp()
        self.processes = Processes(directory)
        for number in range(2):
            self.owners[f"room-{number}"] = "node-2"
            self.processes.rooms[f"room-{number}"] = number
        old = self.members.pop(1)
        await old.listening.stopListening()
        await old.service.stopService()
        self.inside = [await self.start("node-2", "", door) for door in self.processes.doors]
        self.front = await self.start("node-2", "127.0.0.2", processes=self.processes)
        self.front.node.rooms.elsewhere.add("default")
        self.members += [*self.inside, self.front]

    async def into(self, member: Member, room: str) -> Page:
        page = await self.page(member, f"?room={room}&api_key={KEY}")
        page.say("join")
        return page

    def people(self) -> list[int]:
        return [sum(not peer.left for peer in member.node.rooms.everybody) for member in self.inside]

    async def test_each_to_its_room(self) -> None:
        """Whichever gateway they come to, the node's own too, clients are in the process that has their room."""
        for room in ("room-0", "room-1", "room-1"):
            for member in (self.members[0], self.front):
                page = await self.into(member, room)
                await page.until("turn-credentials")
        self.assertEqual(self.people(), [2, 4])
        self.assertEqual(len(page.received[0]["peers"]), 3)

    async def test_process_is_killed(self) -> None:
        """When a process is killed its people hear it at once and meet again in another, on the same node; those who
        come before it is known that it is gone, too."""
        pages = [await self.into(member, "room-0") for member in (self.members[0], self.front)]
        other = await self.into(self.members[0], "room-1")
        for page in (*pages, other):
            await page.until("turn-credentials")
        self.kill(self.inside[0])
        for page in pages:
            self.assertEqual(await page.until_closed(), 1012)
        again = [await self.into(member, "room-0") for member in (self.members[0], self.front)]
        await self.until(lambda: self.front.service.lobby.counters.forwarded == 3)
        self.processes.rooms["room-0"] = 1
        for page in again:
            await page.until("turn-credentials")
        self.assertEqual((self.people()[1], self.owners["room-0"]), (3, "node-2"))
        self.assertEqual([message["type"] for message in other.received], ["welcome", "turn-credentials"])

    async def test_no_process(self) -> None:
        """Where no process is left, and no other node takes the room, a client is told to come again later."""
        self.processes.rooms["room-0"] = None
        page = await self.into(self.front, "room-0")
        await page.until("error")
        self.assertEqual(await page.until_closed(), 1013)

    async def test_strangers(self) -> None:
        """Nobody comes through the front who is not forwarded by a node: a key is none for inside."""
        good = f"?room=room-0&to=node-2&visitor={write_visitor(Somebody(), 'room-0')}"
        page = await self.page(self.front, good)
        self.assertEqual(await page.until_closed(), 4401)


class StopTests(TrunkCase):
    async def test_while_a_trunk_is_made(self) -> None:
        """A gateway that stops while it hands clients over leaves no connection and no delayed call behind."""
        for number, node_id in enumerate(("node-8", "node-7", "node-6")):
            self.owners[f"room-{number}"] = node_id
        # One whose kernel takes the connection and whose process does not, one that is not known, one that is gone.
        silent = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.8")
        self.addCleanup(silent.stopListening)
        self.places["node-8"] = Place("node-8", "127.0.0.8", silent.getHost().port)
        self.places["node-6"] = Place("node-6", "240.0.0.1", 9)
        pages = [await self.page(self.members[0], f"?room=room-{number}&api_key={KEY}") for number in range(3)]
        for page in pages:
            page.say("join")
        lobby = self.members[0].service.lobby
        await self.until(lambda: [session.state for session in lobby] == [State.JOINING] * 3)
        await self.members[0].service.stopService()
        for page in pages:
            await page.until_closed()


class DeadNodeTests(TrunkCase):
    signaling = SignalingSettings(ping_interval=60.0)

    async def test_said_to_be_dead_and_alive(self) -> None:
        """A node that answers is not dropped because of what others say of it."""
        self.owners["room"] = "node-2"
        page = await self.joined(self.members[0])
        self.dead.add("node-2")
        trunks = self.members[0].service._trunks
        assert isinstance(trunks, Trunks)
        (trunk,) = trunks._trunks
        probed = reactor.seconds()
        trunks.tick(probed)
        await self.until(lambda: trunk._heard > probed)
        trunks.tick(probed + PROBE_TIMEOUT)
        self.assertEqual(len(trunks), 1)
        page.say("leave")
        self.assertEqual(await page.until_closed(), 1000)

    async def test_silent_and_said_to_be_dead(self) -> None:
        """One that does not is given up: whoever was there is told to join again."""
        self.owners["room"] = "node-9"
        silent = reactor.listenTCP(0, _Mute.factory(), interface="127.0.0.9")
        self.addCleanup(silent.stopListening)
        self.places["node-9"] = Place("node-9", "127.0.0.9", silent.getHost().port)
        page = await self.page(self.members[0])
        page.say("join")
        await _Mute.greeted
        _Mute.say('{"type": "welcome"}')
        await page.until("welcome")
        began = reactor.seconds()
        self.dead.add("node-9")
        self.assertEqual(await page.until_closed(), 1012)
        self.assertLess(reactor.seconds() - began, PROBE_TIMEOUT + 2.0)


class DoorTests(TrunkCase):
    """Who may say that somebody has been let in."""

    async def refused(self, query: str, headers: dict[str, str]) -> int:
        page = await self.page(self.members[1], query, headers=headers)
        return int(await page.until_closed())

    def signed(self, query: str, node_id: str = "node-1") -> dict[str, str]:
        target = f"/v1/webrtc/signal{query}"
        return sign(self.keyring, "GET", target, b"", node_id, reactor.seconds())

    async def test_signed(self) -> None:
        """A signed visitor comes in, once: the same request again is refused."""
        query = f"?room=room&to=node-2&visitor={write_visitor(Somebody(), 'room')}"
        headers = self.signed(query)
        page = await self.page(self.members[1], query, headers=headers)
        page.say("join")
        await page.until("welcome")
        self.assertEqual(await self.refused(query, headers), 4401)

    async def test_refused(self) -> None:
        """One without a signature, with another node's, with another visitor, or with none at all does not."""
        visitor = write_visitor(Somebody(), "room")
        good = f"?room=room&to=node-2&visitor={visitor}"
        owner = write_visitor(Somebody(role="owner"), "room")
        self.assertEqual(await self.refused(good, {}), 4401)
        self.assertEqual(await self.refused(f"{good}&api_key={KEY}", {}), 4401)
        self.assertEqual(await self.refused(f"?room=room&to=node-2&visitor={owner}", self.signed(good)), 4401)
        elsewhere = f"?room=room&to=node-3&visitor={visitor}"
        self.assertEqual(await self.refused(elsewhere, self.signed(elsewhere)), 1013)
        nobody = "?room=room&to=node-2&visitor=nobody"
        self.assertEqual(await self.refused(nobody, self.signed(nobody)), 1013)
        off = f"?room=room&to=node-2&visitor={write_visitor(Somebody(namespace='off'), 'room')}"
        self.assertEqual(await self.refused(off, self.signed(off)), 1013)

    async def test_not_where_there_is_no_gate(self) -> None:
        """A public address knows no visitors: there a credential is what counts."""
        site = self.members[1].listening.factory
        site.resource.children[b"v1"].children[b"webrtc"].children[b"signal"]._gate = None
        good = f"?room=room&to=node-2&visitor={write_visitor(Somebody(role='owner'), 'room')}"
        self.assertEqual(await self.refused(good, self.signed(good)), 4401)


class _Mute(Protocol):
    """Takes a WebSocket, says what it is told to, and answers nothing."""

    greeted: Deferred[None]
    one: _Mute

    @classmethod
    def factory(cls) -> Factory:
        cls.greeted = Deferred()
        return Factory.forProtocol(cls)

    def connectionMade(self) -> None:
        self._data = b""
        type(self).one = self

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if self._data.endswith(b"\r\n\r\n") and not self.greeted.called:
            key = next(line for line in self._data.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
            accept = b64encode(sha1(key.split()[-1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            self.transport.write(  # type: ignore[union-attr]
                b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self.greeted.callback(None)

    @classmethod
    def say(cls, text: str) -> None:
        cls.one.transport.write(bytes([0x81, len(text)]) + text.encode())  # type: ignore[union-attr]
