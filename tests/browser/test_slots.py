"""Slots in a real browser: m-lines on which tracks take turns without negotiation."""

from __future__ import annotations

from tests.browser.stage import BrowserTestCase


class SlotTests(BrowserTestCase):
    def test_pages(self) -> None:
        """One slot shows one camera, then the other, then a third that is new: frames of each, and not one offer."""
        seen = self.client_page().run(
            """
            const size = { width: 320, height: 180 };
            window.a = await enter();
            window.c = await enter();
            await a.publishCamera(size);
            await c.publishCamera(size);
            window.b = await enter({ receive: { video: { lastN: 1 }, audio: { lastN: 2 } } });
            const tracks = () => [...b.peers.values()].flatMap(({ tracks }) => [...tracks.values()]);
            const shown = () => tracks().filter(({ kind, mediaTrack }) => kind === "video" && mediaTrack);
            const frames = async () => {
              const all = await statistics(b.connection, "inbound-rtp");
              return all.reduce((sum, { framesDecoded = 0 }) => sum + framesDecoded, 0);
            };
            const more = async () => {
              const start = await frames();
              await until("more frames", async () => (await frames()) > start + 5);
            };
            await until("a camera", () => shown().length === 1);
            await more();
            const events = [];
            for (const type of ["track-added", "track-removed"]) {
              b.addEventListener(type, ({ detail }) => events.push([type, detail.peer.peerId]));
            }
            let offers = 0;
            b.connection.addEventListener("signalingstatechange", () => {
              if (b.connection.signalingState === "have-remote-offer") offers++;
            });
            const mids = [shown()[0].mid];
            const order = [];
            const turn = async (track) => {
              b.receive("video", { tracks: [track.trackId] });
              await until("the other camera", () => shown()[0] === track);
              order.push(track.peerId);
              mids.push(track.mid);
              await more();
            };
            const first = shown()[0];
            await turn(tracks().find((track) => track.kind === "video" && !track.mediaTrack));
            await turn(first);
            window.d = await enter();
            await d.publishCamera(size);
            await until("the third", () => b.peers.get(d.peerId)?.tracks.size === 1);
            await turn([...b.peers.get(d.peerId).tracks.values()][0]);
            return {
              offers,
              mids: new Set(mids).size,
              events,
              expected: [first.peerId, ...order].flatMap((id, at, all) =>
                at ? [["track-removed", all[at - 1]], ["track-added", id]] : []),
            };
            """
        )
        self.assertEqual((seen["offers"], seen["mids"]), (0, 1))
        self.assertEqual(seen["events"], seen["expected"])
