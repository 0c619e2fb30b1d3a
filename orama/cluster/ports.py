"""Blocks of ports: who has which on which host. The table's ``UNIQUE(host, kind, block)`` decides.

A namespace gets the lowest free block of each kind that a role needs. Whether a program that is not ours sits on
a block can only be found out on the host itself: there its first port is tried, by a callable, so that nothing
here opens a socket in a test.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from attrs import field, frozen
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError
from twisted.internet.interfaces import IReactorTime

from orama.cluster.desired import MEDIA, RELAY, SIGNALING, Block
from orama.errors import InsufficientStorage
from orama.settings import Settings
from orama.store.database import Database
from orama.store.tables import webrtc_port_allocations as table

#: Kind and first port → whether it can be bound.
Probe = Callable[[str, int], bool]


@frozen
class Range:
    """All ports of one kind, in blocks of *size*."""

    first: int
    last: int
    size: int

    def block(self, index: int) -> Block:
        first = self.first + index * self.size
        return first, first + self.size - 1

    def __len__(self) -> int:
        return (self.last - self.first + 1) // self.size


def ranges(settings: Settings) -> dict[str, Range]:
    """The range of every kind."""
    return {
        SIGNALING: Range(*settings.signaling.ports, 1),
        MEDIA: Range(*settings.sfu.media_ports, settings.sfu.media_block),
        RELAY: Range(*settings.turn.relay_ports, settings.turn.relay_block),
    }


@frozen
class Allocation:
    """One block for somebody."""

    node_id: str
    kind: str
    host: str
    block: int
    first_port: int
    last_port: int


@frozen
class Taken:
    """The blocks that are not free, and those that have been chosen from what was free."""

    kinds: dict[str, Range]
    _indexes: dict[tuple[str, str], set[int]] = field(factory=dict)

    def take(self, node_id: str, host: str, kind: str, free: Callable[[int], bool] = lambda port: True) -> Allocation:
        """The lowest free block, which is then taken here.

        :param free: whether a first port can be bound, as far as anybody knows.
        :raises InsufficientStorage: ``no_free_ports``.
        """
        blocks, held = self.kinds[kind], self._indexes.setdefault((host, kind), set())
        for index in range(len(blocks)):
            first, last = blocks.block(index)
            if index not in held and free(first):
                held.add(index)
                return Allocation(node_id, kind, host, index, first, last)
        raise InsufficientStorage("no_free_ports", f"no {kind} ports are left on the host {host}")

    def add(self, host: str, kind: str, index: int) -> None:
        self._indexes.setdefault((host, kind), set()).add(index)

    def free(self, host: str, kind: str, index: int) -> None:
        self._indexes.get((host, kind), set()).discard(index)


def read_taken(connection: Connection, kinds: dict[str, Range], but: str | None = None) -> Taken:
    """What is taken on all hosts.

    :param but: leaves out what this namespace has, which is about to be given back.
    """
    taken = Taken(kinds)
    for row in connection.execute(select(table.c.host, table.c.kind, table.c.block, table.c.namespace)):
        if row.namespace != but:
            taken.add(row.host, row.kind, row.block)
    return taken


class PortBlocks:
    """The blocks of one node, which is on one host."""

    def __init__(
        self, database: Database, settings: Settings, node_id: str, host: str, clock: IReactorTime, probe: Probe
    ) -> None:
        self.host = host
        self.node_id = node_id
        self.kinds = ranges(settings)
        self.probe = probe
        self._database = database
        self._clock = clock

    async def forget_elsewhere(self) -> None:
        """Take the blocks that this node holds on another host or in another range anew: its settings have changed."""
        mine = select(table).where(table.c.node_id == self.node_id)
        rows = await self._database.read(lambda connection: connection.execute(mine).all())
        for row in rows:
            if row.host != self.host or not self._fits(row):
                await self.move(row.namespace, [row.kind])

    def _fits(self, row: Any) -> bool:
        """Whether a block is one of its range, as the settings have that now."""
        held = self.kinds[row.kind]
        return row.block < len(held) and held.block(row.block) == (row.first_port, row.last_port)

    async def move(self, namespace: str, kinds: Iterable[str]) -> None:
        """Other blocks for *namespace* on this node, because somebody else sits on those that it has.

        :raises InsufficientStorage: ``no_free_ports``; what it has stays as it is.
        """
        for kind in kinds:
            while not await self._move(namespace, kind):
                pass

    async def move_sfu(self, namespace: str) -> None:
        """:meth:`move` for what an SFU listens on."""
        await self.move(namespace, (SIGNALING, MEDIA))

    async def _move(self, namespace: str, kind: str) -> bool:
        """False when somebody took the block that we had chosen."""
        mine = table.c.node_id == self.node_id, table.c.namespace == namespace, table.c.kind == kind

        def read(connection: Connection) -> Taken:
            taken = read_taken(connection, self.kinds)
            for row in connection.execute(select(table).where(*mine)):
                if not self._fits(row):  # its number stands for other ports by now
                    taken.free(row.host, kind, row.block)
            return taken

        taken = await self._database.read(read)
        new = taken.take(self.node_id, self.host, kind, lambda port: self.probe(kind, port))
        values = {"host": new.host, "block": new.block, "first_port": new.first_port, "last_port": new.last_port}
        try:
            await self._database.write(update(table).where(*mine).values(**values, allocated_at=self._clock.seconds()))
        except IntegrityError:
            return False
        return True


def bindable(settings: Settings) -> Probe:
    """A probe that asks the kernel, on the addresses that *settings* has these ports on."""

    def probe(kind: str, port: int) -> bool:
        ip = settings.relay_ip if kind == RELAY else settings.internal_ip
        family = socket.AF_INET6 if ip_address(ip).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == SIGNALING else socket.SOCK_DGRAM) as candidate:
            try:
                candidate.bind((ip, port))
            except OSError:
                return False
        return True

    return probe
