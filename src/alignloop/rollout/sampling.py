"""Drawing tokens by inverse CDF: one uniform per token, the same whatever else is in the batch.

The uniform of (seed, prompt id, sample index, token index) is entry `token index` of a counter-based stream (Philox)
keyed by the other three, so a row's tokens never depend on its neighbours, the slots or the order of admission. One
exponential pass, one cumulative sum and one search per row; `torch.multinomial` would draw a random number per word.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from torch import Tensor

from alignloop.core.errors import ConfigError
from alignloop.core.types import SamplingParams


def check_sampling(sampling: SamplingParams, n: int = 1) -> None:
    """Raise a ConfigError that names the setting which no distribution can have."""
    wrong = {
        "n": (n, n >= 1, "at least 1"),
        "temperature": (sampling.temperature, 0 <= sampling.temperature < float("inf"), "0 (greedy) or more"),
        "top_k": (sampling.top_k, sampling.top_k >= 0, "0 (off) or more"),
        "top_p": (sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        "max_new_tokens": (sampling.max_new_tokens, sampling.max_new_tokens >= 1, "at least 1"),
        "min_new_tokens": (
            sampling.min_new_tokens,
            0 <= sampling.min_new_tokens <= sampling.max_new_tokens,
            "between 0 and max_new_tokens",
        ),
    }
    for name, (value, fine, rule) in wrong.items():
        if not fine:
            raise ConfigError(f"sampling.{name}: must be {rule} (got {value})")
    if "" in sampling.stop:
        raise ConfigError("sampling.stop: a stop string must not be empty")


def uniforms(seed: int, prompt_id: str, index: int, count: int) -> np.ndarray:
    """f64[count] in [0, 1): entry t belongs to token t of sample `index` of the prompt. Longer counts extend it."""
    key = hashlib.sha256(json.dumps([seed, prompt_id, index]).encode()).digest()[:16]
    bits = np.random.Philox(key=np.frombuffer(key, dtype="<u8"))
    return np.random.Generator(bits).random(count)


def truncated(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """[R,V] logits over the temperature, -inf outside top-k and top-p (in this order; ties with the k-th stay).

    top-p keeps the smallest set of most probable words whose probability reaches top_p, always at least one.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, where = logits.sort(stable=True, dim=-1, descending=True)
        p = ordered.softmax(-1)
        beyond = p.cumsum(-1) - p >= sampling.top_p
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, where, beyond), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability under the distribution that was sampled: i64[R], float[R].

    logits [R,V]; uniform [R] in [0, 1). Token = the first word whose cumulative probability exceeds the uniform. At
    temperature 0 it is the most probable word, and its log-probability is 0: nothing else could have been drawn.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return tokens, torch.zeros(tokens.shape, dtype=wide, device=tokens.device)
    logits = truncated(logits, sampling)
    z = logits - logits.amax(-1, keepdim=True)
    cdf = z.exp().cumsum(-1)
    total = cdf[:, -1]
    # Rounding may take u·total up to the total itself, beyond which no word lies; the step below it lands on the last
    # word that has a probability, never on one that top-k or top-p has removed.
    target = torch.minimum(uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, target[:, None], right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], z.gather(-1, tokens)[:, 0] - total.log()
