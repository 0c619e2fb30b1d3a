"""Challenges of certificate authorities, in the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, fail, gatherResults
from twisted.internet.task import Clock

from orama.cluster.acme import LIFETIME, SETTLED, Challenges, is_forgotten, new_password
from orama.cluster.dns import stored_records
from orama.cluster.zone import DnsRecord
from orama.errors import BadRequest, Unavailable
from orama.store.tables import dns_records
from tests.store.databases import DatabaseCase, OnPostgres, OnSQLite

BASE = "lab.example"
NAME = f"_acme-challenge.turn.ns-a.{BASE}"


class Waker(Clock):
    """Time that the tests advance, in which nobody who waits waits, unless they are held."""

    held = False

    def callLater(self, delay: float, callable: Any, *args: Any, **keywords: Any) -> Any:
        call = super().callLater(delay, callable, *args, **keywords)
        if not self.held:
            self.calls.remove(call)
            call.called = 1
            callable(*args, **keywords)
        return call


class Taken:
    """A database in which every row is there already."""

    def write(self, *statements: Any) -> Deferred[list[int]]:
        return fail(IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed")))


class ChallengeTests(DatabaseCase):
    async def setUp(self) -> None:
        await super().setUp()
        self.clock = self.waker = Waker()
        self.clock.advance(1_800_000_000)
        self.pokes = 0
        self.challenges = Challenges(self.database, BASE, self.clock, self.poke, 1.0)

    def poke(self) -> None:
        self.pokes += 1

    async def written(self) -> None:
        """Wait until somebody waits."""
        while not self.clock.getDelayedCalls():
            await self.values()

    async def values(self) -> list[tuple[str, str]]:
        return [(row.fqdn, row.value) for row in await stored_records(self.database)]

    async def test_several(self) -> None:
        """Several values stand under one name until each is taken away; both is told at once to the server here."""
        await self.challenges.present(f"{NAME}.", "one")
        await self.challenges.present(NAME.upper(), "two")
        await self.challenges.present(f"_acme-challenge.{BASE}", "of-the-base")
        self.assertEqual(
            await self.values(), [(f"_acme-challenge.{BASE}", "of-the-base"), (NAME, "one"), (NAME, "two")]
        )
        self.assertEqual(self.pokes, 3)
        await self.challenges.cleanup(f"{NAME}.", "one")
        self.assertEqual(await self.values(), [(f"_acme-challenge.{BASE}", "of-the-base"), (NAME, "two")])
        self.assertEqual(self.pokes, 4)
        await self.challenges.cleanup(NAME, "one")

    async def test_row(self) -> None:
        """The row belongs to nobody, and lives as long as everything else."""
        await self.challenges.present(NAME, "one")
        (row,) = await stored_records(self.database)
        self.assertEqual(row, DnsRecord(NAME, "TXT", "one", 60, None, None, self.clock.seconds()))

    async def test_twice(self) -> None:
        """The same again is the same, and as young as the last time; also from two nodes at once."""
        await self.challenges.present(NAME, "one")
        self.clock.advance(LIFETIME - 1)
        await self.challenges.present(NAME, "one")
        self.clock.advance(LIFETIME - 1)
        both = [ensureDeferred(self.challenges.present(NAME, "two")) for _ in range(4)]
        await gatherResults(both)
        self.assertEqual(await self.values(), [(NAME, "one"), (NAME, "two")])

    async def test_taken(self) -> None:
        """When another node has put the same there in this very moment, it is there."""
        challenges = Challenges(Taken(), BASE, self.clock, self.poke, 1.0)  # type: ignore[arg-type]
        await challenges.present(NAME, "one")
        self.assertEqual(self.pokes, 1)

    async def test_forgotten(self) -> None:
        """After an hour a challenge that nobody took away is gone, and nothing else."""
        kept = [
            {"fqdn": NAME, "value": "kept-1", "namespace": "a"},
            {"fqdn": NAME, "value": "kept-2", "node_id": "one"},
            {"fqdn": f"www.{BASE}", "value": "kept-3"},
            {"fqdn": f"xacme-challenge.{BASE}", "value": "kept-4"},
        ]
        for row in kept:
            await self.database.write(dns_records.insert().values(**row, type="TXT", ttl=60, created_at=0))
        await self.challenges.present(NAME, "one")
        self.clock.advance(LIFETIME)
        await self.challenges.forget()
        self.assertEqual(len(await self.values()), 5)
        self.clock.advance(1)
        self.pokes = 0
        await self.challenges.forget()
        await self.challenges.forget()
        self.assertEqual([value for _, value in await self.values()], ["kept-1", "kept-2", "kept-3", "kept-4"])
        self.assertEqual(self.pokes, 1)

    async def test_forgotten_by_the_next(self) -> None:
        """Whoever comes next takes along what is too old."""
        await self.challenges.present(NAME, "one")
        self.clock.advance(LIFETIME + 1)
        await self.challenges.present(NAME, "two")
        self.assertEqual(await self.values(), [(NAME, "two")])
        self.clock.advance(LIFETIME + 1)
        await self.challenges.cleanup(NAME, "three")
        self.assertEqual(await self.values(), [])

    async def test_waits(self) -> None:
        """``present`` answers when every node serves it; ``cleanup`` waits for nobody."""
        self.waker.held = True
        presenting = ensureDeferred(self.challenges.present(NAME, "one"))
        await self.written()
        self.assertEqual((self.pokes, await self.values()), (1, [(NAME, "one")]))
        self.clock.advance(SETTLED - 0.1)
        self.assertFalse(presenting.called)
        self.clock.advance(0.1)
        await presenting
        await self.challenges.cleanup(NAME, "one")

    async def test_stop(self) -> None:
        """A node that stops keeps nobody waiting, and leaves no call behind."""
        self.waker.held = True
        presenting = ensureDeferred(self.challenges.present(NAME, "one"))
        await self.written()
        self.challenges.stop()
        await self.assertFailure(presenting, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_names(self) -> None:
        """Only a challenge's name in the base domain is taken."""
        for fqdn in (
            "",
            BASE,
            f"turn.{BASE}",
            "_acme-challenge.",
            "_acme-challenge.example.org",
            f"_acme-challenge.x{BASE}",
            f"_acme-challenge.{BASE}..",
            f"x._acme-challenge.{BASE}",
            f"_acme-challenge.*.{BASE}",
            f"_acme-challenge.a b.{BASE}",
            f"_acme-challenge.ä.{BASE}",
            f"_acme-challenge.{'a' * 64}.{BASE}",
            f"_acme-challenge.{'a.' * 120}{BASE}",
        ):
            for change in (self.challenges.present, self.challenges.cleanup):
                error = await self.assertFailure(ensureDeferred(change(fqdn, "one")), BadRequest)
                self.assertEqual(error.code, "invalid_fqdn", fqdn)
        self.assertEqual((await self.values(), self.pokes), ([], 0))

    async def test_values(self) -> None:
        """A value is 1 to 255 characters of base64url."""
        for value in ("", "a" * 256, "a b", "a=", "a+", 'a"', "a\n", "ä"):
            error = await self.assertFailure(ensureDeferred(self.challenges.present(NAME, value)), BadRequest)
            self.assertEqual(error.code, "invalid_value", value)
        await self.challenges.present(NAME, "-_" + "a" * 253)

    async def test_no_base_domain(self) -> None:
        """Without a base domain there is nothing to prove."""
        challenges = Challenges(self.database, "", self.clock, self.poke, 1.0)
        error = await self.assertFailure(ensureDeferred(challenges.present(NAME, "one")), BadRequest)
        self.assertEqual(error.code, "invalid_fqdn")

    async def test_database_away(self) -> None:
        """Without the database nothing is promised."""
        await self.database.stop()
        await self.assertFailure(ensureDeferred(self.challenges.present(NAME, "one")), Unavailable)
        self.assertEqual(self.pokes, 0)

    def test_is_forgotten(self) -> None:
        """A row is too old to be served by the rule by which it is taken away."""
        now = 1_800_000_000.0
        young, old = now - LIFETIME, now - LIFETIME - 1
        rows = {
            DnsRecord(NAME, "TXT", "x", 60, created_at=old): True,
            DnsRecord(NAME, "TXT", "x", 60, created_at=young): False,
            DnsRecord(NAME, "TXT", "x", 60, "a", created_at=old): False,
            DnsRecord(NAME, "TXT", "x", 60, None, "one", created_at=old): False,
            DnsRecord(NAME, "A", "x", 60, created_at=old): False,
            DnsRecord(BASE, "TXT", "x", 60, created_at=old): False,
        }
        self.assertEqual({row: is_forgotten(row, now) for row in rows}, rows)

    def test_password(self) -> None:
        """Passwords have 256 bits and are text."""
        self.assertEqual((len(new_password()), new_password().isascii()), (43, True))
        self.assertNotEqual(new_password(), new_password())


class OnSQLiteTests(OnSQLite, ChallengeTests):
    pass


class OnPostgresTests(OnPostgres, ChallengeTests):
    pass


del ChallengeTests
