"""What training shares with evaluation: the thirteen words, boilerplate, whole prompts, and the rows left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignloop.cli.main import main
from alignloop.core.errors import DataError
from alignloop.core.overlap import COMMON, WORDS, HeldOut, words_of
from alignloop.data import held_out, load_demonstrations, load_preferences, load_prompts, overlaps

NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen"
HELD = HeldOut([("n", f"Count: {NUMBERS}!"), ("short", "Why is the sky blue?")])


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words_of("The cat's HAT -- (red)!") == ("the", "cat", "s", "hat", "red")
    assert words_of("ﬁne １２") == ("fine", "12")
    assert words_of("空は青い。") == ("空", "は", "青", "い")


@pytest.mark.parametrize("before", range(12))
@pytest.mark.parametrize("after", [0, 1, 7])
def test_thirteen_words_are_found_wherever_they_stand(before: int, after: int) -> None:
    around = " ".join(f"w{k}" for k in range(before)), " ".join(f"v{k}" for k in range(after))
    assert HELD.match(f"{around[0]} {NUMBERS.upper()}, {around[1]}") == "n"
    assert HELD.match(f"{around[0]} {NUMBERS.removesuffix('thirteen')} {around[1]}") is None


def test_the_search_agrees_with_comparing_all_runs() -> None:
    import random

    rng = random.Random(0)
    for _ in range(300):
        held, text = ([rng.choice("ab") for _ in range(rng.randint(5, 40))] for _ in range(2))
        runs = {tuple(held[i : i + WORDS]) for i in range(len(held) - WORDS + 1)}
        shares = any(tuple(text[i : i + WORDS]) in runs for i in range(len(text) - WORDS + 1)) or held == text
        assert (HeldOut([("x", " ".join(held))]).match(" ".join(text)) == "x") == shares


def test_answers_count_and_short_texts_count_as_whole_prompts_only() -> None:
    assert HELD.match("Go.", ["no", f"yes, {NUMBERS}"]) == "n"
    assert HELD.match("why is the SKY blue") == "short"
    assert HELD.match("Tell me: why is the sky blue?") is None
    assert HELD.match("Go.", ["Why is the sky blue?"]) is None
    assert HeldOut([("none", "?!")]).match("...") is None


def test_what_many_held_out_texts_share_is_boilerplate() -> None:
    def held(n: int) -> HeldOut:
        return HeldOut([(str(k), f"{NUMBERS} {k}a {k}b") for k in range(n)])

    assert held(COMMON).match(f"{NUMBERS} and on") == "0"
    assert held(COMMON + 1).match(f"{NUMBERS} and on") is None
    assert held(COMMON + 1).match(f"so {NUMBERS} 3a 3b") == "3"  # two three .. 3a is the third one's alone


def test_what_many_training_prompts_share_is_boilerplate() -> None:
    held = HeldOut([("n", f"{NUMBERS} fourteen")])
    for n, found in ((COMMON, "n"), (COMMON + 1, None)):
        seen = held.among(f"{NUMBERS} {k}" for k in range(n))
        assert seen.match(f"{NUMBERS} again") == found
        assert seen.match(f"{NUMBERS} fourteen") == "n"  # the same prompt as a whole is never boilerplate
    assert held.among([f"{NUMBERS} again"] * 50).match(f"{NUMBERS} again") == "n"  # asked often is one prompt still
    assert held.match(f"{NUMBERS} again") == "n"  # and the texts themselves are as they were


def test_the_hash_is_of_the_texts_alone() -> None:
    again = HeldOut([("b", "why is the sky blue"), ("a", f"count {NUMBERS}"), ("c", "Why is the sky blue??")])
    assert again.sha256 == HELD.sha256 != HeldOut().sha256 and len(again) == 2


def test_records_of_every_side() -> None:
    test = load_prompts([{"prompt": f"{NUMBERS} again"}, {"prompt": "Something else"}]).records
    train = load_preferences(
        [
            {"prompt": "a ", "chosen": "x", "rejected": NUMBERS},
            {"prompt": "b ", "chosen": "x", "rejected": "z"},
            {"prompt": "something ELSE", "chosen": "x", "rejected": "z"},
        ]
    ).records
    assert overlaps(train, held_out(test)) == {0: f"{NUMBERS} again"[:60], 2: "Something else"}


def test_system_messages_do_not_count() -> None:
    def turns(ask: str) -> dict[str, Any]:
        return {"messages": [{"role": "system", "content": NUMBERS}, {"role": "user", "content": ask}]}

    test = load_prompts([turns("Why?")]).records
    assert overlaps(load_prompts([turns("Who?"), turns("why")]).records, held_out(test)) == {1: "Why?"}


# Readers


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": p, "completion": " fine"} for p in ("Who? ", f"Say {NUMBERS} ", "Why is the sky blue? ")]
    for name, lines in (
        ("train", rows),
        ("bench", [{"prompt": NUMBERS}]),
        ("more", [{"prompt": "Why is the sky blue?"}]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path


def test_a_reader_leaves_out_what_is_evaluated_on_and_says_so(here: Path) -> None:
    loaded = load_demonstrations("train.jsonl", without="bench.jsonl")
    assert [r.prompt.text for r in loaded.records] == ["Who? ", "Why is the sky blue? "]
    [left] = loaded.skipped
    assert (left.row, left.field) == (2, "prompt") and f"held-out prompt '{NUMBERS[:60]}'" in left.reason
    assert "1 rows skipped (row 2 prompt: shares 13 words in a row" in loaded.report()
    assert len(load_demonstrations("train.jsonl", without=["bench.jsonl", "more.jsonl"]).records) == 1
    assert len(load_demonstrations("train.jsonl", without=[{"prompt": NUMBERS}]).records) == 2


def test_no_source_is_compared_with_itself(here: Path) -> None:
    assert len(load_prompts("bench.jsonl", without="bench.jsonl").records) == 1


def test_nothing_left_is_an_error(here: Path) -> None:
    with pytest.raises(DataError, match=r"no usable row: all 1 were skipped .*shares 13 words"):
        load_prompts([{"prompt": f"so {NUMBERS}"}], without="bench.jsonl")


def test_the_command_lists_the_rows_and_says_how_many(here: Path, capsys: Any) -> None:
    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(("data", "overlap", *words))
        return int(ended.value.code or 0), capsys.readouterr().out

    code, said = run("train.jsonl", "--with", "bench.jsonl", "--with", "more.jsonl")
    assert code == 1 and said.splitlines()[:2] == [f"row 2: {NUMBERS[:60]}", "row 3: Why is the sky blue?"]
    assert "2 of 3 rows share 13 words in a row with one of 2 prompts" in said
    assert run("more.jsonl", "--with", "bench.jsonl") == (
        0,
        "0 of 1 rows share 13 words in a row with one of 1 prompts\n",
    )
    assert json.loads(run("train.jsonl", "--with", "more.jsonl", "--json")[1])["rows"] == [[3, "Why is the sky blue?"]]
