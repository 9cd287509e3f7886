"""Columns to records, format by format, and every bad row."""

from __future__ import annotations

from typing import Any

import pytest

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.types import Message, text
from alignloop.data import load_demonstrations, load_labels, load_preferences, load_prompts, load_rankings
from alignloop.data.schemas import shared_beginning

QUESTION = [{"role": "user", "content": "Why?"}]
ANSWER = [{"role": "assistant", "content": "Because."}]
OTHER = [{"role": "assistant", "content": "No idea."}]
ASKED = (Message("user", "Why?"),)


def says(words: str) -> tuple[Message, ...]:
    return (Message("assistant", words),)


def bad(load, *rows: dict[str, Any], **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(list(rows), **options)
    assert caught.value.file == "memory" and "\n" not in str(caught.value)
    return caught.value


# Demonstrations

DEMONSTRATIONS = {
    "standard": ({"prompt": "Why", "completion": " not"}, "prompt_completion", text("Why"), text(" not")),
    "conversational": ({"prompt": QUESTION, "completion": ANSWER}, "prompt_completion", ASKED, says("Because.")),
    "mixed": ({"prompt": QUESTION, "completion": "Because."}, "prompt_completion", ASKED, says("Because.")),
    "messages": ({"messages": QUESTION + ANSWER}, "messages", ASKED, says("Because.")),
    "text": ({"text": "A story."}, "text", (), text("A story.")),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"}, "alpaca", (Message("user", "Add.\n\n1 2"),), says("3")
    ),
    "alpaca, no input": ({"instruction": "Why?", "input": "", "output": "Because."}, "alpaca", ASKED, says("Because.")),
    "alpaca, history": (
        {"instruction": "Why?", "output": "Because.", "system": "Be kind.", "history": [["Hi", "Hello"]]},
        "alpaca",
        (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"), *ASKED),
        says("Because."),
    ),
    "dolly": (
        {"instruction": "Why?", "context": "It rains.", "response": "Rain.", "category": "closed_qa"},
        "dolly",
        (Message("user", "Why?\n\nIt rains."),),
        says("Rain."),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        "sharegpt",
        ASKED,
        says("Because."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEMONSTRATIONS)
def test_demonstrations(case: str) -> None:
    row, format, prompt, answer = DEMONSTRATIONS[case]
    loaded = load_demonstrations([row])
    (record,) = loaded.records
    assert (loaded.format, record.prompt.messages, record.completion.messages) == (format, prompt, answer)
    assert record.completion.prompt_id == record.prompt.id and record.completion.author == "import:memory"


def test_a_conversation_is_cut_before_its_first_answer_and_keeps_tools() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "now"}}]}
    tool = {"role": "tool", "content": "12:00"}
    (record,) = load_demonstrations([{"messages": [*QUESTION, call, tool, *ANSWER]}]).records
    assert record.prompt.messages == ASKED
    assert [m.role for m in record.completion.messages] == ["assistant", "tool", "assistant"]
    assert record.completion.messages[0].content == '<tool_call>\n{"name": "now"}\n</tool_call>'
    assert record.completion.text == '<tool_call>\n{"name": "now"}\n</tool_call>\n\nBecause.'


def test_columns_are_mapped_and_the_others_kept() -> None:
    row = {"question": "1+1?", "answer": "2", "level": 3}
    loaded = load_demonstrations([row], columns={"prompt": "question", "completion": "answer"})
    assert loaded.records[0].prompt.extra == {"level": 3} and loaded.records[0].completion.text == "2"
    assert load_prompts([row], columns={"prompt": "question"}).records[0].extra == {"answer": "2", "level": 3}
    chat = load_demonstrations([row], columns={"prompt": "question", "completion": "answer"}, strings="chat")
    assert chat.records[0].prompt.messages == (Message("user", "1+1?"),)
    assert chat.records[0].completion.messages == says("2")
    error = bad(load_prompts, row, columns={"prompt": "questoin"}, on_bad_row="skip")
    assert "did you mean 'question'?" in str(error) and error.field == "questoin"


def test_unknown_columns_list_what_was_found_and_what_would_fit() -> None:
    error = str(bad(load_demonstrations, {"question": "a", "answer": "b"}))
    assert "columns question, answer fit no format of demonstrations" in error
    assert "prompt_completion (prompt, completion)" in error
    assert "map them with columns: {prompt: question, completion: answer}" in error
    assert "they would fit preferences" in str(bad(load_labels, {"prompt": "a", "chosen": "b", "rejected": "c"}))
    # Two answers beside a question are no implicit prompt: the question would be lost.
    error = str(bad(load_preferences, {"question": "a", "chosen": "The b", "rejected": "The c"}))
    assert "columns: {prompt: question}" in error
    with pytest.raises(ConfigError, match="'alpacca' is no format of demonstrations, did you mean 'alpaca'"):
        load_demonstrations([{"text": "a"}], format="alpacca")


# Preferences


def test_preferences_standard_and_conversational() -> None:
    row = {
        "id": 7,
        "prompt": "Why",
        "chosen": " not",
        "rejected": " me",
        "margin": 0.5,
        "weight": "2",
        "group": "g",
        "x": 1,
    }
    (record,) = load_preferences([row]).records
    assert (record.id, record.p, record.margin, record.weight, record.group) == ("7", 1.0, 0.5, 2.0, "g")
    assert record.prompt.extra == {"x": 1} and record.prompt.messages == text("Why")
    assert (record.chosen.messages, record.rejected.messages) == (text(" not"), text(" me"))
    (record,) = load_preferences([{"prompt": QUESTION, "chosen": ANSWER, "rejected": OTHER}]).records
    assert (record.chosen.messages, record.rejected.messages) == (says("Because."), says("No idea."))
    assert record.group == record.prompt.id and record.kind == "import"


def test_implicit_prompt_of_messages() -> None:
    (record,) = load_preferences([{"chosen": QUESTION + ANSWER, "rejected": QUESTION + OTHER}]).records
    assert record.prompt.messages == ASKED and record.rejected.messages == says("No idea.")
    more = [{"role": "user", "content": "Really?"}]
    row = {"chosen": QUESTION + ANSWER + more + ANSWER, "rejected": QUESTION + ANSWER + more + OTHER}
    assert [m.content for m in load_preferences([row]).records[0].prompt.messages] == ["Why?", "Because.", "Really?"]
    # They part in a user turn: the prompt ends before the answer that precedes it.
    row = {"chosen": QUESTION + ANSWER + more + ANSWER, "rejected": QUESTION + ANSWER + QUESTION + OTHER}
    (record,) = load_preferences([row]).records
    assert record.prompt.messages == ASKED and [m.role for m in record.chosen.messages] == [
        "assistant",
        "user",
        "assistant",
    ]
    # Both sides share the first of two assistant turns in a row: it belongs to the answers.
    row = {"chosen": QUESTION + ANSWER + ANSWER, "rejected": QUESTION + ANSWER + OTHER}
    assert load_preferences([row]).records[0].prompt.messages == ASKED
    # UltraFeedback: the prompt's text is repeated inside both sides.
    row = {"prompt": "Why?", "chosen": QUESTION + ANSWER, "rejected": QUESTION + OTHER}
    assert load_preferences([row]).records[0].prompt.messages == ASKED
    assert bad(load_preferences, row | {"prompt": "How?"}).field == "prompt"


@pytest.mark.parametrize(
    "a, b, prompt",
    [
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("The sky is  blue.", "The sky is  black.", "The sky is"),
        ("It costs 3.14 now", "It costs 3.15 now", "It costs"),
        ("Yes, I do.", "Yes. I do.", ""),
        ("The sky is blue", "The sky is", "The sky"),
        ("Q: why?\nA: because", "Q: why?\nA: no", "Q: why?\nA:"),
        ("天空是蓝色", "天空是黑色", "天空是"),
        ("blue", "black", ""),
    ],
)
def test_implicit_prompt_of_texts_never_cuts_a_word(a: str, b: str, prompt: str) -> None:
    assert a[: shared_beginning(a, b)] == prompt == b[: shared_beginning(b, a)]
    if prompt:
        (record,) = load_preferences([{"chosen": a, "rejected": b}]).records
        assert (
            record.prompt.text,
            record.prompt.text + record.chosen.text,
            record.prompt.text + record.rejected.text,
        ) == (prompt, a, b)


def test_soft_labels_swap_below_one_half() -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "p": 0.25},
        {"prompt": "a", "chosen": "b", "rejected": "b", "p": 0.5},
    ]
    loaded = load_preferences(rows)
    swapped, tie = loaded.records
    assert (swapped.chosen.text, swapped.rejected.text, swapped.p) == ("c", "b", 0.75) and tie.p == 0.5
    assert loaded.notes == {"with sides swapped (p < .5)": 1}
    assert loaded.report() == "2 preferences from memory (format explicit); 1 with sides swapped (p < .5)"


def test_instruction_pairs() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "chosen": "3.", "rejected": "4"}
    (record,) = load_preferences([row]).records
    assert record.prompt.messages == (Message("user", "Add.\n\n1 2"),) and record.prompt.extra == {"output": "3"}
    assert (record.chosen.messages, record.rejected.messages) == (says("3."), says("4"))


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {t}" for i, t in enumerate(turns))


def test_hh_transcripts() -> None:
    row = {
        "chosen": transcript("Hi", "Hello.", "Why?", "Because."),
        "rejected": transcript("Hi", "Hello.", "Why?", "No."),
    }
    loaded = load_preferences([row])
    (record,) = loaded.records
    assert loaded.format == "hh" and loaded.notes == {}
    assert [(m.role, m.content) for m in record.prompt.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Why?"),
    ]
    assert (record.chosen.messages, record.rejected.messages) == (says("Because."), says("No."))
    split = {"prompt": transcript("Hi", "Hello.", "Why?") + "\n\nAssistant:", "chosen": " Because.", "rejected": " No."}
    assert load_preferences([split]).records[0].chosen == record.chosen
    assert load_prompts([{"prompt": split["prompt"]}]).records[0].messages == record.prompt.messages


def test_hh_rows_that_part_early_are_kept_and_counted() -> None:
    # The model wrote a marker of its own: its answer goes on, marker and all.
    early = {"chosen": transcript("Hi", "No.\n\nAssistant:  I think"), "rejected": transcript("Hi", "Yes.")}
    # They part in the human's second turn: everything after the shared question is the answer.
    other = {
        "chosen": transcript("Hi", "Hello.", "Why?", "So."),
        "rejected": transcript("Hi", "Hello.", "How?", "Thus."),
    }
    loaded = load_preferences([early, other])
    first, second = loaded.records
    assert first.prompt.messages == (Message("user", "Hi"),) and first.chosen.messages == says(
        "No.\n\nAssistant:  I think"
    )
    assert [m.content for m in second.rejected.messages] == ["Hello.", "How?", "Thus."]
    assert loaded.notes == {"transcripts differ before the last turn": 2}
    error = bad(load_preferences, {"chosen": transcript("Hi", "A"), "rejected": transcript("Bye", "B")})
    assert "share no first turn" in error.reason


# Labels, prompts, rankings


def test_labels() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": value} for value in (True, 0, "true", "FALSE")]
    assert [r.good for r in load_labels(rows).records] == [True, False, True, False]
    assert bad(load_labels, rows[0], rows[0] | {"label": 2}).row == 2
    assert bad(load_labels, rows[0] | {"label": None}).field == "label"


def test_prompts() -> None:
    assert load_prompts([{"prompt": "a", "answer": 1}]).records[0].extra == {"answer": 1}
    waiting = [*QUESTION, *ANSWER, {"role": "user", "content": "And?"}]
    assert len(load_prompts([{"prompt": waiting}]).records[0].messages) == 3
    assert load_prompts([{"messages": QUESTION + ANSWER}]).records[0].messages == ASKED
    assert load_prompts([{"instruction": "Why?"}]).records[0].messages == ASKED
    assert load_prompts([{"prompt": "Why?"}], strings="chat").records[0].messages == ASKED


def test_the_same_prompt_has_the_same_id_everywhere() -> None:
    prompt = load_prompts([{"prompt": QUESTION, "x": 1}]).records[0]
    pair = load_preferences([{"prompt": QUESTION, "chosen": ANSWER, "rejected": OTHER}]).records[0]
    assert prompt.id == pair.prompt.id
    twice = load_prompts([{"prompt": "a"}, {"prompt": "a"}]).records
    assert twice[1].id == f"{twice[0].id}-2"


def test_rankings() -> None:
    row = {"prompt": "a", "completions": ["w", "x", "y"]}
    assert load_rankings([row | {"ranks": [2, 1, 2]}]).records[0].tiers == ((1,), (0, 2))
    record = load_rankings([row | {"tiers": [[1], [0, 2]]}]).records[0]
    assert record.tiers == ((1,), (0, 2)) and [c.text for c in record.completions] == ["w", "x", "y"]
    assert load_rankings([{"prompt": QUESTION, "completions": [ANSWER, OTHER], "ranks": [0, 1]}]).records[0].tiers == (
        (0,),
        (1,),
    )
    for wrong, field in [
        ({"ranks": [1, 3, 2, 4]}, "ranks"), ({"ranks": [1, 3, 3]}, "ranks"), ({"tiers": [[0], [1]]}, "tiers"),
        ({"tiers": [[0, 1, 2], []]}, "tiers"), ({}, "tiers"), ({"ranks": [1, 1, 1], "tiers": [[0, 1, 2]]}, "tiers"),
        ({"ranks": [1, 2, 3], "completions": ["w", "w", "y"]}, "completions"), ({"completions": ["w"]}, "completions"),
    ]:  # fmt: skip
        assert bad(load_rankings, row | wrong).field == field


# Bad rows

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
BAD = [
    (load_demonstrations, {"prompt": "a", "completion": " "}, "completion", "the answer is empty"),
    (load_demonstrations, {"prompt": "a", "completion": None}, "completion", "is missing"),
    (load_demonstrations, {"prompt": 3, "completion": "b"}, "prompt", "expected text or a list of messages, got int 3"),
    (load_demonstrations, {"prompt": [], "completion": "b"}, "prompt", "the list of messages is empty"),
    (load_demonstrations, {"instruction": " ", "output": "b"}, "instruction", "is empty"),
    (load_demonstrations, {"instruction": "a", "output": ""}, "output", "the answer is empty"),
    (load_demonstrations, {"text": ""}, "text", "is empty"),
    (load_demonstrations, {"messages": QUESTION}, "messages", "no assistant turn"),
    (load_demonstrations, {"messages": ANSWER}, "messages", "begins with an assistant turn"),
    (load_demonstrations, {"messages": QUESTION + ANSWER + QUESTION}, "messages", "ends with a user turn"),
    (load_demonstrations, {"messages": [{"role": "asistant", "content": "b"}]}, "messages[0]", "mean 'assistant'"),
    (load_demonstrations, {"messages": [*QUESTION, {"role": "assistant"}]}, "messages[1]", "needs a 'content'"),
    (load_demonstrations, {"messages": [*QUESTION, {"role": "assistant", "content": ""}]}, "messages[1]", "is empty"),
    (load_demonstrations, {"messages": ["hello"]}, "messages[0]", "expected a message"),
    (load_demonstrations, {"prompt": QUESTION, "completion": QUESTION}, "completion", "begin with an assistant turn"),
    (load_demonstrations, {"prompt": "a", "completion": "b", "weight": 0}, "weight", "must be above 0"),
    (load_preferences, PAIR | {"chosen": "c"}, "chosen", "equals rejected"),
    (load_preferences, PAIR | {"p": 1.5}, "p", "between 0 and 1"),
    (load_preferences, PAIR | {"p": float("nan")}, "p", "finite"),
    (load_preferences, PAIR | {"p": True}, "p", "expected a number"),
    (load_preferences, PAIR | {"margin": -1}, "margin", "must not be negative"),
    (load_preferences, PAIR | {"margin": "big"}, "margin", "expected a number, got str 'big'"),
    (load_preferences, PAIR | {"p": 0.2, "margin": 1}, "margin", "favours chosen"),
    (load_preferences, PAIR | {"id": [1]}, "id", "expected text or a whole number"),
    (load_preferences, PAIR | {"rejected": ANSWER}, "rejected", "both be text or both"),
    (load_preferences, {"chosen": "blue", "rejected": "black"}, "chosen", "share no first words"),
    (load_preferences, {"chosen": transcript("Hi", " "), "rejected": transcript("Hi", "B")}, "chosen", "turn is empty"),
]  # fmt: skip


@pytest.mark.parametrize("load, row, field, reason", BAD)
def test_bad_rows_stop_with_row_field_reason_and_cure(load, row: dict[str, Any], field: str, reason: str) -> None:
    error = bad(load, row)
    assert (error.row, error.field) == (1, field) and reason in error.reason
    assert error.reason.endswith("mend the row, or set on_bad_row: skip to leave such rows out")


def test_bad_rows_are_skipped_when_asked_and_listed() -> None:
    loaded = load_preferences([PAIR, PAIR | {"chosen": "c"}, PAIR, PAIR | {"p": 2}], on_bad_row="skip")
    assert len(loaded.records) == 2 and loaded.records[0].id != loaded.records[1].id
    assert [(s.file, s.row, s.field) for s in loaded.skipped] == [("memory", 2, "chosen"), ("memory", 4, "p")]
    assert "2 rows skipped (row 2 chosen: equals rejected" in loaded.report()
    assert "no usable row: all 1 were skipped (row 1 p:" in str(
        bad(load_preferences, PAIR | {"p": 2}, on_bad_row="skip")
    )


def test_duplicate_ids_are_refused() -> None:
    error = bad(load_preferences, PAIR | {"id": "x"}, PAIR | {"id": "x"})
    assert (error.row, error.field) == (2, "id") and "ids must be unique" in error.reason


def test_a_row_with_other_columns_than_the_first_is_bad() -> None:
    assert bad(load_preferences, PAIR, {"prompt": "a", "chosen": "b"}).field == "rejected"


def test_limit_and_settings() -> None:
    assert len(load_preferences([PAIR, PAIR, {"broken": 1}], limit=2).records) == 2
    for wrong in ({"limit": 0}, {"on_bad_row": "ignore"}):
        with pytest.raises(ConfigError):
            load_preferences([PAIR], **wrong)
