"""Reward models that never saw some people: what each fold learns from, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignloop.cli.main import main
from alignloop.core.errors import DataError
from alignloop.core.types import prompt_hash
from alignloop.feedback.unseen_people import people_in_groups, unseen_people
from alignloop.models.tiny import save_tiny
from alignloop.pipeline.unseen_people import predictions

PEOPLE = ("ann", "bob", "cy", "dee")


def row(k: int, said: dict[str, int]) -> dict[str, Any]:
    """A row of a snapshot: question k, the longer answer "xx" as chosen, and what everybody said of it."""
    texts = {"prompt": f"question {k} ", "chosen": "xx", "rejected": "z"}
    messages = {name: [{"role": "text", "content": words}] for name, words in texts.items()}
    sides = {
        f"{s}_{what}": f"{s}{k}" if what == "id" else None for s in ("chosen", "rejected") for what in ("id", "sample")
    }
    votes = [{"a": who, "s": s, "side": "L", "ms": 1} for who, s in said.items()]
    return messages | sides | {
        "id": f"t{k}", "prompt_id": f"p{k}", "source": "", "split": "train", "extra": {}, "group_id": f"p{k}", "p": 0.9,
        "margin": 1.0, "weight": 1.0, "votes": votes, "kind": "human", "origin": "votes", "chosen_author": "m",
        "rejected_author": "m", "chosen_ended": True, "rejected_ended": True,
    }  # fmt: skip


def test_a_model_of_one_group_fails_the_other_whose_taste_is_the_opposite() -> None:
    """One group likes the long answer, the other the short one; each votes alone on half of the questions of a fold."""
    group_of = people_in_groups(PEOPLE, 2)
    taste = {who: 1 if group_of[who] == 0 else -2 for who in PEOPLE}
    rows = [row(k, taste) for k in range(12)]
    learnt: list[tuple[set[str], set[float]]] = []

    def learn(records: Any, fold: int) -> Any:
        chosen = {r.chosen.text for r in records}
        learnt.append(({prompt_hash(r.prompt.messages) for r in records}, chosen))
        assert chosen == ({"z"} if fold == 0 else {"xx"})  # fold 0 leaves group 0 out, which likes "xx"
        likes_long = chosen == {"xx"}
        return lambda pairs: [
            float(len(p.chosen.text) - len(p.rejected.text)) * (1 if likes_long else -1) for p in pairs
        ]

    found = unseen_people(list(predictions(rows, group_of, learn)), 2)
    assert (found.unseen.value, found.seen.value, found.gap.value) == (0.0, 1.0, 1.0)
    assert found.unseen.n == found.seen.n == 24  # every question is tried once, on two people of each sort
    assert not learnt[0][0] & learnt[1][0] and len(learnt[0][0] | learnt[1][0]) == 12


def test_ties_teach_and_are_not_tried() -> None:
    group_of = people_in_groups(PEOPLE, 2)
    rows = [row(k, dict.fromkeys(PEOPLE, 0 if k % 2 else 1)) for k in range(12)]
    seen: list[float] = []

    def learn(records: Any, fold: int) -> Any:
        seen.extend(r.p for r in records)
        return lambda pairs: [0.0] * len(pairs)

    found = unseen_people(list(predictions(rows, group_of, learn)), 2)
    assert (found.unseen.value, found.unseen.n) == (0.5, 12)  # a model that cannot say is half right
    assert seen.count(0.5) == 6 and all(p > 0.5 for p in seen if p != 0.5)


def test_a_fold_needs_votes_of_others() -> None:
    group_of = people_in_groups(PEOPLE, 2)
    alone = next(who for who in PEOPLE if group_of[who] == 0)
    with pytest.raises(DataError, match="take fewer groups"):
        list(predictions([row(k, {alone: 1}) for k in range(4)], group_of, lambda records, fold: None))  # type: ignore


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Four people who like x train two reward models, which learn as much and say so of everybody."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    votes = [
        {"prompt": f"q{i} ", "response_a": "xxx", "response_b": "zzz", "annotator": who, "strength": 2}
        for i in range(16)
        for who in PEOPLE
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return str(said.out)

    run("import", "votes.jsonl", "--project", "p", "--split", "train", "--store", "sqlite:///s.db")
    run("snapshot", "create", "v1", "--project", "p", "--store", "sqlite:///s.db", "--out", "data")
    quick = ("--max-steps", "12", "--learning-rate", "3e-3", "--per-device-train-batch-size", "8")
    said = run("unseen-people", "data/v1", "--model", "base", "--out", "people", "--groups", "2", *quick)
    assert "4 people in 2 groups" in said and "people they never saw   100.0%" in said
    kept = json.loads((tmp_path / "people" / "people.json").read_text())
    assert (kept["unseen"]["n"], kept["seen"]["n"], kept["gap"]["value"]) == (32, 32, 0.0)
    assert (
        json.loads(
            run("unseen-people", "data/v1", "--model", "base", "--out", "people", "--groups", "2", *quick, "--json")
        )["unseen"]
        == kept["unseen"]
    )
