"""An orama node in a machine of the lab: its configuration, its process, and its commands as an operator gives them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab import addresses, servers
from tests.lab.machine import PATIENCE, Machine, Process, until
from tests.node import READY, TWISTD, environment

GATEWAY_PORT = 6001
ORAMA = str(Path(sys.executable).with_name("orama"))
_TABLES: dict[str, dict[str, Any]] = {
    # Tests ask more often than people do, and from one address.
    "limits": {"origins": ["*"], "request_rate": 1000, "request_burst": 1000},
    "turn": {"unauthenticated_rate": 1000, "unauthenticated_burst": 1000},
    "signaling": {"drain_deadline": 10.0},
    "dns": {"listen": "0.0.0.0:53"},
}


class Node:
    """:param number: from 1. :param database: URL."""

    def __init__(self, machine: Machine, number: int, database: str, key: bytes, caddy: bool, olric: bool) -> None:
        self.machine, self.number = machine, number
        self.data = machine.directory / "data"
        self.config = machine.directory / "orama.toml"
        self.process: Process
        self.data.mkdir(mode=0o700)
        # As an operator copies it from the first node.
        keyring = self.data / "cluster.key"
        keyring.touch(0o600)
        keyring.write_bytes(key)
        self.config.write_text(_toml(self._settings(database, caddy, olric)))

    def _settings(self, database: str, caddy: bool, olric: bool) -> dict[str, Any]:
        directory, own = self.machine.directory, addresses.mesh(self.number)
        (directory / "certificates").mkdir()
        tables: dict[str, Any] = {
            "database": database,
            "public_ip": addresses.public(self.number),
            "internal_ip": own,
            "base_domain": addresses.DOMAIN,
            "http": [f"tcp:{GATEWAY_PORT}:interface={ip}" for ip in (own, "127.0.0.1", addresses.public(self.number))],
            **{name: dict(table) for name, table in _TABLES.items()},
        }
        plain = f"http://{addresses.site(self.number)}:{GATEWAY_PORT}"
        tables["cluster"] = {"url": f"https://{addresses.site(self.number)}" if caddy else plain}
        if olric:
            tables["cluster"]["olric"] = f"{own}:{servers.OLRIC_PORT}"
        tables["certificates"] = {"directory": str(directory / "certificates")}
        if caddy:
            tables["certificates"] |= {
                "caddyfile": str(directory / "Caddyfile"),
                "caddy_storage": str(directory / "caddy"),
                "caddy_tls": "issuer internal",
            }
        return tables

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def url(self) -> str:
        """Where clients that need no TLS reach its gateway."""
        return f"http://{addresses.site(self.number)}:{GATEWAY_PORT}"

    @property
    def node_id(self) -> str:
        return str(json.loads(self.get("/health"))["node_id"])

    def launch(self) -> None:
        """Start it; it may have to wait for its database."""
        command = [TWISTD, "-n", "--pidfile=", "orama-webrtc", "--config", str(self.config)]
        self._mark = (self.machine.directory / "orama.log").stat().st_size if hasattr(self, "process") else 0
        self.process = self.machine.spawn(
            "orama", *command, "--data-dir", str(self.data), env={**environment(), "PYTHONFAULTHANDLER": "1"}
        )

    def wait(self, seconds: float = PATIENCE) -> None:
        """Return once it says that it is ready."""
        self.process.wait_for(READY, seconds, self._mark)

    def said(self) -> str:
        """What it has logged since it was launched."""
        return self.process.said()[self._mark :]

    def stop(self) -> int:
        """Two signals, so that it waits for nobody; its exit status."""
        self.process.signal(signal.SIGTERM)
        self.process.signal(signal.SIGINT)
        return self.process.outer.wait(PATIENCE)

    def orama(self, *words: str, seconds: float = 60.0) -> str:
        """What the command line prints here."""
        return self.machine.run(*self._command(words), seconds=seconds)

    def orama_json(self, *words: str, code: int | None = 0) -> Any:
        """The same as JSON; *code* is the exit status that it must have, None for any."""
        done = self.machine.complete(*self._command((*words, "--json")))
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout else None

    def _command(self, words: tuple[str, ...]) -> list[str]:
        python_path = f"PYTHONPATH={environment()['PYTHONPATH']}"
        return ["env", python_path, sys.executable, "-m", "orama.cli.main", *words, "--data-dir", str(self.data)]

    def get(self, path: str, key: str = "") -> bytes:
        """The answer of its gateway, asked on the machine itself; an AssertionError when it is not 200."""
        headers = {"X-API-Key": key} if key else {}
        own = addresses.mesh(self.number)
        status, body = servers.fetch(self.machine, own, GATEWAY_PORT, path, headers=headers)
        assert status == 200, (path, status, body)
        return body

    def rooms(self, key: str) -> dict[str, Mapping[str, Any]]:
        """The rooms of the key's namespace by id, as this gateway tells it."""
        found = json.loads(self.get("/v1/webrtc/rooms", key))["rooms"]
        return {room["room_id"]: room for room in found}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of one figure over all labels but these."""
        total = 0.0
        for line in self.get("/metrics").decode().splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{of}"' in series for key, of in labels.items()):
                total += float(value)
        return total


def until_true(what: str, seconds: float, reached: Any) -> Any:
    """As :func:`until`, where a node that does not answer yet is no reason to give up."""

    def tried() -> Any:
        try:
            return reached()
        except (OSError, AssertionError, KeyError, ValueError):
            return None

    return until(tried, what, seconds, 0.1)


def _toml(tables: Mapping[str, Any]) -> str:
    """Values as TOML writes them: JSON's strings, numbers and lists are TOML's too."""
    plain = [f"{key} = {json.dumps(value)}\n" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            plain.append(f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()))
    return "".join(plain)


def cluster_key() -> bytes:
    """What a first node would make: 32 random bytes in base64."""
    from base64 import b64encode

    return b64encode(os.urandom(32)) + b"\n"
