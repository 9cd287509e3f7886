"""The numbers drawn are those of the distribution asked for, and the log-probabilities are its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from alignloop.core.errors import ConfigError
from alignloop.core.types import SamplingParams
from alignloop.rollout.sampling import check_sampling, draw, truncated, uniforms

P = [0.5, 0.3, 0.15, 0.05]
LOGITS = torch.tensor([[math.log(p) for p in P]], dtype=torch.float64)

CASES = [
    (SamplingParams(), [0.5, 0.3, 0.15, 0.05]),
    (SamplingParams(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    (SamplingParams(temperature=2.0), [p**0.5 / sum(q**0.5 for q in P) for p in P]),
    (SamplingParams(top_k=2), [0.625, 0.375, 0, 0]),
    (SamplingParams(top_p=0.79), [0.625, 0.375, 0, 0]),  # .5 + .3 reach .79
    (SamplingParams(top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
    (SamplingParams(top_p=0.1), [1, 0, 0, 0]),
    (SamplingParams(top_k=3, top_p=0.6), [0.625, 0.375, 0, 0]),  # of .5 .3 .15 over .95: .526, .842
]


@pytest.mark.parametrize(("sampling", "expected"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chi_square(sampling: SamplingParams, expected: list[float], dtype: torch.dtype) -> None:
    n = 20_000
    u = torch.from_numpy(np.concatenate([uniforms(3, f"prompt {i}", i % 7, 100) for i in range(n // 100)]))
    tokens, logp = draw(LOGITS.to(dtype).expand(n, -1), u, sampling)
    counts = np.bincount(tokens.numpy(), minlength=4)
    kept = [i for i in range(4) if expected[i] > 0]
    assert counts[[i for i in range(4) if i not in kept]].sum() == 0
    if len(kept) > 1:
        assert chisquare(counts[kept], [n * expected[i] for i in kept]).pvalue > 1e-3
    for token in kept:
        given = logp[tokens == token]
        assert given.numel() > 0
        assert given.double().tolist() == pytest.approx([math.log(expected[token])] * len(given), abs=1e-6)


def test_large_vocabulary_in_float32() -> None:
    """20,000 words: the cumulative sum must not lose the tail. Halves of the words, by mass."""
    z = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    p = z.double().softmax(-1)[0]
    edges = torch.searchsorted(p.cumsum(0), torch.arange(1, 10) / 10.0)
    u = torch.from_numpy(uniforms(0, "x", 0, 2000))
    tokens = torch.cat([draw(z.expand(len(part), -1), part, SamplingParams())[0] for part in u.split(500)])
    bins = torch.bucketize(tokens, edges, right=True)
    mass = torch.zeros(10, dtype=torch.float64).index_add(
        0, torch.bucketize(torch.arange(20_000), edges, right=True), p
    )
    assert chisquare(np.bincount(bins.numpy(), minlength=10), (mass * 2000).numpy()).pvalue > 1e-3


def test_hand_computed_inverse_cdf() -> None:
    u = torch.tensor([0.0, 0.4999, 0.5, 0.7999, 0.8001, 0.96, 1 - 1e-12], dtype=torch.float64)
    assert draw(LOGITS.expand(7, -1), u, SamplingParams())[0].tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_uniform_never_lands_on_a_removed_word(dtype: torch.dtype) -> None:
    z = torch.randn(200, 37, generator=torch.Generator().manual_seed(1), dtype=dtype)
    z[:, -5:] = -20.0  # the last words are outside top-k
    u = torch.full((200,), float(np.nextafter(1.0, 0.0)), dtype=torch.float64)
    tokens, logp = draw(z, u, SamplingParams(top_k=3))
    assert (tokens < 32).all()
    assert torch.isfinite(logp).all()
    assert torch.isfinite(truncated(z, SamplingParams(top_k=3)).gather(1, tokens[:, None])).all()


def test_greedy() -> None:
    tokens, logp = draw(LOGITS.flip(-1), torch.tensor([0.99]), SamplingParams(temperature=0))
    assert tokens.tolist() == [3]
    assert logp.tolist() == [0.0]


def test_uniforms_depend_on_their_key_alone() -> None:
    one = uniforms(0, "a", 0, 5)
    assert np.array_equal(one, uniforms(0, "a", 0, 50)[:5])  # a longer row begins like a shorter one
    others = [uniforms(1, "a", 0, 5), uniforms(0, "b", 0, 5), uniforms(0, "a", 1, 5), uniforms(0, "a0", 0, 5)]
    assert all(not np.intersect1d(one, other).size for other in others)
    assert one.min() >= 0
    assert one.max() < 1
    # The stream itself is part of what "the same seed" promises: a change here changes every recorded run.
    assert uniforms(0, "a", 0, 1) == pytest.approx([0.73594331], abs=1e-8)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 200}, "min_new_tokens"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_impossible_settings_are_named(wrong: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_sampling(SamplingParams(**wrong))
    with pytest.raises(ConfigError, match=r"sampling\.n"):
        check_sampling(SamplingParams(), n=0)
