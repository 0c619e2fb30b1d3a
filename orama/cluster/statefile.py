"""``cluster_state.json``: what this node served when it last knew, for whoever looks while the database is away.

It says which services a booting node waits to bring up again, with their ports; what is true is in the database. There
is never a secret in it. The file has mode 0600 and is replaced in one step, and only when something has changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster.desired import WebRtcConfig
from orama.cluster.placement import SFU, TURN
from orama.settings import Settings
from orama.store.directory import DataDirectory

FILE = "cluster_state.json"
_log = Logger()


class StateFile:
    """:param clock: for ``saved_at``."""

    def __init__(self, data: DataDirectory, node_id: str, clock: IReactorTime) -> None:
        self._data = data
        self._node_id = node_id
        self._clock = clock
        self._written: dict[str, Any] | None = None

    def save(self, configs: Collection[WebRtcConfig], settings: Settings) -> None:
        """Write what is served, if it is something else than before. A full disk is logged, and ends nothing."""
        state = {
            "node_id": self._node_id,
            "internal_ip": settings.internal_ip,
            "public_ip": settings.public_ip,
            "base_domain": settings.base_domain,
            "has_sfu": any(SFU in config.blocks.roles for config in configs),
            "has_turn": any(TURN in config.blocks.roles for config in configs),
            "namespaces": {config.namespace: _entry(config, settings) for config in configs},
        }
        if state == self._written:
            return
        content = json.dumps({**state, "saved_at": self._clock.seconds()}, indent=2).encode() + b"\n"
        try:
            self._data.write(FILE, content)
        except OSError as error:
            _log.error("{file} could not be written: {why}", file=FILE, why=error.strerror)
        else:
            self._written = state

    def load(self) -> dict[str, tuple[str, ...]]:
        """The namespaces with their roles, as the last process left them; nothing when there is no such file."""
        try:
            state = json.loads((self._data / FILE).read_bytes())
            found = {}
            for namespace, entry in state["namespaces"].items():
                found[str(namespace)] = tuple(
                    role for role, has in ((SFU, entry["has_sfu"]), (TURN, entry["has_turn"])) if has
                )
            return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}


def _entry(config: WebRtcConfig, settings: Settings) -> Mapping[str, Any]:
    blocks = config.blocks
    signaling, media, relay = (block or (None, None) for block in (blocks.signaling, blocks.media, blocks.relay))
    return {
        "has_sfu": SFU in blocks.roles,
        "sfu_signaling_port": signaling[0],
        "sfu_media_port_start": media[0],
        "sfu_media_port_end": media[1],
        "has_turn": TURN in blocks.roles,
        "turn_listen_port": settings.turn_port if relay[0] is not None else None,
        "turn_tls_port": settings.turns_port if relay[0] is not None else None,
        "turn_relay_port_start": relay[0],
        "turn_relay_port_end": relay[1],
    }
