"""PEP 249 over rqlite's HTTP API: every statement goes with its parameters beside it, never pasted into it.

rqlite has no transactions that stay open: a statement stands as soon as it was executed, ``commit`` and ``rollback``
do nothing. Only after :meth:`Connection.gather` statements are held back, and ``commit`` sends them as one request that
rqlite executes wholly or not at all. Errors are those of ``sqlite3``, told apart by SQLite's own texts.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)
from typing import Any

from orama.store.rqlite_cluster import Address, Cluster, NoAnswer, NotAllowed, Session

__all__ = [
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "sqlite_version_info",
    "threadsafety",
]

apilevel = "2.0"
paramstyle = "qmark"
#: Threads may share the module, not connections.
threadsafety = 1
#: At least what is in rqlite 8.
sqlite_version_info = (3, 45, 0)

#: How fresh a read must be. "weak" asks whoever believes to lead; the others make sure that it does.
LEVELS = ("weak", "linearizable", "strong")
_READS = ("SELECT", "PRAGMA", "VALUES", "EXPLAIN")
_CONSTRAINT = re.compile(r"(^|: )((UNIQUE|NOT NULL|CHECK|FOREIGN KEY|PRIMARY KEY) )?constraint failed")
_AWAY = re.compile(r"database is locked|disk I/O error|disk is full|readonly database|timed? ?out|interrupted")
_INTEGERS = range(-(1 << 63), 1 << 63)
#: rqlite takes a text like this for a BLOB.
_BLOB_LIKE = re.compile(r"\s*[xX]'.*'\s*", re.DOTALL)
#: What stands between placeholders; a question mark in a text, a name or a comment is none.
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\?""", re.DOTALL)
_FLOATS = ("real", "double", "float")


def connect(cluster: Cluster, level: str = "weak") -> Connection:
    return Connection(cluster, level)


class Connection:
    """A connection in PEP 249's sense; it connects when it has something to say.

    :param level: of reads, one of LEVELS.
    """

    def __init__(self, cluster: Cluster, level: str = "weak") -> None:
        self._session = Session(cluster)
        self._level = level
        self._gathered: list[list[Any]] | None = None
        self._counts: list[int] = []

    def cursor(self) -> Cursor:
        return Cursor(self)

    def gather(self) -> list[int]:
        """Hold statements back from here until ``commit``, which executes all of them or none, or ``rollback``.

        The list is then filled with the number of rows that each of them has touched.
        """
        self._gathered, self._counts = [], []
        return self._counts

    def commit(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered:
            results = self._send("/db/execute?transaction", gathered, reads=False)
            self._counts += map(_count, results)

    def rollback(self) -> None:
        self._gathered = None

    def close(self) -> None:
        self._gathered = None
        self._session.close()

    def nodes(self) -> Iterable[tuple[Address, Any]]:
        """The status of each node that answers."""
        for address in self._session.cluster.order:
            try:
                yield address, self._session.get(address, "/status")
            except (OSError, NoAnswer):
                continue

    def execute(self, sql: str, many: Sequence[Sequence[Any]]) -> list[dict[str, Any]] | None:
        """The results of *sql* with each set of parameters; None when it is held back."""
        statements = [_statement(sql, parameters) for parameters in many]
        if self._gathered is not None:
            self._gathered += statements
            return None
        word = sql.split(None, 1)[0].upper() if sql.strip() else ""
        if word in _READS:
            return self._send(f"/db/query?level={self._level}", statements, reads=True)
        if word == "WITH":
            return self._send("/db/request?level=weak", statements, reads=False)
        return self._send("/db/execute" + ("?transaction" if len(statements) > 1 else ""), statements, reads=False)

    def _send(self, path: str, statements: list[list[Any]], reads: bool) -> list[dict[str, Any]]:
        try:
            answer = self._session.request(path, statements, reads)
        except NoAnswer as error:
            raise OperationalError(str(error)) from None
        except NotAllowed as error:
            raise InterfaceError(str(error)) from None
        except (ValueError, UnicodeEncodeError) as error:
            raise DataError(f"a value cannot be sent: {error}") from None
        results = answer.get("results") or []
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise InternalError("the results are not rqlite's")
        for text in (answer.get("error"), *(result.get("error") for result in results)):
            if text:
                raise _error(str(text))
        if len(results) != len(statements):
            raise InternalError(f"{len(results)} results of {len(statements)} statements")
        return results


class Cursor:
    """The statement that is being executed, and its rows."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.arraysize = 1
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._next = 0

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._take(self.connection.execute(sql, [parameters]))

    def executemany(self, sql: str, many: Iterable[Sequence[Any]]) -> None:
        sets = list(many)
        self._take(self.connection.execute(sql, sets) if sets else [])

    def fetchone(self) -> tuple[Any, ...] | None:
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        start = self._next
        self._next = min(len(self._rows), start + (size or self.arraysize))
        return self._rows[start : self._next]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.fetchmany(len(self._rows) or 1)

    def close(self) -> None:
        self._rows = []

    def setinputsizes(self, _sizes: object) -> None:
        pass

    def setoutputsize(self, _size: object, _column: object = None) -> None:
        pass

    def _take(self, results: list[dict[str, Any]] | None) -> None:
        self.description, self._rows, self._next, self.lastrowid = None, [], 0, None
        if results is None:
            self.rowcount = -1
            return
        self.rowcount = sum(map(_count, results))
        if len(results) != 1:
            return
        result = results[0]
        if "columns" in result:
            self.rowcount = -1
            try:
                self.description = [(str(name), None, None, None, None, None, None) for name in result["columns"]]
                types = [str(name) for name in result.get("types") or ()]
                self._rows = [
                    tuple(_value(value, kind) for value, kind in zip(row, types, strict=True))
                    for row in result.get("values") or ()
                ]
            except (TypeError, ValueError):
                raise InternalError("the rows are not rqlite's") from None
        else:
            self.lastrowid = result.get("last_insert_id")


def _count(result: dict[str, Any]) -> int:
    """How many rows a statement has touched; left out when none."""
    count = result.get("rows_affected", 0)
    if not isinstance(count, int):
        raise InternalError("the number of rows is not rqlite's")
    return count


def _statement(sql: str, parameters: Sequence[Any]) -> list[Any]:
    """*sql* and its parameters as JSON takes them."""
    given = [_parameter(value) for value in parameters]
    quoted = [isinstance(value, str) and _BLOB_LIKE.fullmatch(value) is not None for value in given]
    if any(quoted):
        places = iter(quoted)
        sql = _TOKEN.sub(lambda piece: _placeholder(piece[0], places), sql)
        given = [list(value.encode()) if quote else value for value, quote in zip(given, quoted, strict=True)]
    return [sql, *given]


def _placeholder(piece: str, quoted: Iterator[bool]) -> str:
    return "CAST(? AS TEXT)" if piece == "?" and next(quoted) else piece


def _parameter(value: Any) -> Any:
    if isinstance(value, int) and value not in _INTEGERS:
        raise DataError("an integer has more than 64 bits")
    if value is None or isinstance(value, str | int | float):
        return int(value) if isinstance(value, bool) else value
    if isinstance(value, bytes | bytearray | memoryview):
        return list(bytes(value))
    raise InterfaceError(f"a {type(value).__name__} cannot be stored")


def _value(value: Any, kind: str) -> Any:
    """A value as ``sqlite3`` gives it: JSON has no floats without a fraction and no bytes, rqlite makes booleans."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and kind.startswith(_FLOATS):
        return float(value)
    if isinstance(value, str) and kind == "blob":
        return b64decode(value)
    return value


def _error(text: str) -> Error:
    if _CONSTRAINT.search(text):
        return IntegrityError(text)
    if _AWAY.search(text):
        return OperationalError(text)
    return ProgrammingError(text)
