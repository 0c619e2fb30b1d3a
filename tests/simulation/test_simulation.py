"""Calls in virtual time, over bad lines, in which every packet keeps the rules of ``watch`` and ``flow``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.call import run

#: Seeds that every run of the tests tries, in parts, so that a failure does not hide the others: 20 ms each.
SEEDS, PARTS = 360, 6


class SimulationTests(SynchronousTestCase):
    """``python -m tests.simulation --seed N`` runs one alone, ``--seeds N`` many."""


def _part(part: int) -> None:
    def test(self: SimulationTests) -> None:
        forwarded = recovered = retransmitted = 0
        for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
            outcome = run(seed)
            forwarded += outcome.forwarded
            recovered += outcome.recovered
            retransmitted += outcome.retransmitted
        # Otherwise nothing has been tried.
        self.assertGreater(forwarded, 3000)
        self.assertGreater(recovered, 30)
        self.assertGreater(retransmitted, 30)

    test.__doc__ = f"In {SEEDS // PARTS} calls everybody sees and hears what there is, by the rules, and nothing grows."
    setattr(SimulationTests, f"test_part_{part}", test)


for _number in range(PARTS):
    _part(_number)
