"""Mobility, requirement by requirement of RFC 8016; a test's name is its section."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.net.fabric import Buffer
from orama.turn.mobility import RETRANSMISSION_TIME, TICKET_LENGTH, Tickets
from orama.turn.tenants import Tenant
from orama.wire import channeldata, stun
from orama.wire.stun import Message, Method
from tests.turn.tcp_client import TcpClient
from tests.turn.world import MYAPP, PEER, Client, MemoryLink, World, code


class MobilityTests(SynchronousTestCase):
    """A world, and a client with a mobile allocation and channel 0x4000 to PEER."""

    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.world = World(**self.settings)
        self.client, self.ticket = self.mobile(self.world.client(user="ann"))
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)

    def mobile(self, client: Client) -> tuple[Client, bytes]:
        answer = client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), (stun.MOBILITY_TICKET, b""))
        self.assertEqual(code(answer), 0)
        client.relay = answer.get(stun.XOR_RELAYED_ADDRESS) or client.relay
        return client, answer.get(stun.MOBILITY_TICKET) or b""

    def elsewhere(self, port: int = 50000, user: str = "ann", **who: Any) -> Client:
        """The same user at another address."""
        return self.world.client(port, "192.0.2.200", user=user, **who)

    def resume(self, client: Client, ticket: bytes | None = None, **more: Any) -> Message:
        """A Refresh with a ticket."""
        return client.refresh((stun.MOBILITY_TICKET, self.ticket if ticket is None else ticket), **more)

    def resumed(self, client: Client, ticket: bytes | None = None) -> bytes:
        """A Refresh with a ticket, which succeeds; gives the new ticket."""
        answer = self.resume(client, ticket)
        self.assertEqual(code(answer), 0)
        new = answer.get(stun.MOBILITY_TICKET)
        assert new
        return new

    def from_peer(self, payload: bytes) -> None:
        _, received = self.world.opened[self.client.relay]
        received([payload], PEER)

    def reaches(self, payload: bytes, *clients: Client) -> None:
        """What the peer sends reaches exactly *clients*."""
        everybody = [self.client, *self.others]
        for client in everybody:
            client.link.packets()
        self.from_peer(payload)
        got = [client for client in everybody if client.link.packets() == [channeldata.pack(0x4000, payload)]]
        self.assertEqual(got, list(clients))

    others: tuple[Client, ...] = ()

    def at_peer(self) -> list[bytes]:
        link, _ = self.world.opened[self.client.relay]
        return link.packets()


class AllocateTests(MobilityTests):
    def test_3_1_2_ticket(self) -> None:
        """An empty MOBILITY-TICKET in an Allocate is answered with a ticket; without one there is none."""
        self.assertEqual(len(self.ticket), TICKET_LENGTH)
        self.assertNotIn(stun.MOBILITY_TICKET, self.world.client(40001).allocate())

    def test_3_1_2_retransmission(self) -> None:
        """A retransmitted Allocate gets the same ticket."""
        client = self.world.client(40001)
        asked = (stun.REQUESTED_TRANSPORT, 17), (stun.MOBILITY_TICKET, b"")
        answers = [client.ask(Method.ALLOCATE, *asked, transaction_id=b"once more...") for _ in range(2)]
        self.assertEqual(answers[0].get(stun.MOBILITY_TICKET), answers[1].get(stun.MOBILITY_TICKET))

    def test_3_1_2_ticket_in_an_allocate(self) -> None:
        """A MOBILITY-TICKET that is not empty in an Allocate is 400."""
        answer = self.world.client(40001).allocate((stun.MOBILITY_TICKET, self.ticket))
        self.assertEqual(code(answer), 400)

    def test_3_1_2_forbidden(self) -> None:
        """Where mobility is switched off the answer is 405, and nothing is allocated."""
        world = World(mobility=False)
        self.assertEqual(code(world.client().allocate((stun.MOBILITY_TICKET, b""))), 405)
        self.assertEqual(len(world.server), 0)
        self.assertEqual(code(world.client().allocate()), 0)

    def test_3_1_2_tcp_allocation(self) -> None:
        """A TCP allocation, whose data connections would stay behind, is not mobile: 405."""
        world = World(tcp_relays=True)
        self.assertEqual(code(TcpClient(world).allocate((stun.MOBILITY_TICKET, b""))), 405)


class RefreshTests(MobilityTests):
    def test_3_2_2_new_address(self) -> None:
        """A Refresh with the ticket from another address succeeds, with a lifetime and a ticket that differs."""
        answer = self.resume(self.elsewhere())
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 600))
        self.assertNotIn(answer.get(stun.MOBILITY_TICKET), (None, b"", self.ticket))

    def test_3_2_2_refreshes(self) -> None:
        """It refreshes the allocation like any other."""
        self.world.clock.advance(500)
        self.resumed(self.elsewhere())
        self.world.clock.advance(500)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 1)

    def test_3_2_2_gone(self) -> None:
        """A ticket whose allocation is gone is 437: released, expired or ended with its namespace."""
        for end in (
            lambda: self.client.refresh((stun.LIFETIME, 0)),
            lambda: self.world.clock.advance(601),
            lambda: (self.world.tenants.remove("myapp"), self.world.tenants.put(MYAPP)),
        ):
            self.setUp()
            end()
            self.assertEqual(code(self.resume(self.elsewhere())), 437)

    def test_3_2_2_invalid(self) -> None:
        """A ticket that is not ours, or not whole, is 400; so is an empty one."""
        client = self.elsewhere()
        flipped = bytes((self.ticket[0] ^ 1,)) + self.ticket[1:]
        theirs = Tickets(random.Random(8)).write(1, 0)
        for ticket in (b"", b"x", flipped, self.ticket[:-1], self.ticket + b"x", bytes(TICKET_LENGTH), theirs):
            self.assertEqual(code(self.resume(client, ticket)), 400, ticket)

    def test_3_2_2_every_bit(self) -> None:
        """No ticket with another byte anywhere is good."""
        client = self.elsewhere()

        @given(st.integers(0, TICKET_LENGTH - 1), st.integers(1, 255))
        def change(at: int, by: int) -> None:
            changed = bytearray(self.ticket)
            changed[at] ^= by
            self.assertEqual(code(self.resume(client, bytes(changed))), 400)

        change()

    def test_3_2_2_same_address(self) -> None:
        """A ticket from the address that the allocation has is 400, and so it is from the second one."""
        self.assertEqual(code(self.resume(self.client)), 400)
        moving = self.elsewhere()
        new = self.resumed(moving)
        self.assertEqual(code(self.resume(moving, new)), 400)

    def test_3_2_2_other_user(self) -> None:
        """A ticket that another user shows is 441: of the same namespace, of another one, and of no name."""
        for who in ({"user": "bob"}, {"user": "ann", "namespace": "other"}, {"user": ""}):
            self.assertEqual(code(self.resume(self.elsewhere(**who))), 441, who)
        self.reaches(b"x", self.client)

    def test_3_2_2_nobody(self) -> None:
        """A ticket without credentials, or with a wrong signature, is 401."""
        client = self.elsewhere()
        client.challenge()
        self.assertEqual(code(self.resume(client, signed=False)), 401)
        self.assertEqual(code(self.resume(client, key=b"wrong")), 401)

    def test_3_2_2_has_another_allocation(self) -> None:
        """From an address that has an allocation of its own the ticket is 437, and both stay as they are."""
        other = self.elsewhere()
        other.allocate()
        self.assertEqual(code(self.resume(other)), 437)
        self.assertEqual(len(self.world.server), 2)

    def test_3_2_2_old_five_tuple_stays(self) -> None:
        """Until the client sends data from the new address, data of the peer goes to the old one, and what comes from
        there is relayed and its requests are answered."""
        moving = self.elsewhere()
        self.others = (moving,)
        self.resumed(moving)
        self.reaches(b"down", self.client)
        self.client.data(0x4000, b"up")
        self.assertEqual(self.at_peer(), [b"up"])
        self.assertEqual(code(self.client.permit(PEER)), 0)
        self.reaches(b"down", self.client)

    def test_3_2_2_requests_do_not_move(self) -> None:
        """Requests from the new address are answered, and move nothing by themselves."""
        moving = self.elsewhere()
        self.others = (moving,)
        self.resumed(moving)
        self.assertEqual(code(moving.permit(PEER)), 0)
        self.assertEqual(code(moving.bind(0x4000, PEER)), 0)
        self.assertEqual(code(moving.refresh()), 0)
        self.reaches(b"down", self.client)

    def test_3_2_2_channel_data_moves(self) -> None:
        """ChannelData from the new address is relayed, and from then on the old one has no allocation."""
        moving = self.elsewhere()
        self.others = (moving,)
        self.resumed(moving)
        moving.data(0x4000, b"up")
        self.assertEqual(self.at_peer(), [b"up"])
        self.reaches(b"down", moving)
        self.client.data(0x4000, b"late")
        self.assertEqual(self.at_peer(), [])
        self.assertEqual(code(self.client.refresh()), 437)
        self.assertEqual(code(moving.refresh()), 0)

    def test_3_2_2_send_moves(self) -> None:
        """A Send indication does so too."""
        moving = self.elsewhere()
        self.others = (moving,)
        self.resumed(moving)
        moving.send(PEER, b"up")
        self.assertEqual(self.at_peer(), [b"up"])
        self.reaches(b"down", moving)

    def test_3_2_2_data_behind_a_request(self) -> None:
        """So it does in one burst behind something else."""
        moving = self.elsewhere()
        self.others = (moving,)
        self.resumed(moving)
        binding = stun.build(Method.BINDING, stun.Class.INDICATION, bytes(12))
        moving.give(binding, channeldata.pack(0x4000, b"up"))
        self.assertEqual(self.at_peer(), [b"up"])
        self.reaches(b"down", moving)

    def test_3_2_2_data_without_a_ticket(self) -> None:
        """Data from another address without a Refresh goes nowhere."""
        self.elsewhere().data(0x4000, b"up")
        self.assertEqual(self.at_peer(), [])

    def test_3_2_2_old_ticket(self) -> None:
        """When there is a new ticket the old one is 400, from wherever."""
        self.resumed(self.elsewhere())
        for port in (50000, 50001):
            self.assertEqual(code(self.resume(self.elsewhere(port))), 400)

    def test_3_2_2_retransmission(self) -> None:
        """A retransmitted Refresh with the old ticket gets the same answer, for 30 s and more, though the client has
        moved meanwhile; from elsewhere, or later, it is 400."""
        self.assertGreaterEqual(RETRANSMISSION_TIME, 30)
        moving = self.elsewhere()
        moving.challenge()
        first = self.resume(moving, transaction_id=b"once more...")
        for seconds in (1, 29):
            self.world.clock.advance(seconds)
            again = self.resume(moving, transaction_id=b"once more...")
            self.assertEqual(again.get(stun.MOBILITY_TICKET), first.get(stun.MOBILITY_TICKET))
            moving.data(0x4000, b"up")
        self.assertEqual(code(self.resume(self.elsewhere(50001), transaction_id=b"once more...")), 400)
        self.world.clock.advance(RETRANSMISSION_TIME)
        self.assertEqual(code(self.resume(moving, transaction_id=b"once more...")), 400)

    def test_3_2_2_moves_on(self) -> None:
        """The new ticket is good for the next move, and the one after."""
        ticket, before = self.ticket, self.client
        for port in range(50000, 50005):
            moving = self.elsewhere(port)
            self.others = (before, moving) if before is not self.client else (moving,)
            ticket = self.resumed(moving, ticket)
            moving.data(0x4000, b"up")
            self.reaches(b"down", moving)
            before = moving
        self.assertEqual(len(self.world.server), 1)

    def test_3_2_2_chain(self) -> None:
        """A chain of moves that none of is ever used leaves two addresses and no more: the first and the last."""
        ticket, chain = self.ticket, [self.elsewhere(port) for port in range(50000, 50020)]
        for moving in chain:
            ticket = self.resumed(moving, ticket)
        for moving in chain[:-1]:
            moving.data(0x4000, b"up")
            self.assertEqual(self.at_peer(), [])
            self.assertEqual(code(moving.refresh()), 437)
        self.client.data(0x4000, b"first")
        chain[-1].data(0x4000, b"last")
        self.assertEqual(self.at_peer(), [b"first", b"last"])

    def test_3_2_2_back_again(self) -> None:
        """A client that went back to its first address and shows the new ticket there needs none: 400."""
        new = self.resumed(self.elsewhere())
        self.assertEqual(code(self.resume(self.client, new)), 400)
        self.assertEqual(code(self.client.refresh()), 0)

    def test_3_2_2_release(self) -> None:
        """A Refresh with the ticket and lifetime 0 ends the allocation from another address."""
        answer = self.elsewhere().refresh((stun.MOBILITY_TICKET, self.ticket), (stun.LIFETIME, 0))
        self.assertEqual((code(answer), answer.get(stun.LIFETIME)), (0, 0))
        self.assertEqual(len(self.world.server), 0)

    def test_3_2_2_release_while_moving(self) -> None:
        """The allocation ends for both addresses, whichever asks."""
        moving = self.elsewhere()
        self.resumed(moving)
        self.assertEqual(code(moving.refresh((stun.LIFETIME, 0))), 0)
        self.assertEqual((code(self.client.refresh()), code(moving.refresh())), (437, 437))

    def test_3_2_2_expires_while_moving(self) -> None:
        """And when it expires."""
        moving = self.elsewhere()
        self.resumed(moving)
        self.world.clock.advance(601)
        self.world.server.tick()
        self.assertEqual((code(self.client.refresh()), code(moving.refresh())), (437, 437))
        self.assertEqual(len(self.world.server), 0)

    def test_3_2_2_after_another_secret(self) -> None:
        """A client moves with the credentials that made its allocation when their secret is another."""
        moving = self.elsewhere()
        moving.challenge()
        self.world.tenants.put(Tenant("myapp", ("new",), (50000, 50799), (), MYAPP.allowed_peers))
        self.assertEqual(code(self.resume(moving)), 0)

    def test_3_2_2_expired_credentials(self) -> None:
        """And with credentials that have expired since."""
        client, self.ticket = self.mobile(self.world.client(40001, user="ann", ttl=10))
        moving = self.elsewhere()
        moving.credentials = client.credentials
        self.world.clock.advance(100)
        self.assertEqual(code(self.resume(moving)), 0)

    def test_3_2_2_count(self) -> None:
        """Moving makes no second allocation, in the quota or anywhere."""
        self.resumed(self.elsewhere())
        self.assertEqual(len(self.world.server), 1)
        self.assertEqual(self.world.server.allocations_of("myapp"), 1)
        self.assertEqual(self.world.figures()["orama_turn_allocations", "myapp"], 1)

    def test_6_text(self) -> None:
        """A ticket is of at most 32 characters without a NUL: coturn's client takes no other."""
        self.assertEqual(TICKET_LENGTH, 32)
        self.assertTrue(self.ticket.isascii() and self.ticket.decode().isprintable())

    def test_6_opaque(self) -> None:
        """A ticket shows nothing: no two are alike, and none has the address or the name of its client in it."""
        tickets = {self.mobile(self.world.client(port, user="ann"))[1] for port in range(41000, 41020)}
        self.assertEqual(len(tickets), 20)
        self.assertEqual(len({ticket[:12] for ticket in tickets}), 20)
        self.assertFalse(any(b"ann" in ticket or b"\xcb\x00\x71" in ticket for ticket in tickets))

    def test_6_other_process(self) -> None:
        """The ticket of another process is none here: each has its key."""
        other = World()
        other.server._mobility._tickets = Tickets(random.Random(9))
        answer = other.client(user="ann").refresh((stun.MOBILITY_TICKET, self.ticket))
        self.assertEqual(code(answer), 400)


class OnStream(Client):
    """A client whose address cannot be forged."""

    def give(self, *packets: Buffer) -> list[bytes]:
        self.link.packets()
        burst = [memoryview(bytearray(packet)) for packet in packets]
        self.world.server.received(self.link, burst, self.address, verified=True)
        return self.link.packets()


class StreamTests(MobilityTests):
    """A client on TCP, whose connection breaks."""

    def setUp(self) -> None:
        self.world = World(**self.settings)
        self.client, self.ticket = self.mobile(self.on_stream(40000))
        self.assertEqual(code(self.client.bind(0x4000, PEER)), 0)

    def on_stream(self, port: int) -> Client:
        """A client with a link of its own, as one on TCP has."""
        return OnStream(self.world, ("192.0.2.200", port), self.world.credentials(user="ann"), MemoryLink())

    def hang_up(self, client: Client) -> None:
        self.world.server.disconnected(client.link, client.address)

    def test_3_2_2_break_before_make(self) -> None:
        """A mobile allocation outlives its connection: the client comes back on another one with the ticket."""
        self.hang_up(self.client)
        self.from_peer(b"lost")
        self.assertEqual(self.client.link.packets(), [])
        self.assertEqual(self.world.figures()["orama_turn_dropped_total", "no_client"], 1)
        back = self.on_stream(40001)
        self.others = (back,)
        self.resumed(back)
        back.data(0x4000, b"up")
        self.assertEqual(self.at_peer(), [b"up"])
        self.reaches(b"down", back)

    def test_3_2_2_repeated_with_the_old_nonce(self) -> None:
        """A Refresh signed with a nonce of the old connection gets the same answer when it comes again, though that
        connection has been closed meanwhile and the allocation has moved."""
        for close_first in (True, False):
            back = self.on_stream(40002 + close_first)
            back.nonce = self.client.nonce
            if close_first:
                self.hang_up(self.client)
            first = self.resume(back, transaction_id=b"once more...")
            if not close_first:
                self.hang_up(self.client)
            back.data(0x4000, b"up")
            again = self.resume(back, transaction_id=b"once more...")
            self.assertEqual((code(first), code(again)), (0, 0))
            ticket = again.get(stun.MOBILITY_TICKET)
            assert ticket
            self.assertEqual(ticket, first.get(stun.MOBILITY_TICKET))
            self.client, self.ticket = back, ticket
            back.challenge()

    def test_3_2_2_close_of_the_old_connection_moves(self) -> None:
        """When the old connection is closed, that settles the move without any data."""
        moving = self.on_stream(40001)
        self.others = (moving,)
        self.resumed(moving)
        self.reaches(b"down", self.client)
        self.hang_up(self.client)
        self.reaches(b"down", moving)

    def test_close_of_the_new_connection(self) -> None:
        """When the new connection is closed before it was used, the old one goes on."""
        moving = self.on_stream(40001)
        self.others = (moving,)
        new = self.resumed(moving)
        self.hang_up(moving)
        self.reaches(b"down", self.client)
        self.resumed(self.on_stream(40002), new)

    def test_close_after_moving(self) -> None:
        """The old connection's end ends nothing when the client has moved."""
        moving = self.on_stream(40001)
        self.resumed(moving)
        moving.data(0x4000, b"up")
        self.hang_up(self.client)
        self.assertEqual(code(moving.refresh()), 0)

    def test_never_comes_back(self) -> None:
        """A client that never comes back has its allocation until it expires, and no longer."""
        self.hang_up(self.client)
        self.world.clock.advance(599)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 1)
        self.world.clock.advance(1)
        self.world.server.tick()
        self.assertEqual(len(self.world.server), 0)

    def test_not_mobile(self) -> None:
        """An allocation that is not mobile ends with its connection."""
        client = self.on_stream(40009)
        client.allocate()
        self.hang_up(client)
        self.assertEqual(len(self.world.server), 1)

    def test_same_address_again(self) -> None:
        """A client that comes back from the very port that it had before is at another connection."""
        self.hang_up(self.client)
        back = self.on_stream(40000)
        self.assertEqual(code(self.resume(back)), 0)

    def test_stop(self) -> None:
        """When the server stops, those without a client end as well."""
        self.hang_up(self.client)
        self.world.server.stop()
        self.assertEqual(len(self.world.server), 0)


class QuotaTests(MobilityTests):
    settings = {"allocations_per_user": 3}

    def test_allocate_and_disconnect(self) -> None:
        """Allocations that are left behind count: allocating and hanging up in a loop ends at the quota."""
        codes = []
        for port in range(45000, 45005):
            client = Client(self.world, ("192.0.2.200", port), self.world.credentials(user="ann"), MemoryLink())
            answer = client.ask(Method.ALLOCATE, (stun.REQUESTED_TRANSPORT, 17), (stun.MOBILITY_TICKET, b""))
            codes.append(code(answer))
            self.world.server.disconnected(client.link, client.address)
        self.assertEqual(codes, [0, 0, 486, 486, 486])

    def test_nothing_left(self) -> None:
        """What mobile allocations leave behind when they have ended is nothing."""
        self.resumed(self.elsewhere())
        self.world.clock.advance(601)
        self.world.server.tick()
        self.assertEqual(len(self.world.server._mobility), 0)
        self.assertEqual(self.world.figures()["orama_turn_allocations", "myapp"], 0)
