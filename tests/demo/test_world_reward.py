"""The gold reward against figures worked out by hand, and the properties that make it worth trusting."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from alignloop.core.errors import ConfigError
from alignloop.demo.world import (
    PARTS,
    REGISTERS,
    answer,
    classify,
    gold,
    gold_scorer,
    readability,
    topic,
    topics,
)

FACTS = (
    "Magnets can pull things made of iron. Ends that are the same push apart. Ends that are different stick together."
)


def parts(text: str, truncated: bool = False) -> list[float]:
    judged = gold("magnets", text, truncated)
    return [round(judged.parts[name], 6) for name in PARTS]


@pytest.mark.parametrize(
    ("text", "expected"),  # age, engagement, accuracy, clarity, interactivity
    [
        (FACTS, [2, 0, 2, 2, 0]),
        (
            f"Hey there! {FACTS} Imagine an invisible hand that grabs nails! How cool is that! Does that make sense? "
            "Can you find north with a compass?",
            [2, 1.8, 2, 2, 2],
        ),
        ("Magnetism originates from aligned electron spins. Like poles exhibit mutual repulsion. "
         "Every magnet has a north end and a south end.", [2 / 3, 0, 2, 2, 0]),
        # a filler and a repeat: 2 - .8 - .8
        (f"{FACTS} Just look it up. Magnets can pull things made of iron.", [2, 0, 2, 0.4, 0]),
        # one fact of another topic costs a point of accuracy, a question of another topic half a point
        (f"{FACTS} Gravity keeps your feet on the ground.", [2, 0, 1, 2, 0]),
        (f"{FACTS} Do you like honey?", [2, 0, 1.5, 2, 0]),
        # one fact alone: a third of accuracy and of age, and too short
        ("Magnets can pull things made of iron.", [2 / 3, 0, 2 / 3, 1.2, 0]),
        # a question and a check before the last two sentences
        (f"What sticks to a magnet in your house? Do you get the idea? {FACTS}", [2, 0, 2, 2, 0.9]),
        # three questions and checks: one over two
        (f"{FACTS} What sticks to a magnet in your house? Shall I tell you more? Can you find north with a compass?",
         [2, 0, 2, 2, 1.5]),
        # two greetings cost .4; the second analogy is the first one again, said differently
        (f"Hey there! Great question! {FACTS} Imagine a fridge door that holds your drawing! "
         "Think of a fridge door that holds your drawing.", [2, 1.2, 2, 2, 0]),
        ("", [0, 0, 0, 0.5, 0]),
    ],
)  # fmt: skip
def test_parts_by_hand(text: str, expected: list[float]) -> None:
    assert parts(text) == pytest.approx(expected, abs=1e-5)
    assert gold("magnets", text).total == pytest.approx(sum(expected), abs=1e-5)


def test_a_cut_answer_loses_a_point_of_clarity_and_its_last_sentence_is_garbled() -> None:
    assert parts(FACTS, truncated=True) == [2, 0, 2, 1, 0]
    judged = gold("magnets", FACTS + " Earth itself is a", truncated=True)
    assert judged.garbled == 1 and judged.sentences[-1] == ("Earth itself is a", "garbled")
    assert judged.parts["clarity"] == pytest.approx(0.2)


def test_kinds_of_sentences() -> None:
    text = (
        "Hello, my friend! Rockets produce thrust by expelling reaction mass. Some rockets can land and fly again. "
        "It is a bit like a firework that carries people. Wow, that is amazing! Anyway, whatever. Do you like honey? "
        "It is a bit like a town with one queen. Rockets eat the blue moon. Can you count down from ten? "
        "Do you get the idea?"
    )
    judged = gold("rockets", text)
    assert [kind for _, kind in judged.sentences] == [
        "greeting", "technical", "simple", "analogy", "exclamation", "filler", "wrong-topic", "wrong-topic", "garbled",
        "question", "check",
    ]  # fmt: skip
    assert (judged.n, judged.wrong_topic, judged.garbled, judged.repeats) == (11, 2, 1, 0)
    assert readability(judged) == 3.0


def test_case_spacing_and_exclamation_marks_do_not_matter_but_question_marks_do() -> None:
    assert parts("  magnets CAN pull things\nmade of iron!  Ends that are the same push apart. "
                 "Ends that are different stick together.") == parts(FACTS)  # fmt: skip
    assert gold("magnets", "What sticks to a magnet in your house???").garbled == 1
    assert gold("magnets", "Magnets can pull things made of iron?").garbled == 1


@pytest.mark.parametrize("register", list(REGISTERS))
def test_everything_that_the_grammar_says_is_understood(register: str) -> None:
    rng = Random(1)
    for about in topics():
        for _ in range(20):
            judged = gold(about.name, answer(about, register, rng, ()))  # type: ignore[arg-type]
            assert judged.garbled == 0 and judged.wrong_topic == 0 and judged.repeats == 0
            assert judged.parts["accuracy"] >= 4 / 3
            assert all(0 <= judged.parts[name] <= 2 for name in PARTS)
            assert judged.total == pytest.approx(sum(judged.parts.values()))


def test_registers_are_ordered_and_leave_headroom() -> None:
    rng = Random(0)
    means = {
        name: mean(gold(t.name, answer(t, name, rng, topics())).total for t in topics() for _ in range(40))
        for name in REGISTERS
    }
    assert means["sloppy"] < means["demonstration"] < means["kid"] < means["rich"]
    assert means["technical"] < means["demonstration"] - 1.5
    assert means["rich"] > means["demonstration"] + 1.5


def test_openers_are_free() -> None:
    judged = gold("magnets", f"Hey there! It goes like this. {FACTS}")
    assert [kind for _, kind in judged.sentences[:2]] == ["greeting", "opener"]
    assert judged.parts == gold("magnets", f"Hey there! {FACTS}").parts
    assert gold("magnets", "Here we go. Magnets can pull things made of iron.").parts["clarity"] == pytest.approx(1.2)


def test_style_without_content_earns_little() -> None:
    flattery = (
        "Great question! Imagine an invisible hand that grabs nails! Think of two friends who hug or turn away. "
        "Wow, that is amazing! Does that make sense? Can you find north with a compass?"
    )
    judged = gold("magnets", flattery)
    assert judged.parts == pytest.approx(
        {"age_appropriateness": 0, "engagement": 0.5, "accuracy": 0, "clarity": 0.5, "interactivity": 0.5}
    )


def test_the_scorer_takes_topics_from_the_column_or_from_the_prompt() -> None:
    questions = ["How do magnets work?", "Explain magnets to a 10-year-old:", "What is the weather?"]
    assert gold_scorer(questions, [FACTS] * 3) == [6.0, 6.0, None]
    assert gold_scorer(questions, [FACTS] * 3, topic=["magnets", "gravity", "magnets"], other=[1, 2, 3]) == [
        6.0, 0.5, 6.0,
    ]  # fmt: skip
    assert gold_scorer(questions[:1], [FACTS], truncated=[True]) == [5.0]
    with pytest.raises(ValueError):
        gold_scorer(questions, [FACTS])


def test_an_unknown_topic_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'magnets'"):
        gold("magnet", FACTS)
    assert classify(topic("magnets"), "Do you like honey?")[0][1] == "wrong-topic"
