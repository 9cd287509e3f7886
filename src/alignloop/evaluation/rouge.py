"""ROUGE through the `rouge-score` package (Lin 2004), stemmer off: lower case, tokens [a-z0-9]+, clipped counts.

Words outside a-z and 0-9 do not count at all, so ROUGE says nothing about texts in other scripts. An empty candidate or
reference scores 0, not nan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alignloop.core.errors import DataError

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True, slots=True)
class Rouge:
    """Precision, recall and F1 of one kind."""

    precision: float
    recall: float
    f: float


@lru_cache(maxsize=2)
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and only needed here

    return RougeScorer(list(KINDS), use_stemmer=stemmer)


def rouge(candidate: str, reference: str, *, stemmer: bool = False) -> dict[str, Rouge]:
    """ROUGE-1, -2, -L and -Lsum (union LCS over newline-split sentences) of one text against one reference."""
    scores = _scorer(stemmer).score(reference, candidate)
    return {k: Rouge(float(s.precision), float(s.recall), float(s.fmeasure)) for k, s in scores.items()}


def corpus_rouge(candidates: Sequence[str], references: Sequence[str], *, stemmer: bool = False) -> dict[str, float]:
    """Mean F1 of each kind over aligned texts, the number usually printed as ROUGE-1/2/L/Lsum."""
    if len(candidates) != len(references) or not candidates:
        raise DataError(
            f"{len(candidates)} candidates for {len(references)} references; give one reference per candidate",
            field="references",
        )
    rows = [rouge(c, r, stemmer=stemmer) for c, r in zip(candidates, references)]
    return {k: sum(row[k].f for row in rows) / len(rows) for k in KINDS}
