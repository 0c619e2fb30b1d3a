"""Bytes that were made to break a parser: lengths that lie, attributes that nobody speaks, padding that talks."""

from __future__ import annotations

import os
import socket
import struct

from tests.attacks import probe
from tests.attacks.probe import Probe, lengthened
from tests.attacks.stage import AttackTestCase, address, opened, parted
from tests.contract import turn
from tests.node import NodeProcess

ALLOCATE = ((turn.REQUESTED_TRANSPORT, turn.UDP),)
#: Every attribute that RFC 8489, 8656, 6062, 7635 and 8016 have a meaning for in a request, and some without one.
KINDS = (
    *range(0x0001, 0x002C), 0x002F, 0x7FFF, 0x8000, 0x8001, 0x8002, 0x8003, 0x8004, 0x8022, 0x8023, 0x8027, 0x8028,
    0x802B, 0x802C, 0x802E, 0x802F, 0x8030, 0xC001, 0xFFFF,
)  # fmt: skip


class LengthTests(AttackTestCase):
    """coturn #1844, #1964, CVE-2026-40613: a length is believed by nobody before it is compared with what is there."""

    def test_no_whole_message(self) -> None:
        """coturn #1844: every truncation of a request, down to nothing, is dropped without an answer."""
        client = self.client().known()
        whole = client.signed(turn.ALLOCATE, ALLOCATE)
        for length in range(len(whole)):
            client.send(whole[:length])
        self.silent(client)

    def test_lying_message_lengths(self) -> None:
        """coturn #1964 (an overflow of 16 bits): a length field that is not the length is dropped without an answer."""
        client = self.client().known()
        whole = client.signed(turn.ALLOCATE, ALLOCATE)
        for length in (0, 1, 4, len(whole) - 24, len(whole) - 16, 32767, 32768, 65515, 65516, 65532, 65535):
            client.send(whole[:2] + struct.pack("!H", length) + whole[4:])
        for length in (1, 2, 3):
            client.send(lengthened(whole, bytes(length)))
        self.silent(client)

    def test_lying_attribute_lengths(self) -> None:
        """coturn #1844: an attribute that ends behind the message is dropped, whichever it is and however it lies."""
        client = self.client()
        for kind in KINDS:
            for length in (5, 8, 255, 65520, 65532, 65535):
                client.send(lengthened(turn.build(turn.ALLOCATE), struct.pack("!HH", kind, length) + bytes(4)))
        self.silent(client)

    def test_odd_attributes(self) -> None:
        """CVE-2026-40613 (coturn before 4.10 died on ARM64): every attribute in every length up to 40 bytes.

        Not signed, signed by nobody, and signed: an answer that is an error, or none; the server lives.
        """
        client = self.client().known()
        good = client.nonce
        for kind in KINDS:
            for length in (*range(10), 19, 20, 21, 31, 32, 33, 40):
                odd = (kind, os.urandom(length))
                for raw in (
                    turn.build(turn.BINDING, attributes=[odd]),
                    turn.build(turn.ALLOCATE, attributes=[odd, *ALLOCATE]),
                    client.signed(turn.REFRESH, [odd]),
                    client.signed(turn.CREATE_PERMISSION, [odd], key=b"k" * 16),
                ):
                    client.send(raw)
            # At most what a socket's buffer holds: we read as we go.
            bound = turn.build(turn.BINDING)
            client.send(bound)
            while (answer := client.receive()) is not None and answer[8:20] != bound[8:20]:
                code = turn.parse(answer).code
                self.assertIn(code, (0, 400, 401, 420, 437, 438, 440, 443), (hex(kind), answer.hex()))
            self.assertIsNotNone(answer)
        client.nonce = good
        self.assertEqual(client.allocate().code, 0)

    def test_unaligned_lengths_between_attributes(self) -> None:
        """CVE-2026-40613: text of every length before what matters shifts it, and it is found all the same."""
        client = self.client().known()
        for length in range(1, 9):
            self.assertIn(client.forged(turn.ALLOCATE, [(0x8022, b"x" * length), *ALLOCATE]), (0, 437))
            self.assertEqual(client.code(turn.REFRESH, (turn.LIFETIME, bytes(4))), 0)

    def test_long_attributes(self) -> None:
        """RFC 8489, 14.3, 14.9, 14.10: USERNAME, REALM and NONCE beyond their limits are an error."""
        client = self.client().known()
        for kind in (turn.USERNAME, turn.REALM, turn.NONCE):
            for length in (514, 764, 1000, 60000):
                given = {turn.USERNAME: client.username.encode(), turn.REALM: client.realm, turn.NONCE: client.nonce}
                given[kind] = b"x" * length
                answer = client.answer(
                    turn.build(turn.ALLOCATE, attributes=[*ALLOCATE, *given.items()], key=client.key), turn.SILENCE
                )
                if answer is not None:
                    self.assertIn(answer.code, (400, 401, 438))

    def test_random_datagrams(self) -> None:
        """coturn #1844: noise that begins like STUN, like ChannelData and like nothing is survived in silence."""
        client = self.allocated()
        for number in range(2000):
            noise = os.urandom(number % 97)
            head = (
                b"",
                struct.pack("!HHI", number % 4 * 256 + 3, len(noise), turn.MAGIC),
                b"\x40\0",
                b"\x7f\xff\xff\xff",
            )
            client.send(head[number % 4] + noise)
            if number % 100 == 0:
                self.silent_but_for_errors(client)
        self.silent_but_for_errors(client)
        self.assertEqual(client.code(turn.REFRESH), 0)

    def silent_but_for_errors(self, client: Probe) -> None:
        bound = turn.build(turn.BINDING)
        client.send(bound)
        while (raw := client.receive()) is not None and raw[8:20] != bound[8:20]:
            self.assertNotEqual(turn.parse(raw).code, 0, raw.hex())
        self.assertIsNotNone(raw)


class PartedLengthTests(LengthTests):
    """The same where who reads a datagram has to see first which process it is for."""

    def attacked(self) -> NodeProcess:
        return parted()


class UnknownTests(AttackTestCase):
    def test_access_token(self) -> None:
        """CVE-2026-43994 (coturn before 4.10 believed nonce_len): ACCESS-TOKEN with lengths that lie is 401 or 420."""
        client = self.client().known()
        for length in (0, 1, 12, 255, 32767, 65535):
            for rest in (b"", bytes(2), bytes(60)):
                token = (probe.ACCESS_TOKEN, struct.pack("!H", length) + rest)
                self.assertIn(client.ask(turn.ALLOCATE, token, *ALLOCATE).code, (401, 420))
                answer = client.answer(client.signed(turn.ALLOCATE, [token, *ALLOCATE]))
                assert answer is not None
                self.assertEqual(answer.code, 420)
                self.assertEqual(answer.attributes[turn.UNKNOWN_ATTRIBUTES], struct.pack("!H", probe.ACCESS_TOKEN))

    def test_unknown_methods(self) -> None:
        """RFC 8489, 6.3: a method that nobody knows is an error, with and without a signature, or nothing."""
        client = self.client().known()
        for method in (0x000, 0x002, 0x005, 0x00F, 0x080, 0xFFF):
            packed = (method & 0xF80) << 2 | (method & 0x70) << 1 | method & 0xF
            for raw in (turn.build(packed), client.signed(packed)):
                answer = client.answer(raw, turn.SILENCE)
                self.assertIn(None if answer is None else answer.code, (None, 400, 401))

    def test_classic_stun(self) -> None:
        """RFC 3489 had no magic cookie: what comes without it is no STUN, and gets no answer."""
        client = Probe(address(self.node))
        self.addCleanup(client.socket.close)
        for raw in (turn.build(turn.BINDING), turn.build(turn.ALLOCATE, attributes=ALLOCATE)):
            client.send(raw[:4] + os.urandom(4) + raw[8:])
        self.silent(client)

    def test_repeated_attributes(self) -> None:
        """RFC 8489, 14: of an attribute that comes twice the first counts, whatever the second says."""
        client = self.client().known()
        lifetimes = [(turn.LIFETIME, struct.pack("!I", each)) for each in (1200, 0)]
        self.assertEqual(client.forged(turn.ALLOCATE, [*ALLOCATE, (turn.REQUESTED_TRANSPORT, b"\x63\0\0\0")]), 0)
        answer = client.answer(client.signed(turn.REFRESH, lifetimes))
        assert answer is not None
        self.assertEqual((answer.code, answer.number(turn.LIFETIME)), (0, 1200))


class PaddingTests(AttackTestCase):
    """CVE-2020-4067 (coturn before 4.5.1.3), #1984: padding told what was in the server's memory. Every answer of every
    test here is looked at for it; these make the padding that there is."""

    def attacked(self) -> NodeProcess:
        return opened()

    def test_padding_of_answers(self) -> None:
        """CVE-2020-4067: an answer to a request whose padding is not zero has padding that is."""
        client = self.client().known()
        for length in range(1, 5):
            odd = lengthened(turn.build(turn.ALLOCATE), struct.pack("!HH", 0x8022, length) + b"\xff" * 4)
            self.assertIsNotNone(client.answer(odd))
        for unknown in range(1, 6):
            answer = client.answer(
                turn.build(turn.BINDING, attributes=[(0x7F00 + each, b"") for each in range(unknown)])
            )
            assert answer is not None
            self.assertEqual(answer.code, 420)

    def test_padding_of_relayed_data(self) -> None:
        """CVE-2020-4067, coturn #1984: nor do Data indications and ChannelData carry more than what the peer sent."""
        for transport in ("udp", "tcp"):
            client = self.allocated(transport=transport)
            peer = self.bound("127.0.0.1")
            self.assertEqual(client.permit("127.0.0.1"), 0)
            peer.sendto(b"\xff" * 1000, self.relayed)
            self.assertEqual(client.relayed(), b"\xff" * 1000)
            for length in range(1, 6):
                peer.sendto(b"\xff" * length, self.relayed)
                raw = client.receive()
                assert raw is not None
                self.assertFalse(any(map(any, (padding for _, _, padding in probe.attributes(raw)))), raw.hex())
            self.assertEqual(client.bind(peer.getsockname()), 0)
            for length in range(1, 6):
                peer.sendto(b"\xff" * length, self.relayed)
                self.assertEqual(self.framed(client, transport), (b"\xff" * length, bytes(-length % 4)), transport)

    def framed(self, client: Probe, transport: str) -> tuple[bytes, bytes]:
        """Payload and padding of the next ChannelData."""
        if transport == "udp":
            raw = client.receive()
            assert raw is not None
            size = int.from_bytes(raw[2:4], "big")
            return raw[4 : 4 + size], raw[4 + size :] or bytes(-size % 4)
        head = self.exactly(client.socket, 4)
        size = int.from_bytes(head[2:4], "big")
        return self.exactly(client.socket, size), self.exactly(client.socket, -size % 4)

    def exactly(self, stream: socket.socket, size: int) -> bytes:
        read = b""
        while len(read) < size:
            read += stream.recv(size - len(read))
        return read

    def test_padding_of_the_client_is_not_relayed(self) -> None:
        """coturn #1984: a peer gets the payload of Send and ChannelData, and nothing of what stands behind it."""
        client = self.allocated()
        peer = self.bound("127.0.0.1")
        self.assertEqual(client.bind(peer.getsockname()), 0)
        for length in range(1, 6):
            client.send(struct.pack("!HH", 0x4000, length) + b"\x01" * length + b"\xff" * 7)
            self.assertEqual(peer.recv(100), b"\x01" * length)
            transaction = os.urandom(12)
            [to] = client.peer(peer.getsockname(), transaction=transaction)
            body = turn.attribute(*to) + struct.pack("!HH", turn.DATA_ATTRIBUTE, length)
            body += b"\x01" * length + b"\xff" * (-length % 4)
            client.send(lengthened(turn.build(turn.SEND, turn.INDICATION, transaction=transaction), body))
            self.assertEqual(peer.recv(100), b"\x01" * length)

    def test_send_to_two_peers(self) -> None:
        """coturn 140e99a0, #2016 sent to whichever: of two XOR-PEER-ADDRESS of a Send the first one counts."""
        client = self.allocated()
        first, second = self.bound("127.0.0.1"), self.bound("127.0.0.9")
        self.assertEqual(client.permit("127.0.0.1", "127.0.0.9"), 0)
        for number in range(20):
            transaction = os.urandom(12)
            to = client.peer(first.getsockname(), second.getsockname(), transaction=transaction)
            data = turn.DATA_ATTRIBUTE, str(number).encode()
            client.send(turn.build(turn.SEND, turn.INDICATION, [*to, data], transaction=transaction))
            self.assertEqual(first.recv(100), str(number).encode())
        client.indicate(second.getsockname(), b"last")
        self.assertEqual(second.recv(100), b"last")


class SourceTests(AttackTestCase):
    def test_source_port_zero(self) -> None:
        """Firezone 2ae728b: nobody can be answered at port 0; what comes from there is dropped."""
        try:
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        except PermissionError:
            self.skipTest("raw sockets are not for everybody")
        port = address(self.node)[1]
        with raw:
            for request in (turn.build(turn.BINDING), turn.build(turn.ALLOCATE, attributes=ALLOCATE)):
                raw.sendto(struct.pack("!HHHH", 0, port, 8 + len(request), 0) + request, ("127.0.0.1", 0))
