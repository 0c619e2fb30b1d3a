"""The line between a client and the Internet, and how bad it is: rate, loss, delay and jitter.

Rate is the kernel's token bucket (``tbf``), loss iptables' ``statistic`` match on UDP, so that signalling is spared.
Delay and jitter come from :mod:`tests.lab.delay`, to which what the client sends to TURN over UDP is redirected.
"""

from __future__ import annotations

import sys

from attrs import frozen

from tests.lab.machine import Machine, Process
from tests.node import environment

#: What a token bucket lets through at once, bytes: two full packets and a little.
_BURST = 4000
_TURN_PORT = 3478
_DELAY_PORT = 4478


@frozen
class Conditions:
    """*down* is towards the client. Rates in kbit/s, 0 for as fast as it goes; loss from 0 to 1.

    :ivar queue: milliseconds that a packet may wait for its turn where there is a rate; later ones are dropped.
    :ivar delay: milliseconds added to each direction, *jitter* at most more. Packets stay in order.
    """

    name: str
    down: int = 0
    up: int = 0
    down_loss: float = 0.0
    up_loss: float = 0.0
    queue: int = 300
    delay: float = 0.0
    jitter: float = 0.0


CLEAN = Conditions("clean")


class Line:
    """:param device: the router's end of it. :param server: address of the TURN server."""

    def __init__(self, router: Machine, client: Machine, device: str, server: str) -> None:
        self._router, self._client, self._device, self._server = router, client, device, server
        self._delaying: Process | None = None
        self._delayed = (0.0, 0.0)
        for chain in (self._chain("down"), self._chain("up")):
            router.run("iptables", "-N", chain)
        router.run("iptables", "-A", "FORWARD", "-o", device, "-p", "udp", "-j", self._chain("down"))
        router.run("iptables", "-A", "FORWARD", "-i", device, "-p", "udp", "-j", self._chain("up"))
        # What is delayed ends and begins in the router.
        router.run("iptables", "-A", "OUTPUT", "-o", device, "-p", "udp", "-j", self._chain("down"))
        router.run("iptables", "-A", "INPUT", "-i", device, "-p", "udp", "-j", self._chain("up"))

    def become(self, conditions: Conditions) -> None:
        """From now on it is like that. Another delay does not reach calls that run already."""
        self._rate(self._router, self._device, conditions.down, conditions.queue)
        self._rate(self._client, "eth0", conditions.up, conditions.queue)
        self._lose("down", conditions.down_loss)
        self._lose("up", conditions.up_loss)
        self._delay(conditions.delay, conditions.jitter)

    def dropped(self) -> dict[str, int]:
        """Packets lost so far by the conditions of now: by iptables ``up`` and ``down``, by the bucket ``queue``."""
        counts = {}
        for way in ("down", "up"):
            listed = self._router.run("iptables", "-nvxL", self._chain(way)).splitlines()[2:]
            counts[way] = sum(int(line.split()[0]) for line in listed)
        bucket = self._router.run("tc", "-s", "qdisc", "show", "dev", self._device)
        counts["queue"] = int(bucket.partition("(dropped ")[2].partition(",")[0] or 0)
        return counts

    def _chain(self, way: str) -> str:
        return f"{way}-{self._device}"

    @staticmethod
    def _rate(machine: Machine, device: str, rate: int, queue: int) -> None:
        machine.run("tc", "qdisc", "delete", "dev", device, "root", check=False)
        if rate:
            bucket = ["tbf", "rate", f"{rate}kbit", "burst", str(_BURST), "latency", f"{queue}ms"]
            machine.run("tc", "qdisc", "add", "dev", device, "root", *bucket)

    def _lose(self, way: str, probability: float) -> None:
        self._router.run("iptables", "-F", self._chain(way))
        if probability:
            match = ["-m", "statistic", "--mode", "random", "--probability", str(probability)]
            self._router.run("iptables", "-A", self._chain(way), *match, "-j", "DROP")

    def _delay(self, delay: float, jitter: float) -> None:
        if (delay, jitter) == self._delayed:
            return
        self._delayed = (delay, jitter)
        target = ["PREROUTING", "-i", self._device, "-p", "udp", "--dport", str(_TURN_PORT)]
        redirect = [*target, "-j", "REDIRECT", "--to-ports", str(_DELAY_PORT)]
        if self._delaying is not None:
            self._router.run("iptables", "-t", "nat", "-D", *redirect)
            self._delaying.stop()
            self._delaying = None
        if delay or jitter:
            asked = [f"0.0.0.0:{_DELAY_PORT}", f"{self._server}:{_TURN_PORT}", str(delay), str(jitter)]
            program = [sys.executable, "-m", "tests.lab.delay", *asked]
            self._delaying = self._router.spawn("delay", *program, env=environment())
            self._delaying.wait_for("ready")
            self._router.run("iptables", "-t", "nat", "-A", *redirect)
