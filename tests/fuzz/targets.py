"""The targets of the fuzzers by name: ``test_parsers`` runs them by a seed, ``python -m tests.fuzz`` by coverage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from attrs import field, frozen

from tests.fuzz import parsers, session, streams
from tests.fuzz.mutation import Repair, corpus

#: Takes any bytes; returns whether the parser took them, fails when a promise is broken.
Run: TypeAlias = Callable[[bytes], bool]


@frozen
class Target:
    """One promise, and how it is tried."""

    name: str
    run: Run
    #: Inputs in each run of the tests.
    count: int
    repair: Repair | None = None
    #: Inputs that cannot be kept in a file.
    made: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def seeds(self) -> list[bytes]:
        """Where mutation begins."""
        return [*self.made, *corpus(self.name)]


TARGETS = {
    target.name: target
    for target in (
        Target("stun", parsers.run_stun, 150_000, parsers.repair_stun),
        Target("indications", parsers.run_indications, 100_000, parsers.repair_stun),
        Target("channeldata", parsers.run_channeldata, 60_000),
        Target("proxy", parsers.run_proxy, 60_000),
        Target("hello", parsers.run_hello, 20_000),
        Target("framing", parsers.run_framing, 60_000),
        Target("username", parsers.run_username, 60_000),
        Target("nonce", parsers.run_nonce, 30_000, made=(parsers.NONCE, parsers.NONCE.replace(b"_", b"/"))),
        Target("ticket", parsers.run_ticket, 30_000, made=(parsers.TICKET,)),
        Target("dns", parsers.run_dns, 80_000),
        Target("rtp", parsers.run_rtp, 80_000, parsers.repair_rtp),
        Target("red", parsers.run_red, 30_000),
        Target("payload", parsers.run_payload, 30_000),
        Target("descriptor", parsers.run_descriptor, 20_000),
        Target("rtcp", parsers.run_rtcp, 80_000, parsers.repair_rtcp),
        Target("feedback", parsers.run_feedback, 3_000),
        Target("sctp", parsers.run_sctp, 10_000, parsers.repair_sctp),
        Target("sdp", parsers.run_sdp, 50_000),
        Target("session", session.run_session, 12_000, session.repair_session),
        Target("stream", streams.run_stream, 3_000),
        Target("messages", parsers.run_messages, 80_000),
    )
}
