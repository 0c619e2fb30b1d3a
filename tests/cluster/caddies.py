"""A Caddy in memory: takes the Caddyfile when it is told to reload, and obtains what stands in it."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from orama.cluster import caddyfile
from tests.cluster.pairs import DAY, write_pair


class MemoryCaddy:
    """:param storage: where it puts the certificates that it obtains."""

    def __init__(self, clock: Clock, file: Path, storage: Path) -> None:
        self._clock = clock
        self._file = file
        self._storage = storage
        #: Whether it is there at all.
        self.up = True
        #: A block with this in it is refused.
        self.refuses = "!"
        #: Whether it obtains certificates at once.
        self.obtains = True
        #: Reloads wait for this, when there is one.
        self.slow: Deferred[None] | None = None
        self.reloads = 0
        #: The file as it was read last.
        self.loaded = ""

    def run(self, command: list[str]) -> Deferred[tuple[int, bytes]]:
        assert command == ["caddy", "reload", "--config", str(self._file)], command
        self.reloads += 1
        if self.slow is not None:
            return self.slow.addCallback(lambda _: self._reload())
        return succeed(self._reload())

    def _reload(self) -> tuple[int, bytes]:
        if not self.up:
            return 1, b"2026/11/22 INFO using provided configuration\nError: connection refused\n"
        text = caddyfile.read(self._file)
        if self.refuses in text:
            return 1, b"Error: adapting config\n"
        self.loaded = text
        if self.obtains:
            for host in caddyfile.blocks(text):
                self.obtain(host)
        return 0, b""

    def obtain(self, host: str, days: float = 90.0, issuer: str = "acme.example-directory") -> Path:
        """Get a certificate for *host*, or for the wildcard that ``wildcard_.parent`` stands for."""
        now = self._clock.seconds()
        name = host.replace("wildcard_", "*")
        directory = self._storage / "certificates" / issuer / host
        write_pair(directory, host, name, start=now - 60, end=now + days * DAY)
        return directory / f"{host}.crt"
