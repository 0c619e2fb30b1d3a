"""A ufw in memory, as far as the commands go that are given to it; compared with the real one in a test."""

from __future__ import annotations

import re
import shlex

from twisted.internet.defer import Deferred, succeed


class MemoryUfw:
    """Rules as ufw keeps them, and the kernel's beside them.

    One rule per target: a second ``allow`` or ``deny`` of the same ports takes the place of the first.
    """

    def __init__(self) -> None:
        self.active = True
        self.installed = True
        self.allowed = True
        #: The next commands with this word fail, as they do while somebody has the lock.
        self.broken = "!"
        #: Target → action and comment, in order.
        self.rules: dict[str, tuple[str, str]] = {}
        #: What the kernel lost without ufw's knowing.
        self.lost: set[str] = set()
        self.commands: list[str] = []

    def run(self, command: list[str]) -> Deferred[tuple[int, bytes]]:
        assert command[0] == "ufw"
        self.commands.append(" ".join(command[1:]))
        if not self.installed:
            return succeed((127, b"ufw is not installed"))
        if not self.allowed:
            return succeed((1, b"ERROR: You need to be root to run this script\n"))
        if self.broken in command:
            return succeed((1, b"ERROR: Another app is currently holding the xtables lock\n"))
        return succeed((0, self.do(*command[1:]).encode()))

    def do(self, *words: str) -> str:
        """The command with ufw's own checks left out; what it prints."""
        match words:
            case ("status",):
                return "Status: active\n\nTo\n--\n" if self.active else "Status: inactive\n"
            case ("show", "added"):
                return self._added()
            case ("show", "user-rules"):
                return self._kernel()
            case ("delete", action, target):
                if self.rules.get(target, ("", ""))[0] == action:
                    del self.rules[target]
                    self.lost.discard(target)
                    return "Rule deleted\nRule deleted (v6)\n"
                return "Could not delete non-existent rule\nCould not delete non-existent rule (v6)\n"
            case (action, target, *rest):
                comment = rest[1] if rest else ""
                if self.rules.get(target) == (action, comment):
                    return "Skipping adding existing rule\nSkipping adding existing rule (v6)\n"
                self.rules[target] = action, comment
                self.lost.discard(target)
                return "Rule added\nRule added (v6)\n"
        raise AssertionError(words)

    def _added(self) -> str:
        lines = ["Added user rules (see 'ufw status' for running firewall):"]
        for target, (action, comment) in self.rules.items():
            lines.append(f"ufw {action} {target}" + (f" comment {shlex.quote(comment)}" if comment else ""))
        return "\n".join(lines if self.rules else [*lines, "(None)"]) + "\n"

    def _kernel(self) -> str:
        lines = []
        for title, chain, anywhere in (("4", "ufw", "0.0.0.0/0"), ("6", "ufw6", "::/0")):
            lines += [f"IPV{title} (user):", f"Chain {chain}-user-input (1 references)", "    pkts      bytes target"]
            for target, (action, _) in self.rules.items():
                if target not in self.lost:
                    lines += self._entries(chain, action, target, anywhere)
            lines += ["", f"Chain {chain}-user-output (1 references)"]
            lines += self._entries(chain, "allow", "1:65535/udp", anywhere)
        return "\n".join(lines) + "\n"

    @staticmethod
    def _entries(chain: str, action: str, target: str, anywhere: str) -> list[str]:
        ports, _, only = target.partition("/")
        verdict = {"allow": "ACCEPT", "deny": "DROP", "reject": "REJECT", "limit": f"{chain}-user-limit-accept"}[action]
        lines = []
        for proto, number in (("tcp", 6), ("udp", 17)):
            if only in ("", proto):
                several = re.search("[:,]", ports)
                match = f"multiport dports {ports}" if several else f"{proto} dpt:{ports}"
                end = " reject-with icmp-port-unreachable" if action == "reject" else ""
                lines.append(
                    f"       0        0 {verdict} {number:5}   --  *      *   {anywhere}  {anywhere}  {match}{end}"
                )
        return lines
