"""Importing what a command needs when it runs, and reading the free settings of `alignloop train`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def entry(module: str, name: str) -> Any:
    """``module.name``, imported now."""
    return getattr(importlib.import_module(module), name)


def console(stderr: bool = False) -> Console:
    """A rich console; where the output is no terminal, plain text in wide lines."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = 200
    return made


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """``--learning-rate 1e-4 --lora.r 8 --flag`` as a mapping; values are read as YAML.

    >>> settings_of(["--learning-rate", "1e-4", "--lora.r=8", "--gradient-checkpointing"])
    {'learning_rate': 0.0001, 'lora': {'r': 8}, 'gradient_checkpointing': True}
    """
    from alignloop.core.errors import ConfigError
    from alignloop.pipeline.recipe_file import apply_overrides

    overrides = []
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--") or len(first) < 3:
            raise ConfigError(f"unexpected '{first}'; settings are written --name value")
        name, equals, value = first[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides.append(f"{name.replace('-', '_')}={value}")
    return apply_overrides({}, overrides)
