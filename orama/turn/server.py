"""The TURN server without its sockets: packets of clients in, answers and relayed packets out.

Speaks RFC 8656, RFC 6062 (TCP relays), RFC 8016 (mobility) and the Binding of RFC 8489. What comes from a
client enters at :meth:`Server.received`; what comes from a peer enters at ``Allocation.receive``, or as a
connection. Nothing is kept for a client before it has authenticated. OAuth (RFC 7635) is not spoken.
"""

from __future__ import annotations

import random as _random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.net.fabric import Address, Buffer, Burst, Fabric
from orama.settings import TurnSettings
from orama.turn.allocating import Allocating
from orama.turn.allocation import Allocation
from orama.turn.allocations import Allocations
from orama.turn.alternates import Alternates, Configured
from orama.turn.authentication import Authenticator
from orama.turn.connecting import Connecting
from orama.turn.connections import Connections, Tcp
from orama.turn.credentials import parse_username
from orama.turn.mobility import Mobility
from orama.turn.names import Names
from orama.turn.nonce import Nonces
from orama.turn.peers import Peers
from orama.turn.permitting import Permitting
from orama.turn.ratelimit import RateLimit
from orama.turn.relay import Link, OpenSocket
from orama.turn.request import Attributes, MethodOf, Refused, Request
from orama.turn.sessions import Selection, Session
from orama.turn.shared import Crew
from orama.turn.tenants import Tenants
from orama.wire import stun
from orama.wire.channeldata import FIRST_CHANNEL, HEADER
from orama.wire.indications import unpack_send
from orama.wire.stun import Class, Family, Message, Method, StunError

_FIRST_CHANNEL_BYTE = FIRST_CHANNEL >> 8
NONCE_KEY_LENGTH = 32
#: How requests begin that may be about another worker's.
_FROM_ELSEWHERE = frozenset({b"\x00\x04", b"\x00\x0b"})
#: Bytes of the key that spreads strangers over the table of the rate limit.
RATE_KEY_LENGTH = 16

_log = Logger()


class Server:
    """One process's TURN server.

    :param random: for relay ports, tokens and the nonce key; not to be guessed in production.
    :param relay_ip: where relays are, of either family; :param relay_ip6: where those of IPv6 are besides.
    :param open_socket: binds a relay address in the kernel.
    :param tcp: where TCP relays listen and connect.
    :param all_issued_here: all credentials are issued by this process, which tells of each by :meth:`learn`, so that
        clients may hide their names (RFC 8489, 14.4).
    :param crew: where there are several workers on the same ports, what they have in common.
    """

    def __init__(
        self,
        *,
        clock: IReactorTime,
        random: _random.Random,
        settings: TurnSettings,
        realm: str,
        relay_ip: str,
        tenants: Tenants,
        peers: Peers,
        fabric: Fabric,
        open_socket: OpenSocket,
        tcp: Tcp,
        relay_ip6: str = "",
        all_issued_here: bool = False,
        crew: Crew | None = None,
    ) -> None:
        self._clock = clock
        self._crew = crew
        nonce_key = random.randbytes(NONCE_KEY_LENGTH) if crew is None else crew.key
        nonces = Nonces(nonce_key, settings.nonce_lifetime)
        self._names = Names(realm, settings.credential_ttl, all_issued_here=all_issued_here)
        self._default_namespace = settings.default_namespace
        self._authenticator = Authenticator(
            tenants,
            nonces,
            realm,
            settings.default_namespace,
            self._names,
            settings.unauthenticated_amplification,
            settings.max_lifetime,
        )
        self._strangers = RateLimit(
            settings.unauthenticated_rate,
            settings.unauthenticated_burst,
            settings.unauthenticated_prefix_rate,
            settings.unauthenticated_prefix_burst,
            key=random.randbytes(RATE_KEY_LENGTH),
        )
        self._tenants = tenants
        tenants.watch(self._tenant_changed)
        #: Packets lost, by reason.
        self.drops: Counter[str] = Counter()
        #: Answers that nobody's credentials stood behind, and error responses by code.
        self.unauthenticated = 0
        self.refusals: Counter[int] = Counter()
        self._allocations = Allocations(
            clock=clock,
            random=random,
            settings=settings,
            relay_ips={_family(ip): ip for ip in (relay_ip6, relay_ip) if ip},
            tenants=tenants,
            peers=peers,
            fabric=fabric,
            open_socket=open_socket,
            drops=self.drops,
            crew=crew,
        )
        permitting = Permitting(peers, fabric)
        self._connections = Connections(clock, random, tcp, crew)
        self._connecting = Connecting(self._connections, clock, random, tenants, peers, permitting.relay_to, self.drops)
        self._mobility = Mobility(self._allocations, random, settings, self.drops, crew)
        self._allocating = Allocating(self._allocations, settings, self._mobility, self._connecting.make_relay)
        #: What credentials have to stand behind, and what nobody answers.
        self._requests: Mapping[int, MethodOf] = {
            Method.ALLOCATE: self._allocating.allocate,
            Method.REFRESH: self._allocating.refresh,
            Method.CREATE_PERMISSION: permitting.create_permission,
            Method.CHANNEL_BIND: permitting.channel_bind,
            Method.CONNECT: self._connecting.connect,
            Method.CONNECTION_BIND: self._connecting.connection_bind,
        }
        self._indications: Mapping[int, Callable[[Message, Allocation | None, float], None]] = {
            Method.BINDING: self._kept_alive,
            Method.SEND: self._send,
        }

    # ---- from clients -----------------------------------------------------------------------

    def received(self, link: Link, packets: Burst, client: Address, *, verified: bool = False) -> None:
        """Take a burst of one client.

        :param verified: the client's address cannot be forged (it is on a stream).
        """
        now = self._clock.seconds()
        allocation = self._allocations.find(link, client, now)
        if allocation is not None and allocation.second is not None:
            self._mobility.seen(allocation, link, client, packets)
        at, count = 0, len(packets)
        while at < count:
            packet = packets[at]
            if len(packet) < HEADER.size or not client[1]:
                self.drops["malformed"] += 1
            elif packet[0] >= _FIRST_CHANNEL_BYTE:
                if allocation is not None:
                    at = allocation.forward(packets, at, now)
                    continue
                self.drops["no_allocation"] += 1
            else:
                if allocation is not None and (end := self._send_run(allocation, packets, at, now)) > at:
                    at = end
                    continue
                self._stun(link, packet, client, allocation, now, verified)
                allocation = self._allocations.find(link, client, now)
            at += 1

    def _send_run(self, allocation: Allocation, packets: Burst, start: int, now: float) -> int:
        """Relay the run of plain Send indications for one peer that begins at *start*; gives where it ends."""
        payloads: list[Buffer] = []
        peer: Address | None = None
        for at in range(start, len(packets)):  # not a slice, or a burst of many short runs takes quadratic time
            plain = unpack_send(packets[at])
            if plain is None or (peer is not None and plain[0] != peer):
                break
            peer = plain[0]
            payloads.append(plain[1])
        if peer is not None:
            allocation.send(payloads, peer, now)
        return start + len(payloads)

    def disconnected(self, link: Link, client: Address) -> None:
        """The client's stream is gone, and its allocation with it (RFC 8656, 7), unless that is mobile."""
        allocation = self._allocations.find(link, client, self._clock.seconds())
        if allocation is not None and not self._mobility.disconnected(allocation, link, client):
            self._allocations.end(allocation, "disconnected")

    def has_allocation(self, link: Link, client: Address) -> bool:
        return self._allocations.find(link, client, self._clock.seconds()) is not None

    def elsewhere(self, packet: Buffer) -> int | None:
        """Which other worker has what a request from a new address is about; None where that is not so.

        A Refresh that brings a ticket (RFC 8016), or a ConnectionBind (RFC 6062).
        """
        if self._crew is None or bytes(packet[:2]) not in _FROM_ELSEWHERE:
            return None
        try:
            message = stun.parse(packet)
        except StunError:
            return None
        ticket = message.get(stun.MOBILITY_TICKET)
        number = self._mobility.number_of(ticket) if ticket else message.get(stun.CONNECTION_ID)
        return None if number is None else self._crew.elsewhere(number)

    def _stun(
        self, link: Link, packet: Buffer, client: Address, allocation: Allocation | None, now: float, verified: bool
    ) -> None:
        try:
            message = stun.parse(packet)
        except StunError:
            self.drops["malformed"] += 1
            return
        if message.cls == Class.INDICATION:
            obey = self._indications.get(message.method)
            if obey is None:
                self.drops["malformed"] += 1
            else:
                obey(message, allocation, now)
        elif message.cls != Class.REQUEST:
            self.drops["unexpected"] += 1
        elif message.method in self._requests:
            self._request(message, link, client, allocation, now, verified)
        else:
            self._unproven(message, _binding(message), link, client, allocation, now, verified)

    # ---- requests ---------------------------------------------------------------------------

    def _request(
        self, message: Message, link: Link, client: Address, allocation: Allocation | None, now: float, verified: bool
    ) -> None:
        """Authenticate a request and have its method answer it."""
        about = self._named(message) if allocation is None else allocation
        held = None if about is None else (about.key, about.client, about.former)
        try:
            identity = self._authenticator.identify(message, client, now, held, verified=verified)
        except Refused as refused:
            self._unproven(message, refused, link, client, allocation, now, verified)
            return
        request = Request(message, link, client, identity, allocation, now, verified)
        try:
            if message.unknown:  # RFC 8489, 6.3.1
                raise Refused(420, attributes=[(stun.UNKNOWN_ATTRIBUTES, message.unknown)])
            if message.malformed:
                raise Refused(400)
            outcome = self._requests[message.method](request)
        except Refused as refused:
            self._refuse(request, refused)
            return
        if isinstance(outcome, Deferred):
            outcome.addCallback(lambda attributes: self._answer(request, Class.SUCCESS, attributes))
            outcome.addErrback(lambda failure: self._failed(request, failure))
        else:
            self._answer(request, Class.SUCCESS, outcome)

    def _named(self, message: Message) -> Allocation | None:
        """The allocation that a request from another five-tuple is about."""
        if ticket := message.get(stun.MOBILITY_TICKET):
            return self._mobility.named(ticket)
        id_ = message.get(stun.CONNECTION_ID)
        return None if id_ is None else self._connecting.named(id_)

    def _answer(self, request: Request, kind: Class, attributes: Attributes) -> None:
        """Send an answer that is signed as its request was."""
        message = request.message
        answer = stun.build(
            message.method,
            kind,
            message.transaction_id,
            attributes,
            key=request.identity.key,
            sha256=request.identity.sha256,
            fingerprint=stun.FINGERPRINT in message,
        )
        request.link.send((answer,), request.client)

    def _refuse(self, request: Request, refused: Refused) -> None:
        self.refusals[refused.code] += 1
        self._answer(request, Class.ERROR, [(stun.ERROR_CODE, (refused.code, "")), *refused.attributes])

    def _failed(self, request: Request, failure: Failure) -> None:
        """What an answer that comes later fails with: a refusal, or a fault of ours (RFC 8489, 14.8: 500)."""
        if isinstance(failure.value, Refused):
            self._refuse(request, failure.value)
        else:
            _log.failure("a request of method {method} failed", failure, method=request.message.method)
            self._refuse(request, Refused(500))

    # ---- strangers --------------------------------------------------------------------------

    def _unproven(
        self,
        message: Message,
        refused: Refused | None,
        link: Link,
        client: Address,
        allocation: Allocation | None,
        now: float,
        verified: bool,
    ) -> None:
        """Answer, within the limit, what nobody's credentials stand behind: short, unsigned, without a reason phrase.

        :param refused: None for a Binding that succeeds.
        """
        if not (verified or allocation is not None or self._strangers.take(client[0], now)):
            self.drops["rate_limited"] += 1
            return
        self.unauthenticated += 1
        kind = Class.SUCCESS
        attributes: Attributes = [(stun.XOR_MAPPED_ADDRESS, client)]
        if refused is not None:
            self.refusals[refused.code] += 1
            kind, attributes = Class.ERROR, [(stun.ERROR_CODE, (refused.code, "")), *refused.attributes]
            if refused.challenge:
                attributes += self._authenticator.challenge(message, client, now, verified=verified)
        fingerprint = refused is None and stun.FINGERPRINT in message
        answer = stun.build(message.method, kind, message.transaction_id, attributes, fingerprint=fingerprint)
        link.send((answer,), client)

    # ---- indications ------------------------------------------------------------------------

    def _kept_alive(self, message: Message, allocation: Allocation | None, now: float) -> None:
        """A Binding indication only keeps a NAT open (RFC 8445, 11)."""

    def _send(self, message: Message, allocation: Allocation | None, now: float) -> None:
        """RFC 8656, 11.2."""
        peer, data = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
        if peer is None or data is None or message.unknown:
            self.drops["malformed"] += 1
        elif allocation is None:
            self.drops["no_allocation"] += 1
        else:
            allocation.send((data,), peer, now, whole=stun.DONT_FRAGMENT in message)

    # ---- from outside -----------------------------------------------------------------------

    def __len__(self) -> int:
        """How many allocations there are."""
        return len(self._allocations)

    def tick(self) -> None:
        """End what has expired; to be called about once a second."""
        now = self._clock.seconds()
        self._allocations.expire(now)
        self._connections.expire(now)
        self._names.tick(self._plain_names(), now)

    def learn(self, username: str) -> None:
        """Know the name of credentials that were issued, so that it is found by its hash."""
        self._names.learn(username, parse_username(username, self._default_namespace).expiry)

    def _plain_names(self) -> Iterator[str]:
        """Namespaces, and an empty one where an expiry alone is a name."""
        for tenant in self._tenants:
            yield tenant.namespace
            if tenant.namespace == self._default_namespace:
                yield ""

    def configure(self, settings: TurnSettings) -> None:
        """Take over the limits, which may change while the server runs; whom relays may reach is the tenants'."""
        self._strangers.configure(
            settings.unauthenticated_rate,
            settings.unauthenticated_burst,
            settings.unauthenticated_prefix_rate,
            settings.unauthenticated_prefix_burst,
        )
        self._allocations.configure(settings)
        if isinstance(self._allocating.alternates, Configured):
            self._allocating.alternates = Configured(settings.alternate_servers)

    def sessions(self, selection: Selection) -> Iterator[Session]:
        """The allocations that an operator means; those that end meanwhile may be among them."""
        now = self._clock.seconds()
        return (Session.of(each, now) for each in self._allocations if selection.has(each))

    def disconnect(self, selection: Selection) -> int:
        """End the allocations that an operator means; gives how many there were."""
        return self._allocations.disconnect(selection)

    def redirect(self, alternates: Alternates) -> None:
        """Send clients to *alternates* while draining, instead of to those of the settings."""
        self._allocating.alternates = alternates

    def drain(self) -> None:
        """Make no new allocations; the ones that are there go on."""
        self._allocating.draining = True

    def undrain(self) -> None:
        """Make allocations again."""
        self._allocating.draining = False

    def drain_tenant(self, namespace: str) -> None:
        """Make no new allocations for *namespace* (508); the ones that are there go on."""
        self._allocating.drained.add(namespace)

    def undrain_tenant(self, namespace: str) -> None:
        """Make allocations for *namespace* again."""
        self._allocating.drained.discard(namespace)

    def allocations_of(self, namespace: str) -> int:
        """How many a namespace has."""
        return self._allocations.of_namespace(namespace)

    def _tenant_changed(self, namespace: str) -> None:
        if self._tenants.get(namespace) is None:
            self._allocating.drained.discard(namespace)

    def stop(self) -> None:
        """End every allocation."""
        self._tenants.unwatch(self._tenant_changed)
        self._connecting.stop()
        self._allocations.stop()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, labels and value of every figure, for Prometheus."""
        yield from self._allocations.samples()
        yield from self._connecting.samples()
        for reason, count in sorted(self.drops.items()):
            yield "orama_turn_dropped_total", {"reason": reason}, count
        for code, count in sorted(self.refusals.items()):
            yield "orama_turn_refused_total", {"code": str(code)}, count
        yield "orama_turn_unauthenticated_total", {}, self.unauthenticated


def _family(ip: str) -> Family:
    return Family.IPV6 if ":" in ip else Family.IPV4


def _binding(message: Message) -> Refused | None:
    """Why a request without authentication is refused, which is Binding (RFC 8489, 12) or none of our methods."""
    if message.unknown and message.method == Method.BINDING:
        return Refused(420, attributes=[(stun.UNKNOWN_ATTRIBUTES, message.unknown)])
    if message.method != Method.BINDING or message.malformed:
        return Refused(400)
    return None
