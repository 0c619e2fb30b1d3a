"""Browsers on bad lines: what people see and hear of each other through orama, and through Janus behind coturn.

``python -m bench.networks [--systems orama janus] [--senders vp8 vp9 av1] [--trials up] [--seconds 15] [--settle 6]
[--firefox]``

One publishes a camera of 960×540 at 20 frames a second in three layers, and a tone; two look on, one by a clean line
and one by the line that is tried. The lines, the server and each client are network namespaces (``tests.lab.star``);
everything is relayed. Where the publisher's line is the bad one, both onlookers' are clean and the second is shown.
All of it runs on one machine, encoders and decoders too, so frame rates are also those of its processor: the
``clean`` row says what it can do. Everybody has Chromium; with ``--firefox`` who is shown has Firefox.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from attrs import frozen

from bench import rivals
from bench.relayed import turn_credentials
from tests.browser.page import Page
from tests.lab.browser import FarChromium, FarFirefox
from tests.lab.line import CLEAN, Conditions
from tests.lab.onlooker import (
    AV1,
    FPS,
    SIMULCAST,
    VP9,
    Browser,
    Onlooker,
    People,
    Publisher,
    Seen,
    Sender,
    janus,
    orama,
)
from tests.lab.star import SERVER, Star

SENDERS = {"vp8": SIMULCAST, "vp9": VP9, "av1": AV1}
_JANUS_PORT = 8188
_TURN_PORT = 3478

Start = Callable[[Sender, Page, Sequence[Page]], tuple[Publisher, list[Onlooker]]]


@frozen
class Trial:
    """Lines of the publisher and of the onlooker that is shown."""

    name: str
    publisher: Conditions = CLEAN
    onlooker: Conditions = CLEAN


TRIALS = (
    Trial("clean"),
    *(Trial(f"{loss} % lost down", onlooker=Conditions("", down_loss=loss / 100)) for loss in (2, 5, 10)),
    Trial("300 kbit/s down", onlooker=Conditions("", down=300)),
    Trial("1 Mbit/s, 2 % down", onlooker=Conditions("", down=1000, down_loss=0.02)),
    *(Trial(f"{loss} % lost up", Conditions("", up_loss=loss / 100)) for loss in (2, 5, 10)),
    Trial("300 kbit/s up", Conditions("", up=300)),
    Trial("50 ± 10 ms, 5 % down", onlooker=Conditions("", delay=50, jitter=10, down_loss=0.05)),
)


@contextmanager
def _orama(star: Star) -> Iterator[Start]:
    with star.node() as node:
        yield lambda sender, publishing, looking: orama(node, f"room-{time.time_ns()}", sender, publishing, looking)


@contextmanager
def _janus(star: Star) -> Iterator[Start]:
    directory = star.directory / "rivals"
    directory.mkdir()
    with (
        star.server.inside(),
        rivals.coturn(directory, SERVER, _TURN_PORT),
        rivals.janus(directory, _JANUS_PORT, SERVER),
    ):
        username, password = turn_credentials(rivals.SECRET, "bench")
        turn = {"urls": f"turn:{SERVER}:{_TURN_PORT}?transport=udp", "username": username, "credential": password}
        yield lambda *call: janus(_JANUS_PORT, random.randrange(1, 1 << 30), turn, *call)


_SYSTEMS = {"orama": _orama, "janus": _janus}
_HEAD = (
    f"{'':22} {'fps':>5} {'width':>5} {'kbit/s':>6} {'freezes':>7} {'frozen s':>8} {'longest s':>9} "
    f"{'concealed':>9}   the other one: fps, freezes"
)


def _row(name: str, shown: Seen, other: Seen) -> str:
    return (
        f"{name:22} {shown.fps:5.1f} {shown.width:5} {shown.kbps:6.0f} {shown.freezes:7} {shown.frozen:8.1f} "
        f"{shown.longest:9.1f} {shown.concealed:8.1%}    {other.fps:4.1f} {other.freezes:3}"
    )


def run(
    systems: Sequence[str],
    senders: Sequence[Sender],
    trials: Sequence[Trial],
    settle: float,
    seconds: float,
    browser: type[Browser] = FarChromium,
) -> None:
    for system in systems:
        star = Star(2)
        people = People(star)
        try:
            with _SYSTEMS[system](star) as start:
                for sender in senders:
                    seen_by = "" if browser is FarChromium else ", seen by Firefox"
                    print(f"\n{system}, {sender.name}, {FPS} fps{seen_by}\n{_HEAD}", flush=True)
                    _calls(star, people, start, sender, trials, settle, seconds, browser)
        finally:
            people.close()
            star.close()


def _calls(
    star: Star,
    people: People,
    start: Start,
    sender: Sender,
    trials: Sequence[Trial],
    settle: float,
    seconds: float,
    browser: type[Browser],
) -> None:
    """A call for each run of trials of the onlooker's line, of the publisher's, and of one delay."""
    for (publishing, delay, jitter), alike in groupby(trials, _kind):
        before = Conditions("", delay=delay, jitter=jitter)
        star.become(CLEAN, before)
        pages = [people.page(publishing), people.page(0), people.page(0 if publishing else 1, browser)]
        try:
            _, onlookers = start(sender, pages[0], pages[1:])
            for trial in alike:
                star.become(CLEAN, before)
                onlookers[-1].recover()
                star.become(CLEAN, trial.publisher if publishing else trial.onlooker)
                time.sleep(settle)
                for onlooker in onlookers:
                    onlooker.begin()
                time.sleep(seconds)
                other, shown = (onlooker.end() for onlooker in onlookers)
                print(_row(trial.name, shown, other), flush=True)
        finally:
            for page in pages:
                page.close()


def _kind(trial: Trial) -> tuple[int, float, float]:
    """Which client publishes, the first or the one with the bad line, and the delay, which no call survives."""
    return int(trial.publisher is not CLEAN), trial.onlooker.delay, trial.onlooker.jitter


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description="Browsers on bad lines.")
    parser.add_argument("--systems", nargs="+", choices=sorted(_SYSTEMS), default=["orama", "janus"])
    parser.add_argument("--senders", nargs="+", choices=sorted(SENDERS), default=["vp8", "vp9"])
    parser.add_argument("--trials", default="", help="only those with this in their names, as 'up' or '300'")
    parser.add_argument("--settle", type=float, default=6.0, help="seconds before a row is measured")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds of a row")
    parser.add_argument("--firefox", action="store_true", help="who is shown has Firefox")
    asked = parser.parse_args(arguments)
    trials = [trial for trial in TRIALS if asked.trials in trial.name]
    run(
        asked.systems,
        [SENDERS[name] for name in asked.senders],
        trials,
        asked.settle,
        asked.seconds,
        FarFirefox if asked.firefox else FarChromium,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
