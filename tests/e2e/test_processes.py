"""Two processes under torchrun end with the model that one process makes of the same batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.command import alignloop, here

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "alignloop.cli")
DPO = ("train", "dpo", "--model", "base", "--data", "pairs.jsonl", "--learning-rate", "1e-3", "--max-steps", "4")
PPO = ("train", "ppo", "--model", "base", "--prompts", "prompts.jsonl", "--reward", "toys.py:count_x",
       "--learning-rate", "1e-3", "--max-steps", "3", "--rollout-batch-size", "16", "--max-completion-length", "6",
       "--num-ppo-epochs", "3")  # fmt: skip


@pytest.mark.parametrize(
    ("line", "one", "two"),
    [
        pytest.param(DPO, "8", "4", id="dpo"),
        pytest.param(PPO, "8", "4", id="ppo", marks=pytest.mark.slow),
    ],
)
def test_two_processes_make_the_model_of_one(place: Path, line: tuple[str, ...], one: str, two: str) -> None:
    alone = here(*line, "--per-device-train-batch-size", one, "-o", "alone", cwd=place)
    assert alone.code == 0, alone.err
    both = alignloop(*line, "--per-device-train-batch-size", two, "-o", "both", cwd=place, launcher=TORCHRUN)
    assert both.code == 0, both.err[-3000:]
    assert both.out.count("model: both/model") == 1
    assert "destroy_process_group" not in both.err and "Traceback" not in both.err, both.err
    a, b = (load_file(place / name / "model" / "model.safetensors") for name in ("alone", "both"))
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    start = load_file(place / "base" / "model.safetensors")
    assert max(float((a[name] - start[name]).abs().max()) for name in a) > 1e-3  # it did learn
    logs = [(place / name / "metrics.jsonl").read_text().splitlines() for name in ("alone", "both")]
    steps = [[json.loads(x)["global_step"] for x in log] for log in logs]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1))  # written once
    for x, y in zip(*logs):
        assert json.loads(x)["loss"] == pytest.approx(json.loads(y)["loss"], abs=1e-4)
