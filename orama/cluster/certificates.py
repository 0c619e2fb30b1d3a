"""The certificate of each TURN host: the best that there is, and what is wrong with it.

In this order: a file in the configured directory, Caddy's storage, the node's default file, the self-signed
certificate. A file counts when its names, its key and its dates fit; that it exists is not enough. Nothing here
waits: what Caddy obtains, and what is renewed on disk, is found by a later pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.caddy import Caddy
from orama.cluster.caddyfile import is_host
from orama.cluster.certificate_files import CertificateFiles, Files, named_for
from orama.cluster.processes import Run
from orama.errors import ConfigurationError
from orama.net.certificate import Certificate, day
from orama.net.tls import ServerCertificates
from orama.settings import Settings

#: Seconds that a certificate is served on after its files ceased to fit, as they do while they are written.
GRACE = 60.0

_log = Logger()


@frozen
class _Candidate:
    """A pair of files for a host, in the order of preference."""

    source: str
    files: Files
    certificate: Certificate


@frozen
class _Choice:
    """What a host is served with; ``error`` says what is wrong, and is empty when nothing is."""

    source: str
    certificate: Certificate
    error: str


class TurnCertificates:
    """Keeps *certificates* right for the TURN hosts of this node.

    :param run: for Caddy's reload.
    """

    def __init__(self, clock: IReactorTime, settings: Settings, certificates: ServerCertificates, run: Run) -> None:
        self._clock = clock
        self._settings = settings
        self._served = certificates
        mine = settings.certificates
        self._files = CertificateFiles(
            Path(mine.directory) if mine.directory else None,
            Path(mine.caddy_storage) if mine.caddyfile else None,
        )
        self._caddy = Caddy(clock, mine, settings.base_domain, run) if mine.caddyfile else None
        #: Host → where its certificate was added from.
        self._added: dict[str, tuple[str, Files]] = {}
        #: Host → since when the files that it is served from do not fit.
        self._unfit_since: dict[str, float] = {}
        self._choices: dict[str, _Choice] = {}

    async def ensure(self, hosts: Collection[str]) -> None:
        """One pass: serve each of *hosts* with the best there is now, and no others.

        :param hosts: all TURN hosts of this node; addresses are served with the default certificate.
        """
        wanted = sorted({host.lower().rstrip(".") for host in hosts})
        problems: list[str] = []
        try:
            self._served.cover((self._settings.public_ip, "localhost", *wanted))
        except OSError as error:
            problems.append(f"no new self-signed certificate: {error.strerror}")
        self._served.reload_if_changed()
        for host in self._added.keys() - set(wanted):
            self._take(host)
        common = self._files.in_directory(problems)
        looked_at = set(common)
        choices = {}
        for host in wanted:
            own = problems.copy()
            named = self._files.from_caddy(host, own) if is_host(host) else []
            looked_at.update(named)
            choices[host] = self._choose(host, common, named, own)
        self._files.forget_all_but(looked_at)
        if self._caddy is not None:
            self._caddy.want(host for host, choice in choices.items() if self._needs_caddy(host, choice))
        self._tell(choices)
        self._choices = choices

    def report(self) -> list[dict[str, Any]]:
        """A row per host as of the last pass: host, source, not_after, names, error."""
        return [
            {
                "host": host,
                "source": choice.source,
                "not_after": int(choice.certificate.not_after),
                "names": list(choice.certificate.names),
                "error": "; ".join(self._errors(host, choice)) or None,
            }
            for host, choice in sorted(self._choices.items())
        ]

    async def stop(self) -> None:
        """End what goes on beside the passes; files and certificates stay as they are."""
        if self._caddy is not None:
            await self._caddy.stop()

    def _choose(self, host: str, common: list[Files], named: list[Files], problems: list[str]) -> _Choice:
        """Find the best certificate for *host* and serve it.

        :param common: pairs for whatever names.
        :param named: what Caddy has for this host.
        :param problems: what is known to be in the way; told only when nothing fits.
        """
        now = self._clock.seconds()
        found: list[_Candidate] = []
        if is_host(host):
            found += self._fitting("directory", host, common, problems)
            found = found or self._fitting("caddy", host, named, problems)
        for candidate in sorted(found, key=lambda each: -each.certificate.not_after):
            try:
                self._put(host, candidate)
            except ConfigurationError as error:
                problems.append(error.message)
                continue
            self._unfit_since.pop(host, None)
            return _Choice(candidate.source, self._served.served(host).certificate, "")
        if host in self._added:
            kept = self._served.served(host).certificate
            since = self._unfit_since.setdefault(host, now)
            if now - since < GRACE and not kept.unfit(host, now):
                return _Choice(self._added[host][0], kept, "; ".join(problems))
            self._take(host)
        default = self._served.served(host)
        reason = default.certificate.unfit(host, now) if default.origin == "file" else ""
        if default.origin == "file" and not reason:
            problems.clear()
        elif reason:
            problems.append(f"{default.file} {reason}")
        return _Choice(default.origin, default.certificate, "; ".join(problems))

    def _fitting(self, source: str, host: str, pairs: list[Files], problems: list[str]) -> list[_Candidate]:
        """Those of *pairs* that can be served as *host*; what is wrong with others that were meant for it."""
        found = []
        for files in pairs:
            certificate = self._files.read(files)
            if isinstance(certificate, str):
                if named_for(files[0], host):
                    problems.append(certificate)
                continue
            reason = certificate.unfit(host, self._clock.seconds())
            if not reason:
                found.append(_Candidate(source, files, certificate))
            elif files[0].stem == host or certificate.covers(host):
                problems.append(f"{files[0]} {reason}")
        return found

    def _needs_caddy(self, host: str, choice: _Choice) -> bool:
        """Whether Caddy has to keep a certificate for *host*, which it then also renews."""
        if self._caddy is None or not is_host(host):
            return False
        if choice.source == "caddy":
            # One for a wildcard is somebody else's site; it counts for as long as it is renewed.
            wildcard = self._added[host][1][0].stem != host
            return not wildcard or choice.certificate.ends_soon(self._clock.seconds())
        return choice.source == "self-signed" or bool(choice.certificate.unfit(host, self._clock.seconds()))

    def _errors(self, host: str, choice: _Choice) -> Iterator[str]:
        now = self._clock.seconds()
        if choice.error:
            yield choice.error
        if choice.source != "self-signed" and not choice.error:
            if now >= choice.certificate.not_after:
                yield f"expired on {day(choice.certificate.not_after)}"
            elif choice.certificate.ends_soon(now):
                yield f"expires on {day(choice.certificate.not_after)} and has not been renewed"
        lacking = choice.source == "self-signed" or choice.certificate.ends_soon(now)
        if self._caddy is not None and lacking and (why := self._caddy.error(host)):
            yield why

    def _put(self, host: str, candidate: _Candidate) -> None:
        if self._added.get(host) == (candidate.source, candidate.files):
            return
        self._served.add(host, *candidate.files)
        self._added[host] = candidate.source, candidate.files

    def _take(self, host: str) -> None:
        self._served.remove(host)
        self._added.pop(host, None)
        self._unfit_since.pop(host, None)

    def _tell(self, choices: dict[str, _Choice]) -> None:
        """Log what has changed since the last pass."""
        for host, choice in choices.items():
            before = self._choices.get(host)
            if before is None or before.source != choice.source or before.certificate != choice.certificate:
                _log.info(
                    "TURN over TLS at {host}: {source} certificate until {end}",
                    host=host,
                    source=choice.source,
                    end=day(choice.certificate.not_after),
                )
            if choice.error and (before is None or before.error != choice.error):
                _log.warn("certificate of {host}: {error}", host=host, error=choice.error)
