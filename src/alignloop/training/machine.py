"""How a run uses its machine: CPU threads and answers in flight, chosen once and written to the run.

    machine.json   {"threads": 2, "slots": 32, "chosen_by": {"threads": "formula", "slots": "measured"},
                    "tokens_per_s": {"2 threads, 64 slots": {"reading": 9120.0, "decoding": 1043.0}, ...}}

Settings win, then what the run has written, then a formula. Another number rounds sums differently and no timing is the
same twice, so a measurement has a say only where it is clear: more than 15 % above the formula, so once more when both
are asked again, and no other program at work meanwhile. Only runs that draw are measured, on CPUs, with weights between
2 and 256 MiB: smaller models want one thread, larger ones all threads and as many slots as memory holds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time

import torch

from alignloop.core.files import write_json
from alignloop.core.types import Prompt
from alignloop.rollout.local import LocalEngine, Pace
from alignloop.training.settings import TrainSettings
from alignloop.training.world import AnyWorld

log = logging.getLogger(__name__)

FILE = "machine.json"
TINY = 2 * 2**20
"""Bytes of weights up to which one thread is fastest: sharing out such small products costs more than it saves."""
LARGE = 2**28
"""Bytes of weights beyond which measuring costs more than it can find."""
CLEARLY = 1.15
"""Times as fast as the formula's choice, before another one is taken."""
BUDGET = 2.0
"""Seconds after which no further measurement begins."""
QUIET = 0.2
"""CPU seconds a second that other programs may use while it is measured."""
SLOTS = (8, 16, 32, 64)
"""What is tried below the formula's number, which memory bounds."""
LONGEST = 512
"""Tokens of a row that is timed, at most: a longer pass would cost more than the budget."""

Pair = tuple[int, int]
"""(threads, slots)"""
Probe = Callable[[int, int], Pace]
"""(threads, slots) -> how fast that is."""


@dataclass(frozen=True)
class Machine:
    """What a run has chosen. slots: 0 until it draws."""

    threads: int
    slots: int = 0
    chosen_by: Mapping[str, str] = field(default_factory=dict)
    tokens_per_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def having(self, by: str, **numbers: int) -> Machine:
        """The same with other numbers, chosen by `settings`, `formula` or `measured`."""
        return replace(self, **numbers, chosen_by={**self.chosen_by, **dict.fromkeys(numbers, by)})  # type: ignore[arg-type]


def written(folder: Path) -> Machine | None:
    """What the run in `folder` has chosen; older runs have a file `threads` with that number alone."""
    if (folder / FILE).is_file():
        return Machine(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    old = folder / "threads"
    return Machine(0).having("formula", threads=int(old.read_text())) if old.is_file() else None


def _write(machine: Machine, folder: Path) -> None:
    if not (folder / FILE).is_file() or written(folder) != machine:
        write_json(folder / FILE, asdict(machine))


@contextmanager
def threads_of(settings: TrainSettings, model: str, folder: Path, world: AnyWorld) -> Iterator[int]:
    """Inside, torch has the threads of the run in `folder`; afterwards those it had before."""
    before, machine = torch.get_num_threads(), written(folder)
    if settings.model.threads:
        machine = (machine or Machine(0)).having("settings", threads=settings.model.threads)
    machine = machine or Machine(0).having("formula", threads=usual_threads(model))
    if world.rank == 0:
        _write(machine, folder)
    torch.set_num_threads(machine.threads)
    try:
        yield machine.threads
    finally:
        torch.set_num_threads(before)


def usual_threads(model: str) -> int:
    """One for a model whose weights on this disk are tiny, else as many as torch has now."""
    folder = Path(model)
    if (folder / "adapter_config.json").exists():  # its base is elsewhere
        return torch.get_num_threads()
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return 1 if sizes and sum(sizes) <= TINY else torch.get_num_threads()


def settle(
    engine: LocalEngine, prompts: Sequence[Prompt], settings: TrainSettings, folder: Path, world: AnyWorld
) -> None:
    """Give the engine of a run its slots, and torch its threads where these are measured. Inside `threads_of`.

    engine: with the slots of the settings or of the formula. The first process chooses for all.
    """
    if world.rank == 0:
        _write(chosen(engine, prompts, settings, folder, world.size), folder)
    world.barrier()
    agreed = written(folder)
    assert agreed is not None
    engine.slots = agreed.slots
    torch.set_num_threads(agreed.threads)


def chosen(engine: LocalEngine, prompts: Sequence[Prompt], settings: TrainSettings, folder: Path, size: int) -> Machine:
    """What `size` processes are to take, each with such an engine."""
    rollout = settings.rollout
    machine = written(folder) or Machine(0).having("formula", threads=torch.get_num_threads())
    fresh = not machine.slots and not any(folder.glob("checkpoints/checkpoint-*"))
    if rollout.slots or not machine.slots:
        machine = machine.having("settings" if rollout.slots else "formula", slots=engine.slots)
    weights = list(engine.model.parameters())
    size_fits = TINY < sum(p.numel() * p.element_size() for p in weights) <= LARGE
    if not (fresh and rollout.measure and size_fits and weights[0].device.type == "cpu"):
        return machine
    drawn = -(-rollout.rollout_batch_size * rollout.num_generations // size)
    probe = probe_of(engine, prompts, rollout.max_completion_length)
    return measured(machine, probe, drawn, perf_counter, others_seconds)


def others_seconds() -> float:
    """CPU seconds that all other programs have used since the machine started; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0
    user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, stat.read_text().split("\n")[0].split()[1:9])
    used = user + nice + system + interrupts + soft + stolen
    return used / os.sysconf("SC_CLK_TCK") - process_time()


def probe_of(engine: LocalEngine, prompts: Sequence[Prompt], longest: int) -> Probe:
    """Times the engine on rows as long as half-finished answers to a usual prompt; torch keeps its threads."""
    some = sorted(prompts[:64], key=lambda p: len(engine.encode_prompt(p)))
    prompt = some[len(some) // 2]
    places = min(LONGEST, len(engine.encode_prompt(prompt)) + longest // 2)
    if engine.context is not None:
        places = max(1, min(places, engine.context - 8))  # room for what is drawn

    def probe(threads: int, slots: int) -> Pace:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return engine.pace(prompt, places, slots)
        finally:
            torch.set_num_threads(before)

    return probe


def measured(
    machine: Machine,
    probe: Probe,
    drawn: int,
    clock: Callable[[], float],
    others: Callable[[], float],
) -> Machine:
    """The same, or with what is clearly faster, for a step that draws so many answers. What settings say stays.

    clock, others: seconds of now, and CPU seconds that other programs have used (`others_seconds`). Threads serve the
    passes of training, too: fewer of them must be faster at reading and at decoding.
    """
    start, elsewhere = clock(), others()
    free = {name for name, by in machine.chosen_by.items() if by == "formula"}
    usual = (machine.threads, min(machine.slots, drawn))
    paces = {usual: probe(*usual)}

    def faster(than: Pair, tried: list[Pair], gain: Callable[[Pace, Pace], float]) -> Pair | None:
        for pair in tried:
            if clock() - start < BUDGET:
                paces[pair] = probe(*pair)
        best = max((p for p in tried if p in paces), key=lambda p: gain(paces[p], paces[than]), default=than)
        clear = gain(paces[best], paces[than]) > CLEARLY and gain(probe(*best), probe(*than)) > CLEARLY
        return best if clear else None

    found, here = machine, usual
    if "threads" in free:
        fewer = [(n, here[1]) for n in sorted({1, max(1, here[0] // 2)} - {here[0]})]
        if better := faster(here, fewer, lambda a, b: min(a.reading / b.reading, a.decoding / b.decoding)):
            here, found = better, found.having("measured", threads=better[0])
    if "slots" in free:
        less = [(here[0], n) for n in SLOTS if n < here[1]]
        if better := faster(here, less, lambda a, b: a.decoding / b.decoding):
            found = found.having("measured", slots=better[1])
    table = {f"{t} threads, {s} slots": {k: round(x, 1) for k, x in p._asdict().items()} for (t, s), p in paces.items()}
    if others() - elsewhere > QUIET * (clock() - start):
        log.info("the machine is busy: threads and slots are not measured now but taken as usual")
        found = machine
    log.info("threads %d, slots %d (%s)", found.threads, found.slots, dict(found.chosen_by))
    return replace(found, tokens_per_s=table)
