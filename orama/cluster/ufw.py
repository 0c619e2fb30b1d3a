"""What ufw prints, as values: the rules it was told (``ufw show added``) and those in the kernel (``ufw show
user-rules``).

Reading only. A rule that is more than ports and a protocol (an interface, a source, a log, an application) is
somebody else's whatever its comment says: its tokens are kept, and it opens nothing that we count on.
"""

from __future__ import annotations

import re
import shlex

from attrs import frozen

_PORTS = re.compile(r"\d+(?::\d+)?/(?:tcp|udp)\Z", re.ASCII)
_ACTIONS = ("allow", "deny", "reject", "limit")
#: Protocols as iptables prints them, by name or by number.
_PROTOCOLS = {"tcp": "tcp", "6": "tcp", "udp": "udp", "17": "udp", "all": "", "0": ""}
_ANYWHERE = ("0.0.0.0/0", "::/0", "anywhere")
_COMMENT = re.compile(r"/\*.*?\*/")
_KERNEL_PORTS = re.compile(
    r"(?:(?:tcp|udp) )?(?:dpts?:|multiport dports )(?P<ports>\d+(?::\d+)?(?:,\d+(?::\d+)?)*)\Z", re.ASCII
)
_TERMINAL = ("ACCEPT", "DROP", "REJECT")


@frozen
class Rule:
    """Datagrams or connections to these ports, from anywhere to anywhere, are let in."""

    proto: str
    first_port: int
    last_port: int

    def __str__(self) -> str:
        """As ufw takes it and shows it."""
        ports = f"{self.first_port}" if self.first_port == self.last_port else f"{self.first_port}:{self.last_port}"
        return f"{ports}/{self.proto}"


@frozen
class Added:
    """One line of ``ufw show added``."""

    #: The words after ``ufw``, without the comment.
    words: tuple[str, ...]
    comment: str

    @property
    def target(self) -> str:
        """``3478/udp`` for a rule for incoming packets that is ports and a protocol alone; else empty.

        Two rules with the same one cannot be: ufw lets the later take the place of the earlier.
        """
        words = [word for word in self.words if word not in ("log", "log-all")]
        return words[1] if len(words) == 2 and words[0] in _ACTIONS and _PORTS.match(words[1]) else ""

    @property
    def action(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return " ".join(("ufw", *self.words))


@frozen
class Verdict:
    """One rule of the kernel for packets from anywhere: what becomes of those to *ports*."""

    accepts: bool
    proto: str
    ports: tuple[tuple[int, int], ...]

    def overlaps(self, rule: Rule) -> bool:
        return self.proto in ("", rule.proto) and any(
            first <= rule.last_port and rule.first_port <= last for first, last in self.ports
        )

    def covers(self, rule: Rule) -> bool:
        return self.proto in ("", rule.proto) and any(
            first <= rule.first_port and rule.last_port <= last for first, last in self.ports
        )


def added(output: str) -> list[Added]:
    """The rules of ``ufw show added``, in its order."""
    found = []
    for line in output.splitlines():
        if not line.startswith("ufw "):
            continue
        try:
            words = shlex.split(line)[1:]
        except ValueError:
            words = line.split()[1:]
        comment = ""
        if len(words) > 2 and words[-2] == "comment":
            comment = words[-1]
            words = words[:-2]
        if words:
            found.append(Added(tuple(words), comment))
    return found


def kernel(output: str, ipv6: bool) -> list[Verdict]:
    """What ``ufw show user-rules`` has in the chain for incoming packets, in the order in which it is asked."""
    chain = "ufw6-user-input" if ipv6 else "ufw-user-input"
    found = []
    inside = False
    for line in output.splitlines():
        if line.startswith("Chain "):
            inside = line.split()[1:2] == [chain]
        elif inside and (verdict := _verdict(line)) is not None:
            found.append(verdict)
    return found


def is_open(verdicts: list[Verdict], rule: Rule) -> bool | None:
    """Whether the kernel lets in what *rule* says; None when no rule says anything about it.

    A rule that closes a part of it before one lets all of it in makes this False.
    """
    for verdict in verdicts:
        if verdict.accepts and verdict.covers(rule):
            return True
        if not verdict.accepts and verdict.overlaps(rule):
            return False
    return None


def _verdict(line: str) -> Verdict | None:
    # pkts bytes target prot opt in out source destination …; older ip6tables leave opt empty.
    words = _COMMENT.sub("", line).split()
    if len(words) > 4 and words[4] == "--":
        del words[4]
    if len(words) < 8 or words[2] not in _TERMINAL or words[3] not in _PROTOCOLS:
        return None
    if words[4:6] != ["*", "*"] or any(word not in _ANYWHERE for word in words[6:8]):
        return None
    rest = " ".join(words[8:])
    if words[2] == "REJECT":
        rest = rest.partition("reject-with")[0].strip()
    if not rest:
        ports: tuple[tuple[int, int], ...] = ((0, 65535),)
    elif match := _KERNEL_PORTS.match(rest):
        ports = tuple(_range(part) for part in match["ports"].split(",") if part)
    else:
        return None
    return Verdict(words[2] == "ACCEPT", _PROTOCOLS[words[3]], ports)


def _range(ports: str) -> tuple[int, int]:
    first, _, last = ports.partition(":")
    return int(first), int(last or first)
