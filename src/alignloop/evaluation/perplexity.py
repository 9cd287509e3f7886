"""Corpus perplexity and bits per byte (algorithms.md §3).

Both come from the corpus totals. A mean of per-batch perplexities is a different, larger number that depends on how the
rows were batched; it is never formed here. Perplexity counts tokens, so it compares models with one tokenizer only;
bits per byte compares across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignloop.core.errors import DataError, TrainingError

if TYPE_CHECKING:
    from alignloop.core.batch import PolicyFn, TokenBatch


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(nll / tokens); `nll` in nats over the corpus, `tokens` masked tokens (end tokens included)."""

    perplexity: float
    bits_per_byte: float | None
    nll: float
    tokens: int
    n_bytes: int | None

    @property
    def nll_per_token(self) -> float:
        return self.nll / self.tokens


def from_totals(nll: float, tokens: int, n_bytes: int | None = None) -> Perplexity:
    """exp(nll/tokens) and nll/(ln 2 · bytes). `n_bytes`: UTF-8 bytes of the texts whose tokens were counted.

    >>> p = from_totals(4 * math.log(8), 4, n_bytes=12)
    >>> round(p.perplexity, 9), round(p.bits_per_byte, 9)
    (8.0, 1.0)
    """
    if tokens < 1:
        raise DataError("no token to predict; the corpus needs rows with a completion", field="tokens")
    if n_bytes is not None and n_bytes < 1:
        raise DataError(f"{n_bytes} bytes of text; give the UTF-8 length of the completions", field="n_bytes")
    if not math.isfinite(nll):
        raise TrainingError(f"the corpus has a negative log-likelihood of {nll}; the model gives non-finite numbers")
    mean = nll / tokens
    value = math.exp(mean) if mean < 700 else math.inf
    bits = None if n_bytes is None else nll / (math.log(2) * n_bytes)
    return Perplexity(value, bits, nll, tokens, n_bytes)


def corpus_perplexity(policy: PolicyFn, batches: Iterable[TokenBatch], n_bytes: int | None = None) -> Perplexity:
    """Perplexity of `policy` over every masked token of `batches`, at temperature 1, without gradients.

    policy: callable ``policy(tokens, want={"logp"}) -> Out``. Totals are summed in float64, so the result does not
    depend on the batching beyond the policy's own rounding.
    """
    import torch

    nll, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            if bool((batch.temperature != 1).any()):
                raise DataError("perplexity is of the model itself; collate with temperature 1", field="temperature")
            logp = policy(batch, want={"logp"}).logp
            if logp is None:
                raise TrainingError("the policy returned no logp although it was wanted")
            nll -= float(logp[batch.mask].double().sum())
            count += int(batch.mask.sum())
    return from_totals(nll, count, n_bytes)
