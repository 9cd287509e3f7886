"""alignloop closes the loop of reinforcement learning from human feedback. Importing it changes nothing."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "train"]


def train(method: str, **inputs: Any) -> Any:
    """Train a model: ``alignloop.train("dpo", model=…, data=…, output_dir=…, beta=0.1)`` (alignloop.training.train)."""
    from alignloop.training.train import train as run

    return run(method, **inputs)
