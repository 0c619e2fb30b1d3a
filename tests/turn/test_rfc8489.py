"""RFC 8489 as the server speaks it; a test's name begins with the section that it holds us to."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.credentials import Credentials, password
from orama.turn.nonce import COOKIE, Feature, features
from orama.wire import stun
from orama.wire.stun import Attribute, Class, Message, Method, PasswordAlgorithm
from tests.turn.tcp_client import TcpClient
from tests.turn.world import MYAPP, NOW, PEER, REALM, Client, World, code

UDP = (stun.REQUESTED_TRANSPORT, 17)
#: Makes a first Allocate long enough for the whole challenge.
SOFTWARE = (stun.SOFTWARE, "a client of RFC 8489")
ALGORITHMS = ((PasswordAlgorithm.SHA256, b""), (PasswordAlgorithm.MD5, b""))

_Row = tuple[Attribute[Any], Any]


def modern(world: World, algorithm: PasswordAlgorithm = PasswordAlgorithm.SHA256, **who: Any) -> Client:
    """A client that names its algorithm."""
    client = world.client(**who)
    client.algorithm = algorithm
    return client


class ReceivingTests(SynchronousTestCase):
    """6.3: what is done with a message before its method is looked at."""

    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def test_6_3_first_two_bits_cookie_length(self) -> None:
        """A message with another cookie, a senseless length or a first bit that is set is discarded in silence."""
        good = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)
        for bad in (
            good[:4] + b"\0\0\0\0" + good[8:],
            good[:2] + b"\0\1" + good[4:],
            good[:2] + b"\0\4" + good[4:],
            good + b"\0\0\0\0",
            good[:-1],
            b"\x80" + good[1:],
        ):
            self.assertEqual(self.client.give(bad), [], bad.hex())

    def test_6_3_fingerprint(self) -> None:
        """A message whose FINGERPRINT is wrong is discarded; one that is right is answered with one."""
        good = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12, fingerprint=True)
        self.assertEqual(self.client.give(good[:-1] + bytes([good[-1] ^ 1])), [])
        (answer,) = self.client.give(good)
        self.assertIn(stun.FINGERPRINT, stun.parse(answer))

    def test_6_3_unknown_optional_attribute(self) -> None:
        """Unknown comprehension-optional attributes are ignored, and so are known ones that nobody expects here."""
        row = Attribute(0xC123, "NEW", stun.DATA.format)
        self.assertEqual(
            code(self.client.allocate((row, b"x"), (stun.ICE_CONTROLLING, 1), (stun.CHANNEL_NUMBER, 1))), 0
        )

    def test_6_3_1_unknown_required_attributes(self) -> None:
        """420 lists every unknown comprehension-required attribute once, after authentication (6.3), and is signed."""
        rows = [(Attribute(kind, "NEW", stun.DATA.format), b"") for kind in (0x7ABC, 0x0033, 0x7ABC)]
        answer = self.client.allocate(*rows)
        self.assertEqual((code(answer), answer.get(stun.UNKNOWN_ATTRIBUTES)), (420, (0x7ABC, 0x0033)))
        self.assertTrue(answer.verify(self.client.key))
        stranger = self.world.client(port=2)
        self.assertEqual(code(stranger.ask(Method.ALLOCATE, UDP, *rows, signed=False)), 401)

    def test_6_3_1_retransmissions(self) -> None:
        """The same transaction again gives the same success and the same state, for every method."""
        steps: list[tuple[int, Sequence[_Row]]] = [
            (Method.BINDING, ()),
            (Method.ALLOCATE, (UDP, (stun.EVEN_PORT, True))),
            (Method.CREATE_PERMISSION, ((stun.XOR_PEER_ADDRESS, PEER),)),
            (Method.CHANNEL_BIND, ((stun.CHANNEL_NUMBER, 0x4001), (stun.XOR_PEER_ADDRESS, PEER))),
            (Method.REFRESH, ((stun.LIFETIME, 700),)),
        ]
        for number, (method, attributes) in enumerate(steps):
            signed = method != Method.BINDING
            answers = [
                self.client.ask(method, *attributes, transaction_id=bytes([number]) * 12, signed=signed).raw
                for _ in range(3)
            ]
            self.assertEqual(len(set(answers)), 1, method)
            self.assertEqual(code(stun.parse(answers[0])), 0, method)
        self.assertEqual(len(self.world.server), 1)
        self.assertEqual(self.world.figures()["orama_turn_allocations", "myapp"], 1)

    def test_6_3_1_1_binding(self) -> None:
        """A Binding success has the source of the request in XOR-MAPPED-ADDRESS and its transaction."""
        answer = self.client.ask(Method.BINDING, signed=False)
        self.assertEqual((answer.method, answer.cls), (Method.BINDING, Class.SUCCESS))
        self.assertEqual(answer.get(stun.XOR_MAPPED_ADDRESS), self.client.address)

    def test_6_3_2_indications(self) -> None:
        """A Binding indication is taken without an answer; an indication with an unknown attribute is discarded."""
        self.assertEqual(self.client.give(stun.build(Method.BINDING, Class.INDICATION, b"t" * 12)), [])
        self.client.allocate()
        self.client.permit(PEER)
        row = Attribute(0x7ABC, "NEW", stun.DATA.format)
        parts = [(stun.XOR_PEER_ADDRESS, PEER), (stun.DATA, b"x"), (row, b"")]
        self.assertEqual(self.client.give(stun.build(Method.SEND, Class.INDICATION, b"t" * 12, parts)), [])
        self.assertEqual(self.world.opened[self.client.relay][0].sent, [])

    def test_6_3_3_responses(self) -> None:
        """Responses that belong to no transaction of ours are discarded."""
        for kind in (Class.SUCCESS, Class.ERROR):
            self.assertEqual(self.client.give(stun.build(Method.BINDING, kind, b"t" * 12)), [])


class CookieTests(SynchronousTestCase):
    """9.2: the nonce cookie."""

    def test_9_2_cookie(self) -> None:
        """The nonce begins with obMatJos2 and four characters of base64, in which bit 0 is the leftmost (18.1)."""
        client = World().client()
        nonce = client.ask(Method.ALLOCATE, UDP, SOFTWARE, signed=False).get(stun.NONCE) or b""
        self.assertTrue(nonce.startswith(b"obMatJos2gAAA"), nonce)
        self.assertLess(len(nonce), 128)
        world = World(all_issued_here=True)
        world.server.tick()
        world.clock.advance(600)
        nonce = world.client().ask(Method.ALLOCATE, UDP, SOFTWARE, signed=False).get(stun.NONCE) or b""
        self.assertTrue(nonce.startswith(b"obMatJos2wAAA"), nonce)

    def test_9_2_features_of_a_nonce(self) -> None:
        """Features are read from a whole cookie; anything else has none."""
        self.assertEqual(features(COOKIE + b"gAAAx"), Feature.PASSWORD_ALGORITHMS)
        self.assertEqual(features(COOKIE + b"AAAA"), Feature.NONE)
        for nonce in (
            b"",
            COOKIE,
            COOKIE + b"gA",
            COOKIE + b"g\xff\xff=",
            b"xbMatJos2gAAA",
            COOKIE + b"gAA=",
            b"\0" * 40,
        ):
            self.assertIsNone(features(nonce), nonce)

    def test_9_2_1_bid_down(self) -> None:
        """Whoever takes the offer out of a nonce makes it a bad one: 438, with the whole offer again."""
        world = World()
        client = modern(world)
        client.challenge()
        whole = client.nonce
        for changed in (whole[13:], COOKIE + b"AAAA" + whole[13:], COOKIE + b"wAAA" + whole[13:]):
            client.algorithm = None
            client.nonce = changed
            answer = client.allocate()
            self.assertEqual((code(answer), answer.get(stun.PASSWORD_ALGORITHMS)), (438, ALGORITHMS), changed)
        self.assertEqual(len(world.server), 0)

    def test_9_2_1_short_nonce_on_a_stream(self) -> None:
        """On a stream only a nonce with the cookie is good: one without was got elsewhere."""
        world = World()
        client = world.client()
        client.challenge()
        self.assertEqual(len(client.nonce), 8)
        client.verified = True
        self.assertEqual(code(client.allocate()), 438)


class KeyTests(SynchronousTestCase):
    """9.2.2 and 18.5.1: keys."""

    def test_9_2_2_md5(self) -> None:
        """The key of user, realm and pass is the RFC's."""
        self.assertEqual(stun.long_term_key("user", "realm", "pass").hex(), "8493fbc53ba582fb4c044c456bdc40eb")

    def test_18_5_1_2_sha256(self) -> None:
        """With SHA-256 the key has 32 bytes, over the same text."""
        key = stun.long_term_key("user", "realm", "pass", PasswordAlgorithm.SHA256)
        self.assertEqual(key, hashlib.sha256(b"user:realm:pass").digest())

    def test_9_2_2_opaque_string(self) -> None:
        """Names, realms and passwords of ours are printable ASCII, which OpaqueString leaves alone (RFC 8265)."""
        made = World().credentials(user="ann")
        for text in (made.username, made.password, REALM):
            self.assertTrue(text.isascii() and text.isprintable() and text)

    def test_9_2_2_name_of_another_script(self) -> None:
        """A name that was signed by somebody else with the secret is hashed as the client sends it."""
        world = World()
        client = world.client()
        name = f"{NOW + 60}:myapp:マトリックス"
        client.credentials = Credentials(name, password("north", name), 60)
        self.assertEqual(code(client.allocate()), 0)


class RequestTests(SynchronousTestCase):
    """9.2.4: the checks, in their order."""

    def setUp(self) -> None:
        self.world = World()
        self.client = modern(self.world)
        self.client.challenge()

    def ask(self, *rows: _Row, key: bytes | None = None, sha256: bool = True) -> Message:
        """An Allocate of exactly *rows*."""
        return self.client.ask(Method.ALLOCATE, UDP, *rows, signed=False, key=key or self.client.key, sha256=sha256)

    def without(self, *missing: Attribute[Any]) -> list[_Row]:
        return [(row, value) for row, value in self.client.proof() if row not in missing]

    def changed(self, row: Attribute[Any], value: Any) -> list[_Row]:
        return [*self.without(row), (row, value)]

    def test_9_2_4_without_integrity(self) -> None:
        """401 with REALM, NONCE and, in our order, PASSWORD-ALGORITHMS; nothing of who asked, no integrity."""
        for method in (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND):
            answer = self.client.ask(method, SOFTWARE, *self.client.proof(), signed=False)
            self.assertEqual((code(answer), answer.get(stun.REALM)), (401, REALM))
            self.assertEqual(answer.get(stun.PASSWORD_ALGORITHMS), ALGORITHMS)
            self.assertIn(Feature.PASSWORD_ALGORITHMS, features(answer.get(stun.NONCE) or b"") or Feature.NONE)
            for row in (stun.USERNAME, stun.USERHASH, stun.MESSAGE_INTEGRITY, stun.MESSAGE_INTEGRITY_SHA256):
                self.assertNotIn(row, answer)

    def test_9_2_4_nonces_differ_by_source(self) -> None:
        """No two source addresses get the same nonce, and one does not serve for the other."""
        nonces = set()
        for number in range(200):
            client = modern(self.world, ip=f"203.0.113.{number % 20}", port=1000 + number)
            client.challenge()
            nonces.add(client.nonce)
        self.assertEqual(len(nonces), 200)
        client.address = ("203.0.113.200", 1)
        self.assertEqual(code(client.allocate()), 438)

    def test_9_2_4_missing_attributes(self) -> None:
        """Integrity without USERNAME or USERHASH, REALM or NONCE is 400, without any of them and without integrity."""
        for row in (stun.USERNAME, stun.REALM, stun.NONCE):
            answer = self.ask(*self.without(row))
            self.assertEqual(code(answer), 400, row.name)
            self.assertEqual(list(answer.attributes), [stun.ERROR_CODE.type])

    def test_9_2_4_neither_algorithm(self) -> None:
        """Under a cookie that offers algorithms, a request that names none has the key of MD5, and the answer SHA-1."""
        self.client.algorithm = None
        answer = self.client.allocate()
        self.assertEqual(code(answer), 0)
        self.assertIn(stun.MESSAGE_INTEGRITY, answer)
        self.assertNotIn(stun.MESSAGE_INTEGRITY_SHA256, answer)
        for row in (stun.REALM, stun.NONCE, stun.USERNAME, stun.USERHASH):
            self.assertNotIn(row, answer)

    def test_9_2_4_one_of_two_algorithm_attributes(self) -> None:
        """400 where only one of PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS is there."""
        for row in (stun.PASSWORD_ALGORITHM, stun.PASSWORD_ALGORITHMS):
            self.assertEqual(code(self.ask(*self.without(row))), 400, row.name)

    def test_9_2_4_other_algorithms(self) -> None:
        """400 where PASSWORD-ALGORITHMS is not what was sent with the nonce: shorter, turned round, longer, broken."""
        for value in (ALGORITHMS[:1], ALGORITHMS[1:], ALGORITHMS[::-1], (*ALGORITHMS, (3, b"")), ()):
            self.assertEqual(code(self.ask(*self.changed(stun.PASSWORD_ALGORITHMS, value))), 400, value)
        broken = Attribute(stun.PASSWORD_ALGORITHMS.type, "BROKEN", stun.DATA.format)
        self.assertEqual(code(self.ask(*self.without(stun.PASSWORD_ALGORITHMS), (broken, b"\0\2\0\7"))), 400)

    def test_9_2_4_algorithm_not_in_the_list(self) -> None:
        """400 where PASSWORD-ALGORITHM is none of PASSWORD-ALGORITHMS, or has parameters."""
        for value in ((3, b""), (0, b""), (PasswordAlgorithm.SHA256, b"abcd")):
            self.assertEqual(code(self.ask(*self.changed(stun.PASSWORD_ALGORITHM, value))), 400, value)

    def test_9_2_4_order_400_before_401(self) -> None:
        """The algorithms are looked at before the user: both wrong is 400."""
        rows = [*self.without(stun.PASSWORD_ALGORITHM, stun.USERNAME), (stun.USERNAME, "nobody")]
        self.assertEqual(code(self.ask(*rows)), 400)

    def test_9_2_4_order_401_before_438(self) -> None:
        """Who the user is comes before the age of the nonce: a stale nonce under a wrong password is 401."""
        self.world.clock.advance(3700)
        self.assertEqual(code(self.ask(*self.client.proof(), key=b"guess")), 401)
        self.client.credentials = self.world.credentials()
        self.assertEqual(code(self.client.allocate()), 438)

    def test_9_2_4_unknown_user(self) -> None:
        """A user name that is not valid is 401 with REALM, a good NONCE and PASSWORD-ALGORITHMS, without the name."""
        for name in ("", "nobody", f"{NOW + 60}:nowhere", f"{NOW - 1}:myapp", f"+{NOW}:myapp"):
            answer = self.ask(*self.changed(stun.USERNAME, name))
            self.assertEqual((code(answer), answer.get(stun.REALM)), (401, REALM), name)
            self.assertEqual(answer.get(stun.PASSWORD_ALGORITHMS), ALGORITHMS)
            self.assertNotIn(stun.USERNAME, answer)
            self.client.nonce = answer.get(stun.NONCE) or b""
        self.assertEqual(code(self.client.allocate()), 0, "the nonce of the last 401 is good")

    def test_9_2_4_wrong_integrity(self) -> None:
        """401 where the integrity is not that of the user's key: another key, or the same under the other algorithm."""
        md5 = stun.long_term_key(self.client.credentials.username, REALM, self.client.credentials.password)
        for key in (b"guess", md5):
            answer = self.ask(*self.client.proof(), key=key)
            self.assertEqual((code(answer), answer.get(stun.PASSWORD_ALGORITHMS)), (401, ALGORITHMS))
            self.assertFalse(answer.protected)

    def test_9_2_4_sha256_counts(self) -> None:
        """Of two integrities MESSAGE-INTEGRITY-SHA256 is the one that has to be right."""
        request = stun.build(
            Method.ALLOCATE, Class.REQUEST, b"t" * 12, [UDP, *self.client.proof()], key=self.client.key, sha256=False
        )
        tail = struct.pack("!HH", 0x001C, 32) + bytes(32)
        both = request[:2] + struct.pack("!H", len(request) - 20 + 36) + request[4:] + tail
        (answer,) = self.client.give(both)
        self.assertEqual(code(stun.parse(answer)), 401)

    def test_9_2_4_stale_nonce(self) -> None:
        """438 with a valid NONCE, REALM and PASSWORD-ALGORITHMS, without the name; the new nonce serves."""
        self.client.allocate()
        self.client.refresh((stun.LIFETIME, 3600))
        self.world.clock.advance(3601 - 601)
        self.client.refresh((stun.LIFETIME, 3600))
        self.world.clock.advance(700)
        answer = self.client.refresh()
        self.assertEqual((code(answer), answer.get(stun.REALM)), (438, REALM))
        self.assertEqual(answer.get(stun.PASSWORD_ALGORITHMS), ALGORITHMS)
        self.assertNotIn(stun.USERNAME, answer)
        self.client.nonce = answer.get(stun.NONCE) or b""
        self.assertEqual(code(self.client.refresh()), 0)

    def test_9_2_4_nonce_from_the_old_address(self) -> None:
        """Who names an allocation from another address may show the nonce that its client has where addresses are
        proven, on a stream; over UDP that proves nothing, and who only says that it is there gets no allocation's
        packets sent there. Nobody else's nonce is good anywhere."""
        ticket = self.client.allocate((stun.MOBILITY_TICKET, b"")).get(stun.MOBILITY_TICKET)
        stranger = modern(self.world, port=9)
        stranger.challenge()
        self.client.address = ("203.0.113.77", 7)
        self.assertEqual(code(self.client.refresh()), 438)
        self.assertEqual(code(self.client.allocate()), 438)
        self.assertEqual(code(self.client.refresh((stun.MOBILITY_TICKET, ticket))), 438)
        stream = TcpClient(self.world, 7, "203.0.113.78")
        stream.credentials = self.client.credentials
        stream.nonce = stranger.nonce
        self.assertEqual(code(stream.refresh((stun.MOBILITY_TICKET, ticket))), 438)
        stream.nonce = self.client.nonce
        self.assertEqual(code(stream.refresh((stun.MOBILITY_TICKET, ticket))), 0)

    def test_9_2_4_answers(self) -> None:
        """Whoever names an algorithm, MD5 too, gets every answer under MESSAGE-INTEGRITY-SHA256 and that key."""
        for algorithm in PasswordAlgorithm:
            client = modern(self.world, algorithm, port=1000 + algorithm)
            for answer, expected in (
                (client.permit(PEER), 437),
                (client.allocate(), 0),
                (client.permit(("8.8.8.8", 1)), 403),
                (client.refresh(), 0),
                (client.refresh(sha256=False), 0),  # signed with SHA-1, though it names an algorithm
            ):
                self.assertEqual(code(answer), expected)
                self.assertIn(stun.MESSAGE_INTEGRITY_SHA256, answer)
                self.assertNotIn(stun.MESSAGE_INTEGRITY, answer)
                self.assertTrue(answer.verify(client.key))

    def test_9_2_4_sha256_without_an_algorithm(self) -> None:
        """Who signs with MESSAGE-INTEGRITY-SHA256 alone and names no algorithm is answered in kind, under MD5's key."""
        client = self.world.client(port=2)
        answer = client.allocate(sha256=True)
        self.assertEqual(code(answer), 0)
        self.assertIn(stun.MESSAGE_INTEGRITY_SHA256, answer)

    def test_9_2_4_secrets_that_were(self) -> None:
        """Every secret of the namespace proves, under either algorithm; an allocation keeps the key that made it."""
        name = f"{NOW + 60}:myapp"
        self.client.credentials = Credentials(name, password("old-north", name), 60)
        self.assertEqual(code(self.client.allocate()), 0)
        self.world.tenants.put(evolve(MYAPP, secrets=("newer",)))
        self.assertEqual(code(self.client.refresh()), 0)

    def test_9_2_5_subsequent_requests(self) -> None:
        """One challenge does for a whole call under SHA-256: allocate, permit, bind, refresh, release."""
        answers = [
            self.client.allocate(),
            self.client.permit(PEER),
            self.client.bind(0x4000, PEER),
            self.client.refresh(),
            self.client.refresh((stun.LIFETIME, 0)),
        ]
        self.assertEqual(list(map(code, answers)), [0] * 5)


class OfferTests(SynchronousTestCase):
    """How the offer of RFC 8489 and the size of answers to strangers go together."""

    def offered(self, world: World, size: int, verified: bool = False) -> tuple[bool, int]:
        """Whether the challenge to a first request of *size* bytes makes the offer, and how long it is."""
        client = world.client()
        client.verified = verified
        parts = [] if size == 20 else [UDP] if size == 28 else [UDP, (stun.SOFTWARE, "x" * (size - 32))]
        request = stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, parts)
        self.assertEqual(len(request), size)
        (raw,) = client.give(request)
        answer = stun.parse(raw)
        self.assertEqual(code(answer), 401)
        offers = stun.PASSWORD_ALGORITHMS in answer
        self.assertEqual(offers, (answer.get(stun.NONCE) or b"").startswith(COOKIE))
        return offers, len(raw)

    def test_21_1_small_answers(self) -> None:
        """Over UDP a challenge is under twice its request, and makes the offer where there is room."""
        world = World()
        for size in (28, 32, 36, 40):
            self.assertEqual(self.offered(world, size), (False, 52))
        for size in (44, 60, 100):
            self.assertEqual(self.offered(world, size), (True, 80))
        self.assertEqual(self.offered(world, 20), (False, 52))

    def test_21_1_amplification(self) -> None:
        """The factor is a setting."""
        self.assertEqual(self.offered(World(unauthenticated_amplification=3.0), 28), (True, 80))
        self.assertEqual(self.offered(World(unauthenticated_amplification=1.0), 60), (False, 52))

    def test_9_2_4_streams(self) -> None:
        """On a stream, whose address nobody forges, the offer is always made."""
        for size in (20, 28, 60):
            self.assertEqual(self.offered(World(), size, verified=True), (True, 80))


class AnonymityTests(SynchronousTestCase):
    """9.2 and 14.4: user names that are not shown."""

    def setUp(self) -> None:
        self.world = World(all_issued_here=True)
        self.world.server.tick()

    def hidden(self, **who: Any) -> Client:
        client = modern(self.world, **who)
        client.hidden = True
        return client

    def test_14_4_plain_name(self) -> None:
        """The name of a namespace, or of the default one, is found by its hash, though nobody has seen it."""
        self.assertEqual(code(self.hidden().allocate()), 0)
        client = self.hidden(port=2)
        name = str(NOW + 300)
        client.credentials = Credentials(name, password("north", name), 300)
        self.assertEqual(code(client.allocate()), 0)

    def test_14_4_issued_name(self) -> None:
        """A name with a user is found once the server has been told that it was issued."""
        client = self.hidden(user="ann")
        self.assertEqual(code(client.allocate()), 401)
        self.world.server.learn(client.credentials.username)
        self.assertEqual(code(client.allocate()), 0)

    def test_14_4_name_that_was_shown(self) -> None:
        """A name that has authenticated in plain is found by its hash; one that was only tried is not."""
        client = modern(self.world, user="ann")
        client.ask(Method.ALLOCATE, UDP, *client.proof(), signed=False, key=b"guess", sha256=True)
        client.hidden = True
        self.assertEqual(code(client.allocate()), 401)
        client.hidden = False
        client.allocate()
        client.hidden = True
        self.assertEqual(code(client.refresh()), 0)

    def test_14_4_whole_call(self) -> None:
        """A call goes on under USERHASH past the expiry of the name, for every method; nobody's answer shows a name."""
        self.world = World(all_issued_here=True, nonce_lifetime=50000)
        self.world.server.tick()
        client = self.hidden()
        answers = [client.allocate((stun.LIFETIME, 3600)), client.permit(PEER)]
        for _ in range(12):
            self.world.clock.advance(700)
            self.world.server.tick()
            answers += [client.bind(0x4000, PEER), client.refresh((stun.LIFETIME, 3600))]
        self.assertEqual(list(map(code, answers)), [0] * len(answers))
        self.assertFalse(any(stun.USERNAME in answer or stun.USERHASH in answer for answer in answers))

    def test_14_4_wrong_key(self) -> None:
        """A hash proves nothing: without the key it is 401."""
        client = self.hidden()
        client.challenge()
        rows = [UDP, *client.proof()]
        self.assertEqual(code(client.ask(Method.ALLOCATE, *rows, signed=False, key=b"guess", sha256=True)), 401)

    def test_14_4_other_user(self) -> None:
        """A hidden name is the same user as the plain one: 441 on somebody else's allocation."""
        client = modern(self.world, user="ann")
        client.allocate()
        other = self.hidden()
        other.link = client.link
        self.assertEqual(code(other.refresh()), 441)

    def test_9_2_4_bit_only_when_all_are_known(self) -> None:
        """Clients are told to hide their names once every name that can still be used was issued to our knowledge."""

        def hides() -> bool:
            nonce = self.world.client().ask(Method.ALLOCATE, UDP, SOFTWARE, signed=False).get(stun.NONCE) or b""
            return Feature.USERNAME_ANONYMITY in (features(nonce) or Feature.NONE)

        self.assertFalse(hides(), "credentials of before the start may be about")
        self.world.clock.advance(599)
        self.assertFalse(hides())
        self.world.clock.advance(1)
        self.assertTrue(hides())
        self.world = World()
        self.world.server.tick()
        self.world.clock.advance(601)
        self.assertFalse(hides(), "others issue them too")

    def test_14_4_length(self) -> None:
        """A USERHASH that has not 32 bytes is malformed, and missing by that: 400."""
        client = self.hidden()
        client.challenge()
        short = Attribute(stun.USERHASH.type, "SHORT", stun.DATA.format)
        rows = [UDP, *client.proof()[1:], (short, bytes(31))]
        self.assertEqual(code(client.ask(Method.ALLOCATE, *rows, signed=False, key=client.key, sha256=True)), 400)


class AttributeTests(SynchronousTestCase):
    """14: attributes of a request that authenticates."""

    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.challenge()

    def raw(self, *rows: _Row, **build: Any) -> bytes:
        build.setdefault("key", self.client.key)
        return stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [UDP, *rows, *self.client.proof()], **build)

    def answer(self, raw: bytes) -> Message:
        (answer,) = self.client.give(raw)
        return stun.parse(answer)

    def test_14_padding(self) -> None:
        """Padding is ignored whatever it is, and zero in what is sent."""
        name = self.client.credentials.username
        name += ":" + "x" * (-(len(name) + 1) % 4 + 1)
        self.client.credentials = Credentials(name, password("north", name), 600)
        raw = stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [UDP, *self.client.proof()])
        at = raw.index(name.encode()) + len(name)
        self.assertEqual(raw[at : at + 3], b"\0\0\0")
        raw = raw[:at] + b"pad" + raw[at + 3 :]
        signed = raw[:2] + struct.pack("!H", len(raw) - 20 + 24) + raw[4:]
        signed += struct.pack("!HH", 8, 20) + hmac.digest(self.client.key, signed, "sha1")
        self.assertEqual(code(self.answer(signed)), 0)

    def test_14_first_counts(self) -> None:
        """Of an attribute that comes twice the first one counts."""
        self.assertEqual(self.answer(self.raw((stun.LIFETIME, 1000), (stun.LIFETIME, 3000))).get(stun.LIFETIME), 1000)

    def test_14_3_long_username(self) -> None:
        """A name of 763 bytes is read, and one of more is malformed."""
        for length, expected in ((763, 401), (764, 400)):
            row = Attribute(stun.USERNAME.type, "LONG", stun.DATA.format)
            rows = [(row, b"x" * length), (stun.REALM, REALM), (stun.NONCE, self.client.nonce)]
            answer = self.client.ask(Method.ALLOCATE, UDP, *rows, signed=False, key=b"k")
            self.assertEqual(code(answer), expected)

    def test_14_3_not_utf8(self) -> None:
        """A name that is not UTF-8 is malformed: 400."""
        row = Attribute(stun.USERNAME.type, "RAW", stun.DATA.format)
        rows = [(row, b"\xff\xfe"), (stun.REALM, REALM), (stun.NONCE, self.client.nonce)]
        self.assertEqual(code(self.client.ask(Method.ALLOCATE, UDP, *rows, signed=False, key=b"k")), 400)

    def test_14_5_after_integrity(self) -> None:
        """What follows MESSAGE-INTEGRITY is ignored, known or unknown, but for the SHA-256 one and FINGERPRINT."""
        raw = self.raw()
        tail = struct.pack("!HHI", 0xD, 4, 3000) + struct.pack("!HH", 0x7ABC, 0)
        answer = self.answer(raw[:2] + struct.pack("!H", len(raw) - 20 + len(tail)) + raw[4:] + tail)
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 600))

    def test_14_6_after_sha256(self) -> None:
        """What follows MESSAGE-INTEGRITY-SHA256 is ignored, MESSAGE-INTEGRITY too."""
        raw = self.raw(sha256=True)
        tail = struct.pack("!HHI", 0xD, 4, 3000) + struct.pack("!HH", 8, 20) + bytes(20)
        answer = self.answer(raw[:2] + struct.pack("!H", len(raw) - 20 + len(tail)) + raw[4:] + tail)
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 600))

    def test_14_6_truncated(self) -> None:
        """TURN allows no truncation: a MESSAGE-INTEGRITY-SHA256 of 16 to 28 bytes is 401, another length none."""
        plain = stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [UDP, *self.client.proof()])
        for length in (12, 16, 18, 20, 28, 32):
            padded = length + -length % 4
            head = plain[:2] + struct.pack("!H", len(plain) - 20 + 4 + padded) + plain[4:]
            mac = hmac.digest(self.client.key, head, "sha256")[:length]
            answer = self.answer(head + struct.pack("!HH", 0x1C, length) + mac + bytes(padded - length))
            self.assertEqual(code(answer), 0 if length == 32 else 401, length)

    def test_14_7_fingerprint_is_last(self) -> None:
        """An answer to a request with FINGERPRINT ends with one, behind the integrity; what follows it is ignored."""
        answer = self.answer(self.raw(fingerprint=True))
        self.assertEqual(answer.raw[-8:-4], b"\x80\x28\x00\x04")
        self.assertTrue(answer.verify(self.client.key))

    def test_14_8_error_code(self) -> None:
        """An error has its class and number apart, and an empty reason, which a stranger could make us send."""
        answer = self.client.ask(Method.BINDING, (stun.XOR_PEER_ADDRESS, PEER), signed=False)
        self.assertEqual(code(answer), 0, "known but unexpected is ignored")
        row = Attribute(0x7ABC, "NEW", stun.DATA.format)
        (raw,) = self.client.give(stun.build(Method.BINDING, Class.REQUEST, b"t" * 12, [(row, b"")]))
        self.assertIn(b"\x00\x09\x00\x04\x00\x00\x04\x14", raw)

    def test_14_11_algorithms_are_total(self) -> None:
        """Parameters that run over the end make PASSWORD-ALGORITHMS malformed; padded ones are read."""
        attribute = stun.PASSWORD_ALGORITHMS
        self.assertEqual(attribute.format.unpack(b"\0\7\0\3abc\0\0\1\0\0", b""), ((7, b"abc"), (1, b"")))
        self.assertEqual(
            attribute.format.unpack(attribute.format.pack(((7, b"abc"), (1, b"")), b""), b"")[0], (7, b"abc")
        )
        for value in (b"\0\1\0\4", b"\0\1", b"\0\1\0\0\0"):
            self.assertRaises((stun.StunError, struct.error), attribute.format.unpack, value, b"")

    def test_14_15_14_16_alternates(self) -> None:
        """ALTERNATE-SERVER is an address in plain, ALTERNATE-DOMAIN a name of at most 255 bytes; both come back."""
        parts = [
            (stun.ALTERNATE_SERVER, ("192.0.2.7", 3478)),
            (stun.ALTERNATE_SERVER, ("2001:db8::7", 3478)),
            (stun.ALTERNATE_DOMAIN, "turn.example.org"),
        ]
        raw = stun.build(Method.ALLOCATE, Class.ERROR, b"t" * 12, parts)
        message = stun.parse(raw)
        self.assertEqual(message.all(stun.ALTERNATE_SERVER), [("192.0.2.7", 3478), ("2001:db8::7", 3478)])
        self.assertIn(bytes([192, 0, 2, 7]), raw)
        self.assertEqual(message.get(stun.ALTERNATE_DOMAIN), "turn.example.org")
        self.assertRaises(stun.StunError, stun.build, 1, Class.REQUEST, b"t" * 12, [(stun.ALTERNATE_DOMAIN, "x" * 256)])


class VectorTests(SynchronousTestCase):
    """Appendix B.1: a request with the long-term credential, USERHASH and MESSAGE-INTEGRITY-SHA256.

    Its length field, 156, counts the header, so that no parser may take it as it is printed; the integrity was
    computed with that length. The password is the one that OpaqueString is said to make of the other.
    """

    NAME, WORD, DOMAIN = "マトリックス", "TheMatrIX", "example.org"
    RAW = bytes.fromhex(
        "0001009c2112a44278ad3433c6ad72c029da412e"
        "001e00204a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704"
        "001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c394653547679363473410000000014000b"
        "6578616d706c652e6f726700001c0020e4686c8f0edeb59013e07090010a93efccbccc544c0a45d9f830aa6d6f735a01"
    )

    def test_b_1(self) -> None:
        """With the right length it is read, and its user hash is that of its user and realm."""
        self.assertRaises(stun.StunError, stun.parse, self.RAW)
        message = stun.parse(self.RAW[:2] + struct.pack("!H", len(self.RAW) - 20) + self.RAW[4:])
        self.assertEqual((message.method, message.unknown, message.malformed), (Method.BINDING, (), ()))
        self.assertEqual(message.get(stun.USERHASH), stun.userhash(self.NAME, self.DOMAIN))
        self.assertEqual(message.get(stun.NONCE), b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA")
        self.assertEqual(message.get(stun.REALM), self.DOMAIN)

    def test_b_1_integrity(self) -> None:
        """The key of SHA-256 makes the integrity that is printed, over the bytes that are printed."""
        key = stun.long_term_key(self.NAME, self.DOMAIN, self.WORD, PasswordAlgorithm.SHA256)
        self.assertEqual(hmac.digest(key, self.RAW[:-36], "sha256"), self.RAW[-32:])

    def test_b_1_again(self) -> None:
        """Written by us it has the same attributes to the byte, under the right length and the integrity of that."""
        parts = [
            (stun.USERHASH, stun.userhash(self.NAME, self.DOMAIN)),
            (stun.NONCE, b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"),
            (stun.REALM, self.DOMAIN),
        ]
        key = stun.long_term_key(self.NAME, self.DOMAIN, self.WORD, PasswordAlgorithm.SHA256)
        raw = stun.build(Method.BINDING, Class.REQUEST, self.RAW[8:20], parts, key=key, sha256=True)
        self.assertEqual(raw[4:-32], self.RAW[4:-32])
        self.assertEqual(len(raw), len(self.RAW))
        self.assertTrue(stun.parse(raw).verify(key))
