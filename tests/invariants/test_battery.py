"""Every method, in every configuration of the bench, has every property of the battery."""

from __future__ import annotations

import pytest

from alignloop.algorithms import METHODS
from alignloop.models.tiny import FAMILIES
from tests.invariants import bench, properties
from tests.invariants.bench import BY_NAME, CASES, Case
from tests.invariants.fast_path import by_flex
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


SHARING = ["dpo", "grpo", "reward_kwise, Plackett-Luce"]
"""Prompts shared by pairs, by groups and by rankings."""


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shares_prompts(family: str, case: str) -> None:
    """3: losses and gradients of shared prompts are those of one row a sequence."""
    properties.packing(BY_NAME[case], family)


@pytest.mark.parametrize("case", SHARING)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_same_step_on_a_gpus_path(
    family: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients and metrics by one FlexAttention call a layer, against one call per segment."""
    m = bench.models(BY_NAME[case], family)
    batch = bench.batch_of(BY_NAME[case], m, bench.rows())
    plain = bench.measure(BY_NAME[case], m, [batch])
    calls = by_flex(monkeypatch)
    bench.assert_same(bench.measure(BY_NAME[case], m, [batch]), plain)
    assert calls


@pytest.mark.parametrize(
    "name", ["padding_amount", "padding_side", "packing", "micro_batches", "gradient_checkpointing"]
)
def test_the_battery_on_a_gpus_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 to 4, and recomputed activations."""
    calls = by_flex(monkeypatch)
    PROPERTIES[name](BY_NAME["dpo"])
    assert calls
