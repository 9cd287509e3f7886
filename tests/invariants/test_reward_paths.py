"""36: the reward model equals itself on every path."""

from __future__ import annotations

import pytest

from tests.invariants import reward_paths


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_every_path_gives_one_score(family: str) -> None:
    path = reward_paths.trained(family)
    reward_paths.every_path_gives_one_score(path)
    reward_paths.scores_are_normalised(path)


def test_samples_score_as_their_texts() -> None:
    reward_paths.samples_score_as_their_texts(reward_paths.trained("llama"))


def test_conversations_score_alike() -> None:
    reward_paths.conversations_score_alike()


def test_an_adapter_is_saved_whole() -> None:
    path = reward_paths.with_adapter_or_without()
    reward_paths.every_path_gives_one_score(path)


def test_where_the_score_is_read() -> None:
    reward_paths.where_the_score_is_read()
