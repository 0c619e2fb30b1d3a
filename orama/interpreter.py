"""How Python is set in a process that moves packets: when it looks for cycles, and how its threads take turns."""

from __future__ import annotations

import sys

from orama import garbage

#: Seconds that a thread waits for the interpreter until it asks for it. What moves packets is one thread, and those
#: that work for the database hold it up by so much several times a second. Beside a thread that works 4 ms every 100,
#: of packets that came every 0.5 ms and took 0.1 one in a hundred was 3.7 to 4.2 ms late with Python's 5 ms, and 1.0 to
#: 1.2 ms with this. 0.1 ms was no better: the two interrupt each other all the time.
SWITCH_INTERVAL = 0.0005


def settle() -> None:
    """Call it when the process has started."""
    garbage.settle()
    sys.setswitchinterval(SWITCH_INTERVAL)
