"""Caddy asked for the certificates of TURN hosts: a block each in its Caddyfile, a reload, and a wait.

The work goes on beside whoever says what is wanted: a reload can take seconds and a certificate minutes. One
block goes in at a time, and comes out again when Caddy refuses the file, so that Caddy always finds one that it
can start with. What fails is said per host and tried again, later each time. Blocks are known by their markers
and the base domain, so those that an earlier life of this node left are taken out as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from orama.cluster import caddyfile
from orama.cluster.processes import Run, last_line
from orama.errors import ConfigurationError
from orama.settings import CertificateSettings

#: Seconds after a first failure until it is tried again; twice as many after each further one.
FIRST_RETRY = 5.0
LAST_RETRY = 300.0

#: Stands for the whole file among the names of hosts.
_FILE = ""
_log = Logger()


@frozen
class _Failure:
    why: str
    times: int
    again: float


class Caddy:
    """:param base_domain: blocks of hosts below it are ours."""

    def __init__(self, clock: IReactorTime, settings: CertificateSettings, base_domain: str, run: Run) -> None:
        self._clock = clock
        self._file = Path(settings.caddyfile)
        self._tls = settings.caddy_tls
        self._timeout = settings.caddy_timeout
        self._command = [part.replace("{caddyfile}", settings.caddyfile) for part in settings.caddy_reload]
        self._domain = "." + base_domain.lower().rstrip(".")
        self._run = run
        self._wanted: frozenset[str] = frozenset()
        #: When Caddy was told of a host, as far as this process knows.
        self._asked: dict[str, float] = {}
        self._failures: dict[str, _Failure] = {}
        #: Hosts whose blocks Caddy has read and taken.
        self._proven: set[str] = set()
        #: Caddy may have blocks that are not in the file any more: we took them out since it read the file, or an
        #: earlier life of this node did. To read what has not changed is nothing to it.
        self._stale = True
        self._working: Deferred[None] | None = None

    def want(self, hosts: Iterable[str]) -> None:
        """Have Caddy keep certificates for these hosts and no others; what is to be done begins at once."""
        self._wanted = frozenset(host for host in hosts if caddyfile.is_host(host) and host.endswith(self._domain))
        for gone in (self._asked.keys() | self._failures.keys()) - self._wanted - {_FILE}:
            self._asked.pop(gone, None)
            self._failures.pop(gone, None)
        if self._working is None:
            self._working = working = Deferred.fromCoroutine(self._work())
            working.addErrback(self._stopped)
            working.addBoth(self._worked)

    def error(self, host: str) -> str:
        """Why there is no certificate for *host* yet; empty while Caddy may still be at it."""
        failure = self._failures.get(host) or self._failures.get(_FILE)
        if failure is not None:
            return failure.why
        asked = self._asked.get(host)
        if asked is not None and self._clock.seconds() - asked >= self._timeout:
            return f"Caddy has obtained no certificate in {self._timeout:g} s"
        return ""

    async def stop(self) -> None:
        """Leave the file as it is; a reload that runs is ended."""
        working = self._working
        if working is not None:
            working.cancel()
            await working

    def _worked(self, _: object) -> None:
        self._working = None

    @staticmethod
    def _stopped(failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.failure("the Caddyfile could not be looked after", failure)

    async def _work(self) -> None:
        """Bring the file and Caddy to what is wanted, as far as it can be done now."""
        try:
            self._take_stale()
            await self._prove()
            for host in sorted(self._wanted):
                if self._lacks(host):
                    await self._add(host)
        except ConfigurationError as error:
            self._fail(_FILE, error.message)

    def _take_stale(self) -> None:
        """Take out the blocks of hosts that are not wanted any more."""
        if not self._due(_FILE):
            return
        text = caddyfile.read(self._file)
        present = self._blocks(text).keys()
        stale = present - self._wanted
        if stale:
            caddyfile.write(self._file, caddyfile.take(text, stale))
        # Somebody may have taken one out as well, and Caddy not know of it.
        if stale or self._proven - present - self._wanted:
            self._stale = True
        self._proven &= present - stale

    async def _prove(self) -> None:
        """Let Caddy read what it has not read yet: what an earlier life wrote, or that blocks have gone."""
        if not self._due(_FILE):
            return
        unproven = self._blocks(caddyfile.read(self._file)).keys() - self._proven
        if not unproven and not self._stale:
            return
        if not unproven and any(self._lacks(host) for host in self._wanted):
            return  # Caddy is to read the file anyway
        why = await self._reload()
        if not why:
            self._told(unproven)
        elif unproven:
            # One of them may be why; each is put back for itself.
            caddyfile.write(self._file, caddyfile.take(caddyfile.read(self._file), unproven))
        else:
            self._fail(_FILE, why)

    def _lacks(self, host: str) -> bool:
        """Whether the block of *host* is to be written now."""
        if not (self._due(_FILE) and self._due(host)) or host not in self._wanted:
            return False
        text = caddyfile.read(self._file)
        if self._blocks(text).get(host) == caddyfile.render(host, self._tls):
            return False
        if caddyfile.mentions(text, host):
            self._asked.setdefault(host, self._clock.seconds())
            return False
        return True

    async def _add(self, host: str) -> None:
        self._proven.discard(host)
        caddyfile.write(self._file, caddyfile.put(caddyfile.read(self._file), host, self._tls))
        why = await self._reload()
        if why:
            caddyfile.write(self._file, caddyfile.take(caddyfile.read(self._file), (host,)))
            self._fail(host, why)
        else:
            _log.info("Caddy is asked for a certificate for {host}", host=host)
            self._asked[host] = self._clock.seconds()
            self._told((host,))

    def _told(self, hosts: Iterable[str]) -> None:
        """Caddy has read the file as it is, with the blocks of *hosts* in it for the first time."""
        self._stale = False
        self._failures.pop(_FILE, None)
        for host in hosts:
            self._proven.add(host)
            self._failures.pop(host, None)
            self._asked.setdefault(host, self._clock.seconds())

    async def _reload(self) -> str:
        """Why Caddy did not take the file; empty when it did."""
        status, output = await self._run(self._command)
        return "" if status == 0 else f"{self._command[0]}: {last_line(output)}"

    def _blocks(self, text: str) -> dict[str, str]:
        try:
            found = caddyfile.blocks(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._file}: {error.message}") from None
        return {host: block for host, block in found.items() if host.endswith(self._domain)}

    def _due(self, name: str) -> bool:
        failure = self._failures.get(name)
        return failure is None or failure.again <= self._clock.seconds()

    def _fail(self, name: str, why: str) -> None:
        earlier = self._failures.get(name)
        times = earlier.times + 1 if earlier is not None else 1
        wait = min(FIRST_RETRY * 2 ** min(times - 1, 30), LAST_RETRY)
        self._failures[name] = _Failure(why, times, self._clock.seconds() + wait)
        if earlier is None or earlier.why != why:
            _log.warn("no certificate from Caddy for {what}: {why}", what=name or "any host", why=why)
