"""The reactor that a node runs on: Twisted's asyncio reactor, because aiortc's DTLS and SCTP need a loop.

``twistd --reactor=orama-asyncio`` installs it by name; ``orama.tap`` installs it by itself when no reactor
is loaded yet. Nothing here may be imported by the dropin.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from twisted.python.reflect import qual


def install() -> None:
    """Install the asyncio reactor on a loop of its own, and make that loop the current one.

    :raises twisted.internet.error.ReactorAlreadyInstalledError: there is a reactor.
    """
    from twisted.internet import asyncioreactor

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)


def ensure() -> None:
    """Install the reactor unless one is there, whichever it is."""
    if "twisted.internet.reactor" not in sys.modules:
        install()


def unsuitable() -> str:
    """Why the installed reactor cannot run a node, in one line; empty when it can."""
    from twisted.internet import asyncioreactor, reactor

    if isinstance(reactor, asyncioreactor.AsyncioSelectorReactor):
        return ""
    found = qual(type(reactor))
    return f"needs the asyncio reactor, but {found} is installed: leave --reactor out, or say --reactor=asyncio"


def tasks() -> int:
    """How many tasks of asyncio there are in the loop that runs; 0 where none does."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


def installed() -> Any:
    """The reactor of this process, for its one ``main``."""
    from twisted.internet import reactor

    return reactor
