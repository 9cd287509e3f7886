"""Batch arithmetic and the table of models, on numbers worked out by hand."""

from __future__ import annotations

import json
import struct

import pytest

from alignloop.core.errors import ConfigError, ModelError
from alignloop.pipeline.preflight import (
    Batching,
    HeldModel,
    activation_bytes,
    batch_arithmetic,
    human_bytes,
    human_count,
    human_seconds,
    model_rows,
    parameters_on_disk,
    render_models,
    render_work,
    work_rows,
)


def test_offline_rounds_up_at_the_end():
    work = batch_arithmetic(
        Batching(prompts=100, micro_batch=4, accumulation=4, epochs=3, prompt_tokens=10, answer_tokens=20)
    )
    assert work.sequences == 300 and work.sequences_per_step == 16
    assert work.updates == 19  # 300 / 16 = 18.75: a step may hold the end of one pass and the start of the next
    assert work.trained_tokens == 9000 and work.generated_tokens == 0


def test_online_counts_rollouts_and_update_epochs():
    b = Batching(
        prompts=256, samples=4, prompts_per_rollout=64, micro_batch=8, accumulation=2, world=2,
        update_epochs=3, prompt_tokens=8, answer_tokens=64, online=True,
    )  # fmt: skip
    work = batch_arithmetic(b)
    # 4 rollouts of 256 sequences; 256 / (8*2*2) = 8 steps, 3 epochs each: 4*8*3
    assert work.sequences == 1024 and work.sequences_per_step == 32 and work.updates == 96
    assert work.generated_tokens == 1024 * 72 and work.trained_tokens == 3 * 1024 * 72
    assert work.flops(parameters=10, references=1) == 10 * (8 * 3 * 73728 + 2 * 73728)


def test_a_last_small_rollout_is_an_update_too():
    b = Batching(prompts=10, samples=2, prompts_per_rollout=4, micro_batch=8, online=True)
    assert batch_arithmetic(b).updates == 3  # rollouts of 8, 8 and 4 sequences


@pytest.mark.parametrize("name", ["prompts", "samples", "micro_batch", "accumulation"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: must be at least 1"):
        batch_arithmetic(Batching(**{"prompts": 1, name: 0}))


def test_models_held():
    models = [
        HeldModel("policy", "runs/sft", 1_000_000, trained=1_000_000),
        HeldModel("reference", "runs/sft", 1_000_000),
        HeldModel("reward", "runs/rm", 2_000_000, trained=20_000, bytes_per_parameter=2),
    ]
    assert [m.bytes for m in models] == [16_000_000, 4_000_000, 4_200_000]
    rows = model_rows(models)
    assert [r[2] for r in rows] == ["trained", "frozen", "adapter trained", ""]
    assert rows[-1] == ("all", "", "", "4 M", "23.1 MiB")
    assert render_models(models).row_count == 4


def test_work_rows_say_how_numbers_come_about():
    b = Batching(prompts=64, samples=4, micro_batch=8, prompt_tokens=8, answer_tokens=56, online=True)
    rows = work_rows(b, parameters=260_000, flops_per_second=1e10, activations=2**20)
    assert rows[0] == ("sequences", "256", "64 prompts × 4 samples")
    assert rows[2][:2] == ("updates", "32")
    assert ("memory of a micro-batch", "1.0 MiB", "kept for the backward pass, at most") in rows
    # 260e3 * (8 + 2) * 256 * 64 / 1e10 = 4.26 s
    assert rows[-1][1] == "4 s" and render_work(rows).row_count == len(rows)


def test_activations():
    assert activation_bytes(micro_batch=2, length=10, hidden=4, layers=3, vocabulary=100) == 20 * 4 * (14 * 12 + 100)


def test_human_numbers():
    assert [human_count(n) for n in (7, 999, 1234, 260_032, 1_500_000, 7e9)] == [
        "7",
        "999",
        "1.23 k",
        "260 k",
        "1.5 M",
        "7 G",
    ]
    assert [human_bytes(n) for n in (5, 2048, 3 * 2**20, 2**31)] == ["5 B", "2.0 KiB", "3.0 MiB", "2.0 GiB"]
    assert [human_seconds(n) for n in (0.2, 5, 90, 3720)] == ["under 1 s", "5 s", "2 min", "1 h 02 min"]


def test_parameters_are_read_from_the_header(tmp_path):
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        parameters_on_disk(tmp_path)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {"dtype": "BF16", "shape": [5], "data_offsets": [48, 58]},
    }
    blob = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + bytes(58))
    assert parameters_on_disk(tmp_path) == (17, 58)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(ModelError, match="damaged or cut"):
        parameters_on_disk(tmp_path)
