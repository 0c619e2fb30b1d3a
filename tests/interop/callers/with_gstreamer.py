"""A call with GStreamer's webrtcbin, by Debian's own Python; see the package."""

import json
import sys
import threading
from urllib.parse import quote, urlsplit

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

MEDIA = """
webrtcbin name=call bundle-policy=max-bundle
audiotestsrc is-live=true wave=ticks ! audioconvert ! audioresample ! opusenc ! rtpopuspay pt=111 !
  application/x-rtp,media=audio,encoding-name=OPUS,payload=111 ! call.
videotestsrc is-live=true pattern=ball ! video/x-raw,width=640,height=360,framerate=20/1 !
  vp8enc deadline=1 cpu-used=8 keyframe-max-dist=2000 target-bitrate=400000 !
  rtpvp8pay pt=96 picture-id-mode=15-bit !
  application/x-rtp,media=video,encoding-name=VP8,payload=96 ! call.
"""


def say(**message):
    print(json.dumps(message), flush=True)


class Call:
    """Everything happens on GLib's thread. Promises, replies and descriptions are kept until they have been used."""

    def __init__(self, order):
        self.name = order["name"]
        self.seen = {"state": "new", "audio": 0, "video": 0, "frames": 0, "heard": []}
        self.waiting = []
        self.busy, self.offering = False, True
        self.kept = []
        self.channels = []
        self.pipeline = Gst.parse_launch(MEDIA)
        self.bin = self.pipeline.get_by_name("call")
        scheme, _, rest = order["uri"].partition(":")
        who = f"{quote(order['username'], safe='')}:{quote(order['password'], safe='')}"
        self.bin.set_property("turn-server", f"{scheme}://{who}@{rest}")
        self.bin.set_property("ice-transport-policy", GstWebRTC.WebRTCICETransportPolicy.RELAY)
        # Without this it gathers nothing on loopback.
        self.agent = self.bin.get_property("ice-agent")
        host = urlsplit(f"//{rest.partition('?')[0]}").hostname
        if host in ("127.0.0.1", "localhost"):
            self.agent.emit("add-local-ip-address", "127.0.0.1")
        self.bin.connect("on-ice-candidate", self.candidate)
        self.bin.connect("pad-added", self.received)
        self.bin.connect("on-data-channel", lambda _, channel: self.listen(channel))
        self.bin.connect("notify::connection-state", self.changed)
        self.pipeline.set_state(Gst.State.READY)
        self.chat = self.bin.emit("create-data-channel", "chat", None)
        self.listen(self.chat)
        self.pipeline.set_state(Gst.State.PLAYING)
        self.bin.connect("on-negotiation-needed", self.offer)
        GLib.timeout_add(200, self.talk)

    # What we say

    def offer(self, _):
        self.ask("create-offer", self.offered)

    def ask(self, what, then):
        promise = Gst.Promise.new_with_change_func(lambda promise, *_: GLib.idle_add(then, promise), None, None)
        self.kept.append(promise)
        self.bin.emit(what, None, promise)

    def offered(self, promise):
        self.describe(promise, "offer")

    def answered(self, promise):
        self.describe(promise, "answer")
        self.next()

    def describe(self, promise, kind):
        reply = promise.get_reply()
        description = reply.get_value(kind)
        self.kept += [reply, description]
        self.bin.emit("set-local-description", description, Gst.Promise.new())
        say(type=kind, sdp=description.sdp.as_text())

    def candidate(self, _, line, candidate):
        say(type="ice-candidate", candidate=candidate, sdpMid=None, sdpMLineIndex=line)

    def talk(self):
        if self.chat.get_property("ready-state") == GstWebRTC.WebRTCDataChannelState.OPEN:
            self.chat.emit("send-string", f"hello from {self.name}")
        say(seen=self.seen)
        return True

    # What we are told

    def handle(self, message):
        if message["type"] == "answer":
            self.offering = False
        elif message["type"] != "offer" or self.offering:
            return  # both have offered at once, and the SFU yields
        self.waiting.append(message)
        if not self.busy:
            self.next()

    def next(self):
        """One description after the other."""
        self.busy = bool(self.waiting)
        if not self.busy:
            return
        message = self.waiting.pop(0)
        _, sdp = GstSdp.SDPMessage.new_from_text(message["sdp"])
        kind = GstWebRTC.WebRTCSDPType.OFFER if message["type"] == "offer" else GstWebRTC.WebRTCSDPType.ANSWER
        description = GstWebRTC.WebRTCSessionDescription.new(kind, sdp)
        then = (lambda: self.ask("create-answer", self.answered)) if message["type"] == "offer" else self.next
        promise = Gst.Promise.new_with_change_func(lambda *_: GLib.idle_add(then), None, None)
        self.kept += [sdp, description, promise]
        self.bin.emit("set-remote-description", description, promise)

    def changed(self, *_):
        self.seen["state"] = self.bin.get_property("connection-state").value_nick

    def listen(self, channel):
        self.channels.append(channel)
        channel.connect("on-message-string", self.hear)

    def hear(self, _, text):
        if text not in self.seen["heard"]:
            self.seen["heard"].append(text)

    def received(self, _, pad):
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        kind = pad.get_current_caps().get_structure(0).get_string("media")
        pad.add_probe(Gst.PadProbeType.BUFFER | Gst.PadProbeType.BUFFER_LIST, self.count, kind)
        decode = {"audio": "rtpopusdepay ! opusdec", "video": "rtpvp8depay ! vp8dec"}[kind]
        sink = Gst.parse_bin_from_description(f"{decode} ! fakesink name=end sync=false signal-handoffs=true", True)
        sink.get_by_name("end").connect("handoff", self.decoded, kind)
        self.pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def count(self, _, info, kind):
        buffers = info.get_buffer_list()
        self.seen[kind] += buffers.length() if buffers else 1
        return Gst.PadProbeReturn.OK

    def decoded(self, _sink, _buffer, _pad, kind):
        self.seen["frames"] += kind == "video"


def main():
    Gst.init(None)
    loop = GLib.MainLoop()
    call = Call(json.loads(sys.stdin.readline()))

    def read():
        for line in sys.stdin:
            GLib.idle_add(call.handle, json.loads(line))
        loop.quit()

    threading.Thread(target=read, daemon=True).start()
    loop.run()
    call.pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    main()
