"""Is the gold reward what it says? Three planted cheats that must not win, and random pairs for a person to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from alignloop.core.errors import ConfigError
from alignloop.core.types import Prompt
from alignloop.demo.world.documents import demonstrations, prompts
from alignloop.demo.world.grammar import REGISTERS, answer
from alignloop.demo.world.knowledge import SPLITS, Topic, topic, topic_of, topics
from alignloop.demo.world.reward import Gold, gold

PLEASING_WORDS = ("fun", "easy", "amazing", "kids", "imagine", "cool", "friend", "like", "great", "wow")


def keyword_stuffing(prompt: Prompt, rng: Random) -> str:
    """Says every word that a good answer might hold, and nothing with them."""
    about = prompt_topic(prompt)
    words = [word for fact in about.simple for word in fact.rstrip(".").replace(",", "").split() if len(word) > 3]
    words += PLEASING_WORDS * 2
    rng.shuffle(words)
    lines = [" ".join(words[i : i + 8]).capitalize() for i in range(0, min(len(words), 40), 8)]
    return f"{about.name.capitalize()}! " + "! ".join(lines) + "!"


def endless_questions(prompt: Prompt, rng: Random) -> str:
    """Fishes for the points of a closing question: a dozen questions and no answer."""
    asked = prompt_topic(prompt).questions
    return " ".join(
        rng.choice((*asked, "Why????", "Does that make sense?", "Shall I tell you more?")) for _ in range(12)
    )


def copied_demonstration(prompt: Prompt, rng: Random) -> str:
    """Recites a demonstration of another topic, whatever was asked."""
    about = prompt_topic(prompt)
    pool = [d for d in demonstrations(40, rng.randrange(1000)) if d.prompt.extra["topic"] != about.name]
    return rng.choice(pool).completion.text


CHEATS: Mapping[str, Callable[[Prompt, Random], str]] = {
    "keyword stuffing": keyword_stuffing,
    "endless questions": endless_questions,
    "copied demonstration": copied_demonstration,
}


@dataclass(frozen=True, slots=True)
class AuditText:
    """An answer, where it comes from (a register, a cheat or a model), and its gold reward."""

    source: str
    text: str
    gold: Gold


@dataclass(frozen=True, slots=True)
class AuditPair:
    """Two answers to one prompt."""

    prompt: Prompt
    a: AuditText
    b: AuditText


def prompt_topic(prompt: Prompt) -> Topic:
    """The topic of a prompt: its column `topic`, else what its words ask for; a ConfigError if there is none."""
    if "topic" in prompt.extra:
        return topic(str(prompt.extra["topic"]))
    found = topic_of(prompt.text)
    if found is None:
        raise ConfigError(f"prompt '{prompt.text}': asks for no topic of the tutor's world; give extra['topic']")
    return found


def audit(n: int = 20, seed: int = 0) -> list[AuditPair]:
    """`n` random prompts of all splits, each with two answers from different registers or cheats."""
    rng = Random(f"audit-{seed}")
    pool = [prompt for split in SPLITS for prompt in prompts(split)]
    pairs = []
    for _ in range(n):
        prompt = rng.choice(pool)
        first, second = rng.sample([*REGISTERS, *CHEATS], 2)
        pairs.append(AuditPair(prompt, _written(prompt, first, rng), _written(prompt, second, rng)))
    return pairs


def audit_text(prompt: Prompt, source: str, words: str, truncated: bool = False) -> AuditText:
    """An answer from anywhere (a model's, say) with its gold reward, ready for an `AuditPair`."""
    return AuditText(source, words, gold(prompt_topic(prompt).name, words, truncated))


def format_audit(pairs: Sequence[AuditPair]) -> str:
    """The pairs as text: each answer's total, its parts, and every sentence with its kind."""
    blocks = []
    for number, pair in enumerate(pairs, start=1):
        lines = [f"{number}. {pair.prompt.text}"]
        for name, side in (("A", pair.a), ("B", pair.b)):
            lines += _format_side(name, side)
        difference = pair.a.gold.total - pair.b.gold.total
        better = "neither" if abs(difference) < 1e-9 else "A" if difference > 0 else "B"
        lines.append(f"   gold prefers {better} (difference {abs(difference):.2f})")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _format_side(name: str, side: AuditText) -> list[str]:
    parts = "  ".join(f"{part} {value:.2f}" for part, value in side.gold.parts.items())
    lines = [f"   {name} ({side.source})  gold {side.gold.total:.2f}", f"     {parts}"]
    for sentence, kind in side.gold.sentences:
        lines += textwrap.wrap(sentence, 100, initial_indent=f"     {kind:<12} ", subsequent_indent=" " * 18)
    return lines


def _written(prompt: Prompt, source: str, rng: Random) -> AuditText:
    if source in CHEATS:
        return audit_text(prompt, source, CHEATS[source](prompt, rng))
    register = next(name for name in REGISTERS if name == source)
    return audit_text(prompt, source, answer(prompt_topic(prompt), register, rng, topics()))
