"""What leaves the TURN server towards a client, looked at by the second reader: every packet has to be faultless."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

from orama.net.fabric import Buffer
from orama.turn.ports import RelayPorts
from orama.turn.ratelimit import RateLimit
from tests.fuzz import reference
from tests.turn.world import Client

#: Bits of the class in the type of a message (RFC 8489, 5).
_REQUEST, _INDICATION = 0x0000, 0x0010
_CLASS = 0x0110


def check(packet: bytes) -> reference.Reading | None:
    """What a packet says when it is STUN; None when it is ChannelData.

    Fails unless it is one of them, of a kind that servers send, whole, with attributes that are well formed and
    padding that is zero.
    """
    if 0x40 <= packet[0] <= 0x7F:
        length = int.from_bytes(packet[2:4], "big")
        assert len(packet) in (4 + length, 4 + (length + 3) // 4 * 4), "ChannelData of another length"
        assert not any(packet[4 + length :]), "padding of ChannelData that is not zero"
        return None
    reading = reference.read(packet)
    assert reading is not None, f"no STUN: {packet.hex()}"
    assert reading.kind & _CLASS != _REQUEST, "a request"
    assert not any(reading.padding), f"padding that is not zero: {packet.hex()}"
    for kind, value in reading.counted:
        well_formed = reference.KNOWN.get(kind)
        assert well_formed is None or well_formed(value), f"attribute {kind:#06x}: {value.hex()}"
    return reading


class CheckedClient(Client):
    """A client whose answers and packets are all looked at."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._asked: set[bytes] = set()

    def give(self, *packets: Buffer) -> list[bytes]:
        """Hand packets to the server; every answer is faultless and belongs to one of what was ever asked."""
        self._asked.update(bytes(packet[8:20]) for packet in packets)
        return self.checked(super().give(*packets))

    def checked(self, packets: list[bytes]) -> list[bytes]:
        """*packets*, which have come from the server."""
        for packet in packets:
            reading = check(packet)
            if reading is not None and reading.kind & _CLASS != _INDICATION:
                assert reading.transaction in self._asked, "an answer to nothing"
        return packets


def things(root: Any) -> Iterator[Any]:
    """*root* and all that hangs on it: containers, and objects of the TURN server.

    Without counters, and without the limiter of strangers, whose table has a bound of its own.
    """
    seen, stack = set(), [root]
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, MethodType, Counter, RateLimit)):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            stack += thing.keys()
            stack += thing.values()
        elif isinstance(thing, (list, tuple, deque, set, frozenset)):
            stack += thing
        elif type(thing).__module__.startswith("orama.turn"):
            stack += getattr(thing, "__dict__", {}).values()
            stack += (getattr(thing, name, None) for kind in type(thing).__mro__ for name in _slots(kind))


def kept(root: Any) -> int:
    """How many things the containers below *root* hold."""
    return sum(len(thing) for thing in things(root) if isinstance(thing, (dict, list, tuple, deque, set, frozenset)))


def taken_ports(root: Any) -> int:
    """Relay ports that are not free, reserved ones among them."""
    return sum(len(thing) for thing in things(root) if isinstance(thing, RelayPorts))


def _slots(kind: type) -> Sequence[str]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
