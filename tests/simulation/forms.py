"""How calls are made: long and short ones, what lines and cameras people have.

Most are short ones of few packets, since what matters is how many different things meet, and every tenth is long.
"""

from __future__ import annotations

from random import Random

from attrs import frozen

from tests.simulation.sources import Shape
from tests.simulation.world import Path

#: One seed of so many is a long call.
LONG_EVERY = 10


def path(random: Random) -> Path:
    """A line as people have them: good, far, lossy, bursty, thin, or some of it at once."""
    found = Path(delay=random.choice((0.001, 0.02, 0.05, 0.15)))
    if random.random() < 0.4:
        found.loss = random.choice((0.01, 0.05, 0.1, 0.2))
    if random.random() < 0.2:
        found.bursts = random.choice((0.005, 0.02))
        found.burst_end = random.choice((0.1, 0.5))
    if random.random() < 0.4:
        found.jitter = random.choice((0.005, 0.03, 0.08))
    if random.random() < 0.2:
        found.rate = random.choice((200_000.0, 500_000.0, 1_500_000.0))
        found.queue = random.choice((0.1, 0.5))
    if random.random() < 0.1:
        found.duplicates = 0.05
    return found


@frozen
class Form:
    """How long a call is, and how much there is in it."""

    #: Seconds of trouble, and of good lines after it, at the end of which everything has to be well.
    trouble: float
    calm: float
    #: Seconds within which clients get their keys, and subscribe.
    joining: float
    subscribing: float
    #: How many clients, how many of them publish, and how many events there are at most.
    clients: tuple[int, ...]
    publishers: int
    events: int
    frames: tuple[int, ...]
    #: Bits per second of cameras with one layer, and of layers.
    single: tuple[int, ...]
    layers: tuple[int, ...]
    #: Seconds that a frame of sound lasts, and between two transport-wide feedbacks of a client.
    sound: float
    work: float
    #: Whether packets are SRTP; else ``ciphers.Clear``.
    sealed: bool


LONG = Form(
    trouble=2.5,
    calm=2.5,
    joining=0.3,
    subscribing=1.0,
    clients=(2, 2, 3),
    publishers=2,
    events=8,
    frames=(10, 15, 24),
    single=(100_000, 300_000),
    layers=(40_000, 120_000, 300_000),
    sound=0.02,
    work=0.04,
    sealed=True,
)
SHORT = Form(
    trouble=0.9,
    calm=1.4,
    joining=0.1,
    subscribing=0.3,
    clients=(2, 2, 2, 3),
    publishers=1,
    events=5,
    frames=(8, 10, 15),
    single=(40_000, 100_000),
    layers=(25_000, 60_000, 100_000),
    sound=0.06,
    work=0.1,
    sealed=False,
)


def shape(random: Random, form: Form) -> Shape:
    fps = random.choice(form.frames)
    temporal = random.choice((1, 1, 2, 3))
    chained = random.random() < 0.3
    kind = random.random()
    if kind < 0.35:
        return Shape(random.choice(("vp8", "vp9")), (random.choice(form.single),), temporal, fps=fps, chained=chained)
    rates = form.layers[: random.choice((2, 3))]
    if kind < 0.75:
        return Shape("vp8", rates, temporal, fps=fps, chained=chained)
    return Shape("vp9", rates, temporal, True, random.random() < 0.5, chained, fps)


def form(seed: int) -> Form:
    """What a seed stands for, unless somebody wants it otherwise."""
    return LONG if seed % LONG_EVERY == 0 else SHORT


def command(seed: int, chosen: Form) -> str:
    """What runs that call alone."""
    word = "" if chosen is form(seed) else " --form " + ("long" if chosen is LONG else "short")
    return f"python -m tests.simulation --seed {seed}{word}"
