"""Each bug put in by hand is noticed by the check it is named for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.invariants import bench, references, reward_paths, tables, test_loop
from tests.invariants.mutations import MUTANTS, PATHS, Mutant
from tests.invariants.properties import PROPERTIES


@pytest.fixture(autouse=True)
def _fresh_models() -> Iterator[None]:
    """Models made under one mutant must not meet another, nor a later test."""
    caches = (bench.models, tables._language, tables._scalar)
    for made in caches:
        made.cache_clear()
    yield
    for made in caches:
        made.cache_clear()


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


def test_no_check_is_idle() -> None:
    """Every property of the bench, and every check of the loop and of the references, fails on some bug."""
    checks = {*PROPERTIES.values(), *test_loop.CHECKS, *references.CHECKS}
    idle = {f.__name__ for f in checks - {m.about for m in MUTANTS}}  # type: ignore[attr-defined]
    assert idle == {"every_reference_gives_the_same_run"}, idle  # its bug is that of the references one by one
