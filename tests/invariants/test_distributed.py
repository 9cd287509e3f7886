"""33: one process and two."""

from __future__ import annotations

import pytest

from tests.invariants import distributed, loop
from tests.invariants.bench import CASES


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_one_and_two_processes_agree(name: str) -> None:
    distributed.one_and_two_processes_agree(name)


@pytest.mark.parametrize("name", loop.RUNS)
def test_whole_runs_agree(name: str) -> None:
    distributed.whole_runs_agree(name)
