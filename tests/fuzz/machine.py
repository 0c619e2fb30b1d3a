"""Any sequence of requests, packets, strangers, changes and time, on a whole TURN server beside its model.

After each step what was granted is what the model says: quotas and ports exactly, nothing without authentication,
nothing kept for strangers, data where it is permitted and nowhere else, every packet faultless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, invariant, rule

from orama.net.fabric import Address
from orama.turn.credentials import issue
from orama.wire import channeldata, stun
from orama.wire.stun import Attribute, Class, Message, Method, PasswordAlgorithm
from tests.fuzz.model import (
    CHANNEL,
    FEW,
    HAIRPIN,
    MAX_AGE,
    MAX_LIFETIME,
    NARROW,
    PEERS,
    PER_NAMESPACE,
    PER_USER,
    PERMISSION,
    RESERVATION,
    USERS,
    WIDE,
    Held,
    Model,
    Who,
)
from tests.fuzz.outgoing import CheckedClient, check, kept, taken_ports
from tests.turn.world import OTHER_SFU, PEER, REALM, SFU, World, code

Pair = tuple[Attribute[Any], Any]

#: Most of what happens is asked for by who may, on few five-tuples, of a server that is well: else little is granted.
slots = st.sampled_from((0, 0, 0, 1, 1, 2, 3, 4, 5))
seldom = st.sampled_from((False, False, False, True))
users = st.sampled_from(USERS)
others = st.sampled_from((None, None, None, None, None, *USERS))
peers = st.sampled_from((*[SFU] * 4, *[PEER] * 4, HAIRPIN, HAIRPIN, *PEERS))
#: Where None is, one that packets should pass to.
likely = st.none() | peers
numbers = st.sampled_from((0x4000, 0x4000, 0x4000, 0x4001, 0x4001, 0x4FFF, 0x7FFF, 0x3FFF, 0x8000))
lifetimes = st.sampled_from((None, 1, 600, 1000, 100_000))
#: Seconds around everything that expires.
seconds = st.sampled_from((0.5, *[1] * 12, 29, 30, 31, 269, 270, 299, 300, 301, 599, 600, 601, 1200, 2999))


class Machine(RuleBasedStateMachine):
    """The server, its clients, and the model."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            allocations_per_user=PER_USER,
            allocations_per_namespace=PER_NAMESPACE,
            max_lifetime=MAX_LIFETIME,
            max_age=MAX_AGE,
            unauthenticated_rate=0,
        )
        self.world.tenants.put(WIDE)
        self.world.tenants.put(FEW)
        self.world.busy = lambda address: self.busy
        self.busy = False
        self.model = Model(self.world.now)
        self.received = {address: self.world.sfu(address) for address in (SFU, OTHER_SFU)}
        self.clients = [
            CheckedClient(self.world, ("203.0.113.9", 40000 + slot), self.named(USERS[0])) for slot in range(6)
        ]
        self.clients[1].algorithm = PasswordAlgorithm.SHA256
        self.clients[1].verified = True
        self.relays: set[Address] = set()

    def named(self, who: Who, ttl: int = 600) -> Any:
        """Credentials of *who*, also when the namespace is gone."""
        return issue({"myapp": "north", "other": "south"}[who.namespace], who.namespace, ttl, self.world.now, who.user)

    def ask(self, slot: int, who: Who, method: Method, *attributes: Pair, **more: Any) -> Message:
        """A request with credentials of now; asked again when the nonce has aged, as clients do."""
        client = self.clients[slot]
        client.credentials = self.named(who)
        answer = client.ask(method, *attributes, **more)
        if code(answer) == 438:
            client.nonce = answer.get(stun.NONCE) or b""
            answer = client.ask(method, *attributes, **more)
        return answer

    def owner(self, slot: int) -> Who:
        """Whose the five-tuple's allocation is; the first user where there is none."""
        held = self.model.held.get(slot)
        return USERS[0] if held is None else held.who

    def own(self, slot: int, who: Who) -> tuple[Held | None, int]:
        """The five-tuple's allocation, and the code for who may not use it (RFC 8656, 5)."""
        held = self.model.held.get(slot)
        if not self.model.served(who.namespace):
            return held, 401
        return held, 437 if held is None else 441 if held.who != who else 0

    @initialize(who=users)
    def begin(self, who: Who) -> None:
        """Somebody is there already, with a channel to his SFU."""
        self.allocate(0, who, None, MAX_LIFETIME)
        self.bind(0, who, 0x4000, OTHER_SFU if who.namespace == "other" else SFU)

    # ---- requests ---------------------------------------------------------------------------

    @rule(slot=slots, who=users, even=st.sampled_from((None, None, False, True)), asked=lifetimes)
    def allocate(self, slot: int, who: Who, even: bool | None, asked: int | None) -> None:
        """A new allocation, exactly when there is room for it (RFC 8656, 7.2)."""
        attributes: list[Pair] = [(stun.REQUESTED_TRANSPORT, 17)]
        if even is not None:
            attributes.append((stun.EVEN_PORT, even))
        if asked is not None:
            attributes.append((stun.LIFETIME, asked))
        free = self.model.ports(who.namespace, even)
        answer = self.ask(slot, who, Method.ALLOCATE, *attributes)
        if self.allocated(slot, who, answer, free, asked, pair=even is True) and even:
            token, port = answer.get(stun.RESERVATION_TOKEN), self.model.held[slot].relay[1] + 1
            assert token is not None
            self.model.reserved[token] = (who, port, self.model.now + RESERVATION)

    @rule(slot=slots, who=users, choice=st.integers(0, 3))
    def redeem(self, slot: int, who: Who, choice: int) -> None:
        """The reserved port is whose namespace it was reserved for, once."""
        tokens = list(self.model.reserved)
        token = tokens[choice] if choice < len(tokens) else b"no token"
        owner, port, _ = self.model.reserved.get(token, (Who("", ""), 0, 0))
        answer = self.ask(slot, who, Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), (stun.RESERVATION_TOKEN, token))
        if self.allocated(slot, who, answer, {port} if owner.namespace == who.namespace else set(), None):
            del self.model.reserved[token]

    def allocated(
        self, slot: int, who: Who, answer: Message, free: set[int], asked: int | None, pair: bool = False
    ) -> bool:
        """Hold an answer to Allocate to the model; whether there is an allocation now.

        :param free: ports that it may be on; *pair* asks to keep the next one.
        """
        model = self.model
        refusals = [
            refusal
            for refusal, holds in (
                (401, not model.served(who.namespace)),
                (437, slot in model.held),
                (508, who.namespace in model.draining or not free),
                (486, not model.quota_left(who) or (pair and not model.may_reserve(who))),
            )
            if holds
        ]
        if refusals:
            assert code(answer) in refusals, f"{code(answer)}, not one of {refusals}"
            return False
        assert code(answer) == 0, f"{code(answer)}, with room"
        relay, lifetime = answer.get(stun.XOR_RELAYED_ADDRESS), answer.get(stun.LIFETIME)
        assert relay is not None and relay[1] in free, f"{relay}, not one of {free}"
        assert lifetime == model.lifetime(asked, model.now)
        assert answer.get(stun.XOR_MAPPED_ADDRESS) == self.clients[slot].address
        model.held[slot] = Held(who, relay, model.now, model.now + lifetime, answer.transaction_id)
        self.relays.add(relay)
        return True

    @rule(slot=slots)
    def repeat(self, slot: int) -> None:
        """A retransmitted Allocate gets the same allocation (RFC 8656, 7.2)."""
        held = self.model.held.get(slot)
        if held is not None:
            answer = self.ask(
                slot, held.who, Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), transaction_id=held.transaction
            )
            assert (code(answer), answer.get(stun.XOR_RELAYED_ADDRESS)) == (0, held.relay)

    @rule(slot=slots, other=others, asked=lifetimes | seldom.map(lambda end: 0 if end else 600))
    def refresh(self, slot: int, other: Who | None, asked: int | None) -> None:
        """The owner, and nobody else, may keep an allocation or give it back (RFC 8656, 8.2)."""
        who = other or self.owner(slot)
        held, refused = self.own(slot, who)
        answer = self.ask(slot, who, Method.REFRESH, *([] if asked is None else [(stun.LIFETIME, asked)]))
        assert code(answer) == refused
        if held is None or refused:
            return
        lifetime = 0 if asked == 0 else self.model.lifetime(asked, held.created)
        assert answer.get(stun.LIFETIME) == lifetime
        held.expires = self.model.now + lifetime
        self.model.pass_time(0)

    @rule(slot=slots, other=others, wanted=st.lists(peers, min_size=1, max_size=2))
    def permit(self, slot: int, other: Who | None, wanted: list[Address]) -> None:
        """Permissions for all of the peers or for none (RFC 8656, 10.2)."""
        who = other or self.owner(slot)
        held, refused = self.own(slot, who)
        answer = self.ask(slot, who, Method.CREATE_PERMISSION, *((stun.XOR_PEER_ADDRESS, peer) for peer in wanted))
        codes = {refused} if refused else {self.model.refusal(who.namespace, ip) for ip, _ in wanted} - {0} or {0}
        assert code(answer) in codes | ({508} if self.busy and codes == {0} else set()), f"{code(answer)}, not {codes}"
        if held is not None and code(answer) == 0:
            held.permissions |= {ip: self.model.now + PERMISSION for ip, _ in wanted}

    @rule(slot=slots, other=others, number=numbers, peer=peers)
    def bind(self, slot: int, other: Who | None, number: int, peer: Address) -> None:
        """A channel stands for one peer that may be reached, and a peer has one channel (RFC 8656, 12.2)."""
        who = other or self.owner(slot)
        held, refused = self.own(slot, who)
        answer = self.ask(slot, who, Method.CHANNEL_BIND, (stun.CHANNEL_NUMBER, number), (stun.XOR_PEER_ADDRESS, peer))
        if held is None or refused:
            assert code(answer) == refused
            return
        now = self.model.now
        there, until = held.channels.get(number, (peer, 0))
        already = held.channel_of(peer, now)
        codes = set()
        if (
            not 0x4000 <= number <= 0x7FFF
            or (until > now and there != peer)
            or (already is not None and already != number)
        ):
            codes.add(400)
        codes |= {self.model.refusal(who.namespace, peer[0])} - {0}
        if not self.model.reaches(who.namespace, peer):
            codes.add(self.model.refusal(who.namespace, peer[0]) or 403)
        if self.busy and not codes:
            codes = {0, 508}
        assert code(answer) in (codes or {0}), f"{code(answer)}, not {codes or 0}"
        if code(answer) == 0:
            held.channels[number] = (peer, now + CHANNEL)
            held.permissions[peer[0]] = now + PERMISSION

    # ---- packets ----------------------------------------------------------------------------

    @rule(slot=slots, chosen=likely, payload=st.binary(max_size=9))
    def send(self, slot: int, chosen: Address | None, payload: bytes) -> None:
        """A Send indication passes with a permission, to a peer that may be reached (RFC 8656, 11.2)."""
        held, peer = self.model.held.get(slot), chosen or self.model.open_to(slot)
        passes = (
            held is not None
            and held.permitted(peer[0], self.model.now)
            and self.model.reaches(held.who.namespace, peer)
        )
        self.hear()
        back = self.clients[slot].send(peer, payload)
        self.expect(slot, back, peer, payload, passes)

    @rule(slot=slots, number=numbers, payload=st.binary(max_size=9), bound=st.booleans())
    def send_on_channel(self, slot: int, number: int, payload: bytes, bound: bool) -> None:
        """ChannelData passes on a channel that is bound (RFC 8656, 12.6)."""
        held = self.model.held.get(slot)
        peer, until = ("", 0), 0.0
        if held is not None and bound:
            number = min(held.channels, default=number)
        if held is not None and number in held.channels:
            peer, until = held.channels[number]
        self.hear()
        back = self.clients[slot].give(channeldata.pack(number, payload))
        self.expect(slot, back, peer, payload, until > self.model.now)

    def expect(self, slot: int, back: list[bytes], peer: Address, payload: bytes, passes: bool) -> None:
        """Whether *payload* came to *peer*, and nothing to anybody else; *back* is what the client itself heard."""
        heard = self.hear() + [(self.clients[slot].address, _said(packet)) for packet in back]
        held = self.model.held.get(slot)
        if not passes or held is None:
            assert heard == [], f"{heard} without a permission"
            return
        hairpin = next((slot for slot, other in self.model.held.items() if other.relay == peer), None)
        if hairpin is not None:
            wanted = self.down(hairpin, held.relay, payload)
            assert heard == ([] if wanted is None else [(self.clients[hairpin].address, wanted)])
        else:
            assert heard == [(peer, payload)] or (self.busy and not heard), f"{heard}, not to {peer}"

    @rule(slot=slots, chosen=likely, payload=st.binary(max_size=9))
    def answer(self, slot: int, chosen: Address | None, payload: bytes) -> None:
        """What a peer sends passes with a permission, as ChannelData where there is a channel (RFC 8656, 11.3)."""
        held, peer = self.model.held.get(slot), chosen or self.model.open_to(slot)
        if held is None:
            return
        self.hear()
        opened = self.world.opened.get(held.relay)
        if peer in self.received:
            self.world.fabric.deliver([payload], peer, held.relay)
        elif opened is not None and not opened[0].closed:
            opened[1]([payload], peer)
        else:
            return
        wanted = self.down(slot, peer, payload)
        assert self.hear() == ([] if wanted is None else [(self.clients[slot].address, wanted)])

    def down(self, slot: int, peer: Address, payload: bytes) -> tuple[object, ...] | None:
        """What the client of *slot* gets when *peer* sends *payload*: a channel's number or the peer, and the data."""
        held = self.model.held[slot]
        if not held.permitted(peer[0], self.model.now):
            return None
        number = held.channel_of(peer, self.model.now)
        if number is not None:
            return number, payload
        return (peer, payload) if self.model.reaches(held.who.namespace, peer) else None

    def hear(self) -> list[tuple[Address, object]]:
        """Everything that has left for anybody since the last call: the address, and the packet or what it says."""
        heard: list[tuple[Address, object]] = []
        for address, packets in self.received.items():
            heard += [(address, packet) for burst, _ in packets for packet in burst]
            packets.clear()
        for link, _ in self.world.opened.values():
            heard += [(to, packet) for burst, to in link.sent for packet in burst]
            link.sent.clear()
        for client in self.clients:
            for burst, to in client.link.sent:
                heard += [(to, _said(packet)) for packet in burst]
            client.link.sent.clear()
        return heard

    # ---- strangers --------------------------------------------------------------------------

    @rule(
        slot=slots,
        who=users,
        method=st.sampled_from((Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND)),
        lie=st.sampled_from(("unsigned", "key", "realm", "nonce", "expired", "namespace", "name", "bent", "no name")),
        at=st.integers(0, 200),
    )
    def stranger(self, slot: int, who: Who, method: Method, lie: str, at: int) -> None:
        """Whoever cannot prove who he is gets an error and changes nothing, wherever he sends from."""
        client = self.clients[slot]
        client.credentials = self.named(who)
        if not client.nonce:
            client.challenge()
        before = kept(self.world.server)
        name, key, realm, nonce = client.credentials.username, client.key, REALM, client.nonce
        if lie == "expired" and method == Method.ALLOCATE:
            name = self.named(who, 0).username
            key = stun.long_term_key(name, REALM, self.named(who, 0).password)
        elif lie == "namespace":
            name = f"{int(self.world.now) + 600}:nobodys"
        elif lie == "name":
            name = "\U0001f600\r\n%s\0{}:"
        elif lie == "realm":
            realm = "elsewhere"
        elif lie == "nonce":
            nonce = nonce[:-1] + bytes((nonce[-1] ^ 1,))
        elif lie in ("key", "expired"):
            key = key[1:] + key[:1]
        identity: list[Pair] = [] if lie == "no name" else [(stun.USERNAME, name)]
        attributes: list[Pair] = [
            *((stun.REQUESTED_TRANSPORT, 17), (stun.LIFETIME, 0), (stun.CHANNEL_NUMBER, 0x4000)),
            *((stun.XOR_PEER_ADDRESS, SFU), *identity, (stun.REALM, realm), (stun.NONCE, nonce)),
        ]
        transaction = client.transaction()
        request = bytearray(
            stun.build(method, Class.REQUEST, transaction, attributes, key=None if lie == "unsigned" else key)
        )
        if lie == "bent":
            request[at % len(request)] ^= 0x11
        for packet in client.give(request):
            reading = check(packet)
            assert reading is not None
            assert reading.kind & 0x0110 == 0x0110 or reading.kind & 0x000F == Method.BINDING, "a success"
        assert kept(self.world.server) == before, "something is kept"

    @rule(slot=slots, junk=st.lists(st.binary(max_size=40), max_size=4), port=st.sampled_from((0, 9)))
    def junk(self, slot: int, junk: list[bytes], port: int) -> None:
        """Random bytes from a client, and from nowhere (port 0), change nothing."""
        before = kept(self.world.server)
        self.hear()
        self.clients[slot].give(*junk)
        assert CheckedClient(self.world, ("192.0.2.77", port), self.named(USERS[0])).give(*junk) == [] or port
        assert [to for to, _ in self.hear() if to not in PEERS] == []
        assert kept(self.world.server) == before, "something is kept"

    # ---- what happens to a server -----------------------------------------------------------

    @rule(passed=seconds)
    def wait(self, passed: float) -> None:
        """Time passes, in one step, and the server looks once."""
        self.world.clock.advance(passed)
        self.model.pass_time(passed)
        self.world.server.tick()

    @rule(which=st.integers(0, 9), early=st.booleans())
    def approach(self, which: int, early: bool) -> None:
        """Something is about to expire, or has just done so, and nobody has looked yet; the channels are tried."""
        times = self.model.expiries()
        if not times:
            return
        passed = times[which % len(times)] - self.model.now - (0.05 if early else 0)
        if passed > 0:
            self.world.clock.advance(passed)
            self.model.pass_time(passed)
            for slot in self.model.held:
                self.send_on_channel(slot, 0x4000, b"", True)
                self.send(slot, None, b"")
                self.answer(slot, None, b"")
            self.world.server.tick()

    @rule(slot=slots)
    def disconnect(self, slot: int) -> None:
        """A client's connection is gone, and its allocation with it."""
        client = self.clients[slot]
        self.world.server.disconnected(client.link, client.address)
        self.model.held.pop(slot, None)

    @rule(busy=seldom)
    def take_ports(self, busy: bool) -> None:
        """Somebody else has the ports in the kernel, or no longer."""
        self.busy = busy

    @rule(narrow=seldom)
    def change_networks(self, narrow: bool) -> None:
        """The first namespace loses its networks, or has them again: at once, for live allocations too."""
        self.model.narrow = narrow
        self.world.tenants.put(NARROW if narrow else WIDE)
        self.model.revise()

    @rule(gone=seldom)
    def change_namespaces(self, gone: bool) -> None:
        """The second namespace is removed, or there again."""
        self.model.other_gone = gone
        if gone:
            self.world.tenants.remove("other")
        else:
            self.world.tenants.put(FEW)
        self.model.revise()

    @rule(slot=slots, who=users, node=st.booleans())
    def drain(self, slot: int, who: Who, node: bool) -> None:
        """While the node or a namespace drains nobody gets a new allocation there, and the others go on."""
        server = self.world.server
        if node:
            server.drain()
        else:
            server.drain_tenant("myapp")
        self.model.draining = {"myapp", "other"} if node else {"myapp"}
        self.allocate(slot, who, None, None)
        self.refresh(slot, None, 600)
        self.model.draining = set()
        if node:
            server.undrain()
        else:
            server.undrain_tenant("myapp")

    # ---- what always holds ------------------------------------------------------------------

    @invariant()
    def counts(self) -> None:
        """As many allocations as were granted, in all and by namespace."""
        held = self.model.held.values()
        assert len(self.world.server) == len(held)
        figures = self.world.figures()
        for namespace in ("myapp", "other"):
            count = sum(each.who.namespace == namespace for each in held)
            assert self.world.server.allocations_of(namespace) == count
            assert figures.get(("orama_turn_allocations", namespace), 0) == count

    @invariant()
    def relayed_addresses(self) -> None:
        """No two allocations share an address, and the kernel and the fabric have those of live ones alone."""
        live = {held.relay for held in self.model.held.values()}
        assert len(live) == len(self.model.held)
        for relay in self.relays:
            assert self.world.fabric.has(relay) == (relay in live)
        assert {address for address, (link, _) in self.world.opened.items() if not link.closed} <= live

    def teardown(self) -> None:
        """When all has expired, everything has been given back."""
        self.wait(MAX_AGE + MAX_LIFETIME)
        self.counts()
        self.relayed_addresses()
        assert taken_ports(self.world.server) == 0, "a port is still taken"
        self.world.server.stop()


def _said(packet: bytes) -> object:
    """The channel or the peer, and the data, of a packet to a client."""
    if check(packet) is None:
        return packet[0] << 8 | packet[1], packet[4 : 4 + (packet[2] << 8 | packet[3])]
    message = stun.parse(packet)
    if message.method == Method.DATA:
        return message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
    return message


def fuzz_one_input() -> Callable[[bytes], bytes | None]:
    """The whole machine as a function of bytes, for fuzzers that go by coverage."""
    test = get_state_machine_test(
        Machine,
        settings=settings(
            stateful_step_count=50, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        ),
    )
    run: Callable[[bytes], bytes | None] = vars(test)["hypothesis"].fuzz_one_input
    return run
