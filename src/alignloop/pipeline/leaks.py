"""Before a recipe starts: what its stages learn from that its evaluation asks, told and not refused.

Prompts that a round learns from and is measured on are refused (`work`); here the words of all stages are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from alignloop.core.overlap import WORDS, HeldOut
from alignloop.data.overlap import held_out, overlaps
from alignloop.pipeline.plan import Plan, Planned
from alignloop.pipeline.spec import Evaluate, Train

MEASURED = (("prompts", "prompts"), ("data", "demonstrations"), ("eval_prompts", "prompts"))
Read = Callable[[Planned, Any, str], list[Any]]
"""(stage, sources, kind) -> the records of those that are no stages."""


class Leaks:
    """The prompts that a plan measures on, read once, and what training data shares with them."""

    def __init__(self, plan: Plan, read: Read, log: logging.Logger):
        self.plan, self.read, self.log = plan, read, log

    def look_at(self, planned: Planned, learnt: Sequence[Any]) -> None:
        """Warn of records that a stage learns from and that share words with what the plan measures on."""
        found = overlaps(learnt, self.measured) if learnt and self.measured else {}
        if found:
            self.log.warning(
                "stages.%s: %s of %s rows share %d words in a row with a prompt that is evaluated on, or are it "
                "(the first: %r); leave them out with without: in the data",
                planned.name, f"{len(found):,}", f"{len(learnt):,}", WORDS, next(iter(found.values())),
            )  # fmt: skip

    @cached_property
    def measured(self) -> HeldOut:
        """The prompts of evaluate stages and of `eval_prompts`."""
        groups = []
        for planned in self.plan.stages:
            fields = MEASURED[:2] if isinstance(planned.stage, Evaluate) else MEASURED[2:]
            for field, kind in fields if isinstance(planned.stage, Evaluate | Train) else ():
                if (source := getattr(planned.stage, field)) is not None:
                    groups.append(self.read(planned, source, kind))
        return held_out(*groups)
