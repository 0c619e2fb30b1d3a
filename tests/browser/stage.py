"""What the browser tests share: one node, one Chromium, one origin for test pages, made when first needed.

They live until the interpreter ends, as a browser takes seconds to start; rooms keep the tests apart.
"""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from twisted.trial.unittest import SynchronousTestCase

from tests.browser.certificates import Certificates, issue
from tests.browser.chromium import MISSING, Chromium
from tests.browser.files import Files
from tests.browser.page import Page
from tests.node import NodeProcess
from tests.ports import free_port

_rooms = count(1)


@cache
def directory() -> Path:
    made = Path(tempfile.mkdtemp(prefix="orama-browser-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def files() -> Files:
    made = Files()
    atexit.register(made.close)
    return made


@cache
def certificates() -> Certificates:
    return issue(directory() / "certificates")


@cache
def chromium() -> Chromium:
    made = Chromium()
    atexit.register(made.quit)
    return made


def node_process(name: str, *options: str, **sections: str) -> NodeProcess:
    """A node that lets test pages in, not started yet; *sections* are more lines of its TOML tables."""
    tables = {"turn": "", "limits": "", **sections}
    tables["limits"] += f'origins = ["{files().origin}"]\n'
    issued = certificates()
    tables["turn"] += f'certificate = "{issued.certificate}"\nprivate_key = "{issued.private_key}"\n'
    config = "".join(f"[{table}]\n{lines}" for table, lines in tables.items())
    # TURN over UDP and TCP has one port in the URIs, so the kernel cannot choose one for each.
    return NodeProcess(directory() / name, "--turn-port", str(free_port()), *options, config=config)


@cache
def node() -> NodeProcess:
    made = node_process("node").start()
    atexit.register(end, made)
    return made


def end(process: NodeProcess) -> None:
    """Stop a node without waiting for peers that closed their windows without a word: a second signal says so.

    Another one than the first: two of a kind that come together are one.
    """
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGINT)
    process.wait()


class BrowserTestCase(SynchronousTestCase):
    """Pages for one test; they are closed at its end."""

    skip = MISSING or None

    def setUp(self) -> None:
        self.room = f"room-{next(_rooms)}"
        self._pages: list[Page] = []

    def node(self) -> NodeProcess:
        """The node that this test talks to."""
        return node()

    def page(self) -> Page:
        made = chromium().page()
        self.addCleanup(made.close)
        return made

    def room_page(self, name: str, transport: str = "udp", page: Page | None = None, room: str = "") -> Page:
        """A page of the node's own, in the room."""
        asked = {"room": room or self.room, "name": name, "join": "1", "transport": transport, "height": "360"}
        base = self.node().url.partition("?")[0]
        return self._with_others(page or self.page()).open(f"{base}?{urlencode(asked)}")

    def bare_page(self, transport: str = "udp", page: Page | None = None, **more: str) -> Page:
        """A client of the bare protocol, in the room."""
        base = self.node().url.partition("/?")[0]
        asked = {"node": base, "room": self.room, "key": self.node().key, "transport": transport, **more}
        opened = self._with_others(page or self.page())
        return opened.open(f"{files().origin}/bare.html?{urlencode(asked, quote_via=quote)}")

    def _with_others(self, page: Page) -> Page:
        """*page*, which tells of the others in this test when a script fails in it."""
        page.beside = self._pages
        self._pages.append(page)
        return page

    def client_page(self, page: Page | None = None) -> Page:
        """A page with the client library, and ``enter(more)`` that joins the room once more."""
        made = (page or self.page()).open(f"{files().origin}/client.html")
        base = self.node().url.partition("/?")[0]
        common: dict[str, Any] = {"url": base, "room": self.room, "apiKey": self.node().key, "transport": "udp"}
        made.run(
            """
            await until("the modules", () => document.title === "ready");
            window.enter = (more = {}) => orama.connect({ ...args[0], ...more });
            """,
            common,
        )
        return made
