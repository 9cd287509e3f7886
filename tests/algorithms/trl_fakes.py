"""What TRL's private loss functions run on here: a trainer that was never built, and a model that says given numbers.

They are private: where their names have moved, the test is skipped and says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignloop.core.batch import TokenBatch
from tests.algorithms.algo_fakes import V, close, grid

trl = pytest.importorskip("trl", reason="TRL is a development dependency")

LENGTHS = [3, 1, 4, 2, 5, 2]


def trainer(kind: type | None = None, **more: Any) -> Any:
    """What the loss functions read of a trainer; of this class (never initialised), where they call their own."""
    alone = SimpleNamespace(
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
        sync_gradients=True,
        device=torch.device("cpu"),
        parallelism_config=None,
    )
    made: Any = SimpleNamespace() if kind is None else object.__new__(kind)
    given = {
        "model": SimpleNamespace(training=True),
        "accelerator": alone,
        "aux_loss_enabled": False,
        "compute_loss_func": None,
        "label_smoother": None,
        "get_tp_size": lambda: 1,
        "_tp_size": 1,
        "_total_train_tokens": 0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        **more,
    }
    for name, value in given.items():
        setattr(made, name, value)
    return made


def dpo_loss(
    tokens: TokenBatch, reference: list[float], losses: dict[str, float], *, beta: float, smoothing: float = 0.0
) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """TRL's DPO trainer and its loss as a function of token log-probabilities. losses: names and weights.

    tokens: TRL's order, every chosen answer before the first rejected one; reference: their summed log-probabilities.
    """
    half = tokens.n // 2
    me = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=list(losses),
        loss_weights=list(losses.values()),
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
    )
    inputs = {
        "input_ids": tokens.tokens,
        "attention_mask": tokens.segment >= 0,
        "completion_mask": tokens.mask.long(),
        "ref_chosen_logps": torch.tensor(reference[:half]),
        "ref_rejected_logps": torch.tensor(reference[half:]),
    }

    def loss(logp: Tensor) -> Tensor:
        return theirs(lambda: trl.DPOTrainer._compute_loss(me, lambda **_: fused(logp, tokens), dict(inputs), False))

    return me, loss


def theirs(f: Callable[[], Any]) -> Any:
    """Run something of TRL's; skip where what it is called, or what it reads, has moved."""
    try:
        return f()
    except (AttributeError, KeyError, ImportError) as error:
        pytest.skip(f"TRL {trl.__version__} has moved a private name: {error}")


def fused(logp: Tensor, tokens: TokenBatch) -> Any:
    """What TRL's fused head returns: log-probabilities of tokens 1.., zero where no label is."""
    shifted = tokens.mask[:, 1:]
    return SimpleNamespace(
        log_probs=torch.where(shifted, logp[:, 1:], 0.0),
        label_mask=shifted,
        entropy=torch.zeros_like(logp[:, 1:]),
        mean_logits=torch.zeros_like(logp[:, 1:]),
        is_top1=shifted,
    )


def logits_of(logp: Tensor, tokens: Tensor) -> Tensor:
    """Logits [B,T,V] from which log-softmax reads logp [B,T], each at the place before its token; differentiable.

    Where nothing is said, logp is 0, which no logits give: there it is -1.
    """
    said = torch.where(logp[:, 1:] < 0, logp[:, 1:], -1.0)
    others = torch.log1p(-said.exp()) - math.log(V - 1)
    before = others[..., None].expand(*others.shape, V).scatter(-1, tokens[:, 1:, None], said[..., None])
    return torch.cat([before, torch.zeros_like(before[:, :1])], 1)


def random_logp(tokens: TokenBatch, seed: int = 0) -> Tensor:
    """Log-probabilities between -3 and 0."""
    g = torch.Generator().manual_seed(seed)
    return grid([(-3 * torch.rand(n, generator=g)).tolist() for n in LENGTHS[: tokens.n]], tokens).float()


def compare(ours: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Both have the same value and the same gradient there, to 1e-5, and the gradient is not nothing."""
    results = []
    for f in (ours, other):
        x = at.clone().requires_grad_()
        loss = f(x)
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    close(results[0][0], results[1][0], 1e-5)
    close(results[0][1], results[1][1], 1e-5)
    assert results[0][1].abs().max() > 1e-3
