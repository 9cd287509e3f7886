"""The limit: a whole step by the frozen `packed_prototype.py` (unpadded attention, shared prompts, a chunked head).

    python packed_side.py JOB.json

The job holds `encoded`, the token ids of every row in order. A step is what both contestants do in one: collation,
forward, backward, clipping, AdamW with the linear schedule; for DPO the reference's pass, too. CPU only, as the
prototype is.
"""

from __future__ import annotations

import copy
import itertools
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

END, BETA = 2, 0.1
Row = Mapping[str, list[int]]


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """warmup + steps steps over the rows; seconds and losses."""
    sys.path.insert(0, str(Path(job["prototype"]).parent))
    import packed_prototype as prototype
    from transformers import AutoModelForCausalLM

    prototype.register_packed()
    rows = [json.loads(line) for line in Path(job["encoded"]).read_text(encoding="utf-8").splitlines()]
    model = AutoModelForCausalLM.from_pretrained(job["model"], attn_implementation="packed_loop", dtype=torch.float32)
    reference = copy.deepcopy(model).requires_grad_(False) if job["method"] == "dpo" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["learning_rate"], betas=(0.9, 0.999), weight_decay=0.0,
                                  fused=True)  # fmt: skip
    total = job["warmup"] + job["steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    ends, losses, rates = [time.perf_counter()], [], []
    for step in range(total):
        batch = rows[step * job["batch"] : (step + 1) * job["batch"]]
        with torch.autocast("cpu", torch.bfloat16, enabled=job["dtype"] == "bf16"):
            loss = sft(prototype, model, batch) if reference is None else dpo(prototype, model, reference, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates += schedule.get_last_lr()
        schedule.step()
        losses.append(float(loss))
        ends.append(time.perf_counter())
    seconds = [round(b - a, 6) for a, b in itertools.pairwise(ends)][job["warmup"] :]
    return {
        "seconds": seconds,
        "tokens": sum(job["asked"][job["warmup"] :]),
        "metrics": {"loss": losses, "learning_rate": rates},
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
    }


def sft(prototype: Any, model: Any, batch: Sequence[Row]) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    ids, pos, segs, src, tgt, _ = prototype.pack_sequences([(r["prompt"], [*r["chosen"], END]) for r in batch])
    return -log_probs(prototype, model, ids, pos, segs, src, tgt).mean()


def dpo(prototype: Any, model: Any, reference: Any, batch: Sequence[Row]) -> torch.Tensor:
    """DPO's loss, the reference run at this step, the prompt of a pair computed once."""
    pairs = [(r["prompt"], [[*r["chosen"], END], [*r["rejected"], END]]) for r in batch]
    ids, pos, segs, src, tgt, own = prototype.pack_shared(pairs)

    def sums(policy: Any) -> torch.Tensor:
        logp = log_probs(prototype, policy, ids, pos, segs, src, tgt)
        return torch.zeros(2 * len(pairs)).index_add(0, own, logp)

    with torch.no_grad():
        before = sums(reference)
    gain = sums(model) - before
    return -F.logsigmoid(BETA * (gain[0::2] - gain[1::2])).mean()


def log_probs(prototype: Any, model: Any, ids: Any, pos: Any, segs: Any, src: Any, tgt: Any) -> torch.Tensor:
    """f32[n]: log-probability of every answer token."""
    prototype.SEGS[:] = segs
    hidden = model.model(input_ids=ids, position_ids=pos, use_cache=False).last_hidden_state[0]
    found: torch.Tensor = prototype.chunked_logp(hidden[src], model.lm_head.weight, tgt, keep=True)
    return found


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(run(given)))
