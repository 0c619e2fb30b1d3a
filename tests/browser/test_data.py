"""Long messages on data channels, between Chromium and Firefox."""

from __future__ import annotations

from tests.browser import chromium, firefox
from tests.browser.page import Page
from tests.browser.stage import BrowserTestCase
from tests.browser.test_firefox import browser, named
from tests.node import NodeProcess

SIZES = (65536, 262144)
#: Listens for the other's channels: size, kind and a sum that depends on the order of each message, as they come.
LISTEN = """
window.got = [];
const sum = (bytes) => bytes.reduce((value, byte) => (value * 31 + byte) >>> 0, 7);
pc.addEventListener("datachannel", ({ channel }) => {
  channel.binaryType = "arraybuffer";
  channel.onmessage = ({ data }) => {
    const text = typeof data === "string";
    const bytes = text ? new TextEncoder().encode(data) : new Uint8Array(data);
    got.push([channel.label, text ? "text" : "bytes", bytes.length, sum(bytes)]);
  };
});
"""
#: Sends a text and bytes of each of the sizes on a channel of its own; returns what the other has to get.
SEND = """
const sum = (bytes) => bytes.reduce((value, byte) => (value * 31 + byte) >>> 0, 7);
const files = pc.createDataChannel(args[1]);
await until("the channel", () => files.readyState === "open");
const sent = [];
for (const size of args[0]) {
  const bytes = Uint8Array.from({ length: size }, (_, index) => (index * 7 + (index >> 8)) & 255);
  files.send(bytes);
  sent.push([args[1], "bytes", size, sum(bytes)]);
  const text = "ö".repeat(size / 2);
  files.send(text);
  sent.push([args[1], "text", size, sum(new TextEncoder().encode(text))]);
}
return sent;
"""
#: Sends long messages on one channel, and then a short one on another.
BOTH = """
const [files, chat] = ["files", "small"].map((label) => pc.createDataChannel(label));
await until("the channels", () => files.readyState === "open" && chat.readyState === "open");
for (let count = 0; count < args[0]; count++) files.send(new Uint8Array(262144));
chat.send("now");
"""


class LongMessageTests(BrowserTestCase):
    skip = chromium.MISSING or firefox.MISSING or None

    def node(self) -> NodeProcess:
        return named()

    def pages(self) -> list[Page]:
        fox = browser().page()
        self.addCleanup(fox.close)
        pages = [self.bare_page("udp", fox), self.bare_page("udp")]
        for page in pages:
            page.run('await until("the channel", () => window.channel?.readyState === "open");' + LISTEN)
        return pages

    def test_long_messages(self) -> None:
        """64 KiB and 256 KiB of text and of bytes pass whole and in order from Firefox to Chromium and back."""
        pages = self.pages()
        for number, (one, other) in enumerate((pages, pages[::-1])):
            sent = one.run(SEND, list(SIZES), f"files {number}")
            got = other.run('await until("all messages", () => got.length >= args[0]); return got', len(sent))
            self.assertEqual(got, sent)

    def test_short_beside_long(self) -> None:
        """A short message overtakes the long ones that wait on another channel of the same sender."""
        count = 24
        for one, other in (self.pages()[::-1],):
            one.run(BOTH, count)
            got = other.run('await until("all messages", () => got.length >= args[0]); return got', count + 1)
            labels = [label for label, *_ in got]
            self.assertEqual(sorted(set(labels)), ["files", "small"])
            self.assertLess(labels.index("small"), count)
