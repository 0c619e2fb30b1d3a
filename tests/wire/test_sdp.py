"""Session descriptions: text to values and back."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import sdp
from orama.wire.sdp import SdpError

RECORDED = sorted((Path(__file__).parent.parent / "data" / "sdp").glob("*.sdp"))

HEAD = "v=0\r\no=- 1 2 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
AUDIO = "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"

tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
attributes = st.lists(st.tuples(tokens, values), max_size=8)
media = st.builds(
    sdp.Media,
    kind=st.sampled_from(["audio", "video", "application"]),
    port=st.integers(0, 65535),
    protocol=st.sampled_from(["UDP/TLS/RTP/SAVPF", "UDP/DTLS/SCTP"]),
    formats=st.lists(tokens, min_size=1, max_size=5).map(tuple),
    attributes=attributes,
    bandwidth=st.none() | st.integers(0, 1 << 31),
)
sessions = st.builds(
    sdp.Session,
    session_id=st.integers(0, (1 << 64) - 1),
    version=st.integers(0, (1 << 64) - 1),
    attributes=attributes,
    media=st.lists(media, max_size=5).map(tuple),
)


def one(*lines: str) -> sdp.Media:
    """An audio m-line with these attributes."""
    (media,) = sdp.parse(HEAD + AUDIO + "".join(f"a={line}\r\n" for line in lines)).media
    return media


class WholeTests(SynchronousTestCase):
    def test_recorded(self) -> None:
        """Everything that real browsers wrote is read, and nothing of it is lost on the way back."""
        self.assertGreaterEqual(len(RECORDED), 10)
        for path in RECORDED:
            text = path.read_bytes().decode()
            session = sdp.parse(text)
            again = sdp.parse(session.serialise())
            self.assertEqual(again, session)
            lines = [line for line in text.split("\r\n") if line[:2] in ("a=", "m=")]
            self.assertEqual([line for line in session.serialise().split("\r\n") if line[:2] in ("a=", "m=")], lines)

    @settings(max_examples=300, deadline=None, database=None)
    @given(sessions)
    def test_round_trip(self, session: sdp.Session) -> None:
        """What is written is read back the same."""
        self.assertEqual(sdp.parse(session.serialise()), session)

    def test_line_ends(self) -> None:
        """LF alone ends a line too, and empty lines at the end do not matter."""
        text = (HEAD + AUDIO).replace("\r\n", "\n")
        self.assertEqual(sdp.parse(text), sdp.parse(HEAD + AUDIO + "\r\n"))

    def test_refused(self) -> None:
        """What is no description is one error."""
        for text in (
            "",
            "\r\n",
            "v=1\r\n",
            "o=- 1 2 IN IP4 0.0.0.0\r\n",
            HEAD + "nonsense\r\n",
            HEAD + "\r\n" + AUDIO,
            HEAD + "A=x\r\n",
            HEAD + "m=audio 9 RTP\r\n",
            HEAD + "m=audio 65536 UDP/TLS/RTP/SAVPF 0\r\n",
            HEAD + "m=audio -1 UDP/TLS/RTP/SAVPF 0\r\n",
            HEAD + "m=audio ٣ UDP/TLS/RTP/SAVPF 0\r\n",
            HEAD + "a=mid:\ud800\r\n",
            HEAD + "a=x\0y\r\n",
            "v=0\r\no=- 1 IN IP4 0.0.0.0\r\n",
            "v=0\r\no=- " + "9" * 30 + " 2 IN IP4 0.0.0.0\r\n",
            HEAD + AUDIO + "b=AS:many\r\n",
        ):
            with self.assertRaises(SdpError):
                sdp.parse(text)

    def test_limits(self) -> None:
        """The length and the number of m-lines are bounded."""
        sdp.parse(HEAD + AUDIO * sdp.MAX_MEDIA)
        with self.assertRaises(SdpError):
            sdp.parse(HEAD + AUDIO * (sdp.MAX_MEDIA + 1))
        with self.assertRaises(SdpError):
            sdp.parse(HEAD + "s=" + "x" * sdp.MAX_SIZE)
        with self.assertRaises(SdpError):
            sdp.bundled(sdp.parse(HEAD + "a=group:BUNDLE" + " x" * 1000 + "\r\n"))


class AttributeTests(SynchronousTestCase):
    def test_formats(self) -> None:
        """Codecs in the order of the m-line, with parameters and feedback, that of ``*`` among it."""
        text = (
            HEAD
            + "m=video 9 UDP/TLS/RTP/SAVPF 97 96 98\r\n"
            + "".join(
                f"a={line}\r\n"
                for line in (
                    "rtpmap:96 VP8/90000",
                    "rtpmap:97 rtx/90000",
                    "fmtp:97 apt=96",
                    "rtcp-fb:* nack",
                    "rtcp-fb:96 nack pli",
                )
            )
        )
        first, second = sdp.formats(sdp.parse(text).media[0])
        self.assertEqual(first, sdp.Format(97, "rtx", 90000, 1, "apt=96", ("nack",)))
        self.assertEqual(second, sdp.Format(96, "VP8", 90000, 1, "", ("nack", "nack pli")))
        self.assertEqual(sdp.formats(one("rtpmap:111 opus/48000/2"))[0].channels, 2)
        for bad in ("rtpmap:x opus/48000", "rtpmap:111 opus", "rtpmap:111 /48000", "rtpmap:128 opus/48000", "fmtp:x y"):
            with self.assertRaises(SdpError):
                sdp.formats(one(bad))

    def test_parameters(self) -> None:
        """``fmtp`` is a list of pairs in any case and with any spaces."""
        self.assertEqual(
            sdp.parameters("minptime=10; UseInbandFec=1;;x"), {"minptime": "10", "useinbandfec": "1", "x": ""}
        )

    def test_extensions(self) -> None:
        """Header extensions with their ids; an id used twice is an error."""
        found = sdp.extensions(one("extmap:1 urn:a", "extmap:2/recvonly urn:b x=y"))
        self.assertEqual(found, (sdp.Extension(1, "urn:a"), sdp.Extension(2, "urn:b", "recvonly")))
        for bad in (("extmap:1 urn:a", "extmap:1 urn:b"), ("extmap:0 urn:a",), ("extmap:1",), ("extmap:1/both urn:a",)):
            with self.assertRaises(SdpError):
                sdp.extensions(one(*bad))

    def test_sources(self) -> None:
        """SSRCs with their RTX from FID groups; other groups say nothing."""
        media = one(
            "ssrc-group:FID 1 2",
            "ssrc-group:SIM 1 3",
            "ssrc:1 cname:x",
            "ssrc:1 msid:s t",
            "ssrc:2 cname:x",
            "ssrc:3 a",
        )
        self.assertEqual(sdp.ssrcs(media), ((1, 2), (3, None)))
        self.assertEqual(sdp.msid(media), ("s", "t"))
        with self.assertRaises(SdpError):
            sdp.ssrcs(one("ssrc:4294967296 cname:x"))

    def test_msid(self) -> None:
        """Stream and track id; what is not a pair of tokens is as if it were not there."""
        self.assertEqual(sdp.msid(one("msid:{a-b} c")), ("{a-b}", "c"))
        for nothing in ("msid:-", "msid:a " + "x" * 65, "msid:a b c", "mid:0"):
            self.assertIsNone(sdp.msid(one(nothing)))

    def test_simulcast(self) -> None:
        """Rids in order, the first of alternatives, paused ones too, and only those that are declared."""
        media = one("rid:q send", "rid:h send", "rid:f send max-width=1280", "simulcast:send q,x;~h;f;z recv a")
        self.assertEqual(sdp.simulcast(media, "send"), ("q", "h", "f"))
        self.assertEqual(sdp.simulcast(media, "recv"), ())
        self.assertEqual(sdp.simulcast(one("rid:q send"), "send"), ())

    def test_direction(self) -> None:
        """The m-line's own, else the session's, else sendrecv."""
        session = sdp.parse(HEAD + "a=recvonly\r\n" + AUDIO + AUDIO + "a=sendonly\r\n")
        self.assertEqual([sdp.direction(session, media) for media in session.media], ["recvonly", "sendonly"])
        plain = sdp.parse(HEAD + AUDIO)
        self.assertEqual(sdp.direction(plain, plain.media[0]), "sendrecv")

    def test_rejected(self) -> None:
        """Port 0 is rejected, but for an m-line that waits for its bundle."""
        first, second = sdp.parse(
            HEAD + AUDIO.replace("9", "0", 1) + AUDIO.replace("9", "0", 1) + "a=bundle-only\r\n"
        ).media
        self.assertEqual((first.rejected, second.rejected), (True, False))

    def test_session_level(self) -> None:
        """ICE, fingerprint and setup may stand above all m-lines, as with Firefox."""
        session = sdp.parse(
            HEAD
            + f"a=ice-ufrag:abcd\r\na=ice-pwd:{'p' * 22}\r\na=setup:active\r\na=fingerprint:SHA-256 ab:cd\r\n"
            + AUDIO
        )
        (media,) = session.media
        self.assertEqual(sdp.ice(session, media), sdp.Ice("abcd", "p" * 22))
        self.assertEqual(sdp.fingerprints(session, media), (("sha-256", "AB:CD"),))
        self.assertEqual(sdp.setup(session, media), "active")

    def test_candidates(self) -> None:
        """Candidates in every spelling of browsers; anything else is one error."""
        line = "candidate:1 1 UDP 2122252543 10.0.0.1 50000 typ relay raddr 0.0.0.0 rport 0"
        for text in (line, line.removeprefix("candidate:"), f"a={line}"):
            self.assertEqual(sdp.candidate(text), sdp.Candidate(1, "udp", "10.0.0.1", 50000, "relay"))
        self.assertEqual(sdp.candidate(line.replace("10.0.0.1", "2001:db8::1")).address, "2001:db8::1")
        for bad in (
            "candidate:",
            "x" * 1000,
            line.replace("typ", "type"),
            line.replace("50000", "70000"),
            line.replace("2122252543", "x"),
            line.replace("10.0.0.1", "\x00"),
            "candidate:1 1 udp",
        ):
            with self.assertRaises(SdpError):
                sdp.candidate(bad)
