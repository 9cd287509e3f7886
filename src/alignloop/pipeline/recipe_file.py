"""Reading a recipe's YAML: strict where PyYAML is lax.

Duplicate keys are refused (PyYAML keeps the last), ``1e-4`` is a number (YAML 1.1 reads it as text), and ``${NAME}`` or
``${NAME:-default}`` in a text takes an environment variable, so that no recipe needs the paths of one machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignloop.core.errors import ConfigError

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats and without duplicate keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key '{key.value}' stands here twice", key.start_mark)
            seen.add(key.value)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str = "recipe", environment: Mapping[str, str] | None = None) -> Any:
    """The value of a YAML text. ConfigError names the line and column of what is wrong."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    return _expand(value, source, os.environ if environment is None else environment)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The mapping of a recipe file. ConfigError where the file is missing, not UTF-8, or no mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise ConfigError(f"{path}: {what}; a recipe is a mapping with name, model and stages")
    return value


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with ``stages.sft.learning_rate=1e-4`` and the like set; values are read as YAML."""
    result: dict[str, Any] = _copied(raw)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"--set {override}: write key=value, for example stages.sft.learning_rate=1e-4")
        place = result
        for key in keys[:-1]:
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {override}: '{key}' is no mapping, nothing can be set below it")
            place = inner
        place[keys[-1]] = parse_yaml(text, f"--set {override}")
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _expand(value: Any, source: str, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(inner, source, environment) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, source, environment) for inner in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name in environment:
            return environment[name]
        if default is None:
            raise ConfigError(
                f"{source}: the environment variable {name} is not set; set it, or write ${{{name}:-...}}"
            )
        return default

    return VARIABLE.sub(found, value)
