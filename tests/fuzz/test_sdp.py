"""Random and bent descriptions into the parser and the negotiator: an answer or one error, and nothing kept."""

from __future__ import annotations

import random
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.errors import SignalError
from orama.wire import sdp
from tests.sfu.negotiators import audio, negotiator, recorded, video

COUNT = 100_000
OFFERS = [
    recorded(f"{browser}-{what}") for browser in ("chromium", "firefox") for what in ("offer", "takeover", "simulcast")
]
ANSWERS = [recorded(f"{browser}-answer") for browser in ("chromium", "firefox")]


def bend(text: str, generator: random.Random) -> str:
    """*text* with lines lost, doubled, moved, cut or with characters changed."""
    lines = text.split("\r\n")
    for _ in range(generator.randrange(1, 4)):
        at = generator.randrange(len(lines))
        match generator.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[generator.randrange(len(lines))])
            case 2:
                other = generator.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = lines[at][: generator.randrange(len(lines[at]) + 1)]
            case 4:
                line = lines[at]
                where = generator.randrange(len(line) + 1)
                lines[at] = (
                    line[:where] + chr(generator.choice((0, 9, 32, 47, 58, 0x660, 0xD800, 0x1F600))) + line[where + 1 :]
                )
            case _:
                words = lines[at].split(" ")
                words[generator.randrange(len(words))] = str(
                    generator.choice((-1, 0, 255, 1 << 16, 1 << 40, "x" * 300))
                )
                lines[at] = " ".join(words)
        if not lines:
            break
    return "\r\n".join(lines)


class ParserFuzz(SynchronousTestCase):
    def test_bent(self) -> None:
        """10⁵ descriptions bent from those of browsers are read, or are one error."""
        generator = random.Random(20261)
        short = [text[: text.find("m=", text.find("m=") + 1)] for text in (*OFFERS, *ANSWERS)]
        read = 0
        for i in range(COUNT):
            try:
                sdp.parse(bend(short[i % len(short)], generator))
                read += 1
            except sdp.SdpError:
                continue
        self.assertTrue(COUNT // 10 < read < COUNT)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.text(max_size=300))
    def test_any_text(self, text: str) -> None:
        """Any text at all."""
        for candidate in (text, f"v=0\r\n{text}", f"v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na={text}"):
            try:
                sdp.parse(candidate)
            except sdp.SdpError:
                continue

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.text(max_size=200))
    def test_any_candidate(self, text: str) -> None:
        """Any text as a candidate."""
        try:
            sdp.candidate(text)
        except sdp.SdpError:
            return


class NegotiatorFuzz(SynchronousTestCase):
    def test_bent_offers(self) -> None:
        """Bent offers are answered or refused; a refusal changes nothing, and the right offer is still taken."""
        generator = random.Random(20262)
        for i in range(3000):
            table, _ = negotiator(i)
            good = OFFERS[i % len(OFFERS)]
            if i % 2:
                table.remote_offer(good)
            before = table._lines
            try:
                answered = table.remote_offer(bend(good, generator))
            except SignalError as error:
                self.assertEqual(error.code, "invalid_offer")
                self.assertEqual(table._lines, before)
                self.assertIsNotNone(table.remote_offer(good))
            else:
                sdp.parse(answered.sdp)
                table.want(video("v"))
                table.want(audio("a"))
                proposed = table.propose()
                assert proposed is not None
                sdp.parse(proposed.sdp)

    def test_bent_answers(self) -> None:
        """Bent answers are taken or refused; after a refusal the offer still waits."""
        generator = random.Random(20263)
        for i in range(3000):
            table, _ = negotiator(i)
            table.remote_offer(OFFERS[0] if i % 2 else OFFERS[3])
            table.want(audio("a"))
            table.want(video("v"))
            table.propose()
            try:
                table.remote_answer(bend(ANSWERS[0] if i % 2 else ANSWERS[1], generator))
            except SignalError as error:
                self.assertEqual(error.code, "invalid_answer")
                self.assertTrue(table.offering)

    def test_linear(self) -> None:
        """The longest descriptions, of whatever is repeated, are read or refused in well under a second."""
        head, sound, *_ = OFFERS[0].replace("\r\nm=", "\r\n\0m=").split("\0")
        for repeated in (
            "a=rtpmap:96 VP8/90000\r\n",
            "a=fmtp:111 " + "a=b;" * 50 + "\r\n",
            "a=extmap:1 urn:x\r\n",
            "a=ssrc:1 cname:x\r\n",
            "a=rid:q send\r\n",
            "a=x\r\n",
            "a=group:BUNDLE " + "x " * 1000 + "\r\n",
            "a=fingerprint:sha-256 " + "AB:" * 60 + "AB\r\n",
            "a=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\n",
            "a=simulcast:send " + "q;" * 500 + "\r\n",
        ):
            text = head + sound + repeated * (60000 // len(repeated))
            table, _ = negotiator()
            began = time.process_time()
            try:
                table.remote_offer(text.replace("a=group:BUNDLE 0 1", "a=group:BUNDLE 0"))
            except SignalError as error:
                self.assertEqual(error.code, "invalid_offer")
            self.assertLess(time.process_time() - began, 0.5, repeated[:20])
