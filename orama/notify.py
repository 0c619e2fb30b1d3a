"""What a service tells systemd: ready, status, reloading, stopping, still alive (sd_notify(3)).

The datagram protocol of ``NOTIFY_SOCKET`` and nothing else; without that variable, nothing is sent. No reactor in here:
a process that has none uses it too. Passing descriptors and barriers are not spoken.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, MutableMapping

from attrs import frozen

#: Seconds by which a start or a stop that makes progress is extended each time.
EXTENSION = 30.0
_MICROSECONDS = 1_000_000
#: Longest status; ``systemctl status`` shows one line.
MAX_STATUS = 200

Send = Callable[[str, bytes], None]


def _send(address: str, datagram: bytes) -> None:
    """:raises OSError: nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        # A leading @ stands for the zero byte of an abstract address (unix(7)).
        sender.sendto(datagram, "\0" + address[1:] if address.startswith("@") else address)


@frozen
class Notifier:
    """
    :param address: of the socket; empty for nobody.
    :param watchdog: seconds without a sign of life after which systemd kills us; 0 for never.
    """

    address: str = ""
    watchdog: float = 0.0
    _send: Send = _send

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], pid: int, send: Send = _send) -> Notifier:
        """What the environment says, which is taken out of it: programs that we start are not the service.

        :param pid: ours; a watchdog that is meant for another process is none of our business.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds, whose = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        meant = whose in ("", str(pid)) and microseconds.isascii() and microseconds.isdigit()
        if not address.startswith(("/", "@")):
            return cls(send=send)
        return cls(address, int(microseconds) / _MICROSECONDS if meant else 0.0, send)

    @property
    def interval(self) -> float:
        """Seconds between two signs of life: half of what is allowed, and never longer than a third of an extension."""
        longest = EXTENSION / 3
        return min(self.watchdog / 2, longest) if self.watchdog else longest

    def ready(self, status: str = "") -> bool:
        """The start, or a reload, is complete."""
        return self._tell("READY=1", *_status(status))

    def status(self, text: str) -> bool:
        return self._tell(*_status(text))

    def reloading(self, monotonic: float) -> bool:
        """:param monotonic: seconds of CLOCK_MONOTONIC."""
        return self._tell("RELOADING=1", f"MONOTONIC_USEC={int(monotonic * _MICROSECONDS)}")

    def stopping(self, status: str = "") -> bool:
        return self._tell("STOPPING=1", *_status(status))

    def alive(self) -> bool:
        """A sign of life."""
        return self._tell("WATCHDOG=1")

    def extend(self, status: str = "") -> bool:
        """A start or a stop takes longer, and goes on."""
        return self._tell(f"EXTEND_TIMEOUT_USEC={int(EXTENSION * _MICROSECONDS)}", *_status(status))

    def _tell(self, *assignments: str) -> bool:
        """False when it could not be said; there is nobody to tell that to."""
        if self.address and assignments:
            try:
                self._send(self.address, "\n".join(assignments).encode())
            except OSError:
                return False
        return True


def _status(text: str) -> tuple[str, ...]:
    """One line, as a value of the protocol has to be."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return (f"STATUS={line[:MAX_STATUS]}",) if line else ()
