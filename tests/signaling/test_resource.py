"""The WebSocket for real: a site on a loopback port, and clients that behave and that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint
from twisted.internet.ssl import CertificateOptions
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource

from orama.errors import NotFound
from orama.net.tls import ServerCertificates
from orama.rest.auth import Authenticator
from orama.rest.site import Site
from orama.rest.tokens import Tokens, new_key
from orama.settings import AuthSettings, LimitSettings, Settings, SignalingSettings
from orama.sfu import events
from orama.signaling.resource import SignalResource
from orama.signaling.service import SignalingService
from tests.signaling.doubles import Node
from tests.signaling.wire import Page, Raw, open_page, open_raw, reactor, upgrade

KEY = "ak_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH:default"
OWNER_KEY = "ak_OWNERghijklmnopqrstuvwxyz0123456789ABCDEFGH:default"
OFF_KEY = "ak_OFFOFFhijklmnopqrstuvwxyz0123456789ABCDEFGH:off"


class Keys:
    """Three API keys; the namespace ``off`` has no WebRTC."""

    def __init__(self) -> None:
        self.wait: Deferred[None] | None = None

    async def role_of(self, key: str) -> tuple[str, str] | None:
        if self.wait is not None:
            await self.wait
        return {KEY: ("default", "member"), OWNER_KEY: ("default", "owner"), OFF_KEY: ("off", "member")}.get(key)

    async def require(self, namespace: str) -> None:
        if namespace not in ("default", "off"):
            raise NotFound("namespace_not_found", "there is no such namespace")


async def webrtc(namespace: str) -> None:
    if namespace == "off":
        raise NotFound("webrtc_not_enabled", "WebRTC is not enabled in this namespace")


class SiteTestCase(TestCase):
    """A site with the signalling resource at its address, in front of rooms in memory."""

    timeout = 30
    signaling = SignalingSettings()
    limits = LimitSettings(origins=("https://app.example",), request_rate=10_000, request_burst=10_000)

    async def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        settings = Settings(signaling=self.signaling, limits=self.limits)
        self.node = Node(settings)
        self.service = SignalingService(reactor, settings, self.node.rooms, self.node, self.node)
        self.keys = Keys()
        self.tokens = Tokens(AuthSettings(), new_key(), reactor)
        root = tree = Resource()
        for name in (b"v1", b"webrtc"):
            child = Resource()
            tree.putChild(name, child)
            tree = child
        authenticator = Authenticator(self.keys, self.tokens)
        tree.putChild(b"signal", SignalResource(self.service, settings, authenticator, webrtc))
        self.service.startService()
        listening = self.listen(Site(root, settings, reactor))
        self.port = listening.getHost().port
        self.pages: list[Page | Raw] = []
        self.addCleanup(self._stop, listening)

    def listen(self, site: Site) -> Any:
        return reactor.listenTCP(0, site, interface="127.0.0.1")

    async def _stop(self, listening: Any) -> None:
        for page in self.pages:
            page.transport.abortConnection()
        await listening.stopListening()
        await self.service.stopService()
        self.assertEqual(len(self.service.sockets), 0)

    async def page(self, query: str = f"?room=room&api_key={KEY}", **how: Any) -> Page:
        page = await open_page(self.port, query, **how)
        self.pages.append(page)
        return page

    async def joined(self, **fields: Any) -> Page:
        page = await self.page()
        await page.until_open()
        page.say("join", **fields)
        await page.until("turn-credentials")
        return page

    async def raw(self, request: bytes) -> Raw:
        raw = await open_raw(self.port, request)
        self.pages.append(raw)
        return raw

    async def raw_socket(self) -> Raw:
        raw = await self.raw(upgrade(f"?room=room&api_key={KEY}"))
        await raw.until(b"\r\n\r\n")
        self.assertIn(b"101", raw.data.split(b"\r\n")[0])
        raw.data = raw.data.partition(b"\r\n\r\n")[2]
        return raw

    async def http(self, request: bytes) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the answer."""
        raw = await self.raw(request)
        await raw.until(b"}")
        head, _, body = raw.data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, json.loads(body)


class AuthenticationTests(SiteTestCase):
    """Who may open the socket, in every form of the contract's section 2."""

    async def test_every_form(self) -> None:
        """A key or a token in a header, in the query (the colon raw or encoded), or in a subprotocol."""
        token = self.tokens.issue("default", "ann", ttl=60)
        forms: list[dict[str, Any]] = [
            {"headers": {"X-API-Key": KEY}},
            {"headers": {"Authorization": f"ApiKey {KEY}"}},
            {"headers": {"Authorization": f"Bearer {token}"}},
            {"query": f"?room=room&api_key={KEY}"},
            {"query": f"?room=room&api_key={quote(KEY, safe='')}"},
            {"query": f"?room=room&token={token}"},
            {"protocols": ["orama", f"auth.{token}"]},
            {"protocols": ["orama", f"auth.{quote(KEY, safe='')}"]},
        ]
        for form in forms:
            page = await self.page(**{"query": "?room=room", **form})
            await page.until_open()
            page.say("join", userId="bob")
            welcome = await page.until("welcome")
            by_token = "token" in str(form.get("query")) or token in str(form)
            self.assertEqual(welcome["userId"], "ann" if by_token else "bob", form)
            self.assertEqual(page.websocket_protocol_in_use, "orama" if "protocols" in form else None)

    async def test_orama_alone(self) -> None:
        """The subprotocol ``orama`` is selected whenever it is offered, and no other."""
        page = await self.page(protocols=["other", "orama"])
        await page.until_open()
        self.assertEqual(page.websocket_protocol_in_use, "orama")

    async def test_not_authenticated(self) -> None:
        """No credential, or a wrong one, is 4401 on an open socket, so that a page sees it."""
        expired = Tokens(AuthSettings(), new_key(), reactor).issue("default", "ann", ttl=60)
        for how in (
            {"query": "?room=room"},
            {"query": "?room=room&api_key=ak_wrong:default"},
            {"query": f"?room=room&token={expired}"},
            {"query": f"?room=room&token={KEY[3:]}"},
            {"query": f"?room=room&api_key={KEY}", "headers": {"Authorization": "Bearer no.such.token"}},
            {"query": "?room=room", "protocols": ["orama", "auth.nonsense"]},
            {"query": "?room=room", "protocols": ["orama"]},
        ):
            page = await self.page(**how)
            self.assertEqual(await page.until_closed(), 4401, how)
            self.assertTrue(page.opened)
        self.assertEqual(self.service.lobby.counters.closed, {4401: 7})

    async def test_forbidden_room(self) -> None:
        """A token whose ``rooms`` lacks the room is 4403 at once."""
        token = self.tokens.issue("default", "ann", ttl=60, rooms=["mine"])
        page = await self.page(f"?room=other&token={token}")
        self.assertEqual(await page.until_closed(), 4403)
        page = await self.page(f"?room=mine&token={token}")
        await page.until_open()
        page.say("join")
        await page.until("welcome")

    async def test_unknown_namespace(self) -> None:
        """A namespace that is not there, or that has no WebRTC, is 4404."""
        token = self.tokens.issue("nowhere", "ann", ttl=60)
        for query in (f"?room=room&token={token}", f"?room=room&api_key={OFF_KEY}"):
            page = await self.page(query)
            self.assertEqual(await page.until_closed(), 4404)

    async def test_room_that_cannot_be(self) -> None:
        """A room id outside the grammar is no room: 4404, with the reason."""
        for room in ("a%20b", "a" * 129, "", "%C3%A9", "..%2F"):
            page = await self.page(f"?room={room}&api_key={KEY}")
            self.assertEqual(await page.until_closed(), 4404, room)
            self.assertIn("128", page.reason or "")

    async def test_origins(self) -> None:
        """Our own pages and configured origins may; any other is 4403, before anything is looked at."""
        for origin, fine in (
            (f"http://127.0.0.1:{self.port}", True),
            ("https://app.example", True),
            ("https://evil.example", False),
            ("null", False),
        ):
            page = await self.page(origin=origin)
            if fine:
                await page.until_open()
                page.say("join")
                await page.until("welcome")
            else:
                self.assertEqual(await page.until_closed(), 4403, origin)

    async def test_client_gone_while_we_look(self) -> None:
        """A client that goes away while its key is looked up leaves nothing behind."""
        self.keys.wait = Deferred()
        raw = await self.raw(upgrade(f"?room=room&api_key={KEY}"))
        gone = raw.until_lost()
        raw.transport.loseConnection()
        await gone
        waiting, self.keys.wait = self.keys.wait, None
        page = await self.joined()
        if not waiting.called:
            waiting.callback(None)
        self.assertEqual(len(self.service.sockets), 1)
        self.assertEqual(page.received[0]["type"], "welcome")

    async def test_slow_lookup(self) -> None:
        """A key that takes its time is waited for."""
        self.keys.wait = Deferred()
        page = await self.page()
        reactor.callLater(0.05, self.keys.wait.callback, None)
        await page.until_open()


class PlainTests(SiteTestCase):
    """What is no WebSocket handshake gets an HTTP answer in JSON."""

    async def test_without_upgrade(self) -> None:
        """A plain GET is 401 without a key and 426 with one; never a page, never a redirect."""
        bare: dict[str, str | None] = {"Upgrade": None, "Connection": None}
        status, headers, body = await self.http(upgrade("?room=room", **bare))
        self.assertEqual((status, body["code"]), (401, "missing_credentials"))
        self.assertIn("apikey", headers["www-authenticate"])
        status, headers, body = await self.http(upgrade(f"?room=room&api_key={KEY}&redirect=https://evil", **bare))
        self.assertEqual((status, body["code"]), (426, "upgrade_required"))
        self.assertEqual(headers["upgrade"], "websocket")
        self.assertNotIn("location", headers)
        status, _, body = await self.http(upgrade("?room=room", **bare, X_API_Key=OFF_KEY))
        self.assertEqual((status, body["code"]), (404, "webrtc_not_enabled"))
        status, _, body = await self.http(upgrade("?room=a%20b", **bare, X_API_Key=KEY))
        self.assertEqual((status, body["code"]), (400, "invalid_room_id"))

    async def test_other_methods(self) -> None:
        """Anything but GET is 405 with ``Allow``."""
        status, headers, body = await self.http(upgrade().replace(b"GET", b"POST"))
        self.assertEqual((status, headers["allow"], body["code"]), (405, "get", "method_not_allowed"))

    async def test_broken_handshakes(self) -> None:
        """Each flaw of a handshake has its status (RFC 6455, 4.2.1 and 4.4)."""
        query = f"?room=room&api_key={KEY}"
        for changes, expected in (
            ({"Upgrade": "h2c"}, 426),
            ({"Sec_WebSocket_Version": "8"}, 426),
            ({"Sec_WebSocket_Version": None}, 426),
            ({"Connection": "keep-alive"}, 400),
            ({"Sec_WebSocket_Key": "short"}, 400),
            ({"Sec_WebSocket_Key": None}, 400),
        ):
            status, headers, _ = await self.http(upgrade(query, **changes))  # type: ignore[arg-type]
            self.assertEqual(status, expected, changes)
            if expected == 426:
                self.assertEqual(headers["sec-websocket-version"], "13")
        status, _, body = await self.http(upgrade(query + "&room=two"))
        self.assertEqual((status, body["code"]), (400, "invalid_request"))

    async def test_odd_but_fine(self) -> None:
        """Tokens in any case, in lists, with extensions that we do not speak: a socket."""
        raw = await self.raw(
            upgrade(
                f"?room=room&api_key={KEY}",
                Upgrade="foo, WebSocket",
                Connection="keep-alive, upgrade",
                Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits, nonsense;;",
            )
        )
        await raw.until(b"\r\n\r\n")
        head = raw.data.partition(b"\r\n\r\n")[0].lower()
        self.assertIn(b" 101 ", head.split(b"\r\n")[0])
        self.assertNotIn(b"extensions", head)
        self.assertNotIn(b"server:", head)
        self.assertIn(b"permissions-policy: camera=(self), microphone=(self)", head)


class TalkTests(SiteTestCase):
    """The session behind the socket."""

    async def test_a_call(self) -> None:
        """Join, the others learn, events arrive, leave closes with 1000."""
        ann = await self.joined(userId="ann")
        bob = await self.joined(userId="bob", metadata={"name": "Bøb"})
        self.assertEqual((await ann.until("peer-joined"))["metadata"], {"name": "Bøb"})
        bob.say("leave")
        self.assertEqual(await bob.until_closed(), 1000)
        self.assertEqual((await ann.until("peer-left"))["reason"], "left")

    async def test_room_closed(self) -> None:
        """``room-closed``, then the socket closes."""
        ann = await self.joined()
        self.node.rooms.close("default", "room")
        self.assertEqual(await ann.until_closed(), 1000)
        self.assertEqual(ann.received[-1]["type"], "room-closed")

    async def test_resume_over_a_new_socket(self) -> None:
        """The socket is cut; a new one takes the place again and the other peer sees nothing of it."""
        ann = await self.joined()
        bob = await self.joined()
        token = bob.received[0]["resume"]
        await ann.until("peer-joined")
        seen = len(ann.received)
        bob.transport.abortConnection()
        await bob.until_closed()
        again = await self.joined(resume=token)
        self.assertEqual(again.received[0]["peerId"], bob.received[0]["peerId"])
        self.assertEqual(len(ann.received), seen)

    async def test_replaced(self) -> None:
        """The socket that is taken over is closed with 4409."""
        bob = await self.joined()
        await self.joined(resume=bob.received[0]["resume"])
        self.assertEqual(await bob.until_closed(), 4409)

    async def test_drain(self) -> None:
        """A drain ends when the last one leaves; new joins are told and closed with 1001."""
        ann = await self.joined()
        drained = self.service.drain("restart", 30)
        self.assertEqual((await ann.until("server-draining"))["reason"], "restart")
        late = await self.page()
        await late.until_open()
        late.say("join")
        self.assertEqual(await late.until_closed(), 1001)
        self.assertEqual(late.received[-1]["type"], "server-draining")
        self.assertNoResult(drained)
        ann.say("leave")
        await drained

    async def test_stop(self) -> None:
        """``stopService`` closes everybody with 1001 and waits for it, also for who does not answer."""
        ann = await self.joined()
        waiting = await self.page()
        await waiting.until_open()
        deaf = await self.raw_socket()
        stopping = self.service.stopService()
        self.assertEqual(await ann.until_closed(), 1001)
        self.assertEqual(await waiting.until_closed(), 1001)
        await stopping
        self.assertEqual(len(self.service.sockets), 0)
        self.assertEqual(deaf.closing_code(), 1001)
        self.assertTrue(self.node.rooms.everybody[0].left)
        self.service.startService()

    async def test_samples(self) -> None:
        """What ``/metrics`` shows counts what happened, and has no label per user."""
        ann = await self.joined(userId="ann")
        ann.sendMessage(b"{")
        await ann.until("error")
        samples = {(name, tuple(labels.items())): value for name, labels, value in self.service.samples()}
        self.assertEqual(samples["orama_signaling_sockets", ()], 1)
        self.assertEqual(samples["orama_signaling_joined", ()], 1)
        self.assertEqual(samples["orama_signaling_joins_total", ()], 1)
        self.assertEqual(samples["orama_signaling_errors_total", (("code", "invalid_message"),)], 1)
        self.assertNotIn("ann", str(samples))

    async def test_autobahn_sees_no_credential(self) -> None:
        """The request that Autobahn is given, and could log, has neither the query nor a credential."""
        token = self.tokens.issue("default", "ann", ttl=60)
        for how in (
            {"query": f"?room=room&token={token}", "headers": {"X-Other": "1"}},
            {"query": "?room=room", "protocols": ["orama", f"auth.{token}"]},
            {"query": "?room=room", "headers": {"Authorization": f"Bearer {token}", "Cookie": token}},
        ):
            await (await self.page(**how)).until_open()  # type: ignore[arg-type]
        self.assertEqual(len(self.service.sockets), 3)
        for socket in self.service.sockets:
            self.assertNotIn(token.encode(), socket.http_request_data)
            self.assertEqual(socket.http_request_uri, "/")

    async def test_nothing_secret_is_logged(self) -> None:
        """Neither a key, a token, a query nor an SDP is in any log event, whatever the level."""
        token = self.tokens.issue("default", "ann", ttl=60)
        for how in (
            {"query": f"?room=room&token={token}"},
            {"query": f"?room=room&api_key={KEY}"},
            {"query": f"?room=room&api_key={KEY}x"},
            {"query": "?room=room", "protocols": ["orama", f"auth.{token}"]},
            {"query": "?room=room", "headers": {"X-API-Key": KEY}},
        ):
            page = await self.page(**how)
            await page.until_open()
            if page.code is None:
                page.say("offer", sdp="v=0 SECRETSDP")
                page.sendMessage(b"{")
        await page.until("error")
        raw = await self.raw(upgrade(f"?room=room&api_key={KEY}", Sec_WebSocket_Key="x"))
        await raw.until(b"}")
        text = "\n".join(repr(event) for event in self.events if "autobahn" not in event["log_namespace"])
        text += "\n".join(repr(event) for event in self.events if "Page" not in repr(event))
        for secret in (KEY, token, "SECRETSDP", page.received[0]["resume"], '"pw"'):
            self.assertNotIn(secret, text)


class LimitTests(SiteTestCase):
    """Frames that are too big, of the wrong kind, or not there at all."""

    signaling = SignalingSettings(message_burst=100_000)

    async def test_frame_at_the_limit(self) -> None:
        """64 KiB pass."""
        page = await self.joined()
        text = json.dumps({"type": "answer", "sdp": ""})
        page.say("answer", sdp="x" * (65536 - len(text)))
        page.say("join")
        self.assertEqual((await page.until("error"))["code"], "invalid_join")
        self.assertEqual(len(self.node.rooms.everybody[0].calls), 1)

    async def test_frame_over_the_limit(self) -> None:
        """One byte more is 1009, and the peer's place is kept as after any lost socket."""
        page = await self.joined()
        page.sendMessage(b" " * 65537)
        self.assertEqual(await page.until_closed(), 1009)
        self.assertFalse(self.node.rooms.everybody[0].left)

    async def test_message_over_the_limit(self) -> None:
        """So is a message of many small fragments."""
        raw = await self.raw_socket()
        raw.frame(1, b" " * 40000, fin=False)
        raw.frame(0, b" " * 40000, fin=False)
        self.assertEqual(await raw.until_closing(), 1009)

    async def test_enormous_frame(self) -> None:
        """A frame that announces 2^62 bytes is refused by its head."""
        raw = await self.raw_socket()
        raw.transport.write(b"\x81\xff" + (1 << 62).to_bytes(8, "big") + bytes(4))
        self.assertEqual(await raw.until_closing(), 1009)

    async def test_not_utf8(self) -> None:
        """Text that is no UTF-8 is 1007 (RFC 6455, 8.1)."""
        raw = await self.raw_socket()
        raw.frame(1, b"\xff\xfe")
        self.assertEqual(await raw.until_closing(), 1007)

    async def test_not_masked(self) -> None:
        """A frame without a mask is 1002 (RFC 6455, 5.1)."""
        raw = await self.raw_socket()
        raw.frame(1, b"{}", mask=False)
        self.assertEqual(await raw.until_closing(), 1002)

    async def test_binary(self) -> None:
        """A binary frame is ``invalid_message``, and the socket stays."""
        page = await self.joined()
        page.sendMessage(b"\x00\x01", isBinary=True)
        self.assertEqual((await page.until("error"))["code"], "invalid_message")
        page.say("leave")
        self.assertEqual(await page.until_closed(), 1000)

    async def test_garbage(self) -> None:
        """Random bytes after the handshake end that socket and no other."""
        page = await self.joined()
        raw = await self.raw_socket()
        raw.transport.write(bytes(range(256)) * 40)
        await raw.until_closing()
        page.say("leave")
        self.assertEqual(await page.until_closed(), 1000)


class LivenessTests(SiteTestCase):
    """Clients that are gone without saying so."""

    signaling = SignalingSettings(ping_interval=0.5, ping_timeout=0.5, send_queue=200_000, join_timeout=1.0)

    async def test_ping(self) -> None:
        """Pings come at their interval, and who answers stays."""
        page = await self.joined()
        await page.until_pinged(3)
        self.assertIsNone(page.code)

    async def test_no_pong(self) -> None:
        """Who does not answer a ping is cut; its media has 15 s more."""
        raw = await self.raw_socket()
        raw.frame(1, b'{"type": "join"}')
        await raw.until(b"welcome")
        await raw.until_lost()
        self.assertEqual(self.node.rooms.everybody[0].calls, [("detach",)])
        self.assertEqual(self.service.dropped, 1)

    async def test_join_timeout(self) -> None:
        """A socket on which nobody joins is closed with 4408."""
        page = await self.page()
        self.assertEqual(await page.until_closed(), 4408)

    async def test_no_answer_to_our_close(self) -> None:
        """Who does not finish the closing handshake is cut."""
        raw = await self.raw(upgrade("?room=room"))
        self.assertEqual(await raw.until_closing(), 4401)
        await raw.until_lost()
        self.assertEqual(len(self.service.sockets), 0)

    async def test_stalled_reader(self) -> None:
        """A reader that stalls is dropped when its queue is full; another one gets every message meanwhile."""
        stalled = await self.raw_socket()
        stalled.frame(1, b'{"type": "join"}')
        await stalled.until(b"turn-credentials")
        page = await self.joined()
        stalled.transport.pauseProducing()
        sent = 0
        slow, quick = self.node.rooms.everybody
        while self.service.dropped == 0 and sent < 500:
            for peer in (slow, quick):
                peer.tell(events.PeerJoined(f"x{sent}", "u", "m" * 40_000))
            sent += 1
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn
        self.assertEqual(self.service.dropped, 1)
        self.assertLess(sent, 500)
        await page._waiter.until(lambda: len(page.received) >= 2 + sent or None)
        self.assertEqual(slow.calls, [("detach",)])
        self.assertIsNone(page.code)


class SecureTests(SiteTestCase):
    """The same over TLS, where the transport is another one."""

    def listen(self, site: Site) -> Any:
        self.certificates = ServerCertificates(Path(self.mktemp()), ("127.0.0.1",), reactor)
        return reactor.listenSSL(0, site, self.certificates.context_factory(), interface="127.0.0.1")

    async def test_a_call(self) -> None:
        """wss, from the handshake to the closing code, with messages of every size in between."""
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", self.port, CertificateOptions(verify=False))
        page = await open_page(self.port, f"?room=room&api_key={KEY}", endpoint=endpoint)
        self.pages.append(page)
        await page.until_open()
        page.say("join", metadata={"name": "x" * 4000})
        await page.until("turn-credentials")
        page.say("answer", sdp="x" * 60_000)
        self.node.rooms.everybody[0].tell(events.Offer("y" * 500_000))
        self.assertEqual(len((await page.until("offer"))["sdp"]), 500_000)
        page.say("leave")
        self.assertEqual(await page.until_closed(), 1000)
        self.assertEqual(self.node.rooms.everybody[0].calls[0], ("answer", "x" * 60_000))


class OfferedTests(SiteTestCase):
    """Another configuration."""

    limits = evolve(SiteTestCase.limits, origins=("*",))

    async def test_any_origin(self) -> None:
        """``*`` lets any origin in, a sandboxed frame's too."""
        for origin in ("https://evil.example", "null"):
            page = await self.page(origin=origin)
            await page.until_open()
            page.say("join")
            await page.until("welcome")
