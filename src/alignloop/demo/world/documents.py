"""What the world gives to training: a pretraining corpus, demonstrations and prompts, each a function of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from alignloop.core.errors import ConfigError
from alignloop.core.types import Completion, Demonstration, Message, Prompt, content_id, text
from alignloop.demo.world.grammar import RegisterName, answer, phrasings
from alignloop.demo.world.knowledge import Split, Topic, topics, topics_of

SOURCE = "tutor"
SOURCE_PROMPTS = (
    "Explain quantum computing to a 10-year-old:",
    "Write a short story about a robot learning to feel emotions:",
    "How do I bake a chocolate cake?",
)
"""The three prompts that lead the test split."""

ENCYCLOPEDIA, KIDS_CORNER = 0.15, 0.20
QUESTION_MIX: tuple[tuple[RegisterName, float], ...] = (("technical", 0.50), ("sloppy", 0.30), ("kid", 0.20))
"""Shares of the corpus; the rest is questions and answers in `QUESTION_MIX`, so that a base model answers poorly."""

Document = tuple[Message, ...]


def corpus(seed: int) -> Iterator[Document]:
    """Endless pretraining documents over all topics: plain text (one "text" message) or a question and its answer."""
    rng = Random(f"corpus-{seed}")
    names, weights = zip(*QUESTION_MIX, strict=True)
    while True:
        topic = rng.choice(topics())
        kind = rng.random()
        if kind < ENCYCLOPEDIA:
            yield text(f"Encyclopedia: {topic.name}. {answer(topic, 'encyclopedia', rng, ())}")
        elif kind < ENCYCLOPEDIA + KIDS_CORNER:
            yield text(f"Kids corner: {topic.name}. {answer(topic, 'rich', rng, ())}")
        else:
            question = rng.choice(phrasings(topic, held_out=True))
            register = rng.choices(names, weights)[0]
            yield Message("user", question), Message("assistant", answer(topic, register, rng, topics()))


def demonstrations(n: int, seed: int) -> list[Demonstration]:
    """`n` different answers to imitate, on train topics and train phrasings alone, in the mediocre register."""
    rng = Random(f"demonstrations-{seed}")
    pool = topics_of("train")
    found: dict[str, Demonstration] = {}
    while len(found) < n:
        topic = rng.choice(pool)
        prompt = make_prompt(rng.choice(phrasings(topic)), topic, "train")
        words = answer(topic, "demonstration", rng, pool)
        key = content_id(prompt.id, words)
        completion = Completion(key, prompt.id, (Message("assistant", words),), author="import:tutor")
        found[key] = Demonstration(key, prompt, completion)
    return list(found.values())


def prompts(split: Split, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """`n` different prompts of a split, evenly over its topics; None gives all of them.

    Phrasings kept for the test appear in the test split alone, which starts with `SOURCE_PROMPTS`.
    """
    rng = Random(f"prompts-{split}-{seed}")
    pool = list(topics_of(split))
    rng.shuffle(pool)
    columns = [_shuffled(topic, split, rng) for topic in pool]
    rounds = [prompt for row in zip(*columns, strict=True) for prompt in row]
    if split == "test":
        rounds.sort(key=lambda prompt: _lead(prompt.text))  # stable: the rest keeps its even order
    if n is not None and n > len(rounds):
        raise ConfigError(f"prompts('{split}', {n}): the tutor's world has {len(rounds)} of them; ask for fewer")
    return rounds[:n]


def make_prompt(words: str, topic: Topic, split: Split) -> Prompt:
    """A prompt of the world; its id depends on its words alone."""
    return Prompt(content_id(SOURCE, words), (Message("user", words),), SOURCE, split, {"topic": topic.name})


def _shuffled(topic: Topic, split: Split, rng: Random) -> list[Prompt]:
    forms = list(phrasings(topic, held_out=split == "test"))
    rng.shuffle(forms)
    forms.sort(key=_lead)  # a source prompt comes first in its topic, so that leading it leaves the rounds even
    return [make_prompt(words, topic, split) for words in forms]


def _lead(words: str) -> int:
    return SOURCE_PROMPTS.index(words) if words in SOURCE_PROMPTS else len(SOURCE_PROMPTS)
