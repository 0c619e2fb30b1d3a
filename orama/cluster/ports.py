"""Blocks of ports: who has which on this host. The table's ``UNIQUE(host, kind, block)`` decides.

A namespace gets one block of each kind. A block that another program sits on is passed over: whether
its first port can be bound is asked of a callable, so that nothing here opens a socket in a test.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

from attrs import frozen
from sqlalchemy import Executable, delete, insert, select
from sqlalchemy.exc import IntegrityError
from twisted.internet.interfaces import IReactorTime

from orama.errors import InsufficientStorage
from orama.settings import Settings
from orama.store.database import Database
from orama.store.tables import webrtc_port_allocations as table

SIGNALING = "sfu-signaling"
MEDIA = "sfu-media"
RELAY = "turn-relay"

Block = tuple[int, int]
#: Kind and first port → whether it can be bound.
Probe = Callable[[str, int], bool]


@frozen
class Blocks:
    """The ports of one namespace on this node, each as first and last."""

    signaling: Block
    media: Block
    relay: Block


@frozen
class _Range:
    first: int
    last: int
    size: int

    def block(self, index: int) -> Block:
        first = self.first + index * self.size
        return first, first + self.size - 1

    def __len__(self) -> int:
        return (self.last - self.first + 1) // self.size


class PortBlocks:
    """The blocks of *node_id* on *host*."""

    def __init__(
        self, database: Database, settings: Settings, node_id: str, host: str, clock: IReactorTime, probe: Probe
    ) -> None:
        self._database = database
        self._node_id = node_id
        self._host = host
        self._clock = clock
        self._probe = probe
        self._ranges = {
            SIGNALING: _Range(*settings.signaling.ports, 1),
            MEDIA: _Range(*settings.sfu.media_ports, settings.sfu.media_block),
            RELAY: _Range(*settings.turn.relay_ports, settings.turn.relay_block),
        }

    async def claim(self, namespace: str) -> Blocks:
        """The blocks of *namespace*: those that it has, or else the lowest free ones.

        :raises InsufficientStorage: ``no_free_ports``; nothing is kept then.
        """
        found = await self._stored(namespace)
        try:
            for kind in self._ranges:
                if kind not in found:
                    found[kind] = await self._claim(namespace, kind)
        except InsufficientStorage:
            await self.release(namespace)
            raise
        return Blocks(found[SIGNALING], found[MEDIA], found[RELAY])

    async def of(self, namespace: str) -> Blocks | None:
        """The blocks of *namespace*, None when it has none."""
        found = await self._stored(namespace)
        return Blocks(found[SIGNALING], found[MEDIA], found[RELAY]) if len(found) == len(self._ranges) else None

    async def release(self, namespace: str) -> None:
        """Give the blocks of *namespace* on this node back."""
        mine = delete(table).where(table.c.node_id == self._node_id, table.c.namespace == namespace)
        await self._write(mine)

    async def forget_elsewhere(self) -> None:
        """Give back what this node holds on another host or in another range: its settings have changed."""
        mine = select(table).where(table.c.node_id == self._node_id)
        rows = await self._database.read(lambda connection: connection.execute(mine).all())
        for row in rows:
            held = self._ranges[row.kind]
            fits = row.block < len(held) and held.block(row.block) == (row.first_port, row.last_port)
            if row.host != self._host or not fits:
                await self._write(
                    delete(table).where(
                        table.c.node_id == self._node_id, table.c.namespace == row.namespace, table.c.kind == row.kind
                    )
                )

    async def _write(self, statement: Executable) -> None:
        await self._database.transact(lambda connection: connection.execute(statement))

    async def _stored(self, namespace: str) -> dict[str, Block]:
        columns = select(table.c.kind, table.c.first_port, table.c.last_port)
        mine = columns.where(table.c.node_id == self._node_id, table.c.namespace == namespace)
        rows = await self._database.read(lambda connection: connection.execute(mine).all())
        return {row.kind: (row.first_port, row.last_port) for row in rows}

    async def _claim(self, namespace: str, kind: str) -> Block:
        blocks = self._ranges[kind]
        taken = select(table.c.block).where(table.c.host == self._host, table.c.kind == kind)
        indexes = set(await self._database.read(lambda connection: connection.execute(taken).scalars().all()))
        for index in range(len(blocks)):
            first, last = blocks.block(index)
            if index in indexes or not self._probe(kind, first):
                continue
            row = insert(table).values(
                node_id=self._node_id,
                namespace=namespace,
                kind=kind,
                host=self._host,
                block=index,
                first_port=first,
                last_port=last,
                allocated_at=self._clock.seconds(),
            )
            try:
                await self._write(row)
            except IntegrityError:
                # Somebody took this block, or ours, since we looked.
                ours = (await self._stored(namespace)).get(kind)
                if ours is not None:
                    return ours
                continue
            return first, last
        raise InsufficientStorage("no_free_ports", f"no {kind} ports are left on this host")


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
