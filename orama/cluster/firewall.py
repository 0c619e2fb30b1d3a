"""The ports of TURN opened in the host's firewall, by ufw.

What is to be open follows from all namespaces of the node at once, so that taking one away leaves its neighbour's
ports alone. A rule is ours by its comment; rules of others are never changed, and count where they let in what we
need. Every change is looked at afterwards, in the kernel too. A node without ufw, or without the right to use it,
says so and goes on. Ports of the SFU and between nodes are on the internal address and never opened here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address
from typing import Any

from attrs import frozen
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from orama.cluster import ufw
from orama.cluster.desired import WebRtcConfig
from orama.cluster.processes import NOT_FOUND, Run, last_line
from orama.cluster.ufw import Rule
from orama.settings import Settings

__all__ = ["COMMENT", "Firewall", "Rule", "rules_for"]

#: What makes a rule ours.
COMMENT = "orama"
#: Seconds between looks while nothing new is wanted: each is three runs of ufw.
LOOK = 15.0

_log = Logger()


def rules_for(configs: Iterable[WebRtcConfig], settings: Settings) -> frozenset[Rule]:
    """What has to be open on this node for all of *configs*: nothing unless it relays for one of them."""
    relays = [config.blocks.relay for config in configs if config.blocks.relay is not None]
    if not relays:
        return frozenset()
    rules = {
        Rule("udp", settings.turn_port, settings.turn_port),
        Rule("tcp", settings.turn_port, settings.turn_port),
        Rule("tcp", settings.turns_port, settings.turns_port),
    }
    if _are_public(settings):
        protocols = ("udp", "tcp") if settings.turn.tcp_relays else ("udp",)
        rules |= {Rule(protocol, first, last) for first, last in relays for protocol in protocols}
    return frozenset(rules)


def _are_public(settings: Settings) -> bool:
    """Whether relays of either family are on the Internet."""
    relay_ip6 = settings.turn.relay_ip6
    if relay_ip6 and ip_address(relay_ip6).is_global:
        return True
    return ip_address(settings.relay_ip) == ip_address(settings.public_ip)


@frozen
class _Seen:
    """One look at ufw."""

    added: list[ufw.Added]
    kernel: list[ufw.Verdict]

    def mine(self) -> dict[str, ufw.Added]:
        """Our rules by what they open."""
        return {
            rule.target: rule
            for rule in self.added
            if rule.comment == COMMENT and rule.action == "allow" and rule.target
        }

    def obstacle(self, rule: Rule) -> str:
        """What somebody else has that keeps us from opening *rule*, or from being sure; empty for nothing."""
        for other in self.added:
            if other.target == str(rule) and other.comment != COMMENT:
                if other.action != "allow":
                    return f"{rule}: somebody else has `{other}`"
                if ufw.is_open(self.kernel, rule) is None:
                    return f"{rule}: ufw has `{other}`, but the kernel does not; `ufw reload` puts it there"
        if ufw.is_open(self.kernel, rule) is False:
            return f"{rule}: an earlier rule of somebody else closes it"
        return ""


class _Trouble(Exception):
    """ufw cannot be used, or did not do what it was told: state and detail."""

    def __init__(self, state: str, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class Firewall:
    """Keeps ufw as it should be.

    ``state`` is ``active`` (everything wanted is open), ``off`` (not ours to look after), ``unavailable`` (no
    ufw, not allowed, or not switched on) or ``failed``; ``detail`` says why in one line.
    """

    def __init__(self, clock: IReactorTime, settings: Settings, run: Run) -> None:
        self._clock = clock
        self._run = run
        self._mode = settings.firewall.ufw
        self._ipv6 = ip_address(settings.public_ip).version == 6
        self._loopback = ip_address(settings.public_ip).is_loopback
        self._lock = DeferredLock()
        self._ensured: frozenset[Rule] | None = None
        self._looked = 0.0
        self._open: tuple[str, ...] = ()
        self.state = "off"
        self.detail = "not looked at yet"

    async def ensure(self, rules: Collection[Rule]) -> None:
        """Have these rules, and no others of ours. Never raises; ``state`` tells how it went."""
        wanted = frozenset(rules)
        async with self._lock:
            now = self._clock.seconds()
            settled = not wanted and self.state != "failed"
            if wanted == self._ensured and (settled or 0 <= now - self._looked < LOOK):
                return
            before = self.state, self.detail
            try:
                self._check_ours()
                await self._ensure(wanted)
            except _Trouble as trouble:
                self.state, self.detail = trouble.state, trouble.detail
                self._open = () if trouble.state != "failed" else self._open
            else:
                self.state, self.detail = "active", ""
            self._ensured, self._looked = wanted, now
            if (self.state, self.detail) != before:
                level = _log.warn if self.state == "failed" else _log.info
                level("firewall {state}: {detail}", state=self.state, detail=self.detail or ", ".join(self._open))

    def report(self) -> dict[str, Any]:
        """State, detail and the rules that are open, as of the last look."""
        return {"state": self.state, "detail": self.detail, "rules": list(self._open)}

    def _check_ours(self) -> None:
        if self._mode == "off":
            raise _Trouble("off", "firewall.ufw is off")
        if self._loopback:
            raise _Trouble("off", "the public IP is a loopback address")

    async def _ensure(self, wanted: frozenset[Rule]) -> None:
        seen = await self._look()
        mine = seen.mine()
        names = {str(rule): rule for rule in wanted}
        problems: list[str] = []
        changed = False
        for target in sorted(mine.keys() - names.keys()):
            changed = True
            await self._change(problems, "delete", *mine[target].words)
        for name in sorted(names):
            state = ufw.is_open(seen.kernel, names[name])
            if state is True or seen.obstacle(names[name]):
                continue
            changed = True
            if name in mine:
                # Told, but not in the kernel: telling it again alone would change nothing.
                await self._change(problems, "delete", *mine[name].words)
            await self._change(problems, "allow", name, "comment", COMMENT)
        if changed:
            seen = await self._look()
        self._open = tuple(name for name in sorted(names) if ufw.is_open(seen.kernel, names[name]))
        for name in sorted(names):
            if name not in self._open:
                problems.append(seen.obstacle(names[name]) or f"{name} is not open")
        problems += [f"{target} is still open" for target in sorted(seen.mine().keys() - names.keys())]
        if problems:
            raise _Trouble("failed", "; ".join(dict.fromkeys(problems)))

    async def _look(self) -> _Seen:
        status = await self._ufw("status")
        if "Status: active" not in status:
            raise self._unavailable("ufw is not switched on; `ufw enable` does that")
        added = ufw.added(await self._ufw("show", "added"))
        return _Seen(added, ufw.kernel(await self._ufw("show", "user-rules"), self._ipv6))

    async def _change(self, problems: list[str], *words: str) -> None:
        status, output = await self._run(["ufw", *words])
        if status != 0:
            problems.append(f"`ufw {' '.join(words)}`: {last_line(output)}")

    async def _ufw(self, *words: str) -> str:
        status, output = await self._run(["ufw", *words])
        if status == NOT_FOUND:
            raise self._unavailable("ufw is not installed")
        if status != 0:
            raise self._unavailable(f"`ufw {' '.join(words)}`: {last_line(output)}")
        return output.decode("utf-8", "replace")

    def _unavailable(self, detail: str) -> _Trouble:
        return _Trouble("failed" if self._mode == "require" else "unavailable", detail)
