"""What a run will hold and do, worked out before it starts: models, batch arithmetic, memory, time.

Pure functions from numbers to rows; `render_*` make rich tables of them. Parameter counts come from the header of the
safetensors files, so that no weight is loaded to show the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignloop.core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from rich.table import Table

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
ADAM_BYTES = 8  # two float32 moments of each trained parameter


@dataclass(frozen=True)
class HeldModel:
    """A model in memory during a stage. `trained` counts the parameters with a gradient (LoRA: the adapter's)."""

    role: str
    path: str
    parameters: int
    trained: int = 0
    bytes_per_parameter: int = 4

    @property
    def bytes(self) -> int:
        """Weights, gradients, Adam moments."""
        return self.parameters * self.bytes_per_parameter + self.trained * (self.bytes_per_parameter + ADAM_BYTES)


@dataclass(frozen=True)
class Batching:
    """The numbers that say how much work a training stage is.

    prompts: rows of the data set. prompts_per_rollout: prompts answered before each round of updates (0: all).
    prompt_tokens, answer_tokens: typical lengths of one sequence. samples: completions of each prompt (1 offline, 2 of
    pairs). micro_batch: sequences of one pass. epochs: passes over the data; update_epochs: passes over one rollout
    batch (PPO), each in `mini_batches` steps (0: as many as micro-batch and accumulation make).
    """

    prompts: int
    samples: int = 1
    prompts_per_rollout: int = 0
    micro_batch: int = 8
    accumulation: int = 1
    world: int = 1
    epochs: float = 1.0
    update_epochs: int = 1
    mini_batches: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    online: bool = False


@dataclass(frozen=True)
class Work:
    """What a `Batching` comes to. Tokens count prompt and answer of every sequence once per forward pass."""

    sequences: int
    sequences_per_step: int
    updates: int
    generated_tokens: int
    trained_tokens: int

    def flops(self, parameters: int, references: int = 1) -> float:
        """2·N a token forward, 4·N backward (Kaplan et al. 2020, §2.1), forward only for references and generation."""
        return parameters * ((6 + 2 * references) * self.trained_tokens + 2 * self.generated_tokens)


def batch_arithmetic(b: Batching) -> Work:
    """prompts × samples × epochs sequences, in steps of micro × accumulation × processes.

    The last step of a rollout (online) or of the run (offline) takes what is left, so updates are rounded up there.
    ConfigError where a number is not positive.
    """
    for name in ("prompts", "samples", "micro_batch", "accumulation", "world", "update_epochs"):
        if getattr(b, name) < 1:
            raise ConfigError(f"{name}: must be at least 1 (got {getattr(b, name)})")
    per_step = b.micro_batch * b.accumulation * b.world
    length = b.prompt_tokens + b.answer_tokens
    seen = math.ceil(b.prompts * b.epochs)
    if b.online:
        per_rollout = min(b.prompts_per_rollout or b.prompts, seen)
        if b.mini_batches:
            per_step = math.ceil(per_rollout * b.samples / b.mini_batches)
        whole, rest = divmod(seen, per_rollout)
        updates = whole * _passes(b, per_rollout, per_step) + _passes(b, rest, per_step)
        sequences = seen * b.samples
        trained = sequences * length * b.update_epochs
        generated = sequences * length
    else:
        sequences = seen * b.samples
        updates = math.ceil(sequences / per_step)
        trained, generated = sequences * length, 0
    return Work(sequences, per_step, updates, generated, trained)


def _passes(b: Batching, prompts: int, per_step: int) -> int:
    """Optimizer steps on one rollout of `prompts` prompts."""
    sequences = prompts * b.samples
    return b.update_epochs * (min(b.mini_batches, sequences) if b.mini_batches else math.ceil(sequences / per_step))


def activation_bytes(micro_batch: int, length: int, hidden: int, layers: int, vocabulary: int, item: int = 4) -> int:
    """A rough ceiling of what one micro-batch keeps for backward: 14 hidden-sized tensors a layer, and one of logits.

    14 = the inputs that a Llama block's matrix products, norms and activation keep (MLP ratio 8/3 counted), attention
    without stored scores. The logits are those of the tokens a loss reads, at worst all.
    """
    return micro_batch * length * item * (14 * hidden * layers + vocabulary)


def parameters_on_disk(folder: Path) -> tuple[int, int]:
    """(parameters, bytes) of the safetensors files of a folder, from their headers. ModelError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no .safetensors file; save the model with safe_serialization=True")
    parameters = size = 0
    for path in files:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            end = max((tensor["data_offsets"][1] for n, tensor in header.items() if n != "__metadata__"), default=0)
            if path.stat().st_size != 8 + length + end:
                raise ValueError("cut short")
            for name, tensor in header.items():
                if name != "__metadata__":
                    count = math.prod(tensor["shape"])
                    parameters += count
                    size += count * ITEM_BYTES[tensor["dtype"]]
        except (ValueError, KeyError, MemoryError, OverflowError):
            raise ModelError(f"{path}: not a safetensors file (damaged or cut); copy or save it again") from None
    return parameters, size


def human_count(n: float) -> str:
    """1_234_567 -> "1.23 M".

    >>> human_count(999), human_count(260_032), human_count(596_000_000)
    ('999', '260 k', '596 M')
    """
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


def human_bytes(n: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def human_seconds(n: float) -> str:
    """3725 -> "1 h 02 min"."""
    if n < 60:
        return f"{n:.0f} s" if n >= 1 else "under 1 s"
    minutes = round(n / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def model_rows(models: Sequence[HeldModel]) -> list[tuple[str, str, str, str, str]]:
    """Role, path, trainable or frozen, parameters, bytes; and their sum as the last row."""
    rows = []
    for m in models:
        share = "frozen" if not m.trained else "trained" if m.trained == m.parameters else "adapter trained"
        rows.append((m.role, m.path, share, human_count(m.parameters), human_bytes(m.bytes)))
    total = sum(m.parameters for m in models)
    return [*rows, ("all", "", "", human_count(total), human_bytes(sum(m.bytes for m in models)))]


def work_rows(
    b: Batching, parameters: int, flops_per_second: float | None = None, references: int = 1, activations: int = 0
) -> list[tuple[str, str, str]]:
    """(what, number, how it comes about) of a training stage."""
    work = batch_arithmetic(b)
    passes = f" × {b.epochs:.3g} epochs" if b.epochs != 1 else ""
    of_what = ("prompts", "samples") if b.online else ("rows", "answers")
    rows = [
        ("sequences", f"{work.sequences:,}", f"{b.prompts:,} {of_what[0]} × {b.samples} {of_what[1]}{passes}"),
        (
            "sequences a step",
            f"{work.sequences_per_step:,}",
            _step_text(b),
        ),
        ("updates", f"{work.updates:,}", _updates_text(b)),
        ("tokens trained on", human_count(work.trained_tokens), f"{b.prompt_tokens} + {b.answer_tokens} a sequence"),
    ]
    if b.online:
        rows.append(("tokens generated", human_count(work.generated_tokens), "prompt read and answer drawn, once each"))
    if activations:
        rows.append(("memory of a micro-batch", human_bytes(activations), "kept for the backward pass, at most"))
    if flops_per_second:
        seconds = work.flops(parameters, references) / flops_per_second
        rows.append(("time, roughly", human_seconds(seconds), f"at {human_count(flops_per_second)}FLOP/s"))
    return rows


def _step_text(b: Batching) -> str:
    if b.online and b.mini_batches:
        return f"a rollout's {(b.prompts_per_rollout or b.prompts) * b.samples:,} in {b.mini_batches} mini-batches"
    return f"{b.micro_batch} micro-batch × {b.accumulation} accumulated × {b.world} processes"


def _updates_text(b: Batching) -> str:
    if not b.online:
        return "sequences / sequences a step, rounded up"
    per_rollout = b.prompts_per_rollout or b.prompts
    return f"rollouts of {per_rollout} prompts × {b.samples}, {b.update_epochs} update epochs each"


def render_models(models: Sequence[HeldModel], title: str = "Models held") -> Table:
    """`model_rows` as a rich table."""
    return _table(title, ("role", "path", "", "parameters", "memory"), model_rows(models), right=(3, 4))


def render_work(rows: Sequence[tuple[str, str, str]], title: str = "Work") -> Table:
    """`work_rows` as a rich table."""
    return _table(title, ("", "", "how"), rows, right=(1,))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
