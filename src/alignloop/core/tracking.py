"""Metrics: JSONL always, TensorBoard when asked. Continued after a crash, a file is cut at the resume step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignloop.core.errors import ConfigError


class JsonlTracker:
    """One line a step: ``{"global_step": 3, "loss": ...}``.

    Opening with `resume_step=k` drops every line of a later step, so that a run killed after step k and continued
    writes the same file as one that was never interrupted.
    """

    def __init__(self, path: str | Path, resume_step: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_jsonl(self.path) if line["global_step"] <= resume_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"global_step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardTracker:
    """The same numbers for TensorBoard (``pip install alignloop[trackers]``)."""

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("report_to: tensorboard is not installed; pip install 'alignloop[trackers]'") from error
        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Every whole line of a JSONL file; a line cut by a crash is left out. A missing file has none."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
