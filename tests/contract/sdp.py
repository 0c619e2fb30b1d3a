"""Descriptions by hand, as small as RFC 8829 lets them be."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Of no certificate that anybody has.
FINGERPRINT = ":".join(["AB"] * 32)
UFRAG, PWD = "abcd", "abcdefghijklmnopqrstuv"
_CODECS = {
    "audio": ("111", "a=rtpmap:111 opus/48000/2"),
    "video": (
        "96 97",
        "a=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack\r\na=rtcp-fb:96 nack pli\r\na=rtcp-fb:96 transport-cc\r\n"
        "a=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96",
    ),
}


def offer(
    *kinds: str,
    bundle: bool = True,
    fingerprint: str = FINGERPRINT,
    setup: str = "actpass",
    msids: Sequence[str] = (),
    version: int = 1,
    extra: str = "",
) -> str:
    """An offer that sends one track on each m-line; ``data`` is the m-line of data channels.

    :param extra: lines more for each m-line.
    """
    lines = ["v=0", f"o=- 4611731400430051336 {version} IN IP4 127.0.0.1", "s=-", "t=0 0"]
    if bundle:
        lines.append(f"a=group:BUNDLE {' '.join(map(str, range(len(kinds))))}")
    for mid, kind in enumerate(kinds):
        numbers, codecs = _CODECS.get(kind, ("", ""))
        if kind == "data":
            lines.append("m=application 9 UDP/DTLS/SCTP webrtc-datachannel")
        else:
            lines.append(f"m={kind} 9 UDP/TLS/RTP/SAVPF {numbers}")
        lines += ["c=IN IP4 0.0.0.0", f"a=mid:{mid}", f"a=ice-ufrag:{UFRAG}", f"a=ice-pwd:{PWD}"]
        lines += [f"a=fingerprint:sha-256 {fingerprint}", f"a=setup:{setup}"]
        if kind == "data":
            lines += ["a=sctp-port:5000", "a=max-message-size:262144"]
        else:
            msid = msids[mid] if mid < len(msids) else f"stream track{mid}"
            lines += ["a=rtcp-mux", "a=rtcp-rsize", "a=sendonly", f"a=msid:{msid}", codecs]
            lines += [f"a=ssrc:{1000 + mid} cname:c"]
        if extra:
            lines.append(extra)
    return "\r\n".join(lines) + "\r\n"


def value(text: str, name: str) -> str:
    """The first ``a=name:…``."""
    found = re.search(rf"(?m)^a={name}:(.*?)\r?$", text)
    assert found is not None, (name, text)
    return found[1]


def media_address(text: str) -> tuple[str, int]:
    """Where the SFU says that it is: its only candidate, on however many m-lines."""
    [candidate] = set(re.findall(r"(?m)^a=candidate:(.*?)\r?$", text))
    fields = candidate.split()
    return fields[4], int(fields[5])


def answer(offered: str) -> str:
    """The answer of somebody who takes everything that is *offered*."""
    taken = offered.replace("a=setup:actpass", "a=setup:active").replace("a=sendonly", "a=recvonly")
    taken = re.sub(r"(?m)^a=ice-ufrag:.*$", f"a=ice-ufrag:{UFRAG}", taken)
    taken = re.sub(r"(?m)^a=ice-pwd:.*$", f"a=ice-pwd:{PWD}", taken)
    taken = re.sub(r"(?m)^a=fingerprint:.*$", f"a=fingerprint:sha-256 {FINGERPRINT}", taken)
    dropped = ("a=ice-lite", "a=candidate", "a=end-of-candidates", "a=msid", "a=ssrc")
    return "\r\n".join(line for line in taken.splitlines() if not line.startswith(dropped)) + "\r\n"
