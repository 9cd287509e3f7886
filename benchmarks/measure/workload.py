"""The rows of one measurement: the same for every side, in the same order, and the useful tokens that they ask for.

Useful tokens are non-padding tokens of prompt and answers, end tokens included. A pair's prompt counts twice, a group's
prompt once for every answer, whether or not a side computes it more than once.

Only rows are taken whose prompt and answer have the same token ids apart and together: TRL encodes them together, and
rows that merge across the boundary would not be the same work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import assets

PROMPTS, GROUP, NEW_TOKENS = 8, 8, 128
ANSWERS: Mapping[str, int] = {"grpo": PROMPTS * GROUP, "rloo": PROMPTS * GROUP, "ppo": 32}
"""Answers drawn in a step. PPO has one for each prompt; TRL's keeps the logits of all: over 17 GB for 64."""
ONLINE = tuple(ANSWERS)
METHODS = ("sft", "reward", "dpo", "kto", *ONLINE)

LEARNING_RATE = 1e-5
COMMON: Mapping[str, Any] = {
    "learning_rate": LEARNING_RATE, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "adam_beta2": 0.999,
    "max_grad_norm": 1.0, "save_every": 0, "seed": 0,
}  # fmt: skip
"""The optimizer as transformers' Trainer has it, and no checkpoint (TRL saves none here either)."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"kl": {"beta": 0.0}, "reduction": "token_mean", "num_generations": GROUP, "rollout_batch_size": PROMPTS},
    "rloo": {"kl": {"beta": 0.05}, "num_generations": GROUP, "rollout_batch_size": PROMPTS},
    "ppo": {"num_ppo_epochs": 1, "num_mini_batches": 1, "rollout_batch_size": ANSWERS["ppo"], "temperature": 0.7,
            "kl": {"beta": 0.05}},
}  # fmt: skip
"""What TRL's configs say by default: GRPO without a reference and with the mean over all tokens, RLOO with β = 0.05. An
answer that was cut off is not penalised, and threads and slots are those of the formula in every round (`make`)."""


@dataclass(frozen=True)
class Workload:
    """Rows for one method. data: for TRL, in order. ours: the same rows where our permutation puts them in that order.
    asked: useful tokens of every step (online methods: of the prompts; what is generated is counted by each side)."""

    method: str
    data: list[dict[str, Any]]
    ours: list[dict[str, Any]]
    encoded: list[dict[str, list[int]]]
    asked: list[int]
    batch: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, str]:
        """Both files and the token ids, as JSON lines."""
        names = {"trl": self.data, "ours": self.ours, "encoded": self.encoded}
        return {name: str(_write(folder / f"{name}.jsonl", rows)) for name, rows in names.items()}


def make(method: str, folder: Path, tokenizer: Any, steps: int, batch: int) -> Workload:
    """The rows of `steps` optimizer steps (warm-up included) of `batch` rows; groups: 8 prompts × G 8; PPO: 32."""
    from alignloop.training.loader import permutation

    per_step = PROMPTS if method in ("grpo", "rloo") else ANSWERS[method] if method == "ppo" else batch
    usable = [row for row in assets.rows(folder) if _splits(row, tokenizer)]
    needed = steps * per_step
    taken = [usable[i % len(usable)] for i in range(needed)]
    data = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in taken]
    ours: list[dict[str, Any]] = [{}] * needed
    for place, row in zip(permutation(needed, 0, 0).tolist(), _for_us(method, data)):
        ours[place] = row
    encoded = [{name: _ids(row[name], tokenizer) for name in row} for row in data]
    asked = [sum(_asked(method, row, i) for i, row in enumerate(encoded[k : k + per_step], k))
             for k in range(0, needed, per_step)]  # fmt: skip
    online = {"max_completion_length": NEW_TOKENS, "shaping": {"missing_eos": "none"}, "measure": False}
    micro = ANSWERS.get(method, batch)
    settings = {
        **COMMON,
        **(online if method in ONLINE else {}),
        **SETTINGS.get(method, {}),
        "per_device_train_batch_size": micro,
    }
    return Workload(method, data, ours, encoded, asked, micro, settings)


def _for_us(method: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows under the columns of our readers. KTO: thumbs up and down in turn, as trl_baseline.py has them."""
    if method == "sft":
        return [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    if method == "kto":
        return [{"prompt": r["prompt"], "completion": r[_thumb(i)], "label": i % 2 == 0} for i, r in enumerate(rows)]
    if method in ONLINE:
        return [{"prompt": r["prompt"]} for r in rows]
    return [dict(r) for r in rows]


def _thumb(i: int) -> str:
    return "chosen" if i % 2 == 0 else "rejected"


def _asked(method: str, row: Mapping[str, Sequence[int]], i: int) -> int:
    """Useful tokens of one encoded row; every answer has one end token besides."""
    prompt, chosen, rejected = (len(row[name]) for name in ("prompt", "chosen", "rejected"))
    if method == "sft":
        return prompt + chosen + 1
    if method == "kto":
        return prompt + len(row[_thumb(i)]) + 1
    if method == "ppo":  # trl_baseline.py counts what was generated
        return 0
    if method in ONLINE:
        return prompt * GROUP
    return 2 * prompt + chosen + rejected + 2


def _ids(words: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(words, add_special_tokens=False)["input_ids"])


def _splits(row: Mapping[str, Any], tokenizer: Any) -> bool:
    prompt = _ids(row["prompt"], tokenizer)
    answers = [row["chosen"], row["rejected"]]
    return all(_ids(row["prompt"] + words, tokenizer) == prompt + _ids(words, tokenizer) for words in answers)


def _write(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
