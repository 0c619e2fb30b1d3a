"""What the server answers: authentication, Binding, Allocate, Refresh, CreatePermission, ChannelBind."""

from __future__ import annotations

import struct

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from orama.turn.credentials import Credentials, issue, password
from orama.wire import stun
from orama.wire.stun import Class, Method
from tests.turn.test_peers import INWARD
from tests.turn.world import (
    FAR_SFU,
    INTERNAL_IP,
    MYAPP,
    NOW,
    OTHER_RELAY,
    OTHER_SFU,
    PEER,
    REALM,
    SFU,
    World,
    code,
)

UDP = (stun.REQUESTED_TRANSPORT, 17)


class StrangerTests(SynchronousTestCase):
    """Who has no credentials gets little, and costs nothing."""

    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def test_binding(self) -> None:
        """Binding tells the address that the request came from, in either family."""
        for ip in ("203.0.113.9", "2001:db8::9"):
            client = self.world.client(ip=ip)
            answer = client.ask(Method.BINDING, signed=False)
            self.assertEqual((answer.cls, answer.get(stun.XOR_MAPPED_ADDRESS)), (Class.SUCCESS, (ip, 40000)))

    def test_binding_fingerprint(self) -> None:
        """An answer carries a FINGERPRINT when the request did."""
        for wanted in (True, False):
            answer = self.client.ask(Method.BINDING, signed=False, fingerprint=wanted)
            self.assertEqual(stun.FINGERPRINT in answer, wanted)

    def test_binding_with_unknown_attribute(self) -> None:
        """420 names the attributes that are not understood."""
        request = struct.pack("!HHI12sHH", 1, 4, stun.COOKIE, b"t" * 12, 0x7FFF, 0)
        (answer,) = self.client.give(request)
        message = stun.parse(answer)
        self.assertEqual((code(message), message.get(stun.UNKNOWN_ATTRIBUTES)), (420, (0x7FFF,)))

    def test_challenge(self) -> None:
        """A request without integrity gets 401 with realm and nonce, and no SOFTWARE."""
        for method in (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND):
            answer = self.client.ask(method, signed=False)
            self.assertEqual(code(answer), 401)
            self.assertEqual(answer.get(stun.REALM), REALM)
            self.assertIsNotNone(answer.get(stun.NONCE))
            self.assertNotIn(stun.SOFTWARE, answer)

    def test_small_answers(self) -> None:
        """The first Allocate of a client gets less than twice its size; so does Binding."""
        request = stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [UDP])
        (answer,) = self.client.give(request)
        self.assertEqual((len(request), len(answer)), (28, 52))
        request = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)
        (answer,) = self.client.give(request)
        self.assertEqual((len(request), len(answer)), (20, 32))

    def test_unknown_method(self) -> None:
        """A method that we do not have, or that is no request, gets 400."""
        for method in (Method.CONNECTION_ATTEMPT, 0x0FF, Method.SEND, Method.DATA):
            self.assertEqual(code(self.client.ask(method, signed=False)), 400)

    def test_no_answer(self) -> None:
        """Responses, indications, ChannelData without an allocation, junk and port 0 get no answer."""
        for packet in (
            b"",
            b"\0",
            bytes(19),
            bytes(20),
            b"\x40\0\0\4abcd",
            b"\xff" * 40,
            stun.build(Method.BINDING, Class.SUCCESS, b"t" * 12),
            stun.build(Method.ALLOCATE, Class.ERROR, b"t" * 12),
            stun.build(Method.BINDING, Class.INDICATION, b"t" * 12),
            stun.build(Method.SEND, Class.INDICATION, b"t" * 12),
            stun.build(Method.DATA, Class.INDICATION, b"t" * 12),
        ):
            self.assertEqual(self.client.give(packet), [], packet.hex())
        self.client.address = (self.client.address[0], 0)
        self.assertEqual(self.client.give(stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)), [])

    def test_rate(self) -> None:
        """Answers to one unproven source are limited; others, streams and who is allocated are not concerned."""
        world = World(unauthenticated_rate=10, unauthenticated_burst=20)
        client, neighbour = world.client(), world.client(ip="203.0.113.10")
        known = world.client(ip="203.0.113.11")
        known.allocate()
        request = stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)
        self.assertEqual(len(client.give(*[request] * 100)), 20)
        self.assertEqual(len(neighbour.give(request)), 1)
        self.assertEqual(len(known.give(*[request] * 100)), 100)
        world.server.received(client.link, [request] * 3, client.address, verified=True)
        self.assertEqual(len(client.link.packets()), 3)
        world.clock.advance(1)
        self.assertEqual(len(client.give(*[request] * 100)), 10)
        self.assertEqual(world.figures()["orama_turn_dropped_total", "rate_limited"], 170)

    def test_right_credentials_pass_the_limit(self) -> None:
        """Whose address somebody floods with can still allocate: a proven request is always answered."""
        world = World(unauthenticated_rate=1, unauthenticated_burst=2)
        client = world.client()
        client.challenge()
        client.give(*[stun.build(Method.BINDING, Class.REQUEST, b"t" * 12)] * 50)
        self.assertEqual(code(client.allocate()), 0)

    def test_nothing_is_kept(self) -> None:
        """Ten thousand sources are answered and leave no allocation, port or count."""
        world = World()
        request = stun.build(Method.ALLOCATE, Class.REQUEST, b"t" * 12, [UDP])
        for number in range(10000):
            client = world.client(ip=f"10.1.{number >> 8}.{number & 255}")
            client.give(request)
        self.assertEqual(len(world.server), 0)
        self.assertEqual(world.figures()["orama_turn_unauthenticated_total",], 10000)


class AuthenticationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def allocate_as(self, username: str, secret: str = "north") -> int:
        client = self.world.client(port=41000)
        client.credentials = Credentials(username, password(secret, username), 0)
        return code(client.allocate())

    def test_right(self) -> None:
        """The issued credentials allocate, and the answer is signed with their key."""
        answer = self.client.allocate()
        self.assertEqual(code(answer), 0)
        self.assertTrue(answer.verify(self.client.key))

    def test_sha256(self) -> None:
        """A request signed with MESSAGE-INTEGRITY-SHA256 is taken and answered with it."""
        answer = self.client.allocate(sha256=True)
        self.assertEqual(code(answer), 0)
        self.assertIn(stun.MESSAGE_INTEGRITY_SHA256, answer)
        self.assertNotIn(stun.MESSAGE_INTEGRITY, answer)

    def test_older_secret(self) -> None:
        """Credentials from any secret of the tenant are taken, so that secrets can be rotated."""
        self.assertEqual(self.allocate_as(f"{NOW + 60}:myapp", "old-north"), 0)

    def test_wrong(self) -> None:
        """A wrong password, secret, namespace or realm gets 401 with a challenge."""
        for username, secret in (
            (f"{NOW + 60}:myapp", "south"),
            (f"{NOW + 60}:other", "north"),
            (f"{NOW + 60}:nobody", "north"),
        ):
            self.assertEqual(self.allocate_as(username, secret), 401)
        self.client.challenge()
        answer = self.client.ask(
            Method.ALLOCATE,
            UDP,
            (stun.USERNAME, self.client.credentials.username),
            (stun.REALM, "elsewhere"),
            (stun.NONCE, self.client.nonce),
            signed=False,
            key=stun.long_term_key(self.client.credentials.username, "elsewhere", self.client.credentials.password),
        )
        self.assertEqual(code(answer), 401)
        self.assertIn(stun.NONCE, answer)

    def test_usernames(self) -> None:
        """Only canonical, current expiries allocate; the expiry alone is the default namespace's."""
        for username, expected in (
            (f"{NOW + 600}", 0),
            (f"{NOW + 600}:myapp:ann", 0),
            (f"{NOW + 365 * 86400}:myapp:bob", 0),
            (f"{NOW}:myapp", 401),
            (f"{NOW - 1}", 401),
            ("0:myapp", 401),
            (f"+{NOW + 600}:myapp", 401),
            (f" {NOW + 600}:myapp", 401),
            (f"0{NOW + 600}:myapp", 401),
            (f"{NOW + 600}:", 401),
            (":myapp", 401),
            ("", 401),
            ("9" * 22 + ":myapp", 401),
            ("' OR 1=1 --:myapp", 401),
            ("%s%n%x:myapp", 401),
        ):
            world, self.world = self.world, World()
            self.assertEqual(self.allocate_as(username), expected, username)
            self.world = world

    def test_default_namespace_off(self) -> None:
        """Without a default namespace an expiry alone is refused."""
        self.world = World(default_namespace="")
        self.assertEqual(self.allocate_as(f"{NOW + 600}"), 401)

    def test_missing_parts(self) -> None:
        """Integrity without USERNAME, REALM or NONCE is 400 (RFC 8489, 9.2.4)."""
        self.client.challenge()
        whole = {
            stun.USERNAME: self.client.credentials.username,
            stun.REALM: REALM,
            stun.NONCE: self.client.nonce,
        }
        for missing in whole:
            parts = [(row, value) for row, value in whole.items() if row is not missing]
            answer = self.client.ask(Method.ALLOCATE, UDP, *parts, signed=False, key=self.client.key)
            self.assertEqual(code(answer), 400)

    def test_stale_nonce(self) -> None:
        """A nonce that is old, forged or another client's gets 438 with a fresh one, also in mid-call."""
        self.client.allocate()
        self.world.clock.advance(500)
        self.client.refresh((stun.LIFETIME, 3600))
        self.world.clock.advance(3200)
        answer = self.client.permit(PEER)
        self.assertEqual((code(answer), answer.get(stun.REALM)), (438, REALM))
        self.client.nonce = answer.get(stun.NONCE) or b""
        self.assertEqual(code(self.client.permit(PEER)), 0)
        stranger = self.world.client(port=40001)
        stranger.nonce = self.client.nonce
        self.assertEqual(code(stranger.allocate()), 438)
        stranger.nonce = b"forged!!"
        self.assertEqual(code(stranger.allocate()), 438)

    def test_wrong_password_after_allocation(self) -> None:
        """A request on a live allocation with a bad signature is refused and changes nothing."""
        self.client.allocate()
        answer = self.client.refresh((stun.LIFETIME, 0), key=b"guess")
        self.assertEqual(code(answer), 401)
        self.assertEqual(len(self.world.server), 1)

    def test_after_integrity(self) -> None:
        """A LIFETIME put behind the signature is not obeyed (RFC 8489, 14.5)."""
        self.client.challenge()
        signed = stun.build(
            Method.ALLOCATE,
            Class.REQUEST,
            b"t" * 12,
            [
                UDP,
                (stun.USERNAME, self.client.credentials.username),
                (stun.REALM, REALM),
                (stun.NONCE, self.client.nonce),
            ],
            key=self.client.key,
        )
        longer = signed[:2] + struct.pack("!H", len(signed) - 20 + 8) + signed[4:] + struct.pack("!HHI", 0xD, 4, 3000)
        (answer,) = self.client.give(longer)
        self.assertEqual(stun.parse(answer).get(stun.LIFETIME), 600)


class AllocateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()

    def test_answer(self) -> None:
        """An allocation has a relay in the namespace's block on the internal IP, a lifetime and the mapped address."""
        answer = self.client.allocate()
        relay = answer.get(stun.XOR_RELAYED_ADDRESS)
        assert relay is not None
        self.assertEqual(relay[0], INTERNAL_IP)
        self.assertTrue(50000 <= relay[1] <= 50799)
        self.assertEqual(answer.get(stun.LIFETIME), 600)
        self.assertEqual(answer.get(stun.XOR_MAPPED_ADDRESS), self.client.address)
        self.assertTrue(self.world.fabric.has(relay))
        self.assertEqual(self.world.opened, {}, "no port is open in the kernel")

    def test_transport(self) -> None:
        """Without a transport 400, with another than UDP 442."""
        self.assertEqual(code(self.client.ask(Method.ALLOCATE)), 400)
        for protocol in (6, 99):
            self.assertEqual(code(self.client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, protocol))), 442)
        self.assertEqual(len(self.world.server), 0)

    def test_family(self) -> None:
        """The family of our relays is given, by name or by default; any other is 440."""
        self.assertEqual(code(self.client.allocate((stun.REQUESTED_ADDRESS_FAMILY, 2))), 440)
        self.assertEqual(code(self.client.allocate((stun.REQUESTED_ADDRESS_FAMILY, 9))), 440)
        self.assertEqual(code(self.client.allocate((stun.REQUESTED_ADDRESS_FAMILY, 1))), 0)

    def test_ipv6_relays(self) -> None:
        """On an IPv6 internal address relays are IPv6, and IPv4 is 440."""
        world = World(relay_ip="fd00::1")
        client = world.client()
        self.assertEqual(code(client.allocate((stun.REQUESTED_ADDRESS_FAMILY, 1))), 440)
        answer = client.allocate((stun.REQUESTED_ADDRESS_FAMILY, 2))
        self.assertEqual((answer.get(stun.XOR_RELAYED_ADDRESS) or ("",))[0], "fd00::1")

    def test_additional_family(self) -> None:
        """Asking for a second family gets the first and ADDRESS-ERROR-CODE; a senseless one is 400 (RFC 8656, 7.2)."""
        extra = (stun.ADDITIONAL_ADDRESS_FAMILY, 2)
        self.assertEqual(code(self.client.allocate(extra, (stun.REQUESTED_ADDRESS_FAMILY, 1))), 400)
        self.assertEqual(code(self.client.allocate((stun.ADDITIONAL_ADDRESS_FAMILY, 1))), 400)
        self.assertEqual(code(self.client.allocate(extra, (stun.EVEN_PORT, True))), 400)
        answer = self.client.allocate(extra)
        self.assertEqual((code(answer), answer.get(stun.ADDRESS_ERROR_CODE)), (0, (2, 440)))

    def test_lifetime(self) -> None:
        """Less than the default gives the default, more gives at most the maximum."""
        for asked, expected in ((1, 600), (600, 600), (1000, 1000), (3600, 3600), (0xFFFFFFFF, 3600)):
            client = self.world.client(port=42000 + expected + asked % 7)
            self.assertEqual(client.allocate((stun.LIFETIME, asked)).get(stun.LIFETIME), expected)

    def test_second(self) -> None:
        """A second Allocate on the five-tuple is 437, by whomever; the first one stands."""
        self.client.allocate()
        relay = self.client.relay
        self.assertEqual(code(self.client.allocate()), 437)
        other = self.world.client(namespace="other")
        other.link = self.client.link
        self.assertEqual(code(other.allocate()), 437)
        self.assertTrue(self.world.fabric.has(relay))

    def test_other_transport(self) -> None:
        """The same client address over another transport is another five-tuple."""
        self.client.allocate()
        self.assertEqual(code(self.world.client().allocate()), 0)
        self.assertEqual(len(self.world.server), 2)

    def test_retransmission(self) -> None:
        """The same transaction of the same user gets the same answer and no second allocation."""
        first = self.client.allocate(transaction_id=b"r" * 12)
        again = self.client.allocate(transaction_id=b"r" * 12)
        self.assertEqual(first.raw, again.raw)
        other = self.world.client(namespace="other")
        other.link = self.client.link
        self.assertEqual(code(other.allocate(transaction_id=b"r" * 12)), 437)
        self.assertEqual(len(self.world.server), 1)

    def test_unknown_attribute(self) -> None:
        """An unknown comprehension-required attribute is 420 with its type, signed."""
        row = stun.Attribute(0x7ABC, "NEW", stun.DATA.format)
        answer = self.client.allocate((row, b"x"))
        self.assertEqual((code(answer), answer.get(stun.UNKNOWN_ATTRIBUTES)), (420, (0x7ABC,)))
        self.assertTrue(answer.verify(self.client.key))

    def test_malformed_attribute(self) -> None:
        """A value that cannot be read is 400."""
        for row in (stun.LIFETIME, stun.REQUESTED_ADDRESS_FAMILY, stun.EVEN_PORT, stun.RESERVATION_TOKEN):
            broken = stun.Attribute(row.type, row.name, stun.DATA.format)
            self.assertEqual(code(self.client.allocate((broken, b"abc"))), 400, row.name)

    def test_dont_fragment(self) -> None:
        """DONT-FRAGMENT is granted."""
        self.assertEqual(code(self.client.allocate((stun.DONT_FRAGMENT, True))), 0)

    def test_even_port(self) -> None:
        """EVEN-PORT gives an even port; with R the next one goes to who shows the token."""
        token = self.client.allocate((stun.EVEN_PORT, True)).get(stun.RESERVATION_TOKEN)
        assert token is not None
        self.assertEqual(self.client.relay[1] % 2, 0)
        for extra in ((stun.EVEN_PORT, False), (stun.REQUESTED_ADDRESS_FAMILY, 1)):
            client = self.world.client(port=40001)
            self.assertEqual(code(client.allocate((stun.RESERVATION_TOKEN, token), extra)), 400)
        stranger = self.world.client(port=40002, namespace="other")
        self.assertEqual(code(stranger.allocate((stun.RESERVATION_TOKEN, token))), 508)
        second = self.world.client(port=40003)
        self.assertEqual(code(second.allocate((stun.RESERVATION_TOKEN, token))), 0)
        self.assertEqual(second.relay[1], self.client.relay[1] + 1)
        third = self.world.client(port=40004)
        self.assertEqual(code(third.allocate((stun.RESERVATION_TOKEN, token))), 508)
        self.assertEqual(len(self.world.server), 2)

    def test_quota_of_a_user(self) -> None:
        """486 at one more than the user may have, over any five-tuples and expiries; others are not concerned."""
        world = World(allocations_per_user=3)
        for number in range(3):
            self.assertEqual(code(world.client(port=1000 + number, user="ann", ttl=100 + number).allocate()), 0)
        self.assertEqual(code(world.client(port=2000, user="ann", ttl=500).allocate()), 486)
        self.assertEqual(code(world.client(port=2001, user="bob").allocate()), 0)

    def test_quota_of_a_namespace(self) -> None:
        """486 at one more than the namespace may have; a retransmission costs nothing, a released one is free."""
        world = World(allocations_per_namespace=3)
        clients = [world.client(port=1000 + number) for number in range(4)]
        for client in clients[:3]:
            client.allocate(transaction_id=b"s" * 12)
            client.allocate(transaction_id=b"s" * 12)
        self.assertEqual(code(clients[3].allocate()), 486)
        self.assertEqual(code(world.client(port=1000, namespace="other").allocate()), 0)
        clients[0].refresh((stun.LIFETIME, 0))
        self.assertEqual(code(clients[3].allocate()), 0)
        self.assertEqual(world.figures()["orama_turn_allocations", "myapp"], 3)

    def test_no_port_left(self) -> None:
        """508 when the block is full, and the refused one holds no quota."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50001)))
        for port in (1, 2):
            self.assertEqual(code(self.world.client(port=port).allocate()), 0)
        self.assertEqual(code(self.world.client(port=3).allocate()), 508)
        self.assertEqual(self.world.figures()["orama_turn_allocations", "myapp"], 2)

    def test_port_comes_back(self) -> None:
        """A port is free again when its allocation has ended, released or expired."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50000)))
        for _ in range(5):
            self.assertEqual(code(self.client.allocate()), 0)
            self.client.refresh((stun.LIFETIME, 0))
        self.assertEqual(code(self.client.allocate()), 0)
        self.world.clock.advance(600)
        self.world.server.tick()
        self.client.credentials = self.world.credentials()
        self.assertEqual(code(self.client.allocate()), 0)

    def test_port_taken_in_the_fabric(self) -> None:
        """A relay address that somebody else attached is passed over."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(50000, 50001)))
        self.world.fabric.attach((INTERNAL_IP, 50000), lambda packets, source: None)
        self.assertEqual(self.client.allocate().get(stun.XOR_RELAYED_ADDRESS), (INTERNAL_IP, 50001))
        self.assertEqual(code(self.world.client(port=3).allocate()), 508)

    def test_draining(self) -> None:
        """While draining new allocations are 508 and old ones are refreshed."""
        self.client.allocate()
        self.world.server.drain()
        self.assertEqual(code(self.world.client(port=2).allocate()), 508)
        self.assertEqual(code(self.client.refresh()), 0)
        self.world.server.undrain()
        self.assertEqual(code(self.world.client(port=2).allocate()), 0)

    def test_draining_a_tenant(self) -> None:
        """Draining one namespace leaves the others alone, and ends with the tenant."""
        self.client.allocate()
        self.world.server.drain_tenant("myapp")
        self.assertEqual(code(self.world.client(port=2).allocate()), 508)
        self.assertEqual(code(self.client.refresh()), 0)
        other = self.world.client(port=3, namespace="other")
        self.assertEqual(code(other.allocate()), 0)
        count = self.world.server.allocations_of
        self.assertEqual((count("myapp"), count("other"), count("nobody")), (1, 1, 0))
        self.world.server.undrain_tenant("myapp")
        self.assertEqual(code(self.world.client(port=2).allocate()), 0)
        self.world.server.drain_tenant("myapp")
        tenant = self.world.tenants.get("myapp")
        assert tenant is not None
        self.world.tenants.remove("myapp")
        self.world.tenants.put(tenant)
        self.assertEqual(code(self.world.client(port=2).allocate()), 0)


class RefreshTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(max_age=5000, max_lifetime=3600)
        self.client = self.world.client(user="ann")
        self.client.allocate()

    def test_extends(self) -> None:
        """A refreshed allocation lives on, past the expiry of the credentials that made it."""
        for _ in range(5):
            self.world.clock.advance(550)
            self.world.server.tick()
            self.assertEqual(self.client.refresh().get(stun.LIFETIME), 600)
        self.assertEqual(len(self.world.server), 1)

    def test_new_credentials(self) -> None:
        """New credentials of the same user refresh it too."""
        self.client.credentials = issue("north", "myapp", 9000, NOW, "ann")
        self.assertEqual(code(self.client.refresh()), 0)

    def test_other_user(self) -> None:
        """Another user or namespace on the five-tuple gets 441, for every method."""
        for who in (
            {"user": "bob"},
            {"user": ""},
            {"namespace": "other", "user": "ann"},
        ):
            intruder = self.world.client(**who)
            intruder.link = self.client.link
            for answer in (intruder.refresh((stun.LIFETIME, 0)), intruder.permit(PEER), intruder.bind(0x4000, PEER)):
                self.assertEqual(code(answer), 441)
        self.assertEqual(len(self.world.server), 1)

    def test_without_allocation(self) -> None:
        """No allocation is 437, for every method."""
        stranger = self.world.client(port=1)
        for answer in (stranger.refresh(), stranger.permit(PEER), stranger.bind(0x4000, PEER)):
            self.assertEqual(code(answer), 437)

    def test_zero(self) -> None:
        """Lifetime 0 ends it at once: relay, port and quota are free."""
        answer = self.client.refresh((stun.LIFETIME, 0))
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 0))
        self.assertEqual(len(self.world.server), 0)
        self.assertFalse(self.world.fabric.has(self.client.relay))
        self.assertEqual(code(self.client.refresh((stun.LIFETIME, 0))), 437)

    def test_expiry(self) -> None:
        """Without a refresh it ends, to the second, whether or not anybody looks."""
        self.world.clock.advance(599)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 1)
        self.world.clock.advance(1)
        self.assertEqual(code(self.client.permit(PEER)), 437)
        self.client.allocate()
        self.world.clock.advance(600)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 0)

    def test_age(self) -> None:
        """No refresh takes it past its total age: the lifetime shrinks, and then it ends."""
        for _ in range(2):
            self.world.clock.advance(500)
            self.assertEqual(self.client.refresh((stun.LIFETIME, 2500)).get(stun.LIFETIME), 2500)
        self.world.clock.advance(2400)
        self.assertEqual(self.client.refresh((stun.LIFETIME, 3600)).get(stun.LIFETIME), 1600)
        self.world.clock.advance(1590)
        answer = self.client.refresh()
        if code(answer) == 438:
            self.client.nonce = answer.get(stun.NONCE) or b""
            answer = self.client.refresh()
        self.assertEqual(answer.get(stun.LIFETIME), 10)
        self.world.clock.advance(10)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 0)

    def test_family(self) -> None:
        """A family that is not the allocation's is 443."""
        self.assertEqual(code(self.client.refresh((stun.REQUESTED_ADDRESS_FAMILY, 2))), 443)
        self.assertEqual(code(self.client.refresh((stun.REQUESTED_ADDRESS_FAMILY, 1))), 0)

    def test_one_line_at_the_end(self) -> None:
        """Its end is one event with namespace, bytes and reason, and nothing secret in it."""
        from twisted.logger import globalLogPublisher

        events: list[dict[str, object]] = []
        observer = lambda event: events.append(event)  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.client.refresh((stun.LIFETIME, 0))
        (event,) = [each for each in events if "bytes_up" in each]
        self.assertEqual((event["namespace"], event["user"], event["reason"]), ("myapp", "ann", "released"))
        text = repr(event)
        for secret in ("north", self.client.credentials.password, self.client.credentials.username):
            self.assertNotIn(secret, text)


class PermissionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.client.allocate()

    def test_without_peer(self) -> None:
        """A CreatePermission without a peer is 400; so is one with half an address."""
        self.assertEqual(code(self.client.permit()), 400)
        broken = stun.Attribute(stun.XOR_PEER_ADDRESS.type, "HALF", stun.DATA.format)
        self.assertEqual(code(self.client.ask(Method.CREATE_PERMISSION, (broken, b"\0\1\0"))), 400)

    def test_inside_is_refused(self) -> None:
        """What points inside is 403 in every spelling, for CreatePermission and for ChannelBind."""
        for ip in INWARD:
            self.assertEqual(code(self.client.permit((ip, 80))), 403, ip)
            self.assertEqual(code(self.client.bind(0x4000, (ip, 80))), 403, ip)

    def test_other_family(self) -> None:
        """An outside peer of the other family is 443."""
        self.assertEqual(code(self.client.permit(("2001:db8::1", 80))), 443)
        self.assertEqual(code(self.client.bind(0x4000, ("2606:4700::1", 80))), 443)

    def test_not_allowed(self) -> None:
        """A public peer that no rule names is 403."""
        self.assertEqual(code(self.client.permit(("8.8.8.8", 53))), 403)

    def test_all_or_none(self) -> None:
        """One refused peer among several refuses all of them."""
        self.assertEqual(code(self.client.permit(PEER, ("8.8.8.8", 53))), 403)
        self.assertEqual(self.world.opened, {})
        self.client.send(PEER, b"x")
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "no_permission"], 1)

    def test_neighbours(self) -> None:
        """The SFU and relays of another namespace: 403 at ChannelBind, dropped for Send, even if the IP is open."""
        self.world.sfu(OTHER_SFU)
        self.assertEqual(code(self.client.permit(OTHER_SFU)), 0, "a permission is an IP's")
        for peer in (OTHER_SFU, OTHER_RELAY, (INTERNAL_IP, 3478)):
            self.assertEqual(code(self.client.bind(0x4000, peer)), 403, peer)
            self.client.send(peer, b"x")
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "forbidden_peer"], 3)

    def test_port_outside_the_media_block(self) -> None:
        """A port of the SFU's IP outside its media block is 403 at ChannelBind and dropped for Send."""
        self.world.tenants.put(evolve(MYAPP, allowed_peers=()))
        client = self.world.client(port=2)
        client.allocate()
        self.assertEqual(code(client.permit((INTERNAL_IP, 22))), 0)
        for port in (0, 22, 5432, 19999, 20500):
            self.assertEqual(code(client.bind(0x4000, (INTERNAL_IP, port))), 403, port)
            client.send((INTERNAL_IP, port), b"x")
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "forbidden_peer"], 5)

    def test_channel_numbers(self) -> None:
        """Numbers outside the range of channels are 400; so is a ChannelBind without number or peer."""
        for number in (0, 0x3FFF, 0x8000, 0xFFFF):
            self.assertEqual(code(self.client.bind(number, PEER)), 400, hex(number))
        for number in (0x4000, 0x4FFF):
            self.assertEqual(code(self.client.bind(number, (PEER[0], number))), 0)
        self.assertEqual(code(self.client.ask(Method.CHANNEL_BIND, (stun.CHANNEL_NUMBER, 0x4001))), 400)
        self.assertEqual(code(self.client.ask(Method.CHANNEL_BIND, (stun.XOR_PEER_ADDRESS, PEER))), 400)

    def test_channel_conflicts(self) -> None:
        """A channel of another peer and a peer of another channel are 400; the same again is a refresh."""
        other = (PEER[0], PEER[1] + 1)
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)
        self.assertEqual(code(self.client.bind(0x4000, other)), 400)
        self.assertEqual(code(self.client.bind(0x4001, PEER)), 400)
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)
        self.assertEqual(code(self.client.bind(0x4001, other)), 0)

    def test_too_many(self) -> None:
        """Permissions and channels of one allocation are bounded: 508, and the neighbour is not concerned."""
        wide = evolve(MYAPP, allowed_peers=(*MYAPP.allowed_peers, *self.networks()))
        self.world.tenants.put(wide)
        answers = [code(self.client.permit((f"8.8.{n >> 8}.{n & 255}", 1))) for n in range(600)]
        self.assertEqual((answers.count(0), answers.count(508)), (256, 344))
        neighbour = self.world.client(port=2)
        neighbour.allocate()
        answers = [code(neighbour.bind(0x4000 + n, (PEER[0], 1 + n))) for n in range(600)]
        self.assertEqual((answers.count(0), answers.count(508)), (256, 344))

    def networks(self) -> list[object]:
        from ipaddress import ip_network

        return [ip_network("8.8.0.0/16")]

    def test_kernel_port_busy(self) -> None:
        """508 when the relay port has to be opened and somebody else on the host has it."""
        self.world.busy = lambda address: True
        self.assertEqual(code(self.client.permit(PEER)), 508)
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 508)

    def test_kernel_port(self) -> None:
        """The relay port opens for a peer elsewhere, once, and not for this process's SFU."""
        self.world.tenants.put(evolve(MYAPP, allowed_peers=(MYAPP.allowed_peers[0],)))
        self.world.sfu(SFU)
        self.assertEqual(code(self.client.permit(SFU)), 0)
        self.assertEqual(code(self.client.bind(0x4000, SFU)), 0)
        self.assertEqual(self.world.opened, {})
        self.assertEqual(code(self.client.permit(FAR_SFU)), 0)
        self.assertEqual(list(self.world.opened), [self.client.relay])
        self.client.bind(0x4001, FAR_SFU)
        self.assertEqual(len(self.world.opened), 1)

    def test_kernel_port_closes(self) -> None:
        """With the allocation its kernel port ends."""
        self.client.permit(PEER)
        self.client.refresh((stun.LIFETIME, 0))
        self.assertTrue(self.world.opened[self.client.relay][0].closed)


class TenantTests(SynchronousTestCase):
    """Namespaces come, change and go while the server runs."""

    def setUp(self) -> None:
        self.world = World()
        self.client, self.other = self.world.client(), self.world.client(port=2, namespace="other")
        self.client.allocate()
        self.other.allocate()

    def test_removed(self) -> None:
        """A removed namespace's allocations end, its credentials are refused, the neighbour goes on."""
        self.world.tenants.remove("myapp")
        self.assertFalse(self.world.fabric.has(self.client.relay))
        self.assertEqual(code(self.client.refresh()), 401)
        self.assertEqual(code(self.other.refresh()), 0)
        self.assertEqual(len(self.world.server), 1)

    def test_secret_changed(self) -> None:
        """A new secret beside the old one disturbs nobody; without the old one its credentials make no allocation."""
        self.world.tenants.put(evolve(MYAPP, secrets=("newer", "north")))
        self.assertEqual(code(self.client.refresh()), 0)
        late = self.world.client(port=3)
        late.credentials = self.client.credentials
        self.world.tenants.put(evolve(MYAPP, secrets=("newer",)))
        self.assertEqual(code(late.allocate()), 401)

    def test_secret_gone(self) -> None:
        """An allocation outlives the secret that made it: whoever has it goes on with it, and nobody else does."""
        self.world.tenants.put(evolve(MYAPP, secrets=("newer",)))
        for _ in range(3):
            self.assertEqual(code(self.client.refresh()), 0)
            self.assertEqual(code(self.client.permit(PEER)), 0)
        self.assertEqual(code(self.client.allocate()), 401)
        stranger = self.world.client(port=3)
        stranger.credentials = self.client.credentials
        self.assertEqual(code(stranger.refresh()), 401)
        self.client.credentials = self.world.credentials()
        self.assertEqual(code(self.client.refresh()), 0)
        self.world.tenants.put(evolve(MYAPP, secrets=("newest",)))
        self.assertEqual(code(self.client.refresh()), 0)

    def test_block_moved(self) -> None:
        """Allocations outside of the namespace's new block end."""
        self.world.tenants.put(evolve(MYAPP, relay_ports=(52000, 52799)))
        self.assertEqual(len(self.world.server), 1)
        self.client.allocate()
        self.assertTrue(52000 <= self.client.relay[1] <= 52799)

    def test_peer_no_longer_allowed(self) -> None:
        """Permissions and channels to peers that the new rules refuse are gone at once."""
        sent = self.world.sfu(SFU)
        self.client.bind(0x4000, PEER)
        self.client.bind(0x4001, SFU)
        self.world.tenants.put(evolve(MYAPP, allowed_peers=()))
        self.client.data(0x4000, b"to the peer")
        self.client.data(0x4001, b"to the SFU")
        self.assertEqual(self.world.opened[self.client.relay][0].sent, [])
        self.assertEqual([packets for packets, _ in sent], [[b"to the SFU"]])

    def test_neighbour_arrives(self) -> None:
        """What becomes another namespace's SFU is shut from then on, though packets went there before."""
        new = (INTERNAL_IP, 21000)
        sent = self.world.sfu(new)
        self.client.permit(new)
        self.client.send(new, b"1")
        self.client.bind(0x4000, new)
        self.world.tenants.put(evolve(MYAPP, namespace="new", relay_ports=(53000, 53799), sfu_media=((*new, 21499),)))
        self.client.send(new, b"2")
        self.client.data(0x4000, b"3")
        self.assertEqual([packets for packets, _ in sent], [[b"1"]])

    def test_no_allocation_crosses(self) -> None:
        """Two namespaces never share a relay port, whatever they ask for."""
        world = World(unauthenticated_rate=0)
        relays = set()
        for number in range(200):
            for namespace in ("myapp", "other"):
                client = world.client(port=100 + number, namespace=namespace)
                client.allocate(*[(stun.EVEN_PORT, True)][: number % 2])
                self.assertEqual(world.tenants.owner_of(client.relay), namespace)
                relays.add(client.relay)
        self.assertEqual(len(relays), 400)

    def test_stop(self) -> None:
        """Stopping ends every allocation and stops listening to the registry."""
        self.world.server.stop()
        self.assertEqual(len(self.world.server), 0)
        self.world.tenants.remove("other")
        self.assertFalse(self.world.fabric.has(self.other.relay))


class FigureTests(SynchronousTestCase):
    def test_samples(self) -> None:
        """The figures have a namespace, a direction, a reason or a code as label: never a user."""
        world = World()
        client = world.client(user="ann")
        client.allocate()
        client.allocate()
        client.bind(0x4000, PEER)
        client.data(0x4000, b"12345", b"123")
        figures = world.figures()
        self.assertEqual(figures["orama_turn_allocations", "myapp"], 1)
        self.assertEqual(figures["orama_turn_allocations", "other"], 0)
        self.assertEqual(figures["orama_turn_bytes_total", "myapp", "up"], 8)
        self.assertEqual(figures["orama_turn_packets_total", "myapp", "up"], 2)
        self.assertEqual(figures["orama_turn_refused_total", "437"], 1)
        self.assertFalse(any("ann" in key for key in figures))
        client.refresh((stun.LIFETIME, 0))
        self.assertEqual(world.figures()["orama_turn_bytes_total", "myapp", "up"], 8, "counters never go back")
