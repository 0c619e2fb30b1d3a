"""The borders between the packages, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import orama

PACKAGE = Path(orama.__file__).parent

#: What each package may import of orama beside itself; "" stands for the modules that belong to nobody.
MAY_IMPORT = {
    "": frozenset(),
    "wire": frozenset({""}),
    "net": frozenset({"", "wire"}),
    "turn": frozenset({"", "wire", "net"}),
    "sfu": frozenset({"", "wire", "net"}),
    "store": frozenset({""}),
    "cluster": frozenset({"", "wire", "net", "turn", "sfu", "store"}),
    "rest": frozenset({"", "wire", "net", "turn", "sfu", "store", "cluster"}),
    "signaling": frozenset({"", "wire", "net", "turn", "sfu", "rest"}),
    "webhooks": frozenset({"", "sfu", "cluster"}),
    "cli": frozenset({"", "wire", "net", "cluster"}),
    "web": frozenset(),
}
#: Top-level modules for everybody; those not named here see the whole tree and are seen by nobody.
SHARED = frozenset(
    {
        *("errors", "settings", "configuration", "_version", "__init__", "logs", "reactors", "metrics", "notify"),
        *("timestamp", "permissions", "figures", "spawning"),
    }
)
ASSEMBLY = frozenset(
    {
        *("hierarchy", "membership", "serving", "attending", "reporting", "boot", "listening", "shut"),
        *(
            "daemon",
            "tap",
            "attachment",
            "worker",
            "turn_worker",
            "lease",
            "units",
            "children",
            "outward",
            "garbage",
            "interpreter",
        ),
        *("fronts", "worker_directory"),
    }
)
#: Where asyncio may be spoken.
ASYNCIO = frozenset({"sfu/_aiortc.py", "sfu/_sctp.py", "sfu/_sctp_channels.py", "reactors.py"})


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE), ast.parse(file.read_text())


def imports(tree: ast.Module, *, typing_only: bool = True) -> Iterator[str]:
    """Dotted names that *tree* imports; without those under ``if TYPE_CHECKING`` on request."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not typing_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner(parts: tuple[str, ...]) -> str:
    """The package of orama that a path or a dotted name belongs to; "" for shared modules."""
    if not parts:
        return ""
    first = parts[0].removesuffix(".py")
    if first in ASSEMBLY:
        return first
    return first if first in MAY_IMPORT else ""


class LayerTests(SynchronousTestCase):
    def test_one_way(self) -> None:
        """Imports go one way through the packages; ``turn`` and ``sfu`` never import each other."""
        wrong = []
        for file, tree in sources():
            package = owner(file.parts)
            if package in ASSEMBLY:
                continue
            allowed = MAY_IMPORT[package] | {package}
            for name in imports(tree):
                if name.split(".")[0] == "orama":
                    target = owner(tuple(name.split(".")[1:]))
                    if target not in allowed:
                        wrong.append(f"{file} imports {name}")
        self.assertEqual(wrong, [])

    def test_known_modules(self) -> None:
        """Every top-level module and package has its place in the layers."""
        names = {path.stem for path in PACKAGE.glob("*.py")}
        self.assertEqual(names - SHARED - ASSEMBLY, set())
        packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
        self.assertEqual(packages - set(MAY_IMPORT), set())

    def test_wire_is_pure(self) -> None:
        """``wire`` knows no reactor, no socket, no loop and no database."""
        banned = ("twisted", "asyncio", "socket", "sqlalchemy", "aiortc", "autobahn", "time", "random", "threading")
        wrong = [
            f"{file} imports {name}"
            for file, tree in sources()
            if file.parts[0] == "wire"
            for name in imports(tree)
            if name.split(".")[0] in banned
        ]
        self.assertEqual(wrong, [])

    def test_asyncio(self) -> None:
        """asyncio and aiortc's transports are spoken in one place, beside the reactor's own."""
        wrong = [
            f"{file} imports {name}"
            for file, tree in sources()
            if str(file) not in ASYNCIO
            for name in imports(tree)
            if name.split(".")[0] == "asyncio"
        ]
        self.assertEqual(wrong, [])

    def test_no_global_reactor(self) -> None:
        """The reactor comes in as an argument: only the service maker and the reactor check ask for the global one."""
        wrong = [
            f"{file} imports {name}"
            for file, tree in sources()
            if str(file) not in {"tap.py", "reactors.py"}
            for name in imports(tree, typing_only=False)
            if name in {"twisted.internet.reactor"}
        ]
        self.assertEqual(wrong, [])
