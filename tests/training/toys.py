"""Toy data for training tests: letters in, letters out; every optimum is known."""

from __future__ import annotations

from alignloop.core.types import Completion, Demonstration, Preference, Prompt, text


def prompts(n: int = 24) -> list[Prompt]:
    return [Prompt(f"p{i}", text("abcdefgh"[i % 8] * (1 + i % 5) + " ")) for i in range(n)]


def demonstrations(n: int = 24) -> list[Demonstration]:
    return [
        Demonstration(f"d{i}", p, Completion(f"c{i}", p.id, text("xyz"[: 1 + i % 3]))) for i, p in enumerate(prompts(n))
    ]


def preferences(n: int = 24) -> list[Preference]:
    """The x is always better than the z; lengths differ both ways."""
    return [
        Preference(
            f"q{i}",
            p,
            Completion(f"a{i}", p.id, text("x" * (1 + i % 3))),
            Completion(f"b{i}", p.id, text("z" * (1 + (i + 1) % 3))),
            p=(1.0, 0.9, 0.75)[i % 3],
        )
        for i, p in enumerate(prompts(n))
    ]


def count_x(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """A reward whose optimum is known: the share of x among five letters."""
    return [min(c.count("x"), 5) / 5 for c in completions]
