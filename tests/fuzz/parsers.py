"""What every parser of bytes promises, as functions of one input: the targets of the fuzzers.

Each takes any bytes, returns whether the parser took them, and fails when a promise is broken: a value or the one
typed error, nothing else raised; what is read can be written and read again; two readings of the same bytes agree.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from ipaddress import ip_address

from twisted.names import dns as names

from orama.errors import SignalError
from orama.net import hello, proxy
from orama.sfu._sctp_inbound import WINDOW, Inbound
from orama.sfu._sctp_outbound import Outbound
from orama.sfu.bandwidth import Bandwidth
from orama.sfu.estimator import HIGHEST, LOWEST
from orama.signaling import messages
from orama.turn.credentials import CredentialError, parse_username
from orama.turn.mobility import Tickets
from orama.turn.nonce import Nonces
from orama.wire import channeldata, dependency, dns, indications, red, rtcp, rtp, sctp, sdp, stun, video, vp8, vp9
from orama.wire.channeldata import FrameError
from orama.wire.rtcp import RtcpError
from orama.wire.rtp import RtpError
from orama.wire.sctp import SctpError
from orama.wire.stun import Class, Message, Method, StunError
from orama.wire.video import PayloadError
from tests.fuzz import reference

CLIENT = ("203.0.113.9", 40000)
NOW = 1_800_000_000

# ---- STUN and TURN ------------------------------------------------------------------------------


def run_stun(data: bytes) -> bool:
    """STUN says what a second reader says, verifies under no key at hand, and is read alike when written again."""
    there = reference.read(data)
    try:
        message = stun.parse(data)
    except StunError:
        assert there is None, "refused, and a second reader takes it"
        return False
    assert there is not None, "taken, and a second reader refuses it"
    _compare(message, there)
    assert not message.verify(b"not the key"), "verified"
    _rewrite(message)
    return True


def _compare(message: Message, there: reference.Reading) -> None:
    assert message.transaction_id == there.transaction
    assert message.cls == (there.kind >> 4 & 1) + (there.kind >> 8 & 1) * 2
    assert message.method == there.kind % 16 + (there.kind >> 5) % 8 * 16 + (there.kind >> 9) * 128
    unknown: list[int] = []
    malformed: list[int] = []
    values: dict[int, list[object]] = {}
    for kind, value in there.counted:
        check = reference.KNOWN.get(kind)
        if check is None:
            if kind < 0x8000 and kind not in stun._TABLE:
                unknown.append(kind)
        elif kind in malformed:
            continue
        elif not check(value):
            malformed.append(kind)
        else:
            values.setdefault(kind, []).append(_value(kind, value, there.transaction, message))
    assert list(message.unknown) == unknown
    assert [kind for kind in message.malformed if kind in reference.KNOWN] == malformed
    for kind, wanted in values.items():
        assert message.all(stun._TABLE[kind]) == wanted, hex(kind)
    assert {kind for kind in message.attributes if kind in reference.KNOWN} == set(values), "an attribute from nowhere"


def _value(kind: int, value: bytes, transaction: bytes, message: Message) -> object:
    if kind in reference.ADDRESSES:
        return reference.address(kind, value, transaction)
    if kind in reference.NUMBERS:
        return int.from_bytes(value[reference.NUMBERS[kind]], "big")
    if kind in reference.TEXTS:
        return value.decode()
    if kind in reference.OCTETS:
        return value
    return message.attributes[kind]


#: Made by ``build`` itself.
_PROTECTION = frozenset(row.type for row in (stun.MESSAGE_INTEGRITY, stun.MESSAGE_INTEGRITY_SHA256, stun.FINGERPRINT))


def _rewrite(message: Message) -> None:
    pairs = [(stun._TABLE[kind], value) for kind, value in message.attributes.items() if kind not in _PROTECTION]
    pairs += [(stun._TABLE[kind], value) for kind, value in message.repeated]
    try:
        written = stun.build(message.method, message.cls, message.transaction_id, pairs, key=b"k", fingerprint=True)
    except StunError:
        return  # longer with its protection than a message may be
    again = stun.parse(written)
    assert again.verify(b"k"), "our own signature"
    for row, value in pairs:
        if row is stun.ERROR_CODE and "\ufffd" in value[1]:
            continue  # a reason that was no UTF-8 grows when it is written
        assert value in again.all(row), row
    assert (again.method, again.cls, again.unknown) == (message.method, message.cls, ())
    reading = reference.read(written)
    assert reading is not None
    assert not any(reading.padding), "padding that is not zero"


def repair_stun(data: bytearray) -> None:
    """A length that fits, the cookie, and a type that is one of STUN's."""
    if len(data) >= stun.HEADER_LENGTH:
        del data[len(data) - len(data) % 4 :]
        data[0] &= 0x3F
        data[2:4] = (len(data) - stun.HEADER_LENGTH & 0xFFFF).to_bytes(2, "big")
        data[4:8] = stun.COOKIE.to_bytes(4, "big")


def run_indications(data: bytes) -> bool:
    """The short way reads a Send indication as the general codec does or leaves it, and its own Data is read."""
    found = indications.unpack_send(memoryview(data))
    if found is None:
        return False
    peer, payload = found[0], bytes(found[1])
    message = stun.parse(data)
    assert (message.method, message.cls) == (Method.SEND, Class.INDICATION)
    assert (message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)) == (peer, payload)
    assert not message.unknown and not message.malformed and not message.repeated
    header = indications.data_header(data[8:20], peer, len(payload))
    back = stun.parse(header + payload + bytes(-len(payload) % 4))
    assert (back.method, back.get(stun.XOR_PEER_ADDRESS), back.get(stun.DATA)) == (Method.DATA, peer, payload)
    return True


def run_channeldata(data: bytes) -> bool:
    """A datagram is a number and a payload within it, and comes out again as it was, but for what follows it."""
    try:
        channel, payload = channeldata.unpack(data)
    except FrameError:
        return False
    packed = channeldata.pack(channel, payload)
    assert data.startswith(packed)
    assert channeldata.frame_length(channeldata.pack(channel, payload, padded=True)) == (len(packed) + 3) // 4 * 4
    return True


def run_framing(data: bytes) -> bool:
    """A stream is cut at the same places whatever arrives at a time, and nothing is decided that more would change."""
    whole, error = _frames(data, len(data))
    assert all(length % 4 == 0 and 4 <= length <= 0xFFFF + 24 for length in whole)
    for step in (1, 7):
        assert _frames(data, step) == (whole, error), step
    return bool(whole)


def _frames(data: bytes, step: int) -> tuple[list[int], bool]:
    """Lengths of the frames in *data*, of which *step* bytes more are seen at a time, and whether it ends in junk."""
    lengths: list[int] = []
    at = seen = 0
    while True:
        try:
            length = channeldata.frame_length(memoryview(data)[:seen], at)
        except FrameError:
            return lengths, True
        if length and at + length <= seen:
            lengths.append(length)
            at += length
        elif seen >= len(data):
            return lengths, False
        else:
            seen = min(len(data), seen + step)


def run_proxy(data: bytes) -> bool:
    """A PROXY header is told when its last byte is there, not before and not otherwise, and names a whole address."""
    found, error = _header(data)
    assert found is None or found.length <= len(data)
    length = len(data) if found is None else found.length
    for cut in {0, 1, 6, 12, 15, 16, length // 2, length - 1}:
        if 0 <= cut < length:
            earlier, failed = _header(data[:cut])
            assert earlier is None, f"taken after {cut} bytes"
            assert not failed or error, f"refused after {cut} bytes, and taken with more"
    if found is None:
        assert error or len(data) < proxy.MAX_BINARY, "as much as it likes"
        return False
    assert _header(data + b"\r\n more")[0] == found, "what follows is the client's"
    if found.source is not None:
        ip, port = found.source
        assert str(ip_address(ip)) == ip and "%" not in ip and 0 < port < 0x10000
    return True


def _header(data: bytes) -> tuple[proxy.Header | None, bool]:
    try:
        return proxy.read_header(data), False
    except proxy.ProxyError:
        return None, True


def run_hello(data: bytes) -> bool:
    """A ClientHello is the same however it is cut and whatever follows it, and is judged within its bounds."""
    whole = _hello(data, len(data) or 1)
    for step in (1, 7):
        assert _hello(data, step) == whole, step
    done, name, protocols = whole
    assert done or len(data) < 2 * hello.MAX_HELLO
    return done and (bool(name) or protocols is not None)


def _hello(data: bytes, step: int) -> tuple[bool, bytes, tuple[bytes, ...] | None]:
    client = hello.ClientHello()
    for at in range(0, len(data), step):
        client.feed(data[at : at + step])
        client.refusal(("stun.turn",))
    return client.done, client.name, client.protocols


def run_username(data: bytes) -> bool:
    """A user name is taken only in the one form in which we write it."""
    text = data.decode("utf-8", "replace")
    for default in ("", "default"):
        try:
            name = parse_username(text, default)
        except CredentialError:
            continue
        tail = f":{name.user}" if name.user else ""
        assert text in (f"{name.expiry}:{name.namespace}{tail}", f"{name.expiry}:{name.namespace}:", str(name.expiry))
        assert ":" not in name.namespace and name.namespace
        assert 0 <= name.expiry < 10**15
        assert not name.current(name.expiry) and name.current(name.expiry - 1)
        return True
    return False


_NONCES = Nonces(b"fuzz" * 8, 3600)
NONCE = _NONCES.issue(CLIENT, NOW)


def run_nonce(data: bytes) -> bool:
    """No nonce is good but one that was issued, and that for whom and while it was."""
    good = _NONCES.good(data, CLIENT, NOW + 1)
    assert good == (data == NONCE), "a nonce that was not issued"
    assert not _NONCES.good(data, (CLIENT[0], CLIENT[1] + 1), NOW + 1), "somebody else's nonce"
    assert not _NONCES.good(data, CLIENT, NOW + 3601), "an old nonce"
    return good


_TICKETS = Tickets(random.Random(8016))
TICKET = _TICKETS.write(7, 3)


def run_ticket(data: bytes) -> bool:
    """No mobility ticket is read but one that we wrote."""
    found = _TICKETS.read(data)
    assert found == ((7, 3) if data == TICKET else None), "a ticket that was not written"
    return found is not None


# ---- the others ---------------------------------------------------------------------------------


def run_dns(data: bytes) -> bool:
    """A query is read as Twisted Names reads it, or is one error."""
    head = dns.read_head(data)
    if head is None:
        return False
    try:
        query = dns.read_query(head, data)
    except dns.FormatError:
        return False
    assert all(0 < len(label) <= dns.MAX_LABEL for label in query.labels)
    assert sum(len(label) + 1 for label in query.labels) < dns.MAX_NAME
    try:
        dns.read_query(head, data + b"\0")
    except dns.FormatError:
        pass
    else:
        raise AssertionError("a stray byte")
    (question,) = _twisted_names(data).queries
    assert (question.name.name, question.type, question.cls) == (b".".join(query.labels), query.type, query.cls)
    return True


def _twisted_names(data: bytes) -> names.Message:
    message = names.Message()
    # Records of other kinds are only stepped over here, and decoded there: the head and the question are enough.
    message.fromStr(data[:6] + bytes(6) + data[12:])
    return message


def run_rtp(data: bytes) -> bool:
    """A packet is read and written again; the remembered layout says what the walk says; detectors take anything."""
    layouts = rtp.Layouts()
    for detect in (video.vp8, video.vp9, video.h264, video.av1, video.descriptor):
        detect(data)
    with contextlib.suppress(RtpError):
        rtp.unwrap_rtx(data)
    try:
        header = data[: rtp.header_length(data)]
        found = rtp.elements(header)
        assert layouts.elements(header) == layouts.elements(header) == found
        assert all(0 < start <= end <= len(header) for start, end in found.values())
        packet = rtp.parse(data)
    except RtpError:
        return False
    again = rtp.parse(packet.serialize())
    assert (again.payload, again.csrcs, again.ssrc) == (packet.payload, packet.csrcs, packet.ssrc)
    assert dict(again.extensions) == dict(packet.extensions)
    return True


def run_red(data: bytes) -> bool:
    """A redundant payload is blocks that come out again as they were, in other numbers too."""
    try:
        blocks = red.parse(data)
    except red.RedError:
        return False
    assert red.serialize(blocks) == data
    assert red.renumber(red.renumber(data, {111: 5, 5: 111}), {111: 5, 5: 111}) == data
    return True


def repair_rtp(data: bytearray) -> None:
    """Version 2."""
    if data:
        data[0] = data[0] & 0x3F | 0x80


def run_payload(data: bytes) -> bool:
    """A payload descriptor of VP8 or VP9 is read; with other numbers it says the same and is as long as it was."""
    taken = False
    with contextlib.suppress(PayloadError):
        found = vp8.parse(data)
        taken = found.size <= len(data)
        again = vp8.renumbered(data, found, 0x1234, 0x56, 0x78)
        assert len(again) == len(data) and again[found.size :] == data[found.size :]
        assert vp8.renumbered(again, found, found.picture_id or 0, found.base or 0, found.key_index or 0) == data
    with contextlib.suppress(PayloadError):
        there = vp9.parse(data)
        taken = there.size <= len(data)
        again = vp9.renumbered(data, there, 0x1234, 0x56)
        assert len(again) == len(data) and again[there.size :] == data[there.size :]
        assert vp9.renumbered(again, there, there.picture_id or 0, there.base or 0) == data
    return taken


STRUCTURE = dependency.parse(bytes.fromhex("800001800214eaa860414d1410208427013f00ef"), None).structure


def run_descriptor(data: bytes) -> bool:
    """A dependency descriptor is read, with a structure in force and without, and is the same when it was written."""
    taken = False
    for structure in (None, STRUCTURE):
        with contextlib.suppress(PayloadError):
            found = dependency.parse(data, structure)
            written = found.serialize(structure)
            assert len(written) <= len(data)
            again = dependency.parse(written, structure)
            assert (again.first, again.last, again.template, again.frame) == (
                *(found.first, found.last, found.template),
                found.frame,
            )
            assert (again.active, again.indications) == (found.active, found.indications)
            assert again.serialize(structure) == written
            if (force := found.structure or structure) is not None:
                found.resolved(force)
            taken = True
    return taken


def run_rtcp(data: bytes) -> bool:
    """A compound is read into values in linear space; what is no feedback but known reads the same when written."""
    try:
        found = rtcp.parse(data)
    except RtcpError:
        return False
    assert len(found) <= rtcp.MAX_PACKETS
    assert len(rtcp.parse(data, transport_wide=False)) == len(found)
    for each in found:
        if isinstance(each, (rtcp.SenderReport, rtcp.ReceiverReport, rtcp.Goodbye, rtcp.PictureLoss)):
            assert rtcp.parse(each.serialize()) == (each,)
    return True


def run_feedback(data: bytes) -> bool:
    """Any feedback about what left leaves the books sound and an estimate within its limits."""
    bandwidth = Bandwidth(NOW)
    departures = bandwidth.departures
    for number in range(20):
        departures.left((65526 + 3 * number) & 0xFFFF, 3, 3000, NOW + number / 50)
    taken = False
    for late in range(2):  # the second time it is old news
        taken |= bandwidth.feedback(data, 0.05, NOW + 0.5 + late / 10)
        assert 0 <= departures.under_way <= departures.total
        assert (departures.under_way == 0) == (not len(departures))
        assert bandwidth.padding(NOW + 0.6) == 0
    estimate = bandwidth.estimator.bitrate
    assert (estimate is not None) == taken
    assert estimate is None or LOWEST <= estimate <= HIGHEST
    return taken


def repair_rtcp(data: bytearray) -> None:
    """One packet that fills the datagram."""
    if len(data) >= 4:
        del data[len(data) - len(data) % 4 :]
        data[0] = data[0] & 0x1F | 0x80
        data[2:4] = (len(data) // 4 - 1).to_bytes(2, "big")


def run_sctp(data: bytes) -> bool:
    """A packet of data, acknowledgements and skips leaves an association within its bounds, or is one error."""
    inbound, outbound = Inbound(0xFFFFFFF0), Outbound(0xFFFFFFF0)
    outbound.partial = True
    outbound.allow(WINDOW)
    for stream in (1, 3):
        outbound.queue(stream, 53, bytes(4000), 0.0, max_retransmits=stream - 1)
    sent = 0
    while chunks := outbound.take(sctp.MAX_CHUNKS, 0.0):
        sent += len(chunks)
    try:
        _, found = sctp.split(data)
        for kind, flags, start, end in found:
            assert sctp.COMMON_HEADER < start <= end <= len(data)
            if kind == sctp.DATA:
                messages = inbound.data(sctp.fragment(data, flags, start, end))
            elif kind == sctp.FORWARD_TSN:
                messages = inbound.forward(sctp.forward(data, start, end))
            else:
                messages = []
                if kind == sctp.SACK:
                    outbound.acknowledge(sctp.acknowledgement(data, start, end), 0.1)
            assert all(message.data for message in messages)
            assert inbound.kept() + inbound.window == WINDOW
            assert 0 <= outbound.flight <= sent
        sack = sctp.packet(0, 0, 0, inbound.sack())
        ((_, _, start, end),) = sctp.split(sack)[1]
        assert sctp.acknowledgement(sack, start, end).cumulative == inbound.last % 0x100000000
    except SctpError:
        return False
    return True


def repair_sctp(data: bytearray) -> None:
    """The right checksum."""
    if len(data) >= sctp.COMMON_HEADER:
        data[:] = sctp.packet(5000, 5000, 7, bytes(data[sctp.COMMON_HEADER :]))


def run_sdp(data: bytes) -> bool:
    """A description is read, its attributes too, and it is the same when written and read again."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(sdp.SdpError):
        sdp.candidate(text)
    try:
        session = sdp.parse(text)
    except sdp.SdpError:
        return False
    readers: tuple[Callable[[sdp.Media], object], ...] = (
        sdp.mid,
        sdp.formats,
        sdp.extensions,
        sdp.msid,
        sdp.ssrcs,
        lambda media: sdp.direction(session, media),
        lambda media: sdp.ice(session, media),
        lambda media: sdp.fingerprints(session, media),
        lambda media: sdp.setup(session, media),
        lambda media: sdp.simulcast(media, "send"),
    )
    with contextlib.suppress(sdp.SdpError):
        sdp.bundled(session)
    for media in session.media:
        for reader in readers:
            with contextlib.suppress(sdp.SdpError):
                reader(media)
    written = session.serialise()
    if len(written) <= sdp.MAX_SIZE:
        assert sdp.parse(written).serialise() == written
    return True


def run_messages(data: bytes) -> bool:
    """A frame of signalling is one of the client's messages or one ``SignalError``."""
    try:
        messages.parse(data)
    except SignalError as error:
        assert error.code in {
            *("invalid_message", "unknown_type", "invalid_join", "invalid_offer", "invalid_answer"),
            "invalid_candidate",
        }
        return False
    return True
