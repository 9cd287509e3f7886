"""Everything a run needs to continue as if it had never stopped, saved atomically.

Data order, sampling and permutations are functions of (seed, step), so the step is the cursor. What is not such a
function is here: weights, optimizers, torch's random state (dropout), the method's `prepare` state, what a reward that
moves has learnt, the best weights.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from alignloop.core.errors import TrainingError
from alignloop.rewards.weighing import Learnt
from alignloop.training.learner import Learner

FORMAT = 2


@dataclass(frozen=True)
class Pretraining:
    """How far value pretraining is: the best explained variance so far, the steps since then, the step it ended at."""

    best: float = -math.inf
    stale: int = 0
    ended: int | None = None


class Lasting(Protocol):
    """What else must last from a run that was killed to the one that goes on."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class TrainState:
    """The moving parts of one run. `step` counts finished driver steps; a driver continues at `step`.

    ahead: the process that draws the next step's answers, where there is one.
    """

    learner: Learner
    critic: Learner | None = None
    step: int = 0
    version: int = 0
    num_tokens: float = 0.0
    prepared: Any = None
    reward: Learnt = field(default_factory=Learnt)
    pretraining: Pretraining = Pretraining()
    best: dict[str, Any] | None = None
    ahead: Lasting | None = None

    def state_dict(self) -> dict[str, Any]:
        prepared = asdict(self.prepared) if is_dataclass(self.prepared) else self.prepared  # type: ignore[arg-type]
        return {
            "format": FORMAT,
            "step": self.step,
            "version": self.version,
            "num_tokens": self.num_tokens,
            "learner": self.learner.state_dict(),
            "critic": self.critic.state_dict() if self.critic else None,
            "prepared": prepared,
            "reward": asdict(self.reward),
            "pretraining": asdict(self.pretraining),
            "best": self.best,
            "ahead": self.ahead.state_dict() if self.ahead else None,
            "rng": torch.get_rng_state(),
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("format") != FORMAT:
            raise TrainingError(f"checkpoint format {state.get('format')} is not {FORMAT}; start the run afresh")
        self.step, self.version, self.num_tokens = state["step"], state["version"], state["num_tokens"]
        self.learner.load_state_dict(state["learner"])
        if (self.critic is None) != (state["critic"] is None):
            raise TrainingError("the checkpoint and the settings disagree about a separate critic")
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.prepared = _restore(self.prepared, state["prepared"])
        self.reward = Learnt(**state.get("reward", {}))
        self.pretraining = Pretraining(**state["pretraining"])
        self.best = state["best"]
        if (self.ahead is None) != (state.get("ahead") is None):
            raise TrainingError("the checkpoint and the settings disagree about draw_ahead")
        if self.ahead is not None:
            self.ahead.load_state_dict(state["ahead"])
        torch.set_rng_state(state["rng"])


def _restore(like: Any, saved: Any) -> Any:
    """Plain values back into the (nested) dataclass they came from."""
    if not is_dataclass(like) or saved is None:
        return saved
    return replace(like, **{name: _restore(getattr(like, name), value) for name, value in saved.items()})  # type: ignore[type-var]


def save_state(state: TrainState, folder: str | Path, keep: int = 2) -> Path:
    """Write ``checkpoint-STEP/state.pt`` whole or not at all, then delete all but the newest `keep`."""
    folder = Path(folder)
    target = folder / f"checkpoint-{state.step}"
    fresh = folder / f".checkpoint-{state.step}.new"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        with (fresh / "state.pt").open("wb") as file:
            torch.save(state.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError(f"cannot save {target}: {reason}; older checkpoints are kept") from error
    for step, old in checkpoints(folder)[:-keep]:
        if step != state.step:
            shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint, oldest first."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and (path / "state.pt").is_file():
            found.append((int(match[1]), path))
    return sorted(found)


def resume(state: TrainState, folder: str | Path) -> bool:
    """Load the newest readable checkpoint into `state`; False if there is none."""
    for _, path in reversed(checkpoints(folder)):
        try:
            saved = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except Exception:  # cut short by a crash of the machine: the one before it is whole
            continue
        state.load_state_dict(saved)
        return True
    return False
