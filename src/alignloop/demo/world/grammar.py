"""How the tutor's world speaks: prompt phrasings, and registers from an encyclopedia's to a good teacher's.

An answer is a random subset of a topic's facts in their fixed order (a random order makes a small model repeat itself),
each in a technical or a simple version, dressed with a greeting, an opener, analogies, an exclamation, a check and a
question, or spoilt by fillers. A register is a set of probabilities over these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from alignloop.demo.world.knowledge import Topic

TEMPLATES = (
    "Explain {topic} to a 10-year-old:",
    "Tell me about {topic}.",
    "Can you explain {topic}?",
    "How would you explain {topic} to a child?",
    "I am ten. Teach me about {topic}.",
    "What should I know about {topic}?",
    "Please explain {topic} to my class.",
    "I want to learn about {topic}.",
)
"""Phrasings for every topic; beside them each topic has two of its own."""

HELD_OUT_TEMPLATES = ("Please help me to understand {topic}.", "My little sister asks about {topic}.")
"""Phrasings that no demonstration and no preference has: the test prompts alone use them."""

EXACT_OPENERS = ("Let me be precise.", "Here is the exact account.")
EASY_OPENERS = ("It goes like this.", "Here we go.", "Let me tell you.")
"""Openers announce the register before the first fact, whatever the topic is. That makes the choice of a register one
that topics share: without them a small model learns each topic's register apart, and what SFT teaches on its topics
hardly reaches the others."""
GREETINGS = ("Hey there!", "Great question!", "Hi, young explorer!", "Hello, my friend!")
ANALOGIES = ("Imagine {analogy}!", "Think of {analogy}.", "It is a bit like {analogy}.")
EXCLAMATIONS = ("How cool is that!", "Wow, that is amazing!")
CHECKS = ("Does that make sense?", "Do you get the idea?", "Shall I tell you more?")
FILLERS = (
    "Um, well, you know.",
    "Basically, it is obvious.",
    "I am not really sure.",
    "Just look it up.",
    "Anyway, whatever.",
    "By the way, I had soup for lunch.",
    "And stuff like that.",
)


@dataclass(frozen=True, slots=True)
class Register:
    """Probabilities of a way of speaking. `fillers` is the expected number; `wrong` is per fact: told of another topic.

    `analogy` is the probability of a first analogy; a second one has 0.3 of it.
    """

    facts: tuple[int, int] = (3, 5)
    technical: float = 0.0
    openers: tuple[str, ...] = ()
    opener: float = 0.9
    greeting: float = 0.0
    analogy: float = 0.0
    exclamation: float = 0.0
    fillers: float = 0.0
    check: float = 0.0
    question: float = 0.0
    wrong: float = 0.0


RegisterName = Literal["encyclopedia", "technical", "sloppy", "demonstration", "kid", "rich"]

REGISTERS: dict[RegisterName, Register] = {
    "encyclopedia": Register(facts=(4, 5), technical=1.0),
    "technical": Register(facts=(4, 5), technical=1.0, openers=EXACT_OPENERS, opener=1.0, fillers=0.03),
    "sloppy": Register(
        facts=(2, 5),
        technical=0.5,
        greeting=0.1,
        analogy=0.15,
        exclamation=0.1,
        fillers=1.6,
        check=0.05,
        question=0.05,
        wrong=0.02,
    ),
    "demonstration": Register(
        technical=0.12,
        openers=EASY_OPENERS,
        greeting=0.15,
        analogy=0.3,
        exclamation=0.12,
        fillers=0.25,
        check=0.12,
        question=0.18,
        wrong=0.01,
    ),
    "kid": Register(
        technical=0.08,
        openers=EASY_OPENERS,
        greeting=0.25,
        analogy=0.5,
        exclamation=0.2,
        fillers=0.15,
        check=0.2,
        question=0.35,
    ),
    "rich": Register(openers=EASY_OPENERS, greeting=0.6, analogy=1.0, exclamation=0.4, check=0.4, question=0.8),
}
"""From bad to good. Demonstrations are mediocre on purpose: people's votes must have something to add."""


def phrasings(topic: Topic, held_out: bool = False) -> tuple[str, ...]:
    """The prompts that ask for a topic, its own first; with `held_out` also the two kept for the test."""
    forms = TEMPLATES + (HELD_OUT_TEMPLATES if held_out else ())
    return topic.asks + tuple(form.format(topic=topic.name) for form in forms)


def answer(topic: Topic, register: RegisterName, rng: Random, strangers: Sequence[Topic]) -> str:
    """One answer in a register. `strangers` are the topics from which its wrong facts may come."""
    style = REGISTERS[register]
    sentences = _facts(topic, style, rng, strangers)
    count = sum(rng.random() < style.analogy * share for share in (1.0, 0.3))
    for analogy in rng.sample(topic.analogies, count):
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(ANALOGIES).format(analogy=analogy))
    if rng.random() < style.exclamation:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(EXCLAMATIONS))
    fillers = int(style.fillers) + (rng.random() < style.fillers % 1)
    for filler in rng.sample(FILLERS, fillers):
        sentences.insert(rng.randint(0, len(sentences)), filler)
    if style.openers and rng.random() < style.opener:
        sentences.insert(0, rng.choice(style.openers))
    if rng.random() < style.greeting:
        sentences.insert(0, rng.choice(GREETINGS))
    if rng.random() < style.check:
        sentences.append(rng.choice(CHECKS))
    if rng.random() < style.question:
        sentences.append(rng.choice(topic.questions))
    return " ".join(sentences)


def _facts(topic: Topic, style: Register, rng: Random, strangers: Sequence[Topic]) -> list[str]:
    told = sorted(rng.sample(range(len(topic.simple)), rng.randint(*style.facts)))
    others = [t for t in strangers if t.name != topic.name]
    sentences = []
    for place in told:
        source = rng.choice(others) if others and rng.random() < style.wrong else topic
        facts = source.technical if rng.random() < style.technical else source.simple
        sentences.append(facts[place])
    return sentences
