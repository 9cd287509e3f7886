"""Topics, splits, demonstrations, prompts, cheats and the audit."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from random import Random
from statistics import mean

import pytest
import yaml

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.types import Message, Prompt, prompt_hash
from alignloop.demo.world import (
    CHEATS,
    HELD_OUT_TEMPLATES,
    SOURCE_PROMPTS,
    SPLITS,
    answer,
    audit,
    audit_text,
    corpus,
    demonstrations,
    format_audit,
    gold,
    phrasings,
    prompts,
    topic,
    topic_of,
    topics,
    topics_of,
)
from alignloop.demo.world.knowledge import TOPICS_FILE, parse_topics


def test_splits_are_disjoint_and_large_enough() -> None:
    names = [t.name for split in SPLITS for t in topics_of(split)]
    assert sorted(names) == sorted(t.name for t in topics()) and len(set(names)) == len(names) == 27
    assert [len(topics_of(split)) for split in SPLITS] == [14, 5, 8]
    hashes = [{prompt_hash(p.messages) for p in prompts(split)} for split in SPLITS]
    assert not hashes[0] & hashes[1] and not hashes[0] & hashes[2] and not hashes[1] & hashes[2]


def test_no_demonstration_speaks_of_a_held_out_topic() -> None:
    held_out = [t for split in ("validation", "test") for t in topics_of(split)]  # type: ignore[arg-type]
    sentences = {s for t in held_out for s in (*t.technical, *t.simple, *t.questions)}
    pictures = [a for t in held_out for a in t.analogies]
    kept = [form.split("{topic}")[0] for form in HELD_OUT_TEMPLATES]
    for example in demonstrations(1500, 3):
        assert topic(example.prompt.extra["topic"]).split == example.prompt.split == "train"
        text = example.completion.text
        assert not any(s in text for s in sentences) and not any(a in text for a in pictures)
        assert not any(example.prompt.text.startswith(start) for start in kept)


def test_the_same_seed_gives_the_same_data_and_another_seed_another() -> None:
    assert list(islice(corpus(5), 50)) == list(islice(corpus(5), 50)) != list(islice(corpus(6), 50))
    assert demonstrations(20, 1) == demonstrations(20, 1) != demonstrations(20, 2)
    assert prompts("train", 30, 1) == prompts("train", 30, 1) != prompts("train", 30, 2)
    assert audit(3, 1) == audit(3, 1) != audit(3, 2)
    assert demonstrations(5, 1) == demonstrations(20, 1)[:5]


def test_demonstrations_are_records_of_their_own() -> None:
    found = demonstrations(1000, 0)
    assert len({d.id for d in found}) == 1000
    first = found[0]
    assert first.completion.prompt_id == first.prompt.id and first.completion.messages[0].role == "assistant"
    assert {d.prompt.extra["topic"] for d in found} == {t.name for t in topics_of("train")}
    assert 5.5 < mean(gold(d.prompt.extra["topic"], d.completion.text).total for d in found) < 7.0


def test_prompts_are_even_over_topics_and_ids_depend_on_words_alone() -> None:
    found = prompts("train", 28, 7)
    counts = [sum(p.extra["topic"] == t.name for p in found) for t in topics_of("train")]
    assert counts == [2] * 14
    everything = {p.text: p.id for p in prompts("train", seed=1)}
    assert len(everything) == 140 and {p.text: p.id for p in prompts("train", seed=2)} == everything
    with pytest.raises(ConfigError, match="has 140 of them"):
        prompts("train", 141)
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        prompts("tests")  # type: ignore[arg-type]


def test_test_prompts_lead_with_the_three_of_the_sources() -> None:
    for seed in range(3):
        assert tuple(p.text for p in prompts("test", 3, seed)) == SOURCE_PROMPTS
        assert len({p.extra["topic"] for p in prompts("test", 8, seed)}) == 8
    test = {p.text for p in prompts("test")}
    assert {form.format(topic="whales") for form in HELD_OUT_TEMPLATES} <= test
    assert not any("My little sister" in p.text for split in SPLITS[:2] for p in prompts(split))


def test_a_prompt_tells_its_topic() -> None:
    for about in topics():
        for words in phrasings(about, held_out=True):
            assert topic_of(words) == about
    assert topic_of("EXPLAIN  dna to a 10-year-old:") == topic("DNA")
    assert topic_of("Who won the cup?") is None


def test_the_corpus_holds_every_topic_and_both_forms() -> None:
    documents = list(islice(corpus(0), 3000))
    roles = [tuple(m.role for m in d) for d in documents]
    assert set(roles) == {("text",), ("user", "assistant")}
    assert mean(r == ("text",) for r in roles) == pytest.approx(0.35, abs=0.03)
    asked = {topic_of(d[0].content) for d in documents if d[0].role == "user"}
    assert asked == set(topics())


@pytest.mark.parametrize("name", list(CHEATS))
def test_no_cheat_beats_an_honest_answer_on_any_test_topic(name: str) -> None:
    rng = Random(0)
    for about in topics_of("test"):
        asked = [p for p in prompts("test") if p.extra["topic"] == about.name]
        cheated = [gold(about.name, CHEATS[name](p, rng)).total for p in asked for _ in range(2)]
        honest = [gold(about.name, answer(about, "demonstration", rng, topics())).total for _ in range(60)]
        good = [gold(about.name, answer(about, "rich", rng, topics())).total for _ in range(60)]
        assert mean(cheated) < mean(honest) - 2 < mean(good) - 2
        assert max(cheated) < mean(honest)


def test_the_audit_prints_every_sentence_with_its_kind() -> None:
    pairs = audit(20, 0)
    words = format_audit(pairs)
    assert len(pairs) == 20 and words.count("gold prefers") == 20
    for pair in pairs:
        assert pair.prompt.text in words and pair.a.source != pair.b.source
        assert f"({pair.a.source})  gold {pair.a.gold.total:.2f}" in words
    assert "accuracy" in words and "interactivity" in words and "wrong-topic" in words


def test_the_audit_takes_answers_from_anywhere() -> None:
    side = audit_text(prompts("test", 1)[0], "ppo", "A qubit can be zero and one at the same time.")
    assert side.gold.sentences[0][1] == "simple"
    with pytest.raises(ConfigError, match="asks for no topic"):
        audit_text(Prompt("1", (Message("user", "Who won the cup?"),)), "ppo", "I did.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": "dev"}, "must be one of train, validation, test"),
        ({"simple": ["Only one."]}, "needs 6 entries, has 1"),
        ({"questions": ["Do you like honey?", "What is it?"]}, "is also in 'bees'"),
    ],
)
def test_bad_topic_files_are_refused(change: dict[str, object], reason: str) -> None:
    rows = yaml.safe_load(TOPICS_FILE.read_text(encoding="utf-8"))
    rows[-1] |= change
    with pytest.raises(DataError, match=reason):
        parse_topics(rows, "topics.yaml")


def test_facts_are_short_enough_for_a_child_and_free_of_stray_marks() -> None:
    for about in topics():
        for fact in about.simple:
            assert fact[0].isupper() and fact.endswith(".") and fact.count(".") == 1 and len(fact.split()) <= 16
        for analogy in about.analogies:
            assert analogy[0].islower() and analogy[-1].isalpha()


def test_the_world_needs_no_torch() -> None:
    code = "import alignloop.demo.world as w, sys; w.audit(2); assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
