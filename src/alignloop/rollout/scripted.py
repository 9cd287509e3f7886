"""An engine that says what it is told: for tests of drivers, pipelines and pages, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alignloop.core.errors import DataError
from alignloop.core.types import Prompt, Sample, SamplingParams, content_id
from alignloop.rollout.sampling import check_sampling

END = 0
"""The stop id of the byte tokens used where no encoder is given."""


def byte_tokens(words: str) -> list[int]:
    """UTF-8 bytes plus 1; 0 is the end token."""
    return [b + 1 for b in words.encode()]


class ScriptedEngine:
    """Answers prompts from a script, deterministically (`core.protocols.Engine`).

    answers: prompt id or prompt text -> the texts to give in turn (sample `index` gets entry index modulo their
    number), or a function (prompt, index) -> text. encode turns prompt texts and answers into ids (default: bytes). An
    answer longer than max_new_tokens is cut and finishes with "length"; logp is that of every token. `loaded` lists the
    versions that `load` was given, `calls` the arguments of generate.
    """

    def __init__(
        self,
        answers: Mapping[str, Sequence[str]] | Callable[[Prompt, int], str],
        *,
        encode: Callable[[str], Sequence[int]] = byte_tokens,
        stop_id: int = END,
        logp: float = -1.0,
        model_id: str = "scripted",
        version: int = 0,
    ) -> None:
        self.answers, self.encode, self.stop_id, self.logp = answers, encode, stop_id, logp
        self.model_id, self.version = model_id, version
        self.loaded: list[int] = []
        self.calls: list[tuple[tuple[Prompt, ...], int, SamplingParams]] = []

    def load(self, weights: Any = None, version: int = 0) -> None:
        """Note the version; the weights change nothing."""
        self.version = version
        self.loaded.append(version)

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> Iterator[Sample]:
        """n samples of every prompt, in order. Raises DataError where the script has no answer."""
        check_sampling(sampling, n)
        self.calls.append((tuple(prompts), n, sampling))
        seen: Counter[str] = Counter()
        out = []
        for prompt in prompts:
            for _ in range(n):
                out.append(self._sample(prompt, seen[prompt.id], sampling))
                seen[prompt.id] += 1
        return iter(out)

    def generate_all(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[Sample]:
        """The same samples as a list."""
        return list(self.generate(prompts, n, sampling))

    def _answer(self, prompt: Prompt, index: int) -> str:
        if not isinstance(self.answers, Mapping):
            return self.answers(prompt, index)
        given = self.answers.get(prompt.id) or self.answers.get(prompt.text)
        if not given:
            raise DataError(f"the script has no answer to prompt '{prompt.id}'; add it under its id or its text")
        return given[index % len(given)]

    def _sample(self, prompt: Prompt, index: int, sampling: SamplingParams) -> Sample:
        said = self._answer(prompt, index)
        start, whole = list(self.encode(prompt.text)), [*self.encode(said), self.stop_id]
        tokens = whole[: sampling.max_new_tokens]
        return Sample(
            id=content_id(self.model_id, self.version, prompt.id, sampling.seed, index),
            prompt_id=prompt.id,
            model_id=self.model_id,
            version=self.version,
            index=index,
            sampling=sampling,
            tokens=(*start, *tokens),
            prompt_length=len(start),
            mask=(False,) * len(start) + (True,) * len(tokens),
            logp=(0.0,) * len(start) + (self.logp,) * len(tokens),
            finish_reason="stop" if len(tokens) == len(whole) else "length",
            text=said,
            group=prompt.id,
        )
