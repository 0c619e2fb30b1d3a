"""One window of a browser, whoever drives it: scripts in, values out.

A script is the body of an async function. Before it stand the functions of ``pages/prelude.js``, so that
it can wait for what happens instead of sleeping.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

PAGES = Path(__file__).with_name("pages")
#: Seconds that one script may take.
SCRIPT_TIMEOUT = 100.0
_PRELUDE = (PAGES / "prelude.js").read_text()
_WRAPPED = """
const done = arguments[arguments.length - 1];
const given = [...arguments].slice(0, -1);
%s
(async (...args) => { %s })(...given).then(
  (value) => done({ value: value === undefined ? null : value }),
  (error) => done({ error: `${error?.name}: ${error?.message ?? error}` }),
);
"""


class Window(Protocol):
    """What a driver has to do for us."""

    def navigate(self, url: str) -> None: ...
    def execute(self, script: str, arguments: list[Any]) -> Any:
        """Run a script that calls its last argument with the result."""

    def close(self) -> None: ...


class Page:
    """
    :ivar beside: the pages of the same test, this one among them: when a script fails here, each gives its account.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self.beside: list[Page] = []

    def open(self, url: str) -> Page:
        self._window.navigate(url)
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        """What the async function body *script* returns; *arguments* are its ``args``."""
        result = self._execute(script, *arguments)
        if "error" in result:
            others = [other for other in self.beside if other is not self]
            raise AssertionError("\n\n".join([result["error"], *(f"Beside it: {other.account()}" for other in others)]))
        return result["value"]

    def account(self) -> str:
        """How the page's connection stands, and what has happened as far as it was witnessed."""
        result = self._execute("return account()")
        return str(result.get("value") or result["error"])

    def _execute(self, script: str, *arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = self._window.execute(_WRAPPED % (_PRELUDE, script), list(arguments))
        return result

    def media(self, audio: int, video: int) -> dict[str, Any]:
        """Wait until so many tracks of each kind have come through: 80 packets of audio, 30 frames of video.

        :returns: ``tracks``, each one's kind, counts and size, and ``local``, the candidate in use.
        """
        found: dict[str, Any] = self.run("return await received(args[0])", {"audio": audio, "video": video})
        return found

    def close(self) -> None:
        self._window.close()
