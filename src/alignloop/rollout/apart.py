"""An engine in a process of its own, which draws while this one does something else.

    this process                                  the other
    Apart: how to make the engine          ─▶     makes it, with a second copy of the weights
    begin: a version, and what to draw     ─▶     takes the weights as they are now, draws
    take                                   ◀─     the samples, or what went wrong

The weights that learn stand in a nameless file that both processes map: one writes, the other reads, nothing goes
through a pipe, no /dev/shm has to be large enough, and nothing is left behind by a kill. The other process is a fresh
interpreter: a fork of one that has threads may hang, and multiprocessing's spawn would run the user's own script again.
It ends with the one that started it.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from alignloop.core.allocator import keep_memory
from alignloop.core.errors import AlignloopError, ModelError, TrainingError
from alignloop.core.types import Prompt, Sample, SamplingParams
from alignloop.rollout.local import LocalEngine

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, type and shape of tensors that stand end to end."""
ALIGNED = 64
"""Bytes: every tensor starts at a multiple."""


@dataclass(frozen=True)
class Ask:
    """One call of `Engine.generate`."""

    prompts: tuple[Prompt, ...]
    n: int
    sampling: SamplingParams


@dataclass(frozen=True)
class Opening:
    """What the other process must know before it can draw: how its engine is made, and the file of the weights."""

    make: Callable[[], LocalEngine]
    layout: Layout
    file: int
    threads: int
    parent: int


@dataclass(frozen=True)
class Failure:
    """What went wrong over there, in words."""

    words: str


class Apart:
    """The engine that `make` gives (a function that pickle can name), in a process of its own with so many threads.

    weights: tensors of the shapes and types of `like`, by the names that the engine's model has for them; `begin` draws
    with what they hold. They may be written while nothing is being drawn. folder: on the disk that has room for them;
    TrainingError where it has none.
    """

    def __init__(self, make: Callable[[], LocalEngine], like: Mapping[str, Tensor], folder: Path, threads: int) -> None:
        layout = tuple((name, x.dtype, tuple(x.shape)) for name, x in like.items())
        file = _reserved(folder, layout)
        self.weights = _mapped(file.fileno(), layout)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, its stderr: the last words of one that was killed
        # The same modules as here, found in the same places.
        code = f"import sys; sys.path[:] = {sys.path!r}; from alignloop.rollout.apart import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            pass_fds=(file.fileno(),),
        )
        self._ended = weakref.finalize(self, _end, self.process)
        self._tell(Opening(make, layout, file.fileno(), threads, os.getpid()))
        file.close()  # the mapping lasts

    def begin(self, version: int, ask: Ask) -> None:
        """Let it draw with the weights as they are now, under that version. TrainingError where the process is gone."""
        prompts = tuple(replace(p, extra={}) for p in ask.prompts)  # further columns are for scorers, of any type
        self._tell((version, replace(ask, prompts=prompts)))

    def take(self) -> list[Sample]:
        """Wait for what it draws: in the order of the prompts and their indices. TrainingError where it failed."""
        assert self.process.stdout is not None
        try:
            said = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._gone() from None
        if isinstance(said, Failure):
            raise TrainingError(f"the process that draws ahead: {said.words}")
        return list(said)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._ended()

    def _tell(self, what: object) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(what, self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _gone(self) -> TrainingError:
        status = self.process.wait()
        how = f"was killed by signal {-status} (9: out of memory?)" if status < 0 else f"ended with status {status}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        words = f", its last words: {lines[-1]}" if lines else ""
        return TrainingError(
            f"the process that draws ahead {how}{words}; what the run had saved is kept, start it again"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was still to be sent
                pipe.close()


# The weights


def _places(layout: Layout) -> list[tuple[int, int]]:
    """Start and end of every tensor in the file, in bytes."""
    at, places = 0, []
    for _, dtype, shape in layout:
        end = at + math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        places.append((at, end))
        at = -(-end // ALIGNED) * ALIGNED
    return places


def _reserved(folder: Path, layout: Layout) -> IO[bytes]:
    """A file without a name for these tensors. Its room is taken now: once it is mapped, a full disk is no error but a
    crash."""
    size = _places(layout)[-1][1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, the caller closes it
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise TrainingError(
            f"no room in {folder} for the weights of the process that draws ahead ({size:,} bytes): {error.strerror}"
        ) from error
    return file


def _mapped(file: int, layout: Layout) -> dict[str, Tensor]:
    """The tensors in an open file, shared with every process that maps it."""
    places = _places(layout)
    whole = torch.frombuffer(mmap.mmap(file, places[-1][1]), dtype=torch.uint8)
    return {
        name: whole[start:end].view(dtype).view(shape)
        for (name, dtype, shape), (start, end) in zip(layout, places, strict=True)
    }


# The other process


def serve() -> None:
    """Make the engine that is described on stdin, then draw what is asked for there, for as long as the one that asks
    is there. An error is an answer, and the last one."""
    inbox, outbox = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    try:
        for samples in _drawn(inbox):
            _say(outbox, samples)
    except Exception as error:
        traceback.print_exc()
        words = str(error) if isinstance(error, AlignloopError) else f"{type(error).__name__}: {error}"
        with suppress(BrokenPipeError):
            _say(outbox, Failure(words))


def _drawn(inbox: IO[bytes]) -> Iterator[list[Sample]]:
    opening: Opening = pickle.load(inbox)
    threading.Thread(target=_follow, args=(opening.parent,), daemon=True).start()
    torch.set_num_threads(opening.threads)
    keep_memory()
    engine = opening.make()
    weights = _mapped(opening.file, opening.layout)
    own = _own(engine.model, weights)
    while True:
        try:
            version, ask = pickle.load(inbox)
        except EOFError:  # nobody asks any more
            return
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        engine.load(None, version)
        yield engine.generate_all(ask.prompts, ask.n, ask.sampling)


def _own(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's parameters of these names. ModelError where one is missing or has another shape."""
    own = dict(model.named_parameters())
    strange = [name for name, x in weights.items() if name not in own or own[name].shape != x.shape]
    if strange:
        raise ModelError(f"the model of the process that draws ahead is another one: {', '.join(strange[:3])}")
    return {name: own[name] for name in weights}


def _say(outbox: IO[bytes], what: object) -> None:
    pickle.dump(what, outbox)
    outbox.flush()


def _follow(parent: int) -> None:
    """End this process once its parent has gone: nobody waits for what it draws."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
