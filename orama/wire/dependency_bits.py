"""Reading and writing the bit fields of a dependency descriptor (AV1 RTP payload format, A.8.1)."""

from __future__ import annotations

from orama.wire.video import Buffer, PayloadError


class Bits:
    """Takes fields out of *data*, most significant bit first."""

    __slots__ = ("_left", "_value")

    def __init__(self, data: Buffer) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """f(*count*).

        :raises PayloadError: there are not as many bits left.
        """
        self._left -= count
        if self._left < 0:
            raise PayloadError("the dependency descriptor is cut off")
        return self._value >> self._left & (1 << count) - 1

    def below(self, bound: int) -> int:
        """ns(*bound*): a number from 0 to *bound* − 1 in as few bits as it takes."""
        width = bound.bit_length()
        short = (1 << width) - bound
        value = self.take(width - 1)
        return value if value < short else (value << 1 | self.take(1)) - short


class Writer:
    """Puts fields one after the other."""

    __slots__ = ("_length", "_value")

    def __init__(self) -> None:
        self._value = self._length = 0

    def put(self, value: int, count: int) -> None:
        """f(*count*)."""
        self._value = self._value << count | value & (1 << count) - 1
        self._length += count

    def put_below(self, value: int, bound: int) -> None:
        """ns(*bound*)."""
        width = bound.bit_length()
        short = (1 << width) - bound
        if value < short:
            self.put(value, width - 1)
        else:
            self.put(value + short, width)

    def bytes(self) -> bytes:
        """The whole, with zeros up to the next octet."""
        padding = -self._length % 8
        return (self._value << padding).to_bytes((self._length + padding) // 8, "big")
