"""The JSON form of the log."""

from __future__ import annotations

import io
import json

from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from orama.logs import json_line, observer


class JsonLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stream = io.StringIO()
        publisher = LogPublisher(observer("json", self.stream))
        self.log = Logger("orama.part", observer=publisher)

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def test_fields(self) -> None:
        """An event is one object with time, level, namespace, the formatted message and its own fields."""
        self.log.info("{count} allocations of {namespace_}", count=3, namespace_="a", peers=("x", b"y"), odd={"k": {1}})
        [line] = self.lines()
        self.assertRegex(str(line.pop("time")), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
        self.assertEqual(
            line,
            {
                "level": "info",
                "namespace": "orama.part",
                "message": "3 allocations of a",
                "count": 3,
                "namespace_": "a",
                "peers": ["x", "y"],
                "odd": {"k": [1]},
            },
        )

    def test_own_fields_do_not_hide_ours(self) -> None:
        """A field that is called like one of the line's own does not replace it, and stands beside it."""
        self.log.warn("all is well", namespace="other")
        [line] = self.lines()
        self.assertEqual((line["message"], line["namespace"]), ("all is well", "orama.part"))
        self.assertEqual(line["event_namespace"], "other")

    def test_one_line(self) -> None:
        """Line ends in a message stay inside its line."""
        self.log.info("a\nb {text}", text="c\r\nd\u2028e")
        self.assertEqual(self.stream.getvalue().count("\n"), 1)
        self.assertEqual(self.lines()[0]["message"], "a\nb c\r\nd\u2028e")

    def test_failure(self) -> None:
        """A failure brings its traceback along."""
        try:
            raise ValueError("of the test")
        except ValueError:
            self.log.failure("it broke", Failure())
        [line] = self.lines()
        self.assertEqual((line["level"], line["message"]), ("critical", "it broke"))
        self.assertIn("ValueError: of the test", str(line["traceback"]))

    def test_debug_is_left_out(self) -> None:
        """What only says what every request did is not written; text is filtered alike."""
        self.log.debug("one more request")
        text = io.StringIO()
        Logger("orama.part", observer=LogPublisher(observer("text", text))).debug("one more request")
        Logger("orama.part", observer=LogPublisher(observer("text", text))).info("up")
        self.assertEqual(self.lines(), [])
        self.assertEqual(len(text.getvalue().splitlines()), 1)
        self.assertIn("[orama.part#info] up", text.getvalue())

    def test_unformattable(self) -> None:
        """An event whose fields cannot be shown is still a line."""

        class Sour:
            def __str__(self) -> str:
                raise RuntimeError("no text")

        line = json_line({"log_level": LogLevel.info, "log_format": "{sour}", "log_time": 0.0, "sour": Sour()})
        self.assertIn("sour", json.loads(line or "")["message"])
