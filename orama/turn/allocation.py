"""An allocation (RFC 8656, 3.2): a client, its relayed address, permissions and channels, and the packets between.

:meth:`Allocation.forward` and :meth:`Allocation.receive` are the two directions of the hot path. They
take and give whole bursts: one look-up per run of a channel, headers stripped by slicing and added by
scatter-gather. Who may ask for what is ``server``'s; an allocation only holds it and obeys.
"""

from __future__ import annotations

import random as _random
from collections import Counter
from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from orama.net.fabric import Address, Buffer, Burst
from orama.net.icmp import IcmpError
from orama.net.run import Run
from orama.turn.peers import Peers
from orama.turn.quota import Share
from orama.turn.relay import Link, Relay, RelayUnavailable
from orama.turn.tenants import Tenant
from orama.wire import stun
from orama.wire.channeldata import HEADER
from orama.wire.indications import data_header
from orama.wire.stun import Attribute, Class, Family, Method

#: RFC 8656, 9 and 12.
PERMISSION_LIFETIME = 300.0
CHANNEL_LIFETIME = 600.0
#: A browser asks for one per remote candidate; more than these and an allocation is a scanner.
MAX_PERMISSIONS = 256
MAX_CHANNELS = 256

_unpack_header = HEADER.unpack_from
_HEADER_LENGTH = HEADER.size
_TRANSACTION_MASK = (1 << 96) - 1


@define
class Channel:
    """A channel number that stands for a peer until ``expires``."""

    number: int
    peer: Address
    expires: float
    #: Makes the header of a payload by its length.
    header: Callable[[int], bytes] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.header = partial(HEADER.pack, self.number)


@define
class Traffic:
    """What an allocation has relayed: up is towards the peer."""

    bytes_up: int = 0
    packets_up: int = 0
    bytes_down: int = 0
    packets_down: int = 0

    def add(self, other: Traffic) -> None:
        self.bytes_up += other.bytes_up
        self.packets_up += other.packets_up
        self.bytes_down += other.bytes_down
        self.packets_down += other.packets_down


class Full(Exception):
    """No more permissions or channels on this allocation."""


class ChannelConflict(Exception):
    """The channel stands for another peer, or the peer has another channel."""


@define(eq=False, kw_only=True)
class Allocation:
    """One client's relay, or two of them where it has one of each family (a dual allocation, RFC 8656, 6).

    :param link: the way to the client, and *client* its address there.
    :param drops: counted into by reason; shared with the server.
    """

    #: What an operator calls it: random, and no secret.
    id: str = ""
    link: Link
    client: Address
    #: Where its client is about to move (RFC 8016, 3.2.2).
    second: tuple[Link, Address] | None = None
    #: Where it was before its last move: a nonce of that address may still be under way in a repeated request.
    former: Address | None = None
    tenant: Tenant
    user: str
    share: Share
    created: float
    #: When the last of its relays expires.
    expires: float = 0.0
    #: One, or one of IPv4 and one of IPv6 in this order.
    relays: tuple[Relay, ...] = ()
    traffic: Traffic = field(factory=Traffic)
    #: Of the Allocate that made it, so that a retransmission gets the same answer (RFC 8656, 7.2).
    transaction_id: bytes = b""
    answer: list[tuple[Attribute[Any], Any]] = field(factory=list)
    #: With which its user last signed.
    key: bytes = field(default=b"", repr=False)
    _clock: IReactorTime
    _random: _random.Random
    _peers: Peers
    _drops: Counter[str]
    _permissions: dict[str, float] = field(init=False, factory=dict)
    _channels: dict[int, Channel] = field(init=False, factory=dict)
    _channels_by_peer: dict[Address, Channel] = field(init=False, factory=dict)
    _reachable: set[Address] = field(init=False, factory=set)

    # ---- relays -----------------------------------------------------------------------------

    @property
    def relay(self) -> Relay:
        """The first one."""
        return self.relays[0]

    def relay_of(self, family: int) -> Relay | None:
        """The one of *family*."""
        return next((relay for relay in self.relays if relay.family == family), None)

    def relay_to(self, ip: str) -> Relay | None:
        """The one that has *ip*'s family."""
        return self.relay_of(Family.IPV6 if ":" in ip else Family.IPV4)

    def extend(self, relays: Iterable[Relay], until: float) -> None:
        """Have *relays*, which are its own, expire at *until*."""
        for relay in relays:
            relay.expires = until
        self.expires = max(relay.expires for relay in self.relays)

    def drop(self, relay: Relay) -> None:
        """Give up one of two relays, and what it was permitted; the other one goes on (RFC 8656, 8.1)."""
        relay.close()
        self.relays = tuple(each for each in self.relays if each is not relay)
        self.expires = max(each.expires for each in self.relays)
        for ip in [ip for ip in self._permissions if self.relay_to(ip) is None]:
            del self._permissions[ip]
        for channel in [each for each in self._channels.values() if self.relay_to(each.peer[0]) is None]:
            self._unbind(channel)

    def held(self, now: float) -> tuple[int, int]:
        """How many permissions and channels it has."""
        self._forget(now)
        return len(self._permissions), len(self._channels)

    # ---- client to peer ---------------------------------------------------------------------

    def forward(self, packets: Burst, start: int, now: float) -> int:
        """Relay the run of one channel's ChannelData that begins at *start*; gives where it ends.

        Precondition: the packet at *start* has a header.
        """
        of_one = _of_one_channel(packets) if type(packets) is Run and not start else None
        number, payloads, end = self._collect(packets, start) if of_one is None else of_one
        channel = self._channels.get(number)
        if channel is None or channel.expires <= now:
            self._drops["no_channel"] += len(payloads)
        elif payloads:
            self._send(payloads, channel.peer, now)
        return end

    def _collect(self, packets: Burst, start: int) -> tuple[int, Burst, int]:
        """The channel of the packet at *start*, the payloads of what follows on the same one, and where that ends."""
        number = _unpack_header(packets[start])[0]
        payloads: list[Buffer] = []
        at, count = start, len(packets)
        while at < count:  # not over a slice, or a burst of many short runs takes quadratic time
            packet = packets[at]
            if len(packet) < _HEADER_LENGTH:
                break
            found, length = _unpack_header(packet)
            if found != number:
                break
            at += 1
            end = _HEADER_LENGTH + length
            if end > len(packet):  # RFC 8656, 12.6: says more than it holds
                self._drops["malformed"] += 1
            else:
                payloads.append(packet[_HEADER_LENGTH:end])
        return number, payloads, at

    def send(self, payloads: Burst, peer: Address, now: float, *, whole: bool = False) -> None:
        """Relay the payloads of Send indications for one peer (RFC 8656, 11.2).

        :param whole: no router may fragment them (DONT-FRAGMENT).
        """
        if self._permissions.get(peer[0], 0.0) <= now:
            self._drops["no_permission"] += len(payloads)
        elif not self._may_reach(peer):
            self._drops["forbidden_peer"] += len(payloads)
        else:
            self._send(payloads, peer, now, whole)

    def _send(self, payloads: Burst, peer: Address, now: float, whole: bool = False) -> None:
        size = payloads.total if type(payloads) is Run else sum(map(len, payloads))
        for bucket in self.share.buckets:
            if not bucket.take(size, now):
                self._drops["bandwidth"] += len(payloads)
                return
        traffic = self.traffic
        traffic.bytes_up += size
        traffic.packets_up += len(payloads)
        relay = self.relays[0] if len(self.relays) == 1 else self.relay_to(peer[0])
        assert relay is not None
        try:
            if whole:
                relay.send_whole(payloads, peer)
            else:
                relay.send(payloads, peer)
        except RelayUnavailable:
            self._drops["no_relay_port"] += len(payloads)

    # ---- peer to client ---------------------------------------------------------------------

    def receive(self, packets: Burst, source: Address) -> None:
        """Relay what a peer sent to the relayed address: as ChannelData where there is a channel."""
        now = self._clock.seconds()
        if self._permissions.get(source[0], 0.0) <= now:  # RFC 8656, 11.3
            self._drops["no_permission"] += len(packets)
            return
        if type(packets) is Run:
            size = packets.total
        else:
            size = sum(map(len, packets))
        for bucket in self.share.buckets:
            if not bucket.take(size, now):
                self._drops["bandwidth"] += len(packets)
                return
        channel = self._channels_by_peer.get(source)
        if channel is not None and channel.expires > now:
            self.link.send(packets, self.client, _headers(channel, packets))
        elif self._may_reach(source):
            self._indicate(packets, source)
        else:
            self._drops["forbidden_peer"] += len(packets)
            return
        traffic = self.traffic
        traffic.bytes_down += size
        traffic.packets_down += len(packets)

    def _indicate(self, packets: Burst, source: Address) -> None:
        """Data indications (RFC 8656, 11.3), one for each packet."""
        lengths = list(map(len, packets))
        transactions = self._transactions(len(packets))
        headers = [
            data_header(transaction, source, length) for transaction, length in zip(transactions, lengths, strict=True)
        ]
        padded = [
            bytes(packet) + bytes(-length % 4) if length % 4 else packet
            for packet, length in zip(packets, lengths, strict=True)
        ]
        self.link.send(padded, self.client, headers)

    def unreachable(self, error: IcmpError) -> None:
        """Tell the client what ICMP says about something that it sent (RFC 8656, 11.5).

        The permission is the one for whom it was sent to; who reports it may be any router. A port of 0 is one that is
        not known.
        """
        if self.has_permission(error.to[0], self._clock.seconds()):
            attributes = ((stun.XOR_PEER_ADDRESS, error.to), (stun.ICMP, (error.kind, error.code, error.mtu)))
            (transaction,) = self._transactions(1)
            self.link.send((stun.build(Method.DATA, Class.INDICATION, transaction, attributes),), self.client)

    def _transactions(self, count: int) -> list[bytes]:
        first = self._random.getrandbits(96)
        return [(first + number & _TRANSACTION_MASK).to_bytes(12, "big") for number in range(count)]

    # ---- permissions and channels -----------------------------------------------------------

    def permit(self, ips: Set[str], now: float) -> None:
        """Install or refresh a permission for each of *ips*.

        :raises Full: there are too many; then none was installed.
        """
        self._forget(now)
        if len(self._permissions.keys() | ips) > MAX_PERMISSIONS:
            raise Full
        for ip in ips:
            self._permissions[ip] = now + PERMISSION_LIFETIME

    def has_permission(self, ip: str, now: float) -> bool:
        """Whether there is a permission for *ip*."""
        return self._permissions.get(ip, 0.0) > now

    def check_channel(self, number: int, peer: Address, now: float) -> None:
        """Whether :meth:`bind` would do.

        :raises ChannelConflict: number or peer are bound otherwise.
        :raises Full: there are too many.
        """
        self._forget(now)
        there = self._channels.get(number)
        if there is not self._channels_by_peer.get(peer):
            raise ChannelConflict
        if there is None and len(self._channels) >= MAX_CHANNELS:
            raise Full

    def bind(self, number: int, peer: Address, now: float) -> None:
        """Bind a channel to a peer or refresh it, and the permission with it (RFC 8656, 12.2).

        :raises ChannelConflict: number or peer are bound otherwise.
        :raises Full: there are too many.
        """
        self.check_channel(number, peer, now)
        self.permit({peer[0]}, now)
        channel = self._channels.get(number) or Channel(number, peer, 0.0)
        channel.expires = now + CHANNEL_LIFETIME
        self._channels[number] = self._channels_by_peer[peer] = channel

    def _may_reach(self, peer: Address) -> bool:
        """Whether the rules let packets pass; what they let pass is remembered, which takes 4 µs off each look."""
        if peer in self._reachable:
            return True
        if not self._peers.may_reach(self.tenant, peer):
            return False
        if len(self._reachable) >= MAX_CHANNELS:
            self._reachable.clear()
        self._reachable.add(peer)
        return True

    def revise(self, tenant: Tenant) -> None:
        """Go by the rules for *tenant* as they are now."""
        self.tenant = tenant
        self._reachable.clear()
        for ip in [ip for ip in self._permissions if not self._peers.may_reach_ip(tenant, ip)]:
            del self._permissions[ip]
        for channel in [c for c in self._channels.values() if not self._peers.may_reach(tenant, c.peer)]:
            self._unbind(channel)

    def _forget(self, now: float) -> None:
        """Drop what has expired."""
        for ip in [ip for ip, expires in self._permissions.items() if expires <= now]:
            del self._permissions[ip]
        for channel in [channel for channel in self._channels.values() if channel.expires <= now]:
            self._unbind(channel)

    def _unbind(self, channel: Channel) -> None:
        del self._channels[channel.number]
        del self._channels_by_peer[channel.peer]


def _of_one_channel(run: Run) -> tuple[int, Run, int] | None:
    """Channel, payloads and end of *run*, when all of it is ChannelData of one channel and one size; else None."""
    starts = run.starts
    number, length = _unpack_header(run.view, starts[0])
    end = _HEADER_LENGTH + length
    if not end <= run.size < end + 4 or run.last < _HEADER_LENGTH or not run.heads_alike():
        return None
    found, last = _unpack_header(run.view, starts[-1])
    if found != number or last > length or _HEADER_LENGTH + last > run.last:
        return None
    return number, run.inner(_HEADER_LENGTH, length, last), len(starts)


def _headers(channel: Channel, packets: Burst) -> list[Buffer]:
    """The ChannelData header of each."""
    header = channel.header
    if type(packets) is not Run:
        lengths = list(map(len, packets))
        if lengths.count(lengths[0]) == len(lengths):  # 1 us less for eight packets
            return [header(lengths[0])] * len(lengths)
        return list(map(header, lengths))
    headers: list[Buffer] = [header(packets.size)] * len(packets)
    headers[-1] = header(packets.last)
    return headers
