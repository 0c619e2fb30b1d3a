"""Our STUN against aioice's, which is another one's: each reads what the other has written."""

from __future__ import annotations

from typing import Any

from aioice import stun as aioice
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.wire import stun
from orama.wire.stun import Class
from tests.wire.test_stun import VALUES

KEY = b"the key of both"
#: Classes as they stand in the type of a message.
CLASSES = {
    Class.REQUEST: aioice.Class.REQUEST,
    Class.INDICATION: aioice.Class.INDICATION,
    Class.SUCCESS: aioice.Class.RESPONSE,
    Class.ERROR: aioice.Class.ERROR,
}
methods = st.sampled_from([method for method in aioice.Method if method != aioice.Method.SHARED_SECRET])
#: The attributes that both know, with values that both take; of REQUESTED-TRANSPORT aioice knows the whole word.
KNOWN = {row: values for row, values in VALUES.items() if row.name in aioice.ATTRIBUTES_BY_NAME} | {
    stun.REQUESTED_TRANSPORT: st.integers(0, 255)
}
contents = st.fixed_dictionaries({}, optional={row.name: values for row, values in KNOWN.items()})
ROWS: dict[str, stun.Attribute[Any]] = {row.name: row for row in KNOWN}


def theirs(name: str, value: Any) -> Any:
    """One of our values as aioice has it."""
    if name == "REQUESTED-TRANSPORT":
        return value << 24
    return None if value is True else value


class SecondCodecTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(methods, st.sampled_from(Class), st.binary(min_size=12, max_size=12), contents)
    def test_we_write(self, method: aioice.Method, cls: Class, transaction: bytes, values: dict[str, Any]) -> None:
        """aioice reads, verifies, and finds in our messages what we put there."""
        pairs = [(ROWS[name], value) for name, value in values.items()]
        written = stun.build(method, cls, transaction, pairs, key=KEY, fingerprint=True)
        message = aioice.parse_message(written)
        unsigned = written[: -aioice.INTEGRITY_LENGTH - aioice.FINGERPRINT_LENGTH]
        self.assertEqual(message.attributes["MESSAGE-INTEGRITY"], aioice.message_integrity(unsigned, KEY))
        self.assertEqual((message.message_method, message.message_class), (method, CLASSES[cls]))
        self.assertEqual(message.transaction_id, transaction)
        found = {name: value for name, value in message.attributes.items() if name in values}
        self.assertEqual(found, {name: theirs(name, value) for name, value in values.items()})
        self.assertEqual(len(message.attributes), len(values) + 2)

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(methods, st.sampled_from(Class), st.binary(min_size=12, max_size=12), contents)
    def test_aioice_writes(self, method: aioice.Method, cls: Class, transaction: bytes, values: dict[str, Any]) -> None:
        """We read, verify and find in aioice's messages what it put there, and write the same bytes."""
        attributes = {name: theirs(name, value) for name, value in values.items()}
        message = aioice.Message(method, CLASSES[cls], transaction, attributes)
        message.add_message_integrity(KEY)
        written = bytes(message)
        read = stun.parse(written)
        self.assertEqual((read.method, read.cls, read.transaction_id), (method, cls, transaction))
        self.assertTrue(read.verify(KEY))
        self.assertEqual({name: read.get(ROWS[name]) for name in values}, values)
        self.assertEqual((read.unknown, read.malformed), ((), ()))
        pairs = [(ROWS[name], value) for name, value in values.items()]
        self.assertEqual(stun.build(method, cls, transaction, pairs, key=KEY, fingerprint=True), written)
