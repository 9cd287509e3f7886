"""The base of every setting: frozen, unknown keys refused with the nearest known name, defaults only in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from alignloop.core.errors import ConfigError, nearest


class Config(BaseModel):
    """Frozen settings. ``Sub.parse({...}, where="stages.sft")`` raises a ConfigError that names key and cure."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Validate `values`; errors become one line: ``stages.sft.betta: unknown setting, did you mean 'beta'?``."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(cls, e, where) for e in error.errors())) from None


def _explain(cls: type[BaseModel], error: Any, where: str) -> str:
    path = [str(p) for p in error["loc"]]
    place = ".".join(([where] if where else []) + path)
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown setting, {nearest(path[-1], _known(cls, path[:-1]))}"
    got = "" if error["type"] == "missing" else f" (got {error['input']!r})"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}{got}"


def _known(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Field names at `path` below `cls`; of the outermost class that is known where the path leaves it."""
    for name in path:
        field = cls.model_fields.get(name)
        inner = getattr(field, "annotation", None)
        options = [inner, *getattr(inner, "__args__", ())]
        found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not found:
            continue
        cls = found[0]
    return list(cls.model_fields)
