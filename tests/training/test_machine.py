"""How many threads and slots a run takes: settings, what is written, the formula, a measurement where it is clear."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from alignloop.core.types import Prompt, text
from alignloop.models.tiny import tiny_model
from alignloop.rollout.local import LocalEngine, Pace, default_slots
from alignloop.training import machine
from alignloop.training.machine import Machine, measured, others_seconds, settle, threads_of, written
from alignloop.training.settings import Loop, ModelSettings, Optim, Rollout, TrainSettings
from alignloop.training.world import Alone


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A torch of three threads that notes what it is set to."""
    seen = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: seen[-1])
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    return seen


def told(threads: int = 0, **rollout: Any) -> TrainSettings:
    return TrainSettings(None, Optim(), Loop(), ModelSettings(threads=threads), Rollout(**rollout))


def inside(model: Path, folder: Path, wanted: int = 0) -> int:
    with threads_of(told(wanted), str(model), folder, Alone()) as n:
        assert torch.get_num_threads() == n
        return n


def test_one_for_a_tiny_model_else_torchs_own(
    tmp_path: Path, three: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1234")
    assert inside(model, tmp_path / "a") == 1 and three[-1] == 3
    assert inside(tmp_path / "somewhere", tmp_path / "b") == 3, "weights that are not on this disk"
    monkeypatch.setattr(machine, "TINY", 3)
    assert inside(model, tmp_path / "c") == 3


def test_a_run_that_goes_on_takes_what_it_began_with(tmp_path: Path, three: list[int]) -> None:
    assert inside(tmp_path, tmp_path, wanted=2) == 2 and three[-1] == 3
    assert inside(tmp_path, tmp_path) == 2
    assert inside(tmp_path, tmp_path, wanted=5) == 5, "unless it is told another number"


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, three: list[int]) -> None:
    (tmp_path / "threads").write_text("2")
    assert inside(tmp_path, tmp_path) == 2
    assert json.loads((tmp_path / "machine.json").read_text())["threads"] == 2


def test_they_come_back_after_an_error(tmp_path: Path, three: list[int]) -> None:
    with (
        pytest.raises(RuntimeError),
        threads_of(told(1), "", tmp_path, Alone()),
    ):
        raise RuntimeError
    assert three[-1] == 3


def formula(threads: int, slots: int) -> Machine:
    return Machine(0).having("formula", threads=threads, slots=slots)


class Fake:
    """A machine of known speeds: {(threads, slots): (reading, decoding)}. A measurement takes `each` seconds."""

    def __init__(self, paces: dict[tuple[int, int], tuple[float, float]], each: float = 0.1, busy: float = 0.0) -> None:
        self.paces, self.each, self.busy = paces, each, busy
        self.now, self.asked = 0.0, []  # type: ignore[var-annotated]

    def __call__(self, threads: int, slots: int) -> Pace:
        self.now += self.each
        self.asked.append((threads, slots))
        return Pace(*self.paces[threads, slots])

    def measure(self, start: Machine, drawn: int) -> Machine:
        return measured(start, self, drawn, lambda: self.now, lambda: self.busy * self.now)


def test_what_is_clearly_faster_is_taken() -> None:
    fake = Fake({(4, 64): (100, 100), (1, 64): (120, 130), (2, 64): (150, 116), (1, 8): (120, 140),
                 (1, 16): (120, 150), (1, 32): (120, 149)})  # fmt: skip
    found = fake.measure(formula(4, 96), drawn=64)
    # 1 thread: the smaller gain is 1.20; 2 threads: 1.16. Then 16 slots against 64: 150/130 = 1.154.
    assert (found.threads, found.slots) == (1, 16)
    assert found.chosen_by == {"threads": "measured", "slots": "measured"}
    assert found.tokens_per_s["1 threads, 16 slots"] == {"reading": 120.0, "decoding": 150.0}


def test_less_than_fifteen_percent_is_not_clear() -> None:
    fake = Fake({(2, 16): (100, 100), (1, 16): (114, 130), (2, 8): (100, 114)})
    found = fake.measure(formula(2, 96), drawn=16)
    assert (found.threads, found.slots) == (2, 96), "the formula's own number stays, not what a step draws"
    assert set(found.chosen_by.values()) == {"formula"} and len(found.tokens_per_s) == 3


def test_a_gain_that_is_not_seen_again_is_chance() -> None:
    class Once(Fake):
        def __call__(self, threads: int, slots: int) -> Pace:
            first = (threads, slots) not in self.asked
            pace = super().__call__(threads, slots)
            return pace if first else Pace(100, 100)

    fake = Once({(2, 8): (100, 100), (1, 8): (200, 200)})
    assert fake.measure(formula(2, 96), drawn=8).threads == 2
    assert fake.asked == [(2, 8), (1, 8), (1, 8), (2, 8)]


def test_what_settings_say_is_not_tried() -> None:
    fake = Fake({(2, 16): (100, 100), (2, 8): (100, 200)})
    told_threads = formula(2, 16).having("settings", threads=2)
    assert fake.measure(told_threads, drawn=64).slots == 8 and {threads for threads, _ in fake.asked} == {2}
    fake = Fake({(2, 16): (100, 100), (1, 16): (200, 200)})
    found = fake.measure(formula(2, 16).having("settings", slots=16), drawn=64)
    assert (found.threads, found.slots) == (1, 16) and {slots for _, slots in fake.asked} == {16}


def test_it_ends_with_its_time() -> None:
    fake = Fake({(2, 64): (100, 100), (1, 64): (900, 900)}, each=machine.BUDGET)
    assert fake.measure(formula(2, 64), drawn=64).threads == 2 and fake.asked == [(2, 64)]


def test_a_busy_machine_is_not_believed() -> None:
    paces: dict[tuple[int, int], tuple[float, float]] = {(2, 8): (100, 100), (1, 8): (200, 200)}
    assert Fake(paces, busy=0.3).measure(formula(2, 8), drawn=8).threads == 2
    assert Fake(paces, busy=0.1).measure(formula(2, 8), drawn=8).threads == 1


def test_others_use_what_is_left_of_the_cores() -> None:
    before, start = others_seconds(), perf_counter()
    sum(i * i for i in range(10**6))
    most = (perf_counter() - start) * (os.cpu_count() or 1)
    assert -0.1 <= others_seconds() - before <= most + 0.1


def engine(slots: int | None = None) -> LocalEngine:
    def encode(prompt: Prompt) -> list[int]:
        return [int(x) for x in prompt.text.split()]

    return LocalEngine(tiny_model("llama"), encode, str, (2,), "tiny", slots=slots)


PROMPTS = [Prompt("a", text("3 4 5")), Prompt("b", text("6 7"))]


@pytest.fixture
def not_tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Every model is worth measuring, and this many slots are the fastest."""
    monkeypatch.setattr(machine, "TINY", 0)

    def fastest(slots: int) -> None:
        monkeypatch.setattr(machine, "probe_of", lambda *_: lambda t, s: Pace(100, 200 if s == slots else 100))
        monkeypatch.setattr(machine, "others_seconds", lambda: 0.0)

    return fastest


def settled(folder: Path, settings: TrainSettings, slots: int | None = None) -> LocalEngine:
    made = engine(slots)
    with threads_of(settings, "", folder, Alone()):
        settle(made, PROMPTS, settings, folder, Alone())
    return made


def test_what_was_measured_is_written_and_taken_again(
    tmp_path: Path, three: list[int], not_tiny: Callable[[int], None]
) -> None:
    not_tiny(16)
    assert settled(tmp_path, told()).slots == 16
    kept = (tmp_path / "machine.json").read_bytes()
    assert json.loads(kept)["chosen_by"] == {"threads": "formula", "slots": "measured"}
    not_tiny(8)
    assert settled(tmp_path, told()).slots == 16 and (tmp_path / "machine.json").read_bytes() == kept
    assert settled(tmp_path, told(slots=5), slots=5).slots == 5, "settings win"


def test_measured_threads_are_those_of_the_run(
    tmp_path: Path, three: list[int], not_tiny: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    not_tiny(0)
    monkeypatch.setattr(machine, "probe_of", lambda *_: lambda t, s: Pace(100 / t, 100 / t))
    settled(tmp_path, told())
    assert three == [3, 3, 1, 3], "as usual, then as measured, then as before"
    assert inside(tmp_path, tmp_path) == 1


@pytest.mark.parametrize("why", ["tiny", "large", "told", "begun"])
def test_what_is_never_measured(
    tmp_path: Path, three: list[int], not_tiny: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    not_tiny(8)
    settings = told(measure=why != "told")
    if why == "tiny":
        monkeypatch.undo()
        monkeypatch.setattr(machine, "measured", lambda *_: pytest.fail("a tiny model was measured"))
    if why == "large":
        monkeypatch.setattr(machine, "LARGE", 0)
    if why == "begun":  # by a version that wrote no slots down
        (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    made = settled(tmp_path, settings)
    assert made.slots == default_slots(made.model) and written(tmp_path) == replace(
        formula(torch.get_num_threads(), made.slots), tokens_per_s={}
    )


def test_the_real_probe_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    made.model.train()
    made.model.model.layers[0].eval()
    modes = [m.training for m in made.model.modules()]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    pace = machine.probe_of(made, PROMPTS, longest=20)(1, 5)
    assert pace.reading > 0 and pace.decoding > 0
    assert [m.training for m in made.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert all(p.grad is None for p in made.model.parameters())
    assert made.slots == default_slots(made.model)


def test_the_probe_fits_a_short_context() -> None:
    made = engine()
    made.context = 12
    seen: list[int] = []
    made.pace = lambda prompt, places, rows: seen.append(places) or Pace(1, 1)  # type: ignore[method-assign,func-returns-value,misc]
    machine.probe_of(made, PROMPTS, longest=100)(1, 2)
    assert seen == [12 - 8]
