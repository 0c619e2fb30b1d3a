"""Sequences of requests and packets on a whole TURN server, against a model of what it has to grant."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.machine import Machine

EXAMPLES, STEPS = 300, 50


class MachineTests(SynchronousTestCase):
    def test_sequences(self) -> None:
        """Whatever is asked, by whom and when, what was granted is what the model says, and all comes back."""
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
