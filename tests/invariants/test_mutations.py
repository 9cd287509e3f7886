"""Each bug put in by hand is noticed by the check it is named for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.invariants import bench, reward_paths, tables
from tests.invariants.mutations import MUTANTS, PATHS, Mutant
from tests.invariants.properties import PROPERTIES, at_the_start, repeated


@pytest.fixture(autouse=True)
def _fresh_models() -> None:
    """Models made under one mutant must not meet another."""
    bench.models.cache_clear()
    tables._language.cache_clear()
    tables._scalar.cache_clear()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.bug)
def test_the_check_notices(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.put(monkeypatch)
    with pytest.raises(AssertionError):
        mutant.check()


@pytest.mark.parametrize(("bug", "put", "path"), PATHS, ids=lambda x: x if isinstance(x, str) else "")
def test_the_reward_paths_notice(
    bug: str, put: Callable[[pytest.MonkeyPatch], None], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = reward_paths.trained("llama")
    put(monkeypatch)
    with pytest.raises(AssertionError):
        if path == "samples":
            reward_paths.samples_score_as_their_texts(trained)
        elif path == "template":
            reward_paths.conversations_score_alike()
        else:
            reward_paths.every_path_gives_one_score(trained)


def test_no_property_is_idle() -> None:
    """Every property of the bench fails on some bug; those of no mutant compare exact constants."""
    used = {m.about for m in MUTANTS}
    idle = {f.__name__ for f in PROPERTIES.values() if f not in used}
    assert idle <= {at_the_start.__name__, repeated.__name__, "prompt_contributes_nothing"}, idle
