"""Redundant audio (RFC 2198): one payload that carries a frame and copies of the frames before it.

Bytes ↔ blocks. Which packet a copy belongs to is ``sfu.red``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

#: Limits of the header's fields: 14 bits of timestamp, 10 of length.
MAX_OFFSET, MAX_LENGTH = 0x3FFF, 0x3FF
#: libwebrtc writes one copy, nine at most.
MAX_BLOCKS = 32


class RedError(ValueError):
    """The bytes are no redundant payload, or values do not fit into one."""


@frozen
class Block:
    """One frame."""

    payload_type: int
    #: How much earlier than the packet's timestamp it begins; 0 for the primary.
    offset: int
    data: bytes


def parse(payload: bytes) -> tuple[Block, ...]:
    """The blocks in the order of the wire: oldest copy first, the primary last. There is one at least.

    :raises RedError: it is malformed.
    """
    at, size = 0, len(payload)
    heads: list[tuple[int, int, int]] = []
    while True:
        if at >= size:
            raise RedError("ends inside its headers")
        if not payload[at] & 0x80:
            break
        if at + 4 > size or len(heads) == MAX_BLOCKS - 1:
            raise RedError("ends inside its headers, or has too many of them")
        word = int.from_bytes(payload[at : at + 4], "big")
        heads.append((word >> 24 & 0x7F, word >> 10 & MAX_OFFSET, word & MAX_LENGTH))
        at += 4
    primary = payload[at]
    at += 1
    blocks = []
    for payload_type, offset, length in heads:
        if at + length > size:
            raise RedError("a block ends outside")
        blocks.append(Block(payload_type, offset, payload[at : at + length]))
        at += length
    return (*blocks, Block(primary, 0, payload[at:]))


def serialize(blocks: Sequence[Block]) -> bytes:
    """The payload of *blocks*, the primary last.

    :raises RedError: a value is out of range, or there is no block.
    """
    if not 0 < len(blocks) <= MAX_BLOCKS or any(not 0 <= block.payload_type < 128 for block in blocks):
        raise RedError("no block, too many, or a payload type above 127")
    head = b""
    for block in blocks[:-1]:
        if not 0 <= block.offset <= MAX_OFFSET or len(block.data) > MAX_LENGTH:
            raise RedError("a block is too old or too long")
        head += ((0x80 | block.payload_type) << 24 | block.offset << 10 | len(block.data)).to_bytes(4, "big")
    if blocks[-1].offset:
        raise RedError("the primary has no offset")
    return head + bytes((blocks[-1].payload_type,)) + b"".join(block.data for block in blocks)


def renumber(payload: bytes, numbers: dict[int, int]) -> bytes:
    """The same with other payload types in its headers; those that *numbers* does not name stay.

    :raises RedError: the headers are malformed.
    """
    changed, at = bytearray(payload), 0
    while True:
        if at >= len(changed) or at >= 4 * MAX_BLOCKS:
            raise RedError("ends inside its headers, or has too many of them")
        more, number = changed[at] & 0x80, changed[at] & 0x7F
        changed[at] = more | numbers.get(number, number)
        if not more:
            return bytes(changed)
        at += 4
