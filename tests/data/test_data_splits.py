"""Splits by prompt, and feedback turned from one kind into another."""

from __future__ import annotations

import pytest

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.types import Completion, Demonstration, Preference, Prompt, text
from alignloop.data import (
    assert_disjoint,
    chosen_as_demonstrations,
    folds,
    grades_to_margins,
    load_demonstrations,
    load_preferences,
    load_prompts,
    load_rankings,
    one_answer_per_row,
    pairs_to_labels,
    rankings_to_pairs,
    split_by_prompt,
)
from alignloop.data.splits import split_key


def pairs(n: int, each: int = 3) -> list[Preference]:
    rows = [
        {"prompt": ("Ask {}" if k % 2 else "ask   {} ").format(i), "chosen": f"a{k}", "rejected": f"b{k}"}
        for k in range(each)
        for i in range(n)
    ]
    return load_preferences(rows).records


def test_no_prompt_crosses_whatever_its_case_and_spacing() -> None:
    records = pairs(400)
    parts = split_by_prompt(records)
    assert sum(map(len, parts.values())) == 1200
    assert_disjoint(parts)
    assert {r.prompt.split for r in parts["test"]} == {"test"}
    # 400 prompts at .9 / .05 / .05: standard deviation of the small shares is 4.4 prompts of 20
    assert len(parts["train"]) % 3 == 0 and all(20 <= len(parts[s]) <= 100 for s in ("validation", "test"))


def test_a_split_stays_when_data_is_added_and_changes_with_the_salt() -> None:
    few, many = split_by_prompt(pairs(100)), split_by_prompt(pairs(300))
    held = {split_key(r) for r in few["test"]}
    assert held <= {split_key(r) for r in many["test"]}
    assert held != {split_key(r) for r in split_by_prompt(pairs(100), salt="other")["test"]}
    assert few == split_by_prompt(pairs(100))


def test_texts_without_a_prompt_are_split_by_themselves() -> None:
    stories = load_demonstrations([{"text": f"Story {i}"} for i in range(200)]).records
    parts = split_by_prompt(stories, {"a": 0.5, "b": 0.5})
    assert 70 < len(parts["a"]) < 130


@pytest.mark.parametrize("wrong", [{}, {"train": 1.2}, {"train": 1.1, "test": -0.1}, {"train": 0.5, "test": 0.4}])
def test_fractions_must_add_up(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        split_by_prompt(pairs(2), wrong)


def test_folds_are_balanced_and_complete() -> None:
    records = pairs(23)
    made = folds(records, 5)
    sizes = sorted(len(test) for _, test in made)
    assert sizes == [12, 12, 15, 15, 15]  # 23 prompts: 4 or 5 a fold, three rows each
    assert sorted(r.id for _, test in made for r in test) == sorted(r.id for r in records)
    for train, test in made:
        assert len(train) + len(test) == 69
        assert_disjoint({"train": train, "test": test})
    with pytest.raises(DataError, match="2 distinct prompts cannot be split into 3 folds"):
        folds(pairs(2), 3)


def test_a_prompt_in_two_splits_is_named() -> None:
    a, b = load_prompts([{"prompt": "Tell me  a story"}, {"prompt": "tell me a story"}]).records
    with pytest.raises(DataError, match="'tell me a story' stands in both train and test"):
        assert_disjoint({"train": [a], "test": [b]})


# Conversions


def test_a_ranking_gives_every_unequal_pair() -> None:
    rows = [{"prompt": "a", "completions": ["w", "x", "y", "z"], "tiers": [[2], [0, 3], [1]]}]
    made = rankings_to_pairs(load_rankings(rows).records)
    assert [(p.chosen.text, p.rejected.text) for p in made] == [
        ("y", "w"),
        ("y", "z"),
        ("y", "x"),
        ("w", "x"),
        ("z", "x"),
    ]
    assert {p.weight for p in made} == {1 / 6} and len({p.group for p in made}) == 1 and len({p.id for p in made}) == 5


def pair(p: float = 1.0, weight: float = 1.0, **extra: str) -> Preference:
    prompt = Prompt("q", text("a"), extra=extra)
    return Preference("x", prompt, Completion("c", "q", text("b")), Completion("r", "q", text("c")), p=p, weight=weight)


def test_pairs_give_two_thumbs_weighted_by_certainty() -> None:
    labels = pairs_to_labels([pair(), pair(p=0.75, weight=2.0), pair(p=0.5)])
    assert [(x.completion.id, x.good, x.weight) for x in labels] == [
        ("c", True, 1.0), ("r", False, 1.0), ("c", True, 1.0), ("r", False, 1.0)
    ]  # fmt: skip
    assert pairs_to_labels([pair(p=0.75)])[0].weight == 0.5


def test_grades_become_margins() -> None:
    assert grades_to_margins([pair(grade="slightly better")])[0].margin == pytest.approx(0.333333, abs=1e-6)
    with pytest.raises(DataError, match="grade 'fine' is not one of significantly better"):
        grades_to_margins([pair(grade="fine")])


def test_one_answer_per_row() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    rows = [{"messages": [{"role": r, "content": c} for r, c in turns[:n]]} for n in (4, 2)]
    made = one_answer_per_row(load_demonstrations(rows).records)
    assert [("".join(m.content for m in r.prompt.messages), r.completion.text) for r in made] == [
        ("a", "b"), ("abc", "d"), ("a", "b")
    ]  # fmt: skip
    assert made[0].prompt.id == made[2].prompt.id != made[1].prompt.id and len({r.id for r in made}) == 3


def test_chosen_answers_as_demonstrations() -> None:
    made = chosen_as_demonstrations([pair(), pair(p=0.8)])
    assert len(made) == 1 and isinstance(made[0], Demonstration) and made[0].completion.id == "c"
