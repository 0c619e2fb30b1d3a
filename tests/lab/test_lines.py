"""Lines are as bad as is asked for, and no worse."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.lab.line import CLEAN, Conditions
from tests.lab.machine import missing
from tests.lab.star import SERVER, Star

_TURN = (SERVER, 3478)
_SIZE = 1000


@contextmanager
def echo(star: Star) -> Iterator[None]:
    """Somebody at the server who sends datagrams back."""
    with star.server.inside():
        ours = socket.socket(type=socket.SOCK_DGRAM)
    ours.bind(_TURN)

    def work() -> None:
        while (came := ours.recvfrom(_SIZE))[0]:
            ours.sendto(*came)

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        with star.server.inside(), socket.socket(type=socket.SOCK_DGRAM) as last:
            last.sendto(b"", _TURN)
        thread.join()
        ours.close()


class LineTests(SynchronousTestCase):
    def setUp(self) -> None:
        if reason := missing():
            raise SkipTest(reason)
        self.star = Star(1)
        self.addCleanup(self.star.close)

    def ask(self, count: int, patience: float = 2.0) -> list[tuple[int, float]]:
        """Send so many datagrams at once; the numbers of those that come back, and after how many seconds."""
        with self.star.clients[0].inside():
            client = socket.socket(type=socket.SOCK_DGRAM)
        found = []
        with client:
            client.connect(_TURN)
            client.settimeout(patience)
            began = time.monotonic()
            for number in range(count):
                client.send(number.to_bytes(2, "big").ljust(_SIZE, b"."))
            while len(found) < count:
                try:
                    data = client.recv(_SIZE)
                except TimeoutError:
                    break
                found.append((int.from_bytes(data[:2], "big"), time.monotonic() - began))
        return found

    def test_lines(self) -> None:
        """A clean line brings all back at once; delay keeps the order; loss is about as much as was said; what a
        narrow one cannot hold is dropped."""
        self.star.become()
        with echo(self.star):
            self.assertEqual([number for number, _ in self.ask(50)], list(range(50)))
            self.star.become(Conditions("", delay=50, jitter=20))
            came = self.ask(50)
            self.assertEqual([number for number, _ in came], list(range(50)))
            self.assertGreater(came[0][1], 0.1)
            self.star.become(Conditions("", down_loss=0.5))
            self.assertTrue(5 <= len(self.ask(50, 0.5)) <= 45)
            self.star.become(Conditions("", down=400, queue=200))
            came = self.ask(50, 0.5)
            # 200 ms of 400 kbit/s are ten of them, and the bucket holds a few.
            self.assertTrue(10 <= len(came) <= 20, came)
            self.star.become(CLEAN)
            self.assertEqual(len(self.ask(50)), 50)
