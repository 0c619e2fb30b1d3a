"""What an operator sees of an allocation, and how he says which ones he means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from orama.net.fabric import Address

if TYPE_CHECKING:
    from orama.turn.allocation import Allocation
    from orama.turn.relay import Link


@frozen
class Session:
    """One allocation at one moment. Times are in seconds, up is towards the peer."""

    #: Random, and good until the allocation ends.
    id: str
    namespace: str
    #: Of the credentials; empty where they name none. Any text: a client chose it.
    user: str
    client: str
    #: "udp", "tcp" or "tls".
    transport: str
    relays: tuple[str, ...]
    age: float
    expires_in: float
    permissions: int
    channels: int
    bytes_up: int
    packets_up: int
    bytes_down: int
    packets_down: int

    @classmethod
    def of(cls, allocation: Allocation, now: float) -> Session:
        traffic = allocation.traffic
        permissions, channels = allocation.held(now)
        return cls(
            id=allocation.id,
            namespace=allocation.tenant.namespace,
            user=allocation.user,
            client=text(allocation.client),
            transport=transport_of(allocation.link),
            relays=tuple(text(relay.address) for relay in allocation.relays),
            age=round(now - allocation.created, 3),
            expires_in=round(max(0.0, allocation.expires - now), 3),
            permissions=permissions,
            channels=channels,
            bytes_up=traffic.bytes_up,
            packets_up=traffic.packets_up,
            bytes_down=traffic.bytes_down,
            packets_down=traffic.packets_down,
        )

    def to_json(self) -> dict[str, Any]:
        """With the names of the fields."""
        return asdict(self)


@frozen
class Selection:
    """The allocations for which all that is not None holds.

    :ivar port: of a relay.
    """

    id: str | None = None
    namespace: str | None = None
    user: str | None = None
    port: int | None = None

    def has(self, allocation: Allocation) -> bool:
        return (
            self.id in (None, allocation.id)
            and self.namespace in (None, allocation.tenant.namespace)
            and self.user in (None, allocation.user)
            and (self.port is None or any(relay.address[1] == self.port for relay in allocation.relays))
        )


def transport_of(link: Link) -> str:
    """How a client comes; a link that says nothing about it is the UDP socket of all of them."""
    return str(getattr(link, "transport", "udp"))


def text(address: Address) -> str:
    """``192.0.2.1:3478``, ``[2001:db8::1]:3478``"""
    ip, port = address
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
