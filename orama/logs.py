"""How a node's log is written: Twisted's text, or one JSON object a line.

A log says what happened in fields; secrets are kept out where the event is made, not filtered here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    textFileLogObserver,
)
from twisted.python.reflect import safe_str

#: Keys that ``twisted.logger`` and the legacy log put into every event.
_OURS = frozenset(
    {"log_level", "log_namespace", "log_time", "log_failure", "isError", "why", "failure", "message", "time"}
)

#: Say that they begin and end, for every question that we ask another process.
_CHATTY = ("twisted.web.client._HTTP11ClientFactory", "twisted.internet.endpoints.OneShotFactory")


def _plain(value: Any) -> Any:
    """*value* when JSON has it, its text otherwise."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return safe_str(value)


def json_line(event: LogEvent) -> str | None:
    """*event* as one line of JSON: ``time``, ``level``, ``namespace``, ``message``, then its own fields.

    ``namespace`` is the logger's; a field of the event that is called like one of these is ``event_namespace``.
    """
    level = event.get("log_level")
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds"),
        "level": level.name if level is not None else "info",
        "namespace": event.get("log_namespace", ""),
        "message": formatEvent(event),
    }
    own = {
        f"event_{key}" if key in line else key: _plain(value)
        for key, value in event.items()
        if key not in _OURS and not key.startswith("log_")
    }
    line.update(own)
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    return json.dumps(line) + "\n"


def observer(log_format: str, stream: TextIO) -> ILogObserver:
    """What writes events to *stream* as ``text`` or ``json``: all but those of level debug."""
    writer = FileLogObserver(stream, json_line) if log_format == "json" else textFileLogObserver(stream)
    levels = LogLevelFilterPredicate(LogLevel.info)
    for chatty in _CHATTY:
        levels.setLogLevelForNamespace(chatty, LogLevel.warn)
    return FilteringLogObserver(writer, [levels])
