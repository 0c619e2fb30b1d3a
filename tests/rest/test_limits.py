"""What every request is held to: body size while it comes in, request rate, and the headers of every answer."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Request

from orama.rest.rate import TokenBuckets, bucket_key
from orama.settings import LimitSettings, Settings
from tests.rest.service import ServiceCase, connect

HEAD = b"POST /v1/webrtc/rooms HTTP/1.1\r\nHost: x\r\n"


class Broken(Resource):
    """Raises where nothing may."""

    isLeaf = True

    def render(self, request: Request) -> int:
        raise KeyError("a secret of ours")


class BodyTests(ServiceCase):
    async def test_said_to_be_long(self) -> None:
        """A body that says that it is too long is refused before any of it has come."""
        raw = await connect(self.port)
        raw.transport.write(HEAD + b"Content-Length: 65537\r\nExpect: 100-continue\r\n\r\n")
        answer = await raw.until(b"body_too_large")
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer)
        self.assertIn(b"Content-Type: application/json\r\n", answer)
        self.assertIn(b"Permissions-Policy: camera=(self), microphone=(self)", answer)
        self.clock.advance(5)
        self.assertNotIn(b"100 Continue", await raw.closed)

    async def test_answer_is_not_lost(self) -> None:
        """Who goes on sending a refused body still gets the answer, and the connection ends with the body."""
        raw = await connect(self.port)
        raw.transport.write(HEAD + b"Content-Length: 200000\r\n\r\n" + b"x" * 100_000)
        await raw.until(b"body_too_large")
        raw.transport.write(b"x" * 100_000)
        answer = await raw.closed
        self.assertEqual(answer.count(b"HTTP/1.1"), 1)

    async def test_chunks(self) -> None:
        """A body in chunks is refused at the chunk that is too much, not at the end that never comes."""
        raw = await connect(self.port)
        raw.transport.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.transport.write((b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 3)
        answer = await raw.until(b"body_too_large")
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer)
        raw.transport.loseConnection()
        await raw.closed

    async def test_endless(self) -> None:
        """Who does not stop is cut off after a megabyte."""
        raw = await connect(self.port)
        raw.transport.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.transport.write((b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 40)
        self.assertIn(b"413", await raw.closed)

    async def test_lingers_not_long(self) -> None:
        """Who neither sends nor closes is cut off after five seconds."""
        raw = await connect(self.port)
        raw.transport.write(HEAD + b"Content-Length: 65537\r\n\r\n")
        await raw.until(b"body_too_large")
        self.clock.advance(5)
        await raw.closed
        self.assertEqual([call for call in self.clock.getDelayedCalls() if "_hang_up" in str(call)], [])

    async def test_just_fits(self) -> None:
        """A body of exactly the limit is read."""
        body = b'{"room_id": "r"' + b" " * (65536 - 16) + b"}"
        self.assertEqual(len(body), 65536)
        self.assertEqual((await self.call("POST", "/v1/webrtc/rooms", self.owner, data=body)).status, 201)

    async def test_goes_on(self) -> None:
        """After a refused body the site serves others."""
        raw = await connect(self.port)
        raw.transport.write(HEAD + b"Content-Length: 999999999999999999999\r\n\r\n")
        await raw.until(b"body_too_large")
        self.assertEqual((await self.call("GET", "/health")).status, 200)
        raw.transport.loseConnection()
        await raw.closed


class HeaderTests(ServiceCase):
    async def test_on_every_answer(self) -> None:
        """Safe headers on every answer, and nothing that says what serves it."""
        self.serve(self.make_site(signal=Broken()))
        for method, path, status in (
            ("GET", "/health", 200),
            ("GET", "/nowhere", 404),
            ("GET", "/v1", 404),
            ("GET", "/v1/webrtc/rooms", 401),
            ("PUT", "/v1/webrtc/rooms", 405),
            ("BREW", "/v1/webrtc/rooms", 405),
            ("OPTIONS", "/v1/webrtc/rooms", 204),
            ("OPTIONS", "*", 404),
            ("POST", "/v1/webrtc/rooms/", 404),
            ("GET", "/v1/webrtc/signal", 500),
        ):
            raw = await connect(self.port)
            raw.transport.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await raw.closed).decode().partition("\r\n\r\n")
            self.assertEqual(head.split()[1], str(status), path)
            for name, value in (
                ("Permissions-Policy", "camera=(self), microphone=(self)"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ):
                self.assertIn(f"\r\n{name}: {value}", head, path)
            self.assertNotIn("\r\nServer:", head)
            self.assertNotIn("Twisted", head)
            if status >= 400:
                self.assertIn("\r\nContent-Type: application/json\r\n", head + "\r\n")
                self.assertIn('"code":', body)
        self.assertNotIn("a secret of ours", body)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class MalformedTests(ServiceCase):
    async def test_no_http(self) -> None:
        """What is no HTTP gets a 400 in JSON, and the connection ends."""
        for sent in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 600 + b"\r\n",
            b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 20000 + b"\r\n\r\n",
            HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            HEAD + b"Content-Length: -5\r\n\r\nhello",
            HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        ):
            raw = await connect(self.port)
            raw.transport.write(sent)
            head, _, body = (await raw.closed).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 400 "), sent[:60])
            self.assertIn(b"Content-Type: application/json", head)
            self.assertIn(b'"code": "malformed_request"', body)
        self.assertEqual((await self.call("GET", "/health")).status, 200)


class RateTests(ServiceCase):
    settings = evolve(Settings(), limits=LimitSettings(request_rate=2, request_burst=3))

    async def test_too_many(self) -> None:
        """Above the rate it is 429 with the seconds to wait, for every address of the site; later it goes again."""
        for _ in range(3):
            self.assertEqual(await self.asked("/health"), (200, None))
        for path in ("/health", "/nowhere", "/"):
            self.assertEqual(await self.asked(path), (429, "1"))
        self.clock.advance(0.5)
        self.assertEqual(await self.asked("/health"), (200, None))
        self.assertEqual(await self.asked("/health"), (429, "1"))

    async def test_each_client(self) -> None:
        """Behind a proxy on this machine each client has its own share; a client cannot choose whose it uses."""
        for last in range(4):
            headers = {"X-Forwarded-For": f"203.0.113.9, 192.0.2.{last}"}
            self.assertEqual((await self.call("GET", "/health", headers=headers)).status, 200)
        for number in range(3):
            await self.call("GET", "/health", headers={"X-Forwarded-For": f"192.0.2.{number}, 198.51.100.1"})
        answer = await self.call("GET", "/health", headers={"X-Forwarded-For": "192.0.2.77, 198.51.100.1"})
        self.assertEqual(answer.outcome, (429, "rate_limited"))

    async def asked(self, path: str) -> tuple[int, str | None]:
        answer = await self.call("GET", path)
        return answer.status, answer.header("retry-after")


class TokenBucketsTests(SynchronousTestCase):
    def test_refills(self) -> None:
        """A bucket gives its burst at once, then its rate; the wait is until the next token."""
        buckets = TokenBuckets(rate=2, burst=3)
        self.assertEqual([buckets.take("a", 0.0) for _ in range(4)], [0.0, 0.0, 0.0, 0.5])
        self.assertEqual(buckets.take("a", 0.25), 0.25)
        self.assertEqual([buckets.take("a", 1.0) for _ in range(3)], [0.0, 0.0, 0.5])
        self.assertEqual([buckets.take("a", 1000.0) for _ in range(4)], [0.0, 0.0, 0.0, 0.5])

    def test_clock_that_goes_back(self) -> None:
        """A clock that is set back gives and takes nothing."""
        buckets = TokenBuckets(rate=1, burst=1)
        self.assertEqual(buckets.take("a", 100.0), 0.0)
        self.assertEqual(buckets.take("a", 50.0), 1.0)
        self.assertEqual(buckets.take("a", 51.0), 0.0)

    def test_bounded(self) -> None:
        """However many addresses ask, the table stays small, and those that ask often stay in it."""
        buckets = TokenBuckets(rate=1, burst=1, capacity=100)
        for number in range(1000):
            buckets.take(f"10.0.{number >> 8}.{number & 255}", 0.0)
            buckets.take("busy", 0.0)
        self.assertEqual(len(buckets), 100)
        self.assertGreater(buckets.take("busy", 0.0), 0.0)

    def test_keys(self) -> None:
        """An IPv6 client is its /64, a mapped IPv4 address is the IPv4 address."""
        self.assertEqual(bucket_key("2001:db8::1"), bucket_key("2001:db8::ffff:0:0:2"))
        self.assertNotEqual(bucket_key("2001:db8::1"), bucket_key("2001:db8:0:1::1"))
        self.assertEqual(bucket_key("::ffff:192.0.2.1"), "192.0.2.1")
        self.assertEqual(bucket_key("fe80::1%eth0"), bucket_key("fe80::2"))
        self.assertEqual(bucket_key("local"), "local")
