"""A disk that fills up: the last checkpoint survives, one line says what to do, and the same command then goes on."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignloop.training.state import checkpoints
from tests.e2e.command import Ended, here

NEW_NAMESPACE, NEW_USER, REMOUNT, PRIVATE = 0x20000, 0x10000000, 32, 16384 | (1 << 18)
SFT = (
    "train",
    "sft",
    "--model",
    "base",
    "--data",
    "demonstrations.jsonl",
    "--max-steps",
    "10",
    "--learning-rate",
    "1e-3",
)


def _mount(folder: Path, size: str, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def on_small_disk(folder: Path, size: str, work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process for which `folder` is a disk of `size`; skips where that is forbidden."""
    folder.mkdir()
    answer = folder.with_name(folder.name + ".json")
    uid, gid = os.getuid(), os.getgid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(NEW_NAMESPACE | (NEW_USER if uid else 0)) != 0:
                os._exit(77)
            if uid:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
                Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            if libc.mount(b"none", b"/", None, PRIVATE, None) != 0:
                os._exit(77)
            try:
                _mount(folder, size)
            except OSError:
                os._exit(77)
            answer.write_text(json.dumps(work()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended == 77:
        pytest.skip("this system lets no process mount a small file system of its own")
    assert ended == 0
    return json.loads(answer.read_text())


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def plain(ended: Ended) -> dict[str, Any]:
    return {"code": ended.code, "out": ended.out, "err": ended.err}


def test_a_checkpoint_does_not_fit(place: Path) -> None:
    whole = here(*SFT, "--save-every", "2", "-o", "whole", cwd=place)
    assert whole.code == 0, whole.err
    disk = place / "disk"

    def work() -> dict[str, Any]:
        first = here(*SFT, "--save-every", "2", "-o", "disk/run", cwd=place)
        kept = checkpoints(disk / "run" / "checkpoints")
        steps = [torch.load(path / "state.pt", weights_only=True)["step"] for _, path in kept]
        rubbish = [p.name for p in (disk / "run" / "checkpoints").iterdir() if p.name.startswith(".")]
        _mount(disk, "16m", REMOUNT)
        second = here(*SFT, "--save-every", "2", "-o", "disk/run", cwd=place)
        return {"first": plain(first), "steps": steps, "rubbish": rubbish, "second": plain(second),
                "weights": weights(disk / "run"), "metrics": (disk / "run" / "metrics.jsonl").read_text()}  # fmt: skip

    found = on_small_disk(disk, "700k", work)  # a checkpoint of this model takes about 280 KiB: two fit
    said = Ended(**found["first"]).refusal
    assert "checkpoint-6" in said and "older checkpoints are kept" in said, said
    assert found["steps"] == [2, 4] and found["rubbish"] == []
    assert found["second"]["code"] == 0, found["second"]["err"]
    assert found["weights"] == weights(place / "whole")
    assert found["metrics"] == (place / "whole" / "metrics.jsonl").read_text()


def test_the_model_does_not_fit(place: Path) -> None:
    """An older model in its place survives; the run is finished once there is room."""
    disk = place / "disk"

    def work() -> dict[str, Any]:
        first = here(*SFT, "--save-every", "0", "-o", "disk/run", cwd=place)
        there = sorted(p.name for p in (disk / "run").iterdir())
        _mount(disk, "16m", REMOUNT)
        second = here(*SFT, "--save-every", "0", "-o", "disk/run", cwd=place)
        return {"first": plain(first), "there": there, "second": plain(second)}

    found = on_small_disk(disk, "64k", work)
    said = Ended(**found["first"]).refusal
    assert "cannot save disk/run/model" in said and "No space left" in said, said
    assert not [name for name in found["there"] if "model" in name]
    assert found["second"]["code"] == 0, found["second"]["err"]


@pytest.mark.parametrize("size", ["16k", "300k", "560k"])
def test_a_run_on_a_full_disk(place: Path, size: str) -> None:
    """Whatever is written when the disk is full, store or state or samples: one line; with room the run goes on."""
    disk = place / "disk"
    line = ("run", "loop.yaml", "--until", "dpo", "--set", "stages.sft.max_steps=2", "--set", "stages.dpo.max_steps=2",
            "--set", "stages.sft.save_every=0", "--set", "stages.dpo.save_every=0", "--out", "disk/run")  # fmt: skip

    def work() -> dict[str, Any]:
        first = here(*line, cwd=place)
        _mount(disk, "32m", REMOUNT)
        second = here(*line, cwd=place)
        return {"first": plain(first), "second": plain(second)}

    found = on_small_disk(disk, size, work)
    said = Ended(**found["first"]).refusal
    assert "disk" in said or "space" in said, said
    assert found["second"]["code"] == 0, found["first"]["err"] + found["second"]["err"]
