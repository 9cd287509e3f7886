"""Generation and training overlap: another process draws the answers of the next step while this one learns.

    step              0           1           2
    learns            v0 → v1     v1 → v2     v2 → v3      this process
    draws             1 with v0   2 with v1   3 with v2    the other, at the same time

The answers of step t + 1 are drawn with the weights before the update of step t. So those of step 0 are the policy's
own, and all later ones exactly one version behind, whichever process is faster: two runs of a seed are equal to the
byte. (verl calls it one-step-off-policy; Noukhovitch et al. 2024, arXiv:2410.18252, find that one step costs little.)

What makes the loss right for them is decoupled PPO (Hilton et al. 2021, arXiv:2110.00641; Fu et al. 2025,
arXiv:2505.24298, §5.2), of which every part is there without drawing ahead, too:
    behaviour policy   the weights that drew        logp_sampler, from the engine
    proximal policy    those before the update      logp_old, by the trainer: centre of the trust region
    loss               w · clipped surrogate of π/π_old,  w = π_old/π_sampler limited   (algorithms/importance.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from alignloop.core.errors import TrainingError
from alignloop.core.types import Prompt, Sample, SamplingParams
from alignloop.models.load import load_policy, load_tokenizer
from alignloop.rollout.apart import Apart, Ask
from alignloop.rollout.local import LocalEngine
from alignloop.training.build import local_engine
from alignloop.training.scoring import open_chat
from alignloop.training.settings import ModelSettings


class Ahead:
    """`core.protocols.Engine` whose answers to what can be foreseen are on their way before it is asked for them.

    live: the engine over the module that learns; it draws what was not foreseen (further attempts of dynamic sampling,
    greedy baselines), with the weights of now. foresee: step -> what will be asked for first in it; None where the run
    is over. make: the same engine, for the other process. folder: where the weights stand for it.
    As a context it gives both processes their threads, and ends the other one.
    """

    def __init__(
        self, live: LocalEngine, foresee: Callable[[int], Ask | None], make: Callable[[], LocalEngine], folder: Path
    ) -> None:
        self.live, self.foresee = live, foresee
        self.version = live.version
        self._learning = {name: p for name, p in live.model.named_parameters() if p.requires_grad}
        self._threads = torch.get_num_threads()
        self.apart = Apart(make, self._learning, folder, shares(self._threads)[1])
        self._publish()
        self._awaited: tuple[int, Ask] | None = None

    def __enter__(self) -> Self:
        torch.set_num_threads(shares(self._threads)[0])
        return self

    def __exit__(self, *_: object) -> None:
        self.apart.close()
        torch.set_num_threads(self._threads)

    def load(self, weights: Any = None, version: int = 0) -> None:
        """As `LocalEngine.load`, of the live engine; the other process takes new weights when it begins a step."""
        self.live.load(weights, version)

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> Iterator[Sample]:
        """What was foreseen, once it is there; the answers of the step after are begun then, with the weights of now.
        Anything else is drawn here."""
        if self._awaited is None or self._awaited[1] != Ask(tuple(prompts), n, sampling):
            return self.live.generate(prompts, n, sampling)
        step = self._awaited[0]
        samples = self.apart.take()
        self._publish()
        self.begin(step + 1)
        return iter(samples)

    def begin(self, step: int) -> None:
        """Let the other process draw the first answers of that step, with the weights that were last made public."""
        ask = self.foresee(step)
        self._awaited = None if ask is None else (step, ask)
        if ask is not None:
            self.apart.begin(self.version, ask)

    def _publish(self) -> None:
        """Nothing is being drawn now, so the weights may be written."""
        self.version = self.live.version
        with torch.no_grad():
            for name, shared in self.apart.weights.items():
                shared.copy_(self._learning[name])

    def state_dict(self) -> dict[str, Any]:
        """The weights that the answers on their way are drawn with. A run that goes on draws the same ones again."""
        return {"version": self.version, "weights": {name: x.clone() for name, x in self.apart.weights.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Before the first `begin`. TrainingError where the weights are of another model."""
        saved: Mapping[str, Tensor] = state["weights"]
        if {n: x.shape for n, x in saved.items()} != {n: x.shape for n, x in self.apart.weights.items()}:
            raise TrainingError("the checkpoint's weights of the process that draws ahead are of another model")
        self.version = int(state["version"])
        for name, shared in self.apart.weights.items():
            shared.copy_(saved[name])


def shares(threads: int) -> tuple[int, int]:
    """The threads of a run for the process that learns and the one that draws: half each, at least one. More of them
    than cores would wait for each other. They follow from the run's number, which is written down (machine.py)."""
    return max(1, threads - threads // 2), max(1, threads // 2)


def engine_maker(model: str, settings: ModelSettings, slots: int) -> Callable[[], LocalEngine]:
    """What makes, in another process, the engine of a run that trains `model`; slots: those of the run's own."""
    return partial(_open, model, settings, slots)


def _open(model: str, settings: ModelSettings, slots: int) -> LocalEngine:
    policy = load_policy(model, dtype=settings.dtype, device=settings.device, lora=settings.lora)
    chat = open_chat(model, load_tokenizer(model), append_eos=settings.append_eos)
    return local_engine(policy, chat, model, slots=slots)
