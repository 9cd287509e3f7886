"""One forward pass for every method: backbone once, and of the heads only what was asked for.

A `Policy` wraps a Hugging Face model: a causal LM (log-probabilities, entropies, and values where it carries a value
head) or a sequence classifier with one label (scores: a reward model; values: a critic). It is what DDP wraps, so
everything goes through `forward`; nobody outside reads a weight.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignloop.core.batch import Out, TokenBatch
from alignloop.core.errors import ModelError
from alignloop.core.layout import build, gather, items_of, place
from alignloop.models.attention import NO_MASK, supports_packing, use_own_attention
from alignloop.models.heads import scalar_head
from alignloop.models.packing import packed_plan
from alignloop.models.token_logp import token_logp

log = logging.getLogger(__name__)


class Policy(nn.Module):
    """A language model or scalar model with one `forward(batch, want) -> Out`.

    value_head: give a causal LM a zero-initialised value head on its own trunk (PPO's shared critic).
    compute_dtype: autocast to this type; weights stay as loaded. None computes in the weights' type.
    offset, scale, sd: a reward model's score is raw · scale - offset; sd undoes the scale folded into its folder.
    extra: free numbers that a method learns beside the model (`add_extras`); `forward` hands out copies of them,
    because DDP looks for what was used in the graph of its outputs.
    """

    def __init__(self, model: Any, *, value_head: bool = False, compute_dtype: torch.dtype | None = None):
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.detach_values = False
        self.rebased = False  # the adapter stands on weights that no folder holds
        self.offset, self.scale, self.sd = 0.0, 1.0, 1.0
        inner = self.inner
        self.scalar = hasattr(inner, "score")
        if not self.scalar and inner.get_output_embeddings() is None:
            raise ModelError(f"{type(inner).__name__} is neither a causal LM nor a sequence classifier with one label")
        width = inner.score.in_features if self.scalar else inner.get_output_embeddings().in_features
        self.value_head: nn.Linear | None = scalar_head(width, zero=True) if value_head else None
        if self.value_head is not None:
            self.value_head.to(next(inner.parameters()))
        self.extra = nn.ParameterDict()
        self._packs = supports_packing(inner)
        if not self._packs:
            use_own_attention(inner)
            _say_padded(type(inner).__name__)
        self._after_head: _AfterHead | None = None if self.scalar else _find_after_head(inner)

    @property
    def inner(self) -> Any:
        """The Hugging Face model itself, adapters injected but their wrapper taken off."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def vocabulary(self) -> int:
        return int(self.inner.config.get_text_config().vocab_size)

    def without_dropout(self) -> Policy:
        """Set every dropout of the model to 0, in training mode too; the saved config keeps its values.

        Where log-probabilities of two moments are compared (a ratio, a reference), noise in one of them is a bug.
        Families keep rates in `nn.Dropout` modules and in attributes such as `attention_dropout`.
        """
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
        return self

    def add_extras(self, first: Mapping[str, float]) -> Policy:
        """Learn these numbers too, from their first values."""
        like = next(self.parameters())
        for name, value in first.items():
            self.extra[name] = nn.Parameter(like.new_tensor(value))
        return self

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that an optimizer should hold."""
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, batch: TokenBatch, want: Iterable[str]) -> Out:
        """One backbone pass over `batch`: of the fields of `Out` only what is wanted."""
        wanted = set(want)
        if unknown := wanted - {f.name for f in fields(Out)}:
            raise ValueError(f"unknown wants: {sorted(unknown)}")
        if not self._packs and not _is_padded(batch):
            return self._through_padding(batch, wanted)
        with self._autocast():
            hidden = self._hidden(batch)
            where = batch.mask.nonzero(as_tuple=True)
            before = hidden[where[0], batch.prev[where]]
            return Out(
                **self._language(before, batch, where, wanted),
                values=self._values(before, batch, where) if "values" in wanted else None,
                scores=self._scores(hidden, batch) if "scores" in wanted else None,
                token_scores=self._token_scores(hidden, batch, where) if "token_scores" in wanted else None,
                extra={name: p.clone() for name, p in self.extra.items()} if "extra" in wanted else None,
            )

    def logits(self, batch: TokenBatch, index: Tensor, *, twice: bool = False) -> Tensor:
        """Logits f[K,V] that predict the K masked tokens at flat places `index` of the batch, temperature applied.

        For TRPO, full-vocabulary KL and exactness tests. `twice`: they can be differentiated twice, by plain attention.
        """
        if not self._packs and not _is_padded(batch):
            padded = build(items_of(batch), "right").to(batch.tokens.device)
            there = gather(torch.arange(padded.mask.numel(), device=index.device).view_as(padded.mask), padded)
            return self.logits(padded, place(there, batch).flatten()[index], twice=twice)
        rows, columns = index // batch.tokens.shape[1], index % batch.tokens.shape[1]
        with self._autocast():
            hidden = self._hidden(batch, twice=twice)[rows, batch.prev[rows, columns]]
            logits = self._project(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tau = batch.temperature[batch.sequence_of_token()[rows, columns]].to(logits)
        return logits / tau[:, None]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.compute_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def _hidden(self, batch: TokenBatch, *, twice: bool = False) -> Tensor:
        how: dict[str, Any] = (
            {"attention_mask": NO_MASK, "plan": packed_plan(batch, twice=twice), "position_ids": batch.positions}
            if self._packs
            else {"attention_mask": (batch.segment >= 0).long()}
        )
        with sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext():  # the fast kernels have no second one
            hidden: Tensor = self.inner.base_model(input_ids=batch.tokens, use_cache=False, **how).last_hidden_state
        return hidden

    def _language(
        self, before: Tensor, batch: TokenBatch, where: tuple[Tensor, ...], wanted: set[str]
    ) -> dict[str, Tensor | None]:
        if not wanted & {"logp", "entropy"}:
            return {}
        if self.scalar:
            raise ModelError("a reward model or critic has no token probabilities")
        tau = batch.temperature[batch.sequence_of_token()[where]]
        logp, entropy = token_logp(
            before, batch.tokens[where], tau, self._project, self.vocabulary, entropy="entropy" in wanted
        )
        return {
            "logp": _scatter(logp, batch, where),
            "entropy": None if entropy is None else _scatter(entropy, batch, where),
        }

    def _values(self, before: Tensor, batch: TokenBatch, where: tuple[Tensor, ...]) -> Tensor:
        before = before.detach() if self.detach_values else before
        return _scatter(_wide(self._scalar_head()(before).squeeze(-1)), batch, where)

    def _scores(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        flat = torch.arange(batch.mask.numel(), device=batch.mask.device).view_as(batch.mask)[batch.mask]
        owner = batch.sequence_of_token()[batch.mask]
        last = torch.zeros(batch.n, dtype=torch.int64, device=flat.device).scatter_reduce(0, owner, flat, "amax")
        return self._scored(hidden.reshape(-1, hidden.shape[-1])[last])

    def _token_scores(self, hidden: Tensor, batch: TokenBatch, where: tuple[Tensor, ...]) -> Tensor:
        return _scatter(self._scored(hidden[where]), batch, where)

    def _scored(self, states: Tensor) -> Tensor:
        return _wide(self._scalar_head()(states).squeeze(-1)) * self.scale - self.offset

    def _scalar_head(self) -> nn.Module:
        head: nn.Module | None = self.inner.score if self.scalar else self.value_head
        if head is None:
            raise ModelError("this language model has no scalar head; load a reward model, or give PPO a critic")
        return head

    def _project(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states. The head is looked up at every call: a copy of this policy must use its own."""
        if self._after_head is None:
            raise ModelError("a reward model or critic has no token probabilities")
        return self._after_head(self.inner.get_output_embeddings()(hidden))

    def _through_padding(self, batch: TokenBatch, wanted: set[str]) -> Out:
        """For families that cannot take packed rows: the same numbers by way of one padded row a sequence."""
        padded = build(items_of(batch), "right").to(batch.tokens.device)
        out = self(padded, wanted)

        def back(x: Tensor | None) -> Tensor | None:
            return None if x is None else place(gather(x, padded), batch)

        return Out(
            logp=back(out.logp),
            entropy=back(out.entropy),
            values=back(out.values),
            scores=out.scores,
            token_scores=back(out.token_scores),
            extra=out.extra,
        )


@cache
def _say_padded(family: str) -> None:
    log.warning("%s does not take packed rows; its batches are padded instead", family)


def _is_padded(batch: TokenBatch) -> bool:
    """One segment a row, starting at its left end: what any family can take."""
    rows = [row for row, start, _ in batch.spans if start == 0]
    return len(rows) == len(batch.spans) == batch.tokens.shape[0] and len(set(rows)) == len(rows)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _scatter(values: Tensor, batch: TokenBatch, where: tuple[Tensor, ...]) -> Tensor:
    out = torch.zeros(batch.tokens.shape, dtype=values.dtype, device=values.device)
    return out.index_put(where, values)


@dataclass(frozen=True)
class _AfterHead:
    """What a family does to its logits after the LM head: scale, divide, soft cap."""

    scale: float | None
    divide: float | None
    cap: float | None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale is not None:
            logits = logits * self.scale
        if self.divide is not None:
            logits = logits / self.divide
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


def _find_after_head(model: Any) -> _AfterHead:
    """Read off the config what follows the LM head. Proven on the spot: it must reproduce the model's own logits."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    after = _AfterHead(
        scale=getattr(config, "logit_scale", None),
        divide=getattr(config, "logits_scaling", None),
        cap=getattr(config, "final_logit_softcapping", None),
    )
    ids = torch.arange(4, device=head.weight.device)[None] % config.vocab_size
    mode = model.training
    model.eval()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        whole = model(**given).logits
        ours = after(head(model.base_model(**given).last_hidden_state))
    model.train(mode)
    if not torch.allclose(whole.float(), ours.float(), atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"{type(model).__name__} does something to its logits after the LM head that alignloop does not know; "
            "please report the model family"
        )
    return after
