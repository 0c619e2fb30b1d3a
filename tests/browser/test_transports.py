"""Two ends in a browser that meet relay to relay, each over a transport of its own, with no SFU between them.

Calls through the SFU over each transport are in ``test_room_page``, ``test_bare_client`` and ``test_firefox``.
"""

from __future__ import annotations

import atexit
import re
from functools import cache
from typing import Any

from tests.browser.stage import BrowserTestCase, end, files, node_process
from tests.node import NodeProcess

_PAIR = """
await until("the modules", () => document.title === "ready");
const policy = { iceTransportPolicy: "relay" };
const ends = args[0].map((server) => new RTCPeerConnection({ iceServers: [server], ...policy }));
const [here, there] = (window.ends = ends);
const devices = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 320, height: 240 } });
const candidates = (window.candidates = []);
for (const [from, to] of [[here, there], [there, here]]) {
  from.onicecandidate = ({ candidate }) => {
    if (!candidate?.candidate) return;
    candidates.push(candidate.type);
    to.addIceCandidate(candidate);
  };
  for (const track of devices.getTracks()) from.addTrack(track);
}
window.heard = [];
there.ondatachannel = ({ channel }) => {
  channel.onmessage = ({ data }) => channel.send(`back: ${data}`);
};
const channel = here.createDataChannel("chat");
channel.onmessage = ({ data }) => heard.push(data);
channel.onopen = () => channel.send("hello");
await here.setLocalDescription();
await there.setRemoteDescription(here.localDescription);
await there.setLocalDescription();
await here.setRemoteDescription(there.localDescription);
const found = [];
for (const one of ends) found.push((await received({ audio: 1, video: 1 }, one)).local);
await until("the echo", () => heard.length);
return { found, heard, candidates };
"""


@cache
def open_node() -> NodeProcess:
    """A node whose relays may reach loopback, and so each other."""
    made = node_process("transports", turn='allowed_peers = ["127.0.0.0/8"]\n').start()
    atexit.register(end, made)
    return made


class TransportTests(BrowserTestCase):
    def node(self) -> NodeProcess:
        return open_node()

    def figure(self, name: str) -> float:
        """The sum of what the node's metrics say of *name*."""
        status, text = self.node().request("GET", "/metrics")
        self.assertEqual(status, 200)
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text.decode(), re.MULTILINE))

    def ice_server(self, transport: str) -> dict[str, Any]:
        issued = self.node().credentials()
        udp, tcp, tls = issued["uris"]
        uri = {"udp": udp, "tcp": tcp, "tls": tls}[transport]
        return {"urls": uri, "username": issued["username"], "credential": issued["password"]}

    def check(self, *transports: str) -> None:
        page = self.page().open(f"{files().origin}/client.html")
        before = self.figure("orama_turn_packets_total")
        result = page.run(_PAIR, [self.ice_server(transport) for transport in transports])
        expected = [{"type": "relay", "relayProtocol": transport} for transport in transports]
        self.assertEqual(result["found"], expected)
        self.assertEqual(result["heard"], ["back: hello"])
        self.assertEqual(set(result["candidates"]), {"relay"})
        # What came was relayed twice, and 80 packets of sound and 30 pictures came to each end.
        self.assertGreater(self.figure("orama_turn_packets_total") - before, 2 * 2 * (80 + 30))
        streams = sum(transport != "udp" for transport in transports)
        self.assertEqual(self.figure("orama_turn_stream_clients"), streams)
        page.run("for (const one of ends) one.close()")

    def test_udp(self) -> None:
        """Both ends over UDP: sound, pictures and text, through two relays."""
        self.check("udp", "udp")

    def test_tcp(self) -> None:
        """One end over TCP and one over UDP."""
        self.check("tcp", "udp")

    def test_tls(self) -> None:
        """One end over TLS and one over TCP."""
        self.check("tls", "tcp")
