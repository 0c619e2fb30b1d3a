"""When Python looks for reference cycles: seldom, and never through what a process has from its start.

What forwards packets makes and forgets thousands of objects a second, which need no such look: they are gone with their
last reference. With Python's own thresholds (700, 10, 10) it looked all the same several times a second, and each look
held everybody up: 1.5 to 3 ms through the younger objects, 45 ms through the 50,000 that importing Twisted,
SQLAlchemy and aiortc makes.
"""

from __future__ import annotations

import gc

#: Objects made beyond those let go of until the youngest are looked at, and how many such looks until the next older.
#: A packet store that fills and empties moves some thousand objects up and down. The last number is of looks at all
#: objects, 200 for each client that is there: with 500 of them one takes 80 ms. Clients that have left leave nothing to
#: be found (``tests.sfu.test_leaving``); what is left are cycles of others, as of Twisted's thread pool with each
#: question to the database, and those are young when they are found.
THRESHOLDS = (10_000, 5, 20)


def settle() -> None:
    """Call it when the process has started: from then on what is there now is not looked at any more."""
    gc.collect()
    gc.freeze()
    # Python puts a look at all objects off until there are a quarter more than at the last one: count from here.
    gc.collect()
    gc.set_threshold(*THRESHOLDS)
