"""The ``twistd`` subcommand ``orama-webrtc``: options in, one service out.

Importing this module installs the asyncio reactor when none is there yet: twistd imports it before it
picks a reactor. What is wrong with the options or the configuration is a ``UsageError``; under twistd
it is one line on stderr and exit status 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar, TextIO

from twisted.application.service import IService
from twisted.python import usage
from twisted.python.logfile import LogFile

import twisted
from orama import __version__, reactors

reactors.ensure()

from orama.errors import ConfigurationError  # noqa: E402
from orama.settings import Settings, load  # noqa: E402


class Options(usage.Options):
    """What one node is told; every option but --config can also stand in the TOML file."""

    synopsis = "[options]"
    longdesc = (
        "Runs one node: TURN server, SFU, signalling and REST. Without any option it keeps its state in ./orama-data "
        "and serves a room page on http://127.0.0.1:6001/. etc/orama.toml in the source documents every setting."
    )

    optParameters: ClassVar[list[list[Any]]] = [
        ["config", "c", None, "TOML file with settings."],
        ["data-dir", None, None, "Directory for the database, keys and state. [default: ./orama-data]"],
        ["database", None, None, "SQLAlchemy URL. [default: SQLite in the data directory]"],
        ["public-ip", None, None, "Where clients reach TURN. [default: 127.0.0.1]"],
        ["internal-ip", None, None, "The node's private (WireGuard) address. [default: 127.0.0.1]"],
        ["turn-port", None, None, "TURN over UDP and TCP. [default: 3478]"],
        ["turns-port", None, None, "TURN over TLS. [default: 5349]"],
        ["base-domain", None, None, "Domain of the cluster: TURN is turn.ns-NAMESPACE.DOMAIN. [default: none]"],
        ["log-format", None, None, "text or json. [default: text]"],
    ]

    settings: Settings

    def __init__(self) -> None:
        super().__init__()
        self["http"] = []

    def opt_http(self, endpoint: str) -> None:
        """Twisted endpoint for HTTP and signalling; may be given more than once, ssl: serves https and wss.
        [default: tcp:6001:interface=127.0.0.1]"""
        self["http"].append(endpoint)

    def opt_version(self) -> None:
        """Display the versions of orama and Twisted and exit."""
        print(f"orama-webrtc {__version__}, Twisted {twisted.__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; inside twistd what is wrong ends the process with one line instead of pages of usage."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            if getattr(self, "parent", None) is None:
                raise
            raise SystemExit(f"orama-webrtc: {error}") from None

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"{rest[0]!r} is one argument too many")

    def postOptions(self) -> None:
        unsuitable = reactors.unsuitable()
        if unsuitable:
            raise usage.UsageError(unsuitable)
        for key in ("config", "data-dir"):  # twistd changes its directory later
            if self[key] is not None:
                self[key] = str(Path(self[key]).absolute())
        try:
            self.settings = self.load()
        except ConfigurationError as error:
            raise usage.UsageError(error.message) from None

    def load(self) -> Settings:
        """The settings as the file and these options say now.

        :raises ConfigurationError: as :func:`orama.settings.load`.
        """
        given: dict[str, Any] = {}
        for option, value in self.items():
            if option != "config" and value not in (None, []):
                # What is no number stays a text, which the settings refuse by name.
                number = option in ("turn-port", "turns-port") and value.isdecimal() and value.isascii()
                given[option.replace("-", "_")] = int(value) if number else value
        return load(Path(self["config"]) if self["config"] is not None else None, given)


def makeService(options: Options) -> IService:
    """The service of one node, for twistd."""
    from twisted.internet import reactor

    from orama.daemon import Daemon
    from orama.notify import Notifier

    notifier = Notifier.from_environment(os.environ, os.getpid())
    return Daemon(reactor, options.settings, options.load, notifier=notifier, log_stream=_log_stream(options))


def _log_stream(options: Options) -> TextIO | None:
    """Where the log goes: the file that twistd was told, or stdout; None when twistd knows better (syslog, daemon)."""
    twistd = getattr(options, "parent", None)
    if twistd is None or twistd.get("syslog") or not twistd.get("nodaemon"):
        return None
    file = twistd.get("logfile") or "-"
    return sys.stdout if file == "-" else LogFile.fromFullPath(file)
