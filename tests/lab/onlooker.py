"""People with Chromium in a :class:`tests.lab.star.Star`: one publishes, others look on, and say what they saw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

from attrs import frozen

from tests.browser.page import Page
from tests.lab.browser import FarChromium, FarFirefox
from tests.lab.machine import until
from tests.lab.star import HTTP_PORT, SERVER, Star
from tests.node import NodeProcess

Browser: TypeAlias = FarChromium | FarFirefox

#: The camera: the smallest that libwebrtc sends in three sizes.
WIDTH, HEIGHT, FPS = 960, 540, 20


@frozen
class Sender:
    """How the camera is published: by three rids, or by a scalability mode in one stream."""

    name: str
    codec: str
    mode: str = ""


SIMULCAST = Sender("VP8, 3 rids", "video/vp8")
VP9 = Sender("VP9 L3T3_KEY", "video/vp9", "L3T3_KEY")
AV1 = Sender("AV1 L3T3_KEY", "video/av1", "L3T3_KEY")


@frozen
class Seen:
    """What came through in *seconds*, by the browser's statistics. Bitrates are kbit/s without RTP headers.

    :ivar freezes: by the browser's own definition, *frozen* seconds in all; *longest* is the longest time, in seconds,
        in which the count of decoded frames stood still.
    :ivar concealed: the share of audio samples that the decoder made up.
    """

    seconds: float
    fps: float
    width: int
    kbps: float
    freezes: int
    frozen: float
    longest: float
    dropped: int
    keyframes: int
    lost: int
    nacks: int
    plis: int
    audio_kbps: float
    concealed: float
    concealments: int
    rtt: float | None


class Onlooker:
    """A page on which :class:`Sight` of ``lines.js`` watches a connection, whoever the server is."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def begin(self) -> None:
        self.page.run("await sight.begin()")

    def end(self) -> Seen:
        found: dict[str, Any] = self.page.run("return await sight.end()")
        return Seen(**found)

    def look(self, seconds: float) -> Seen:
        """What is seen in so many seconds."""
        self.begin()
        began = time.monotonic()
        until(lambda: time.monotonic() - began > seconds, "a while", 2 * seconds)
        return self.end()

    def until_seen(self, frames: int = 10) -> None:
        """Return once so many frames of the camera were decoded, and sound was played."""
        self.page.run(
            """
            await until("frames and sound", async () => {
              const inbound = await statistics(sight.connection(), "inbound-rtp");
              return inbound.some(({ framesDecoded = 0 }) => framesDecoded >= args[0])
                && inbound.some(({ kind, totalSamplesReceived = 0 }) => kind === "audio" && totalSamplesReceived > 0);
            });
            """,
            frames,
        )

    def until_frames(self, frames: int) -> None:
        """Return once nothing came for half a second, and so many frames after that."""
        self.page.run(
            """
            const decoded = async () => (await sight.look()).video?.framesDecoded ?? 0;
            const now = () => performance.now();
            let [last, since] = [await decoded(), now()];
            await until("a pause", async () => {
              const frames = await decoded();
              if (frames !== last) [last, since] = [frames, now()];
              return now() - since > 500;
            });
            await until("more frames", async () => (await decoded()) > last + args[0]);
            """,
            frames,
        )

    def until_width(self, width: int, seconds: float = 20.0) -> None:
        """Return once pictures of that width are decoded."""
        self.page.run(
            """
            const width = async () => (await sight.look()).video?.frameWidth;
            await until(`pictures of ${args[0]}`, async () => (await width()) === args[0], args[1]);
            """,
            width,
            seconds * 1000,
        )

    def until_steady(self, seconds: float) -> None:
        """Return once nothing stood still and nothing was made up for two seconds."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self.look(2.0)
            if seen.fps and not seen.freezes and seen.concealed < 0.01:
                return
            assert time.monotonic() < deadline, f"not steady within {seconds:g} s: {seen}"

    def recover(self, seconds: float = 20.0) -> bool:
        """Wait for the whole picture, but not for ever; whether it came."""
        try:
            self.until_width(WIDTH, seconds)
        except AssertionError:
            return False
        return True


class Publisher:
    def __init__(self, page: Page) -> None:
        self.page = page

    def layers(self) -> list[dict[str, Any]]:
        """What is sent at the moment, see ``sent`` in ``lines.js``."""
        found: list[dict[str, Any]] = self.page.run("return await sent(sending())")
        return found

    def until_sending(self, sender: Sender) -> None:
        """Return once all layers flow."""
        script = """
            const flows = ({ width, fps }) => fps > 5 && (!args[1] || width === args[1]);
            await until("all layers", async () => (await sent(sending())).filter(flows).length === args[0]);
        """
        self.page.run(script, *((1, WIDTH) if sender.mode else (3, 0)))


class People:
    """Browsers on the star's clients, each with the pages that are asked for, in one call after the other."""

    def __init__(self, star: Star) -> None:
        self._star = star
        self._stack = ExitStack()
        self._browsers: dict[tuple[int, type[Browser]], Browser] = {}
        self._origins: dict[int, str] = {}

    def page(self, client: int, browser: type[Browser] = FarChromium) -> Page:
        """A page of the test's own in the browser of a client, counted from 0. Firefox has one at a time."""
        if (client, browser) not in self._browsers:
            made = self._browsers[client, browser] = browser(self._star.clients[client])
            self._stack.callback(made.quit)
        if client not in self._origins:
            self._origins[client] = self._star.pages(client)
        page = self._browsers[client, browser].page().open(f"{self._origins[client]}/lines.html")
        page.run('await until("the modules", () => document.title === "ready")')
        return page

    def close(self) -> None:
        self._stack.close()


def orama(
    node: NodeProcess, room: str, sender: Sender, publishing: Page, looking: Sequence[Page]
) -> tuple[Publisher, list[Onlooker]]:
    """A call in a room of a node of ours, by the client library."""
    # Loss and delay are of UDP, and TCP would be the way around.
    place = {"url": f"http://{SERVER}:{HTTP_PORT}", "room": room, "apiKey": node.key, "transport": "udp"}
    for page in looking:
        page.run(
            """
            window.room = await orama.connect(args[0]);
            window.sight = new Sight(() => room.connection);
            room.addEventListener("track-added", ({ detail: { track } }) => show(track.mediaTrack));
            """,
            place,
        )
    publishing.run(
        """
        const [place, codec, mode, width, height, fps] = args;
        window.room = await orama.connect(place);
        window.sending = () => room.connection;
        room.publish(tone(), { source: "microphone" });
        const video = await camera(width, height, fps);
        prefer(room.publish(video, { source: "camera", encodings: encodings(mode) }).transceiver, codec);
        """,
        place,
        sender.codec,
        sender.mode,
        WIDTH,
        HEIGHT,
        FPS,
    )
    return _gathered(sender, publishing, looking)


def janus(
    port: int,
    room: int,
    ice_server: dict[str, str],
    sender: Sender,
    publishing: Page,
    looking: Sequence[Page],
) -> tuple[Publisher, list[Onlooker]]:
    """The same in a VideoRoom of a Janus on the server."""
    place = {"url": f"ws://{SERVER}:{port}/", "room": room, "iceServers": [ice_server]}
    feed = publishing.run(
        """
        const [place, codec, mode, width, height, fps] = args;
        window.janus = await Janus.connect(place);
        window.sending = () => janus.connection;
        await janus.create(codec.slice(6), { video_svc: mode !== "", opus_fec: true });
        const video = await camera(width, height, fps);
        return await janus.publish((connection) => {
          connection.addTransceiver(tone(), { direction: "sendonly" });
          // It takes the first rid for the best one.
          const init = { direction: "sendonly", sendEncodings: encodings(mode).reverse() };
          prefer(connection.addTransceiver(video, init), codec);
        });
        """,
        place,
        sender.codec,
        sender.mode,
        WIDTH,
        HEIGHT,
        FPS,
    )
    for page in looking:
        page.run(
            """
            window.janus = await Janus.connect(args[0]);
            window.sight = new Sight(() => janus.connection);
            await janus.subscribe(args[1], ({ track }) => show(track));
            """,
            place,
            feed,
        )
    return _gathered(sender, publishing, looking)


def _gathered(sender: Sender, publishing: Page, looking: Sequence[Page]) -> tuple[Publisher, list[Onlooker]]:
    publisher, onlookers = Publisher(publishing), [Onlooker(page) for page in looking]
    publisher.until_sending(sender)
    for onlooker in onlookers:
        onlooker.until_seen()
    return publisher, onlookers
