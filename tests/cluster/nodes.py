"""The stored half of a node, put together for tests as ``hierarchy`` does it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorTime

from orama.cluster.namespaces import Namespaces
from orama.cluster.ports import PortBlocks
from orama.cluster.rooms import RoomDirectory
from orama.settings import Settings
from orama.store.database import Database
from orama.store.directory import DataDirectory
from orama.store.sealing import Seal, new_key


class StoredNode:
    """Namespaces, ports and rooms of one node on *database*.

    :ivar busy: (kind, port) pairs that the probe finds taken.
    """

    def __init__(
        self,
        case: Any,
        database: Database,
        clock: IReactorTime,
        settings: Settings | None = None,
        node_id: str = "node-1",
        host: str = "127.0.0.1",
        seal: Seal | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.data = DataDirectory(Path(tempfile.mkdtemp(dir=Path.cwd())))
        self.data.prepare()
        case.addCleanup(self.data.release)
        self.seal = seal or Seal(new_key())
        self.busy: set[tuple[str, int]] = set()
        self.ports = PortBlocks(
            database, self.settings, node_id, host, clock, lambda kind, port: (kind, port) not in self.busy
        )
        self.directory = RoomDirectory(database, node_id, clock, self.settings.sfu.max_participants)
        self.namespaces = Namespaces(database, self.data, self.seal, self.ports, self.settings, clock)
