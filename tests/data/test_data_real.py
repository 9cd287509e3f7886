"""The real files beside the project: row counts as their makers state them, and what the readers must find in them."""

from __future__ import annotations

import pytest
from tests.data.data_tokenizers import SHARED

from alignloop.core.errors import DataError
from alignloop.data import (
    ChatFormat,
    assert_disjoint,
    folds,
    load_demonstrations,
    load_preferences,
    load_prompts,
)

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is absent")

HH = SHARED / "preference" / "hh-rlhf-harmless-base-test"
POLITE = SHARED / "preference" / "raschka-dpo" / "instruction-data-with-preference.json"
GSM8K = {"prompt": "question", "completion": "answer"}


def test_hh_harmless() -> None:
    loaded = load_preferences(HH / "test.jsonl.gz", on_bad_row="skip")
    assert len(loaded.records) == 2308  # of 2,312: four chosen answers are empty
    assert [s.row for s in loaded.skipped] == [87, 517, 926, 1104]
    assert loaded.notes == {"transcripts differ before the last turn": 5}
    assert all(len(side.messages) == 1 for r in loaded.records for side in (r.chosen, r.rejected))
    assert all(r.prompt.messages[-1].role == "user" for r in loaded.records)
    longer = sum(len(r.chosen.text) > len(r.rejected.text) for r in loaded.records)
    assert longer / 2312 == pytest.approx(0.446, abs=0.003)
    with pytest.raises(DataError, match=r"test.jsonl.gz, row 87, field 'chosen': the assistant turn is empty"):
        load_preferences(HH / "test.jsonl.gz")


def test_hh_harmless_split_file_says_the_same() -> None:
    whole = load_preferences(HH / "test.jsonl.gz", on_bad_row="skip").records
    split = load_preferences(HH / "pairs.jsonl.gz", on_bad_row="skip").records
    same = [a.prompt.messages == b.prompt.messages and a.chosen.id == b.chosen.id for a, b in zip(whole, split)]
    assert len(split) == 2308 and sum(same) >= 2308 - 5
    assert split[0].id == "hh-harmless-test-0" and split[0].prompt.extra == {"turns": 3}
    assert len(load_prompts(HH / "pairs.jsonl.gz").records) == 2312
    for train, test in folds(split, 5):
        assert_disjoint({"train": train, "test": test})


def test_politeness_pairs() -> None:
    loaded = load_preferences(POLITE, on_bad_row="skip")
    assert (len(loaded.records), [s.row for s in loaded.skipped]) == (1094, [123, 227, 401, 567, 629, 677])
    assert {s.field for s in loaded.skipped} == {"chosen"}


def test_open_assistant_pairs() -> None:
    loaded = load_preferences(SHARED / "preference/oasst-en100/pairs.jsonl.gz", columns={"prompt": "messages"})
    assert len(loaded.records) == 754
    lengths = [len(r.prompt.messages) for r in loaded.records]
    assert [lengths.count(n) for n in (1, 3, 5)] == [438, 312, 4]


@pytest.mark.parametrize(
    "path, options, rows, format",
    [
        ("sft/raschka-instructions/instruction-data.json", {}, 1100, "alpaca"),
        ("sft/dolly-15k/dolly_part.jsonl.gz", {}, 6400, "dolly"),
        ("verifiable/gsm8k/train.jsonl", {"columns": GSM8K}, 7473, "prompt_completion"),
        ("verifiable/gsm8k/test.jsonl", {"columns": GSM8K}, 1319, "prompt_completion"),
        ("text/tinystories-1k/stories.jsonl", {}, 1000, "text"),
    ],
)
def test_demonstrations(path: str, options: dict, rows: int, format: str) -> None:
    loaded = load_demonstrations(SHARED / path, **options)
    assert (len(loaded.records), loaded.format, loaded.skipped) == (rows, format, [])
    assert len({r.id for r in loaded.records}) == rows


def test_prompts_keep_their_answers() -> None:
    path = SHARED / "verifiable/gsm8k/test_prepared.jsonl.gz"
    records = load_prompts(path, columns={"prompt": "question"}).records
    assert len(records) == 1319 and records[0].extra["answer"] == "18"


def test_real_rows_through_a_real_tokenizer() -> None:
    """Masks and lengths hold on 300 transcripts in GPT-2's tokens, and every answer decodes to its own words."""
    from transformers import AutoTokenizer

    chat = ChatFormat(AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "gpt2"))
    for record in load_preferences(HH / "test.jsonl.gz", on_bad_row="skip", limit=300).records:
        for encoded, side in zip(chat.encode_pair(record), (record.chosen, record.rejected)):
            assert encoded.response[-1] == 50256 and all(encoded.mask)
            assert chat.decode(encoded.response) == side.text
            fitted = chat.fit(encoded, 256)
            assert len(fitted.prompt) + len(fitted.response) == min(256, len(encoded.prompt) + len(encoded.response))
