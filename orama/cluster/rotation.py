"""Another cluster key for all nodes, while they go on talking: accept, use, seal again, forget.

Every node first accepts the new key beside the old one; only when all do, each signs and seals with it; then what the
database holds is sealed with it; and only then the old one is forgotten. At any moment every node takes what any
other one signs and opens what any other one sealed. The node where the command was given goes last in each step but
the first, so that its own keyring shows what is unfinished and its signature is one that all others take.

Whatever stops between two steps, the same command goes on from there, at any node that still shows two keys. Keys
travel sealed with a key that the receiver has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

from attrs import frozen
from twisted.logger import Logger

from orama.cluster.keyring import ClusterKey, Keyring, new_key
from orama.cluster.neighbours import Neighbour
from orama.errors import BadRequest, OramaError, Unavailable
from orama.store.sealing import BrokenSeal, Seal

ACCEPT, USE, FORGET, WITHDRAW = "accept", "use", "forget", "withdraw"
PATH = "/v1/internal/keys"
_PURPOSE = "cluster key"
#: How often what was sealed while keys changed is sealed again before we give up; once finds all but a race.
_RESEALS = 5

_log = Logger()


class Posts(Protocol):
    """The part of :class:`~orama.cluster.neighbours.Neighbours` that is needed here."""

    async def post(self, node: Neighbour, path: str, body: Mapping[str, Any]) -> Any: ...


@frozen
class Rotation:
    """One that is complete.

    :ivar nodes: all that took part. :ivar resealed: secrets that were sealed again.
    """

    fingerprint: str
    nodes: tuple[str, ...]
    resealed: int


async def change_key(keyring: Keyring, stage: str, sealed: str) -> dict[str, Any]:
    """What a node does at ``POST /v1/internal/keys``; the fingerprints of the keys that it has then.

    :param sealed: the key that *stage* is about.
    :raises BadRequest: ``invalid_stage``, ``invalid_key``.
    :raises Conflict: it is out of turn; see :class:`~orama.cluster.keyring.Keyring`.
    """
    try:
        key = ClusterKey.parse(Seal(keyring.sealing_keys).open(sealed, _PURPOSE))
    except BrokenSeal:
        raise BadRequest("invalid_key", "the key was not sealed with a key of this cluster") from None
    _change(keyring, stage, key)
    return shown(keyring)


def shown(keyring: Keyring) -> dict[str, Any]:
    """What may be shown of *keyring*."""
    return {"current": keyring.in_use.fingerprint, "keys": list(keyring.fingerprints)}


def unfinished(keyring: Keyring) -> bool:
    """Whether a rotation was begun of which the end has not come here."""
    return len(keyring.keys) > 1 and keyring.newest.made > 0


async def rotate_cluster_key(
    keyring: Keyring,
    neighbours: Posts,
    others: Collection[Neighbour],
    reseal: Callable[[], Awaitable[int]],
    node_id: str,
    now: float,
    make: Callable[[], bytes] = new_key,
) -> Rotation:
    """Give all nodes a new key, or finish the rotation that is under way.

    :param keyring: of this node.
    :param others: all other nodes of the cluster, whether they are alive or not.
    :param reseal: seals everything that is stored with the current key; how much there was that another had sealed.
    :param node_id: of this node.
    :param now: Unix time.
    :param make: a new key.
    :raises Unavailable: ``rotation_stopped``; the text says at which node, why, and what to do.
    """
    if unfinished(keyring):
        key, fresh = keyring.newest, False
    else:
        key, fresh = ClusterKey(max(int(now), keyring.newest.made + 1), make()), True
    _log.info("the cluster key becomes {fingerprint}", fingerprint=key.fingerprint)
    asked: list[Neighbour] = []
    try:
        _change(keyring, ACCEPT, key)
        for node in others:
            asked.append(node)
            await _tell(keyring, neighbours, node, ACCEPT, key)
    except OramaError as error:
        if not fresh:  # some may be using it
            raise _stopped(error, "the key before it stays valid; give the command again when that is mended") from None
        await _withdraw(keyring, neighbours, asked, key)
        raise _stopped(error, "nothing was changed; remove the node or bring it back, and try again") from None
    again = "both keys are valid now; give the command again when that is mended"
    try:
        for node in others:
            await _tell(keyring, neighbours, node, USE, key)
        _change(keyring, USE, key)
        resealed = await _reseal(reseal)
        for node in others:
            await _tell(keyring, neighbours, node, FORGET, key)
        _change(keyring, FORGET, key)
    except OramaError as error:
        raise _stopped(error, again) from None
    _log.info("the cluster key is {fingerprint} on all nodes", fingerprint=key.fingerprint)
    return Rotation(key.fingerprint, (node_id, *(node.node_id for node in others)), resealed)


def _change(keyring: Keyring, stage: str, key: ClusterKey) -> None:
    if stage == ACCEPT:
        keyring.accept(key)
    elif stage == USE:
        keyring.use(key)
    elif stage == FORGET:
        keyring.forget_before(key)
    elif stage == WITHDRAW:
        keyring.withdraw(key)
    else:
        raise BadRequest("invalid_stage", f"a stage is {ACCEPT}, {USE}, {FORGET} or {WITHDRAW}")
    _log.info("cluster key {fingerprint}: {stage}", fingerprint=key.fingerprint, stage=stage)


async def _tell(keyring: Keyring, neighbours: Posts, node: Neighbour, stage: str, key: ClusterKey) -> None:
    sealed = Seal(keyring.sealing_keys).seal(key.text(), _PURPOSE)
    await neighbours.post(node, PATH, {"stage": stage, "sealed": sealed})


async def _withdraw(keyring: Keyring, neighbours: Posts, asked: Collection[Neighbour], key: ClusterKey) -> None:
    """Undo what was accepted, as far as can be reached; a key that stays accepted somewhere is used by nobody."""
    for node in asked:
        try:
            await _tell(keyring, neighbours, node, WITHDRAW, key)
        except OramaError as error:
            _log.warn(
                "node {node} may still accept a key that is not used: {why}", node=node.node_id, why=error.message
            )
    _change(keyring, WITHDRAW, key)


async def _reseal(reseal: Callable[[], Awaitable[int]]) -> int:
    """Seal until nothing is left that another key has sealed."""
    total = 0
    for _ in range(_RESEALS):
        count = await reseal()
        total += count
        if not count:
            return total
    raise Unavailable("store_unavailable", "secrets are being sealed with another key all the time")


def _stopped(error: OramaError, advice: str) -> OramaError:
    return Unavailable("rotation_stopped", f"{error.message}; {advice}")
