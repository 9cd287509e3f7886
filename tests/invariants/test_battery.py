"""Every method, in every configuration of the bench, has every property of the battery."""

from __future__ import annotations

import pytest

from alignloop.algorithms import METHODS
from alignloop.models.tiny import FAMILIES
from tests.invariants import properties
from tests.invariants.bench import BY_NAME, CASES, Case
from tests.invariants.properties import FORWARD, PROPERTIES

TABLE = [(name, case) for name, prop in PROPERTIES.items() for case in CASES if properties.applies(prop, case)]


def test_no_method_is_left_out() -> None:
    """A new method must join the bench; then it has to have every property."""
    assert {case.method for case in CASES} == set(METHODS)


@pytest.mark.parametrize(("name", "case"), TABLE, ids=lambda x: x if isinstance(x, str) else x.name)
def test_property(name: str, case: Case) -> None:
    PROPERTIES[name](case)


@pytest.mark.parametrize("case", ["sft", "reward", "ppo, shared critic"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llama"])
def test_every_family_runs_the_forward_part(family: str, case: str) -> None:
    """1, 2, 3, 5 and 9 for log-probabilities, scores and values."""
    for prop in FORWARD:
        prop(BY_NAME[case], family)
