"""A small campaign, and helpers that make one."""

from collections.abc import Callable, Iterator

import pytest

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.projects import ProjectConfig, add_annotators, create_project
from alignloop.store import Store


def _fill(store: Store, prompts: int, per_prompt: int = 2) -> list[tuple[str, str]]:
    """Prompts p0.. with completions p0-0, p0-1, ..; returns every pair of completions of one prompt."""
    store.add_prompts([Prompt(f"p{i}", (Message("user", f"Question number {i}?"),)) for i in range(prompts)])
    store.add_completions(
        [
            Completion(
                f"p{i}-{k}", f"p{i}", (Message("assistant", f"Answer {k} to question {i}."),), author="model:m@0"
            )
            for i in range(prompts)
            for k in range(per_prompt)
        ]
    )
    return [(f"p{i}-{a}", f"p{i}-{b}") for i in range(prompts) for a in range(per_prompt) for b in range(a)]


@pytest.fixture
def fill() -> Callable[..., list[tuple[str, str]]]:
    """The function that fills a store with prompts and completions."""
    return _fill


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    """Project "votes", ten prompts of two completions, annotators ann, bob and cy; no tasks yet."""
    with Store(tmp_path / "a.db") as opened:
        _fill(opened, 10)
        create_project(opened, "votes", ProjectConfig(lease_s=60, seed=1))
        add_annotators(opened, ["ann", "bob", "cy"])
        yield opened


@pytest.fixture
def pairs() -> list[tuple[str, str]]:
    return [(f"p{i}-0", f"p{i}-1") for i in range(10)]
