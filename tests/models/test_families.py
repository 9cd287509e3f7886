"""Every family through the head's pieces and in bfloat16: the numbers of one float64 row a sequence."""

from __future__ import annotations

import pytest
import torch
from tests.invariants.bench import exact
from tests.invariants.rows import items_of_rows, rows
from torch import Tensor

from alignloop.core.layout import build
from alignloop.models import token_logp
from alignloop.models.policy import Policy
from alignloop.models.tiny import FAMILIES, tiny_model

F64 = torch.float64
ITEMS = items_of_rows(rows())


def outcome(policy: Policy, layout: str = "packed") -> list[Tensor]:
    """Log-probabilities and entropies, sequence by sequence, and the gradient of an uneven sum of them."""
    tokens = build(ITEMS, layout)  # type: ignore[arg-type]
    out = policy(tokens, {"logp", "entropy"})
    at = tokens.mask.nonzero(as_tuple=True)
    order = (tokens.sequence_of_token()[at] * 100 + tokens.positions[at]).argsort()
    logp, entropy = out.logp[at][order], out.entropy[at][order]
    weight = torch.linspace(0.5, 1.5, len(logp), dtype=logp.dtype)
    given = torch.autograd.grad((weight * (logp + 0.3 * entropy)).sum(), policy.trainable(), allow_unused=True)
    return [logp.detach(), entropy.detach(), torch.cat([g.flatten() for g in given if g is not None])]


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_the_head(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of three rows at a time, made again backward."""
    policy = Policy(exact(tiny_model(family, dtype=F64)))
    whole = outcome(policy, "right")
    monkeypatch.setattr(token_logp, "LOGITS_BYTES", 3 * 64 * 8)
    for found, truth in zip(outcome(policy), whole, strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-9 * float(truth.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_as_transformers_own(family: str) -> None:
    """Packed rows under autocast against padded ones through SDPA; log-probabilities stay float32."""
    truth = outcome(Policy(exact(tiny_model(family, dtype=F64))), "right")
    packed = outcome(Policy(tiny_model(family), compute_dtype=torch.bfloat16))
    plain = tiny_model(family)
    plain.set_attn_implementation("eager" if family == "gemma2" else "sdpa")
    padded = outcome(Policy(plain, compute_dtype=torch.bfloat16), "right")
    assert packed[0].dtype == packed[1].dtype == torch.float32
    for ours, theirs, best in zip(packed, padded, truth, strict=True):
        off, usual = ((x.double() - best).norm() / best.norm() for x in (ours, theirs))
        assert off <= 1.5 * usual + 5e-3
