"""The client library: what it promises when things go as they should, and when they do not."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.browser.proxy import Proxy
from tests.browser.stage import BrowserTestCase, end, node_process
from tests.node import NodeProcess

#: Two rooms' ends in one page: ``a`` publishes camera and microphone, ``b`` receives both.
PAIR = """
    window.a = await enter();
    window.b = await enter();
    await a.publishMicrophone();
    await a.publishCamera({ width: 640, height: 360 });
    await received({ audio: 1, video: 1 }, b.connection);
"""


class TrackTests(BrowserTestCase):
    def test_camera_and_screen(self) -> None:
        """A camera and a screen of one peer are two tracks with their own sources, both seen at once."""
        page = self.client_page()
        seen = page.run(
            PAIR
            + """
            const screen = await a.publishScreen();
            await received({ audio: 1, video: 2 }, b.connection);
            const [peer] = b.peers.values();
            const sources = [...peer.tracks.values()].map(({ source }) => source).sort();
            a.unpublish(screen);
            const shown = () => [...peer.tracks.values()].find(({ source }) => source === "screen");
            await until("no screen", () => !shown());
            await a.publishScreen();
            await until("the screen again", () => shown()?.mediaTrack);
            await received({ audio: 1, video: 2 }, b.connection);
            return { sources, mids: new Set([...peer.tracks.values()].map(({ mid }) => mid)).size };
            """
        )
        self.assertEqual(seen, {"sources": ["camera", "microphone", "screen"], "mids": 3})

    def test_leave_and_come_back(self) -> None:
        """Who leaves takes all tracks along, and is seen and heard again after coming back."""
        page = self.client_page()
        seen = page.run(
            PAIR
            + """
            const events = [];
            for (const type of ["peer-left", "peer-joined", "track-removed"]) {
              b.addEventListener(type, ({ detail }) => events.push(detail.reason ?? type));
            }
            a.leave();
            await until("b is alone", () => b.peers.size === 0);
            const before = b.connection.getTransceivers().length;
            window.a = await enter();
            await a.publishMicrophone();
            await a.publishCamera({ width: 640, height: 360 });
            await received({ audio: 1, video: 1 }, b.connection);
            const [peer] = b.peers.values();
            const there = () => [...peer.tracks.values()].filter(({ mediaTrack }) => mediaTrack).length;
            await until("both tracks", () => there() === 2);
            return { events, before, after: b.connection.getTransceivers().length };
            """
        )
        self.assertEqual(seen["events"], ["track-removed", "track-removed", "left", "peer-joined"])

    def test_unpublish(self) -> None:
        """A track that is taken back goes away at the others while the rest stays."""
        kinds = self.client_page().run(
            PAIR
            + """
            const camera = [...a.publications].find(({ source }) => source === "camera");
            const removed = new Promise((resolve) =>
              b.addEventListener("track-removed", ({ detail }) => resolve(detail.track.source)));
            a.unpublish(camera);
            const source = await removed;
            const [peer] = b.peers.values();
            const before = new Watch(b.connection, "audio");
            await until("more sound", () => before.packets > 0);
            const start = before.packets;
            await until("more sound", () => before.packets > start + 50);
            before.stop();
            return [source, [...peer.tracks.values()].map(({ kind }) => kind)];
            """
        )
        self.assertEqual(kinds, ["camera", ["audio"]])

    def test_redundant(self) -> None:
        """Sound that is published redundant is agreed on as RED, and heard."""
        seen = self.client_page().run(
            """
            window.a = await enter();
            window.b = await enter();
            await a.publishMicrophone(true, { redundant: true });
            await received({ audio: 1, video: 0 }, b.connection);
            const { sdp } = a.connection.remoteDescription;
            const [, first] = /m=audio \\S+ \\S+ (\\d+)/.exec(sdp);
            return sdp.split(`a=rtpmap:${first} `)[1].split("/")[0];
            """
        )
        self.assertEqual(seen, "red")

    def test_unsubscribe(self) -> None:
        """A track that is unsubscribed is not sent any more; subscribed again it is."""
        self.client_page().run(
            PAIR
            + """
            const [peer] = b.peers.values();
            const video = () => [...peer.tracks.values()].find(({ kind }) => kind === "video");
            const frames = async () => {
              const all = await statistics(b.connection, "inbound-rtp");
              return all.reduce((sum, { framesDecoded = 0 }) => sum + framesDecoded, 0);
            };
            b.unsubscribe(video().trackId);
            let last = -1;
            let since = performance.now();
            await until("no more frames", async () => {
              const now = await frames();
              if (now !== last) since = performance.now();
              last = now;
              return performance.now() - since > 700;
            });
            b.subscribe(video().trackId);
            await until("frames again", async () => (await frames()) > last + 10);
            """
        )

    def test_mute(self) -> None:
        """Muting tells the others, and an owner mutes others."""
        seen = self.client_page().run(
            PAIR
            + """
            const [peer] = b.peers.values();
            const [microphone, camera] = [...a.publications];
            const muted = () => [...peer.tracks.values()].filter((track) => track.muted).map(({ source }) => source);
            await microphone.mute();
            await camera.mute();
            await until("two muted", () => muted().length === 2);
            await microphone.unmute();
            await camera.unmute();
            await until("none muted", () => muted().length === 0);
            b.mute([...peer.tracks.values()].find(({ kind }) => kind === "audio").trackId);
            await until("the owner's word", () => microphone.muted);
            return { enabled: microphone.track.enabled, others: muted() };
            """
        )
        self.assertEqual(seen, {"enabled": False, "others": ["microphone"]})

    def test_mute_ends_in_black(self) -> None:
        """Nobody's last picture stays on the screens of others: it is black once the camera is muted."""
        self.client_page().run(
            PAIR
            + """
            const [, camera] = [...a.publications];
            const [peer] = b.peers.values();
            const shown = [...peer.tracks.values()].find(({ kind }) => kind === "video");
            const video = Object.assign(document.createElement("video"), { muted: true });
            video.srcObject = new MediaStream([shown.mediaTrack]);
            await video.play();
            const context = new OffscreenCanvas(64, 36).getContext("2d", { willReadFrequently: true });
            const light = () => {
              context.drawImage(video, 0, 0, 64, 36);
              const { data } = context.getImageData(0, 0, 64, 36);
              return Math.max(...data.filter((_, place) => place % 4 !== 3));
            };
            await until("a picture", () => light() > 64);
            await camera.mute();
            await until("the word", () => shown.muted);
            await until("a black picture", () => light() < 24, 5_000);
            await camera.unmute();
            await until("a picture again", () => light() > 64);
            """
        )

    def test_kick(self) -> None:
        """Who is kicked is told so and is out; the others see why."""
        seen = self.client_page().run(
            PAIR
            + """
            const next = (room, type) => new Promise((resolve) =>
              room.addEventListener(type, ({ detail }) => resolve(detail.reason)));
            const [told, why] = [next(a, "kicked"), next(b, "peer-left")];
            b.kick(a.peerId);
            return [typeof (await told), await why, a.state];
            """
        )
        self.assertEqual(seen, ["string", "kicked", "closed"])

    def test_glare(self) -> None:
        """Offers that collide twenty times, held on either way and at either peer, lose no track of anybody."""
        page = self.client_page()
        page.run(
            """
            window.collisions = [new Collisions(), new Collisions()];
            window.rooms = [];
            for (const one of collisions) {
              one.install();
              rooms.push(await enter());
            }
            window.tracks = (room) => [...room.peers.values()].flatMap((peer) => [...peer.tracks.values()]);
            rooms[0].publish(tone(200));
            rooms[1].publish(tone(300));
            for (const room of rooms) await received({ audio: 1, video: 0 }, room.connection);
            """
        )
        for number in range(20):
            page.run(
                """
                const [number, way] = args;
                const mine = number >> 1 & 1;
                const publish = (which) => rooms[which].publish(tone(400 + number * 20), { source: `tone-${number}` });
                const held = collisions[mine].arm(way);
                publish(way === "incoming" ? 1 - mine : mine);
                await held;
                publish(way === "incoming" ? mine : 1 - mine);
                for (const room of rooms) {
                  const there = () => tracks(room).filter(({ mediaTrack }) => mediaTrack).length;
                  await until(`track ${number}`, () => there() === number + 2);
                }
                """,
                number,
                ("incoming", "outgoing")[number % 2],
            )
        seen = page.run(
            """
            for (const room of rooms) {
              await received({ audio: 21, video: 0 }, room.connection);
              const distinct = new Set(tracks(room).map(({ mediaTrack }) => mediaTrack)).size;
              if (distinct !== 21) throw new Error(`${distinct} tracks of the browser for 21`);
            }
            return collisions.reduce((sum, { count }) => sum + count, 0);
            """
        )
        self.assertEqual(seen, 20)


class DataTests(BrowserTestCase):
    def test_text_and_bytes(self) -> None:
        """Text arrives as text and bytes as bytes, in order, up to 256 KiB, with the sender's name on it."""
        seen = self.client_page().run(
            """
            const [a, b] = [await enter(), await enter()];
            const got = [];
            b.addEventListener("data", ({ detail }) => got.push(detail));
            const channel = a.data("files");
            const large = new Uint8Array(262144).map((_, index) => index * 7);
            channel.send("före");
            channel.send(large);
            channel.send("after");
            await until("three messages", () => got.length === 3);
            const back = new Uint8Array(got[1].data);
            return {
              texts: [got[0].data, got[2].data],
              same: back.length === large.length && back.every((byte, index) => byte === large[index]),
              sender: got.every(({ peerId }) => peerId === a.peerId),
              labels: got.map(({ label }) => label),
            };
            """
        )
        expected = {"texts": ["före", "after"], "same": True, "sender": True, "labels": ["files"] * 3}
        self.assertEqual(seen, expected)

    def test_unreliable(self) -> None:
        """A channel without order and retransmission reaches the others as one, and latecomers too."""
        seen = self.client_page().run(
            """
            const a = await enter();
            const channel = a.data("positions", { ordered: false, maxRetransmits: 0 });
            await until("it is open", () => channel.readyState === "open");
            const b = await enter();
            const got = new Set();
            b.addEventListener("data", ({ detail }) => got.add(detail.data));
            let number = 0;
            const timer = setInterval(() => channel.send(`at ${number++}`), 20);
            await until("twenty messages", () => got.size >= 20);
            clearInterval(timer);
            return [...got].every((text) => /^at \\d+$/.test(text));
            """
        )
        self.assertTrue(seen)


class BitrateTests(BrowserTestCase):
    def test_full_rate(self) -> None:
        """Pictures that cannot be made small, 640×480 at 30 a second, get more than 1200 kbit/s within 10 s."""
        best = self.client_page().run(
            """
            const [a, b] = [await enter(), await enter()];
            a.publish(noise(), { source: "camera" });
            const bytes = async () => {
              const [entry] = await statistics(b.connection, "inbound-rtp");
              return entry ? { at: entry.timestamp, bytes: entry.bytesReceived } : null;
            };
            let last = await until("the first packet", bytes);
            const end = performance.now() + 10_000;
            let best = 0;
            while (best < 1200 && performance.now() < end) {
              const next = await until("a second of pictures", async () => {
                const now = await bytes();
                return now && now.at - last.at >= 1000 && now;
              });
              best = Math.max(best, ((next.bytes - last.bytes) * 8) / (next.at - last.at));
              last = next;
            }
            return best;
            """
        )
        self.assertGreater(best, 1200)


class ResumeTests(BrowserTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.proxy = Proxy(urlsplit(self.node().url).port or 0)
        self.addCleanup(self.proxy.close)

    def test_cut(self) -> None:
        """A signalling socket that breaks is taken up again: no gap in the media, and nobody else notices."""
        page = self.client_page()
        page.run(
            """
            window.a = await enter({ url: args[0] });
            window.b = await enter();
            await a.publishMicrophone();
            await received({ audio: 1, video: 0 }, b.connection);
            window.events = [];
            for (const type of ["peer-left", "peer-joined", "track-added", "track-removed"]) {
              b.addEventListener(type, () => events.push(type));
              a.addEventListener(type, () => events.push(`own ${type}`));
            }
            window.states = [];
            a.addEventListener("state", ({ detail }) => states.push(detail.state));
            window.before = { peerId: a.peerId, connection: a.connection };
            window.watch = new Watch(b.connection, "audio");
            """,
            self.proxy.url,
        )
        self.proxy.cut()
        seen = page.run(
            """
            await until("reconnecting", () => states.includes("reconnecting"));
            await until("connected", () => states.at(-1) === "connected");
            a.publish(tone(500), { source: "after" }); // signalling works in both directions again
            const [peer] = b.peers.values();
            await until("a new track", () => [...peer.tracks.values()].some(({ source }) => source === "after"));
            await received({ audio: 2, video: 0 }, b.connection);
            return {
              events,
              same: a.peerId === before.peerId && a.connection === before.connection,
              longest: watch.stop().longest,
            };
            """
        )
        self.assertTrue(seen["same"])
        self.assertEqual(seen["events"], ["track-added"])
        self.assertLess(seen["longest"], 500)

    def test_changes_meanwhile(self) -> None:
        """What happened while the socket was away is there after it is back, in both directions."""
        page = self.client_page()
        page.run(
            """
            window.a = await enter({ url: args[0] });
            window.b = await enter();
            await a.publish(tone(200), { source: "first" });
            await received({ audio: 1, video: 0 }, b.connection);
            """,
            self.proxy.url,
        )
        self.proxy.block()
        page.run(
            """
            await until("reconnecting", () => a.state === "reconnecting");
            a.publish(tone(300), { source: "from-a" });
            b.publish(tone(400), { source: "from-b" });
            const c = await enter();
            """
        )
        self.proxy.allow()
        page.run(
            """
            const sources = (room) => [...room.peers.values()].flatMap((peer) => [...peer.tracks.values()])
              .filter(({ mediaTrack }) => mediaTrack).map(({ source }) => source).sort().join();
            await until("connected", () => a.state === "connected");
            await until("what b published", () => sources(a) === "from-b");
            await until("what a published", () => sources(b) === "first,from-a");
            await until("who came", () => a.peers.size === 2);
            await received({ audio: 1, video: 0 }, a.connection);
            await received({ audio: 2, video: 0 }, b.connection);
            """
        )


class ForgottenTests(BrowserTestCase):
    def setUp(self) -> None:
        super().setUp()
        self._node = node_process("forgetful", sfu="resume_timeout = 1.0\n").start()
        self.addCleanup(end, self._node)
        self.proxy = Proxy(urlsplit(self._node.url).port or 0)
        self.addCleanup(self.proxy.close)

    def node(self) -> NodeProcess:
        return self._node

    def test_rejoin(self) -> None:
        """A peer that was away for too long comes in anew by itself, and publishes again what it published."""
        page = self.client_page()
        page.run(
            """
            window.a = await enter({ url: args[0], metadata: { name: "Ada" } });
            window.b = await enter();
            await a.publish(tone(200), { source: "song" });
            const got = (window.got = []);
            b.addEventListener("data", ({ detail }) => got.push(detail.data));
            a.data("notes").send("before");
            await until("a message", () => got.length === 1);
            await received({ audio: 1, video: 0 }, b.connection);
            window.former = a.peerId;
            window.reason = new Promise((resolve) =>
              b.addEventListener("peer-left", ({ detail }) => resolve(detail.reason)));
            """,
            self.proxy.url,
        )
        self.proxy.block()
        reason = page.run("return await reason")
        self.proxy.allow()
        seen = page.run(
            """
            await until("connected", () => a.state === "connected" && a.peerId !== former);
            await until("the other", () => a.peers.size === 1);
            const peer = await until("the song", () => [...b.peers.values()].find((one) => one.tracks.size === 1));
            await received({ audio: 1, video: 0 }, b.connection);
            a.data("notes").send("after");
            await until("another message", () => got.length === 2);
            return { name: peer.metadata.name, source: [...peer.tracks.values()][0].source, got };
            """
        )
        self.assertEqual(reason, "timeout")
        self.assertEqual(seen, {"name": "Ada", "source": "song", "got": ["before", "after"]})


class CredentialTests(BrowserTestCase):
    def setUp(self) -> None:
        super().setUp()
        self._node = node_process("brief", turn="credential_ttl = 20\n").start()
        self.addCleanup(end, self._node)

    def node(self) -> NodeProcess:
        return self._node

    def test_a_minute_on_twenty_seconds(self) -> None:
        """Credentials that live 20 s carry a call of a minute without a gap of half a second, and are renewed."""
        seen = self.client_page().run(
            PAIR
            + """
            const watches = ["audio", "video"].map((kind) => new Watch(b.connection, kind));
            const names = new Set();
            const end = performance.now() + 60_000;
            await until("the end of the minute", () => {
              names.add(a.connection.getConfiguration().iceServers[0].username);
              return performance.now() > end;
            }, 70_000);
            const state = a.connection.connectionState;
            return { names: names.size, state, watches: watches.map((watch) => watch.stop()) };
            """
        )
        self.assertGreaterEqual(seen["names"], 4)
        self.assertEqual(seen["state"], "connected")
        for watch in seen["watches"]:
            self.assertLess(watch["longest"], 500)
            self.assertGreater(watch["packets"], 500)
