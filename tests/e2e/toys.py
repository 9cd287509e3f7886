"""A world in which the best answer is known: prompts are letters, answers are made of x, y and z, and x is good.

This file is copied beside the recipe: its functions are the rewards that recipes and commands name as ``toys.py:...``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def count_x(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The number of x among the first six letters."""
    return [float(c[:6].count("x")) for c in completions]


def not_a_number(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward that divides by zero in float arithmetic."""
    return [float("nan")] * len(completions)


def one_too_few(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward that loses a row."""
    return [0.0] * (len(completions) - 1)


def raises(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward with a mistake in it."""
    return [{"x": 1.0}[c] for c in ["missing"] * len(completions)]


def write_world(folder: Path, n: int = 64) -> Path:
    """Demonstrations, prompts and pairs as files; this module beside them."""
    rng = random.Random(0)
    prompts = [f"{a}{b} " for a in "abcdefgh" for b in "ijklmnop"][:n]
    answers = ["".join(rng.choice("xyz") for _ in range(rng.randint(3, 6))) for _ in prompts]
    write_rows(folder / "demonstrations.jsonl", [{"prompt": p, "completion": a} for p, a in zip(prompts, answers)])
    write_rows(folder / "held.jsonl", [{"prompt": p.upper().lower() + "q ", "completion": "xyx"} for p in prompts[:8]])
    write_rows(folder / "prompts.jsonl", [{"prompt": p} for p in prompts[: n // 2]])
    write_rows(folder / "test.jsonl", [{"prompt": p} for p in prompts[n // 2 : n // 2 + 16]])
    pairs = [{"prompt": p, "chosen": "x" * (2 + i % 3), "rejected": "z" * (2 + i % 2)} for i, p in enumerate(prompts)]
    write_rows(folder / "pairs.jsonl", pairs[:32])
    (folder / "toys.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
