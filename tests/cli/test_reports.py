"""Reading a report: total, and strict where checks rest on it."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cli.reports import read_report
from tests.cli.clusters import report

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        for name, item in value.items():
            found += _places(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            found += _places(item, (*path, number))
    return found


class ReportTests(SynchronousTestCase):
    def test_read(self) -> None:
        """A report as it is sent, and as it may come from a later version."""
        value = report("n1")
        read = read_report(value)
        self.assertEqual((read.node_id, read.zone, read.port("turns", "tcp")), ("n1", "orama.example", 5349))
        self.assertEqual(read.port("turns", "udp"), None)
        alpha = read.namespace("alpha")
        assert alpha is not None
        self.assertEqual((alpha.roles, alpha.up("turn"), alpha.wanted("sfu")), ({"sfu", "turn"}, True, 3))
        value["new"] = value["node"]["new"] = value["namespaces"][0]["new"] = 1
        self.assertEqual(read_report(value), read)

    def test_missing(self) -> None:
        """Without what the checks rest on, the report counts for nothing, and the text says what it is."""
        for names in (
            ("node", "node_id"),
            ("node", "ready"),
            ("node", "now"),
            ("namespaces",),
            ("namespaces", 0, "roles"),
            ("namespaces", 0, "sfu_up"),
            ("namespaces", 0, "turn_up"),
            ("namespaces", 0, "sfu_wanted"),
            ("namespaces", 0, "enabled"),
            ("prerequisites",),
            ("prerequisites", 0, "ok"),
            ("listeners",),
        ):
            value: Any = report("n1")
            inner = value
            for name in names[:-1]:
                inner = inner[name]
            del inner[names[-1]]
            error = self.assertRaises(ValueError, read_report, value)
            self.assertIn(str(names[-1]), str(error))

    def test_types(self) -> None:
        """A text or a number is no truth value, and a truth value no number."""
        for name, wrong in (("sfu_up", "true"), ("turn_up", 1), ("sfu_wanted", True), ("enabled", "no")):
            value = report("n1")
            value["namespaces"][0][name] = wrong
            self.assertIn(name, str(self.assertRaises(ValueError, read_report, value)))
        for now in (float("nan"), float("inf"), "1", True):
            self.assertRaises(ValueError, read_report, report("n1", now=now))

    @given(st.data(), _JSON)
    def test_total(self, data: st.DataObject, junk: Any) -> None:
        """With anything at all in any place, there is a report or a ValueError."""
        value = copy.deepcopy(report("n1"))
        path = data.draw(st.sampled_from(_places(value)))
        whole: Any = {"": value}
        inner: Any = whole
        for name in ("", *path)[:-1]:
            inner = inner[name]
        inner[("", *path)[-1]] = junk
        try:
            read_report(whole[""])
        except ValueError:
            pass
