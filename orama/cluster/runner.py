"""What starts and stops the roles of a namespace on this node: in this process, or as units of systemd.

The reconciler says which role it wants; how that becomes true is decided by one setting (``cluster.runner``). In
either case ``running`` tells what is, not what was asked for: with systemd, a role runs when its process has come to
the control socket and serves. What the processes are told is not in here (:mod:`orama.cluster.workers`,
:mod:`orama.cluster.leases`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import evolve, frozen
from twisted.logger import Logger

from orama.cluster.desired import Blocks, WebRtcConfig
from orama.cluster.placement import SFU, TURN
from orama.cluster.processes import Run, last_line
from orama.errors import BadRequest, Unavailable

_UNIT = re.compile(r"orama-namespace-(sfu|turn)@([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)\.service\Z")
#: ``systemctl stop`` of a unit whose template is not installed (systemctl(1), exit status).
_NOT_LOADED = 5

_log = Logger()

#: Namespace → what this node has to know to serve it; raises OramaError.
Configs = Callable[[str], Awaitable[WebRtcConfig]]


class Runner(Protocol):
    """Roles are ``sfu`` and ``turn``."""

    async def start(self, namespace: str, role: str) -> None:
        """Begin to serve; nothing happens when it is served.

        :raises OramaError: why that is not possible now.
        """

    async def stop(self, namespace: str, role: str) -> None:
        """End it in good order, which may take longer than this call; nothing happens when it does not run."""

    async def refresh(self, namespace: str) -> None:
        """What is known of the namespace has changed (secrets, places): whatever runs is told."""

    def running(self, namespace: str, role: str) -> bool:
        """Whether it serves, or still has somebody."""

    async def survey(self) -> frozenset[tuple[str, str]]:
        """Everything that runs or is about to, as (namespace, role); also what nobody has asked this process for."""


class InlineRunner:
    """Everything in this process.

    :param apply: makes the process serve the roles whose blocks are there, and only those; None is no role at all.
    :param config: looks up what a namespace is to be served with.
    """

    def __init__(self, apply: Callable[[str, WebRtcConfig | None], Awaitable[None]], config: Configs) -> None:
        self._apply = apply
        self._config = config
        self._roles: dict[str, frozenset[str]] = {}

    async def start(self, namespace: str, role: str) -> None:
        roles = self._roles.get(namespace, frozenset())
        if role not in roles:
            await self._become(namespace, roles | {role})

    async def stop(self, namespace: str, role: str) -> None:
        roles = self._roles.get(namespace, frozenset())
        if role in roles:
            await self._become(namespace, roles - {role})

    async def refresh(self, namespace: str) -> None:
        roles = self._roles.get(namespace)
        if roles:
            await self._become(namespace, roles)

    def running(self, namespace: str, role: str) -> bool:
        return role in self._roles.get(namespace, ())

    async def survey(self) -> frozenset[tuple[str, str]]:
        return frozenset((namespace, role) for namespace, roles in self._roles.items() for role in roles)

    async def _become(self, namespace: str, roles: frozenset[str]) -> None:
        if not roles:
            await self._apply(namespace, None)
            self._roles.pop(namespace, None)
            return
        config = await self._config(namespace)
        await self._apply(namespace, evolve(config, blocks=_only(config.blocks, roles)))
        self._roles[namespace] = roles


@frozen
class Unit:
    """What systemd says of one unit (``systemctl show``)."""

    active: str
    sub: str
    #: Why it failed; ``success`` otherwise.
    result: str


class SystemdRunner:
    """Each role of each namespace is a unit.

    :param run: runs ``systemctl``.
    :param serves: whether the process of a role has come to us and serves.
    :param tell: takes over what is to be known of a namespace now; called with each refresh.
    :param leave: called with namespace and role before a unit is stopped, to say what is to become of its people.
    :param taken: why the process of a role could not open its ports, if that is what it has said; once.
    """

    def __init__(
        self,
        run: Run,
        serves: Callable[[str, str], bool],
        tell: Callable[[str], Awaitable[None]],
        leave: Callable[[str, str], Awaitable[None]],
        taken: Callable[[str, str], str | None] = lambda namespace, role: None,
    ) -> None:
        self._run = run
        self._serves = serves
        self._tell = tell
        self._leave = leave
        self._taken = taken

    async def start(self, namespace: str, role: str) -> None:
        """Ask systemd for the unit and do not wait: :meth:`running` says when it is there.

        A unit waits for the node by itself, and may not be waited for by a node that is starting.

        :raises Unavailable: ``unit_failed``: it was started and failed, and systemd will try again; or ``port_in_use``.
        """
        why = self._taken(namespace, role)
        if why is not None:
            raise Unavailable("port_in_use", f"{namespace} cannot be served: {why}")
        unit, state = unit_name(namespace, role), await self.state(namespace, role)
        if state.sub == "auto-restart":
            raise Unavailable("unit_failed", f"{unit} fails ({state.result}); journalctl -u {unit} says why")
        if state.active == "failed":
            await self._systemctl("reset-failed", unit)
        if state.active not in ("active", "activating", "reloading"):
            await self._systemctl("start", "--no-block", unit)
        elif state.active == "active":
            await self._tell(namespace)  # it runs and does not serve: it may know other ports than we do

    async def stop(self, namespace: str, role: str) -> None:
        """Ask systemd to stop the unit and do not wait: :meth:`survey` has it for as long as its drain takes.

        :raises Unavailable: ``unit_failed``.
        """
        if (await self.state(namespace, role)).active in ("active", "activating", "reloading"):
            await self._leave(namespace, role)
            await self._systemctl("stop", "--no-block", unit_name(namespace, role), fine=(0, _NOT_LOADED))

    async def refresh(self, namespace: str) -> None:
        await self._tell(namespace)

    def running(self, namespace: str, role: str) -> bool:
        return self._serves(namespace, role)

    async def survey(self) -> frozenset[tuple[str, str]]:
        columns = await self._systemctl(
            "list-units",
            "--plain",
            "--no-legend",
            "--no-pager",
            "--full",
            "--state=active,activating,reloading,deactivating",
            "orama-namespace-*@*.service",
        )
        names = (line.split()[0] for line in columns.decode("utf-8", "replace").splitlines() if line.split())
        matches = (_UNIT.match(name) for name in names)
        return frozenset((match[2], match[1]) for match in matches if match is not None)

    async def state(self, namespace: str, role: str) -> Unit:
        """For the status: ``active`` is ``active``, ``activating``, ``deactivating``, ``failed`` or ``inactive``.

        :raises Unavailable: ``unit_failed``: systemd is not to be spoken to.
        """
        unit = unit_name(namespace, role)
        output = await self._systemctl("show", "--property=ActiveState,SubState,Result", unit)
        found = dict(line.partition("=")[::2] for line in output.decode("utf-8", "replace").splitlines())
        return Unit(found.get("ActiveState", "unknown"), found.get("SubState", "unknown"), found.get("Result", ""))

    async def _systemctl(self, verb: str, *arguments: str, fine: tuple[int, ...] = (0,)) -> bytes:
        status, output = await self._run(["systemctl", "--no-ask-password", verb, *arguments])
        if status not in fine:
            why = last_line(output)
            _log.error("systemctl {verb} {unit}: {why}", verb=verb, unit=arguments[-1], why=why)
            raise Unavailable("unit_failed", f"systemctl {verb} {arguments[-1]}: {why}")
        return output


def unit_name(namespace: str, role: str) -> str:
    """:raises BadRequest: ``invalid_namespace``: this would not name a unit of ours."""
    name = f"orama-namespace-{role}@{namespace}.service"
    if _UNIT.match(name) is None:
        raise BadRequest("invalid_namespace", f"there is no unit for {role!r} of {namespace[:40]!r}")
    return name


def _only(blocks: Blocks, roles: frozenset[str]) -> Blocks:
    """*blocks* without those of other roles."""
    sfu = SFU in roles
    return Blocks(
        blocks.signaling if sfu else None,
        blocks.media if sfu else None,
        blocks.relay if TURN in roles else None,
    )
