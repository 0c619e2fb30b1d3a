"""A relayed transport address (RFC 8656, 2): attached to the fabric at once, opened in the kernel when it has to be.

A peer that lives in this process, the SFU of this node, is reached through the fabric, and the port stays
shut. Which peers may be reached is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from twisted.internet.error import CannotListenError

from orama.net.fabric import Address, Buffer, Burst, Fabric, Receiver
from orama.net.icmp import IcmpError
from orama.wire.stun import Family


class Link(Protocol):
    """Where packets can be put: a UDP socket, or the stream of one client."""

    @property
    def transport(self) -> str:
        """How: ``udp``, ``tcp`` or ``tls``."""

    def send(self, packets: Burst, to: Address, headers: Sequence[Buffer] | None = None) -> None:
        """Send *packets*, each behind its header where there are *headers*. Never waits, never raises."""


class Socket(Link, Protocol):
    """A bound UDP socket."""

    #: Told of each error that ICMP reports about what was sent.
    unreachable: Callable[[IcmpError], None] | None

    def send_whole(self, packets: Burst, to: Address) -> None:
        """Send *packets* so that nobody may fragment them."""

    def close(self) -> None: ...


#: Binds an address and gives what arrives there to the receiver; raises CannotListenError.
OpenSocket = Callable[[Address, Receiver], Socket]


class RelayUnavailable(Exception):
    """The kernel did not give us the port."""


class Relay:
    """One relayed address of an allocation, from its making to :meth:`close`."""

    __slots__ = ("address", "expires", "family")
    #: Whether it relays packets; a TCP relay has connections.
    has_packets: ClassVar[bool] = True

    def __init__(self, address: Address) -> None:
        self.address = address
        self.family = Family.IPV6 if ":" in address[0] else Family.IPV4
        #: Its own: a dual allocation's two relays are refreshed apart (RFC 8656, 8.1).
        self.expires = 0.0

    def open(self) -> None:
        """Open the port in the kernel; nothing happens when it is open.

        :raises RelayUnavailable: somebody else has it.
        """
        raise NotImplementedError

    def send(self, packets: Burst, peer: Address) -> None:
        """Send *packets* to *peer*.

        :raises RelayUnavailable: they cannot be sent from here.
        """
        raise NotImplementedError

    def send_whole(self, packets: Burst, peer: Address) -> None:
        """The same, and no router may fragment them."""
        self.send(packets, peer)

    def close(self) -> None:
        """Give the address back."""
        raise NotImplementedError


def _nobody(*_: object) -> None:
    """It is closed."""


class UdpRelay(Relay):
    """A relayed address that packets come to and leave from.

    :param received: gets what peers send to it, on either way.
    :param unreachable: is told of each error that ICMP reports about what was sent.
    """

    __slots__ = ("_fabric", "_open_socket", "_received", "_socket", "_unreachable")

    def __init__(
        self,
        address: Address,
        fabric: Fabric,
        open_socket: OpenSocket,
        received: Receiver,
        unreachable: Callable[[IcmpError], None],
    ) -> None:
        super().__init__(address)
        self._unreachable = unreachable
        self._fabric = fabric
        self._open_socket = open_socket
        self._received = received
        self._socket: Socket | None = None
        fabric.attach(address, received)

    @property
    def is_open(self) -> bool:
        """Whether the port is open in the kernel."""
        return self._socket is not None

    def open(self) -> None:
        if self._socket is None:
            try:
                self._socket = self._open_socket(self.address, self._received)
            except CannotListenError as error:
                raise RelayUnavailable(str(error)) from error
            self._socket.unreachable = self._unreachable

    def send(self, packets: Burst, peer: Address) -> None:
        """Send *packets* to *peer*, in memory when it is here.

        :raises RelayUnavailable: the peer is elsewhere and the port cannot be opened.
        """
        if not self._fabric.deliver(packets, self.address, peer):
            self._opened().send(packets, peer)

    def send_whole(self, packets: Burst, peer: Address) -> None:
        if not self._fabric.deliver(packets, self.address, peer):
            self._opened().send_whole(packets, peer)

    def _opened(self) -> Socket:
        if self._socket is None:
            self.open()
            assert self._socket is not None
        return self._socket

    def close(self) -> None:
        self._fabric.detach(self.address)
        self._received, self._unreachable = _nobody, _nobody
        if self._socket is not None:
            self._socket.close()
            self._socket = None
