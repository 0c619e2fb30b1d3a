"""DNS as a client in the lab asks for it: one question over UDP, by Twisted's own codec."""

from __future__ import annotations

import random
import socket

from twisted.names import dns

from tests.lab.machine import Machine


def ask(machine: Machine, server: str, name: str, kind: int = dns.A) -> dns.Message:
    """What *server* answers.

    :raises OSError: nothing within two seconds.
    """
    question = dns.Message(id=random.getrandbits(16), recDes=1)
    question.addQuery(name, kind)
    with machine.inside():
        asking = socket.socket(type=socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(2.0)
        asking.connect((server, 53))
        asking.send(question.toStr())
        answer = dns.Message()
        answer.fromStr(asking.recv(4096))
    return answer


def addresses_of(machine: Machine, server: str, name: str) -> list[str]:
    """The A records of *name*."""
    return [each.payload.dottedQuad() for each in ask(machine, server, name).answers if each.type == dns.A]
