"""Strangers: nonces, forged requests, what follows a signature, and what a flood of them costs."""

from __future__ import annotations

import ast
import math
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import orama
from tests.attacks import probe
from tests.attacks.probe import SEGMENTS, Probe, flood, lengthened, memory, sha256, sources
from tests.attacks.stage import BURST, NONCE_LIFETIME, RATE, AttackTestCase, address, narrow, opened
from tests.attacks.stage import probe as somebody
from tests.contract import turn
from tests.contract.commands import OTHER
from tests.contract.stage import end, started, toml
from tests.node import NodeProcess

#: How often a nonce and a relay port are drawn to be judged.
DRAWS = 1000
#: Chi-square values that a fair source exceeds once in 10⁷ draws, by degrees of freedom.
UNFAIR = {15: 62.3, 39: 103.3, 63: 139.6}
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
#: Datagrams of a flood.
DATAGRAMS = 1_000_000
#: Sources that fill every table of them.
TABLE = 20_000
#: Bytes that a process may grow by in a flood, once those are full. A session of 1 kB for each would be 15 MB.
GROWTH = 1 << 20
ALLOCATE = ((turn.REQUESTED_TRANSPORT, turn.UDP),)


def chi_square(values: Iterable[int], bins: int) -> float:
    """How far the counts of *values*, each below *bins*, are from equal."""
    counts = Counter(values)
    expected = sum(counts.values()) / bins
    return sum((counts[each] - expected) ** 2 for each in range(bins)) / expected


class RandomnessTests(AttackTestCase):
    """CVE-2025-69217 (coturn 4.6.2r5 to 4.7.0-r4): nonces and ports came from the C library's ``random``."""

    def assertFair(self, values: list[int], bins: int) -> None:
        """Neither the values nor the steps between them prefer anything."""
        self.assertLess(chi_square(values, bins), UNFAIR[bins - 1])
        steps = [(second - first) % bins for first, second in pairwise(values)]
        self.assertLess(chi_square(steps, bins), UNFAIR[bins - 1])

    def test_nonces_are_unpredictable(self) -> None:
        """CVE-2025-69217: nonces do not repeat between clients, and their characters have no preference and no step."""
        nonces = []
        for source, _ in sources(DRAWS):
            client = Probe(address(self.node), source=source)
            nonces.append(client.ask(turn.ALLOCATE, *ALLOCATE).attributes[turn.NONCE].decode())
            client.socket.close()
        # Of 32 bits, a pair in a thousand is alike once in 9,000 runs, two pairs once in 10⁸.
        self.assertGreaterEqual(len(set(nonces)), DRAWS - 1)
        # What is not time, cookie or feature: the last five characters.
        for place in range(-5, 0):
            self.assertFair([BASE64.index(nonce[place]) for nonce in nonces], 64)

    def test_relay_ports_are_unpredictable(self) -> None:
        """CVE-2025-69217, RFC 8656, 7.2: relay ports are spread over the block, and no port follows from another."""
        client = self.client()
        ports = []
        for _ in range(DRAWS):
            ports.append(client.allocate().address(turn.XOR_RELAYED_ADDRESS)[1])
            self.assertEqual(client.code(turn.REFRESH, (turn.LIFETIME, bytes(4))), 0)
        first = min(ports) // 800 * 800 + 49152 % 800
        self.assertLess(max(ports), first + 800)
        self.assertFair([(port - first) // 20 for port in ports], 40)
        self.assertFair([port % 16 for port in ports], 16)

    def test_reservation_tokens_are_unpredictable(self) -> None:
        """The same for RESERVATION-TOKEN, which is worth a port to whoever has it."""
        client = self.client()
        tokens = []
        for _ in range(24):  # each keeps a port of the user's for 30 s
            answer = client.allocate((turn.EVEN_PORT, b"\x80"))
            self.assertEqual(answer.code, 0)
            tokens.append(answer.attributes[probe.RESERVATION_TOKEN])
            self.assertEqual(client.code(turn.REFRESH, (turn.LIFETIME, bytes(4))), 0)
        self.assertEqual(len(set(tokens)), len(tokens))
        self.assertFair([half for token in tokens for byte in token for half in (byte >> 4, byte & 15)], 16)


class NonceTests(AttackTestCase):
    """A nonce that no server has to remember is good for one client and for a time."""

    def test_forged_nonces_are_stale(self) -> None:
        """eturnal, turn-rs and Rel took what looked like a nonce: a made-up or changed one is 438 with a fresh one."""
        client = self.client().known()
        good = client.nonce
        changed = [good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :] for at in range(len(good))]
        for nonce in (*changed, b"", b"A", b"A" * len(good), good + b"A", good[:-1], bytes(8), b"\xff" * 700):
            client.nonce = nonce
            answer = client.answer(client.signed(turn.ALLOCATE, ALLOCATE))
            assert answer is not None
            self.assertEqual(answer.code, 438, nonce)
            self.assertTrue(answer.attributes[turn.NONCE] and answer.attributes[turn.REALM])
        client.nonce = good
        self.assertEqual(client.forged(turn.ALLOCATE, ALLOCATE), 0)

    def test_offers_cannot_be_changed(self) -> None:
        """RFC 8489, 9.2.1 and 16.2 (bidding down): a nonce whose cookie offers something else is not one of ours."""
        client = self.client("tcp").known()
        good = client.nonce
        self.assertTrue(good.startswith(b"obMatJos2"))
        for changed in (
            *(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :] for at in range(len(good))),
            b"obMatJos2AAAA" + good[13:],
            b"obMatJos2////" + good[13:],
            good[13:],
        ):
            client.nonce = changed
            self.assertIn(client.forged(turn.ALLOCATE, ALLOCATE), (400, 401, 438), changed)
        client.nonce = good
        self.assertEqual(client.forged(turn.ALLOCATE, ALLOCATE), 0)

    def test_nonce_of_another_client_is_stale(self) -> None:
        """eturnal kept a nonce's address and did not look at it: another port and another address get 438."""
        nonce = self.client().known().nonce
        for source in ("", "127.0.0.3"):
            thief = self.client(source=source).known()
            thief.nonce = nonce
            self.assertEqual(thief.forged(turn.ALLOCATE, ALLOCATE), 438)

    def test_nonce_ages(self) -> None:
        """RFC 8489, 9.2: a nonce older than its lifetime is 438, also for who used it before; a fresh one goes on."""
        self.node = narrow()
        client = self.client(source="127.0.0.4")
        since = time.monotonic()
        self.assertEqual(client.allocate().code, 0)
        while client.forged(turn.REFRESH) == 0:
            self.assertLess(time.monotonic() - since, NONCE_LIFETIME + 5)
            time.sleep(0.1)
        # Ages are whole seconds.
        self.assertGreater(time.monotonic() - since, NONCE_LIFETIME - 1)
        self.assertEqual(client.forged(turn.REFRESH), 438)
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_nonce_of_an_earlier_start(self) -> None:
        """coturn's stateless nonce: after a restart the old one is either good or 438 with a fresh one, never 401."""
        node = started(config=toml(turn='relay_ip = "127.0.80.9"'))
        client = somebody(node)
        self.addCleanup(client.release)
        port = str(client.socket.getpeername()[1])
        self.assertEqual(client.allocate().code, 0)
        node.stop()
        again = NodeProcess(node.directory, "--turn-port", port, config=toml(turn='relay_ip = "127.0.80.9"')).start()
        self.addCleanup(end, again)
        self.assertIn(client.forged(turn.ALLOCATE, ALLOCATE), (0, 438))
        client.code(turn.REFRESH, (turn.LIFETIME, bytes(4)))
        self.assertEqual(client.allocate().code, 0)


class TenantTests(AttackTestCase):
    """A stranger's word decides nothing."""

    def test_origin_pins_no_tenant(self) -> None:
        """coturn #1871: ORIGIN and a user name that nobody proved do not choose the tenant of the five-tuple."""
        client = self.client().known()
        theirs = (turn.USERNAME, f"{int(time.time()) + 60}:{OTHER}".encode())
        for unproven in (
            turn.build(turn.ALLOCATE, attributes=[*ALLOCATE, (probe.ORIGIN, b"https://other.example"), theirs]),
            client.signed(turn.ALLOCATE, [(probe.ORIGIN, b"https://other.example"), theirs, *ALLOCATE], key=b"k" * 16),
        ):
            answer = client.answer(unproven)
            assert answer is not None
            self.assertEqual((answer.code, answer.attributes[turn.REALM]), (401, client.realm))
        self.assertEqual(client.forged(turn.ALLOCATE, ALLOCATE), 0)

    def test_sni_pins_no_tenant(self) -> None:
        """coturn #1871: nor does the name in a TLS handshake, of a namespace or of nobody."""
        for name in (f"turn.ns-{OTHER}.example", "nobody.example"):
            context = turn.unchecked()
            client = self.client("udp")
            raw = Probe(address(self.node, "tls"), client.username, client.password, "tcp")
            raw.socket = context.wrap_socket(raw.socket, server_hostname=name)
            self.addCleanup(raw.release)
            self.assertEqual(raw.allocate().code, 0)

    def test_wrong_realm(self) -> None:
        """coturn #1871: a request signed for another realm is 401, with and without an allocation."""
        for client in (self.client().known(), self.allocated()):
            realm = client.realm
            for wrong in (b"other", b"", realm.upper(), realm + b"\0"):
                client.realm = wrong
                self.assertIn(client.forged(turn.ALLOCATE, ALLOCATE), (400, 401), wrong)
                self.assertIn(client.forged(turn.REFRESH), (400, 401), wrong)
            client.realm = realm


class IntegrityTests(AttackTestCase):
    """RFC 8489, 14.5: what follows MESSAGE-INTEGRITY was signed by nobody."""

    def test_lifetime_after_the_signature_is_ignored(self) -> None:
        """coturn ab762f33 (4.15.0) obeyed it: LIFETIME behind MESSAGE-INTEGRITY changes and ends nothing."""
        client = self.allocated()
        for lifetime in (3000, 0):
            added = turn.attribute(turn.LIFETIME, struct.pack("!I", lifetime))
            answer = client.answer(lengthened(client.signed(turn.REFRESH), added))
            assert answer is not None
            self.assertEqual((answer.code, answer.number(turn.LIFETIME)), (0, 600))
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_peer_after_the_signature_is_ignored(self) -> None:
        """coturn ab762f33: XOR-PEER-ADDRESS behind it gets no permission, alone or after one that is signed."""
        self.node = opened()
        client = self.allocated()
        transaction = os.urandom(12)
        signed, added = client.peer(("127.0.0.1", 0), ("127.0.0.9", 0), transaction=transaction)
        alone = client.signed(turn.CREATE_PERMISSION, transaction=transaction)
        answer = client.answer(lengthened(alone, turn.attribute(*added)))
        assert answer is not None
        self.assertEqual(answer.code, 400)
        both = client.signed(turn.CREATE_PERMISSION, [signed], transaction=transaction)
        answer = client.answer(lengthened(both, turn.attribute(*added)))
        assert answer is not None
        self.assertEqual(answer.code, 0)
        with self.bound("127.0.0.9") as stranger, self.bound("127.0.0.1") as friend:
            stranger.sendto(b"stranger", self.relayed)
            friend.sendto(b"friend", self.relayed)
            self.assertEqual(client.relayed(), b"friend")

    def test_unknown_attributes_after_the_signature_are_ignored(self) -> None:
        """coturn ab762f33: what needs comprehension does not, behind the signature: no 420."""
        client = self.allocated()
        added = turn.attribute(0x7FFF, b"x"), turn.attribute(probe.ACCESS_TOKEN, bytes(8))
        answer = client.answer(lengthened(client.signed(turn.REFRESH), *added))
        assert answer is not None
        self.assertEqual(answer.code, 0)

    def test_both_signatures(self) -> None:
        """coturn ab762f33: MESSAGE-INTEGRITY-SHA256 behind MESSAGE-INTEGRITY is never 420; a wrong one is 401."""
        client = self.allocated()
        good = client.answer(sha256(client.signed(turn.REFRESH), client.key))
        wrong = client.answer(sha256(client.signed(turn.REFRESH), b"k" * 16))
        assert good is not None and wrong is not None
        self.assertEqual(good.code, 0)
        self.assertIn(wrong.code, (0, 401))

    def test_changed_requests_are_refused(self) -> None:
        """RFC 8489, 9.2.4: a signed request of which one bit is another one is not obeyed."""
        client = self.allocated()
        request = client.signed(turn.REFRESH, [(turn.LIFETIME, bytes(4))])
        for at in range(8, len(request)):
            changed = request[:at] + bytes((request[at] ^ 1,)) + request[at + 1 :]
            client.send(changed)
            while (raw := client.receive(0.0005)) is not None:
                self.assertNotEqual(turn.parse(raw).code, 0, at)
        last = turn.build(turn.BINDING)  # answers may come late
        client.send(last)
        while (raw := client.receive()) is not None and raw[8:20] != last[8:20]:
            self.assertNotEqual(turn.parse(raw).code, 0)
        self.assertIsNotNone(raw)
        self.assertEqual(client.code(turn.REFRESH), 0)

    def test_comparisons_take_constant_time(self) -> None:
        """coturn #1869: no MAC is compared with ``==``; ``hmac.compare_digest`` it is, wherever one is checked."""
        checked = 0
        for file in sorted(Path(orama.__file__).parent.rglob("*.py")):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare):
                    compared = " ".join(map(ast.unparse, (node.left, *node.comparators)))
                    mac = any(word in compared for word in ("hmac.", "digest(", "_mac(", "signature", "password"))
                    equal = any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops)
                    self.assertFalse(mac and equal, f"{file.name}:{node.lineno}: {compared}")
                checked += isinstance(node, ast.Attribute) and node.attr == "compare_digest"
        self.assertGreaterEqual(checked, 2)


class AmplificationTests(AttackTestCase):
    """An answer may hit somebody else: UDP's source addresses can be forged."""

    def test_small_answers(self) -> None:
        """matrix-docker-ansible #2592 (coturn gave 92 bytes to 20): 32 for Binding, a challenge under three times."""
        client = Probe(address(self.node))
        self.addCleanup(client.socket.close)
        self.assertEqual(len(client.ask(turn.BINDING).raw), 32)
        for method in (turn.ALLOCATE, turn.REFRESH, turn.CREATE_PERMISSION, turn.CHANNEL_BIND):
            self.assertLessEqual(len(client.ask(method).raw), 60, method)
            self.assertLess(len(client.ask(method, *ALLOCATE).raw), 56, method)
        for more in range(0, 400, 4):
            request = turn.build(turn.ALLOCATE, attributes=[*ALLOCATE, (0x8022, bytes(more))])
            answer = client.answer(request)
            assert answer is not None
            self.assertLess(len(answer.raw), 2 * len(request), more)

    def test_no_answer_is_longer_for_who_asks_more(self) -> None:
        """Nothing that a stranger can ask for (SOFTWARE, families, unknown attributes) makes an answer large."""
        client = self.client().known()
        for given in (
            [(0x8022, b"software")],
            [(0x0003, bytes(4))],
            [(turn.REQUESTED_FAMILY, b"\2\0\0\0"), (probe.ADDITIONAL_FAMILY, b"\2\0\0\0")],
            [(0x7F00 + number, b"") for number in range(64)],
        ):
            for raw in (
                turn.build(turn.BINDING, attributes=given),
                turn.build(turn.ALLOCATE, attributes=[*ALLOCATE, *given]),
                client.signed(turn.ALLOCATE, [*ALLOCATE, *given], key=b"k" * 16),
            ):
                answer = client.answer(raw)
                assert answer is not None
                self.assertLess(len(answer.raw), 2 * len(raw))

    def test_one_datagram_one_answer(self) -> None:
        """coturn #1588: nothing that a stranger sends is answered more than once, and what is no request not at all."""
        client = Probe(address(self.node))
        self.addCleanup(client.socket.close)
        request = turn.build(turn.ALLOCATE, attributes=ALLOCATE)
        self.assertIsNotNone(client.answer(request))
        client.send(request + turn.build(turn.BINDING))
        for kind in (turn.INDICATION, turn.SUCCESS, turn.ERROR):
            for method in (turn.BINDING, turn.ALLOCATE, turn.SEND, turn.DATA, probe.CONNECTION_BIND):
                client.send(turn.build(method, kind))
        self.silent(client)


class FloodTests(AttackTestCase):
    def attacked(self) -> NodeProcess:
        return narrow()

    def test_a_flood_is_answered_at_a_rate(self) -> None:
        """coturn #1588, #1957: of 300 Allocates at once a few are answered, and the log has one line at most."""
        before = len(self.node.said())
        crowd = Probe(address(self.node), source="127.0.0.7")
        self.addCleanup(crowd.socket.close)
        since = time.monotonic()
        for _ in range(300):
            crowd.send(turn.build(turn.ALLOCATE, attributes=ALLOCATE))
        answers = 0
        while crowd.receive(turn.SILENCE) is not None:
            answers += 1
        limit = BURST + RATE * math.ceil(time.monotonic() - since)
        self.assertTrue(BURST // 2 <= answers <= limit, answers)
        self.assertLessEqual(len(self.node.said()) - before, 1)

    def test_a_flood_shuts_nobody_out(self) -> None:
        """coturn #1957: while a source is limited, its TCP and TLS are served, and so are others over UDP."""
        flooding = Probe(address(self.node), source="127.0.0.8")
        self.addCleanup(flooding.socket.close)
        for _ in range(300):
            flooding.send(turn.build(turn.ALLOCATE, attributes=ALLOCATE))
        for transport, source in (("tcp", "127.0.0.8"), ("tls", "127.0.0.8"), ("udp", "127.77.0.8")):
            client = self.client(transport, source=source)
            self.assertEqual(client.allocate().code, 0, transport)
            client.release()

    def test_strangers_cost_no_memory(self) -> None:
        """coturn #1999, #2002, #2025 (18 kB a source) and pion #361 (nonces in a map): nothing is kept of a stranger.

        Many sources send Allocate with and without a signature, Refresh, ConnectionBind, a ClientHello of DTLS and
        noise, and the process does not grow once its table of sources is full.
        """
        stranger = self.client(source="127.0.0.9").known()
        packets = [
            turn.build(turn.ALLOCATE, attributes=ALLOCATE),
            stranger.signed(turn.ALLOCATE, ALLOCATE),
            stranger.signed(turn.REFRESH, key=b"k" * 16),
            turn.build(probe.CONNECTION_BIND, attributes=[(probe.CONNECTION_ID, bytes(4))]),
            turn.build(turn.BINDING),
            CLIENT_HELLO,
            os.urandom(40),
            struct.pack("!HH", 0x4000, 8) + bytes(8),
        ]
        stranger.nonce = b""
        last, port = self.allocated(source="127.0.0.10"), address(self.node)[1]
        flood(last, packets, TABLE, 1)
        before, lost = memory(self.node.process.pid), unread(port)
        flood(last, packets, DATAGRAMS // SEGMENTS)
        self.assertLess(memory(self.node.process.pid) - before, GROWTH)
        self.assertLess(unread(port) - lost, DATAGRAMS // 100)


class DtlsTests(AttackTestCase):
    def test_client_hello_is_dropped(self) -> None:
        """coturn c36aeaa7, GHSA-5x2p-4vqj-f6m4 (4.17.0) kept a DTLS session for each: we have none, and say nothing."""
        client = Probe(address(self.node))
        self.addCleanup(client.socket.close)
        client.send(CLIENT_HELLO)
        client.send(b"\x17\xfe\xfd" + bytes(8) + struct.pack("!H", 32) + os.urandom(32))
        self.silent(client)


#: A ClientHello of DTLS 1.2 without a cookie (RFC 6347, 4.2.1).
CLIENT_HELLO = (
    b"\x16\xfe\xff" + bytes(8) + struct.pack("!H", 54)
    + b"\x01\x00\x00\x2a" + bytes(5) + b"\x00\x00\x2a"
    + b"\xfe\xfd" + bytes(32) + b"\0\0" + b"\x00\x02\xc0\x2b\x01\x00"
)  # fmt: skip


def unread(port: int) -> int:
    """Datagrams to that port of ours that did not fit into its socket's buffer (proc(5), net/udp)."""
    fields = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(each[-1]) for each in fields if each[1].endswith(f":{port:04X}"))
