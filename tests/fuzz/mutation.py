"""Inputs that are nearly right: the corpus of a parser, bent by a seeded generator, about 3 µs each.

What a seed gives is the same for ever, so that a failing input is found again by its seed and number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

#: One directory per target, one file per input.
CORPUS = Path(__file__).parent / "corpus"
#: Longest input that a mutation grows to.
MAX_LENGTH = 2048
#: Bytes and words at the edges of what fields can say.
_BYTES = (0, 1, 3, 4, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFE, 0xFF)
_WORDS = tuple(word.to_bytes(2, "big") for word in (0, 1, 3, 4, 8, 20, 0x7FFF, 0x8000, 0xFFFC, 0xFFFF))

#: Makes a bent input fit again in the one respect that would get most of them refused at once, as a length.
Repair: TypeAlias = Callable[[bytearray], None]


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept for the target *name*, in the order of their names.

    :raises FileNotFoundError: there are none.
    """
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir()) if path.is_file()]
    if not found:
        raise FileNotFoundError(CORPUS / name)
    return found


def mutated(data: bytes, others: Sequence[bytes], source: random.Random, repair: Repair | None = None) -> bytes:
    """*data* with one to four changes, one most of the time, and mostly repaired.

    :param others: what pieces are taken from.
    """
    chance = source.random
    out = bytearray(data)
    for _ in range(1 + int(chance() * chance() * 4)):
        size = len(out)
        at = int(chance() * size)
        kind = int(chance() * 9)
        if kind < 2 or not size:
            out[at : at + 1] = bytes((int(chance() * 256),))
        elif kind == 2:
            out[at] = _BYTES[int(chance() * len(_BYTES))]
        elif kind == 3:
            out[at] ^= 1 << int(chance() * 8)
        elif kind == 4:
            out[at : at + 2] = _WORDS[int(chance() * len(_WORDS))]
        elif kind == 5:
            del out[at : at + 1 + int(chance() * 8)]
        elif kind == 6:
            out[at:at] = source.randbytes(1 + int(chance() * 8))
        elif kind == 7:
            length = 1 + int(chance() * 24)
            to = int(chance() * size) & ~3
            out[to:to] = out[at & ~3 : (at & ~3) + length]
        else:
            other = others[int(chance() * len(others))]
            cut = int(chance() * (len(other) + 1))
            if chance() < 0.5:
                out[at:] = other[cut:]
            else:
                out[at:at] = other[cut : cut + 16]
    if repair is not None and chance() < 0.75:
        repair(out)
    return bytes(out[:MAX_LENGTH])


def inputs(seeds: Sequence[bytes], seed: int, count: int, repair: Repair | None = None) -> Iterator[bytes]:
    """*seeds* as they are, then mutations of them and now and then of mutations, *count* in all."""
    source = random.Random(seed)
    yield from seeds[:count]
    last = seeds[0]
    for number in range(len(seeds), count):
        base = last if source.random() < 0.1 else seeds[number % len(seeds)]
        last = mutated(base, seeds, source, repair)
        yield last
