"""Content hashes: what a stage's result depends on. Equal key, equal result; so a finished stage is never run twice."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignloop.core.types import content_id
from alignloop.pipeline.plan import REFERENCES, Planned, names_in
from alignloop.pipeline.spec import Recipe
from alignloop.pipeline.state import read_json, write_json

FORMAT = 2
"""Raise it when stage bodies change so that results of older code must not be taken from the cache."""

PATH_KEYS = (
    *("path", "paths", "file", "files", "data_files", "model", "function"),
    *("constitution", "templates", "preferences", "without"),
)


class FileHashes:
    """sha256 of files and folders, remembered by size and time of change so that large ones are read once."""

    def __init__(self, memory: Path | None = None):
        self._memory = memory
        self._known: dict[str, Any] = (read_json(memory) or {}) if memory else {}

    def __call__(self, path: Path) -> str:
        """The hash of a file's bytes, or of a folder's relative names and bytes."""
        if path.is_file():
            return self._file(path)
        rows = [(str(p.relative_to(path)), self._file(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def save(self) -> None:
        """Keep what was learnt for the next start."""
        if self._memory:
            write_json(self._memory, self._known)

    def _file(self, path: Path) -> str:
        facts = path.stat()
        key, mark = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
        known = self._known.get(key)
        if known and known[:2] == mark:
            return str(known[2])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[key] = [*mark, digest]
        return digest


def stage_seed(seed: int, name: str) -> int:
    """A stage's own seed in [0, 2**31): independent of which other stages the recipe has."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def stage_key(planned: Planned, recipe: Recipe, upstream: Mapping[str, str], hashes: FileHashes) -> str:
    """The content hash of a stage: its settings, the run's settings, its files, and its upstream results.

    Files and folders count by what is in them, not by where they lie: the same recipe has the same keys anywhere.
    """
    files = {text: hashes(path) for text, path in [*files_of(planned), *_base_of(planned, recipe)]}
    contents = {text: digest for text, digest in files.items() if Path(text).exists()}
    return content_id(
        FORMAT,
        planned.name,
        _by_content(planned.stage.model_dump(mode="json"), contents),
        [recipe.seed, recipe.device, recipe.dtype, recipe.store],
        sorted((name, upstream[name]) for name in planned.needs),
        sorted((contents.get(text, text), digest) for text, digest in files.items()),
    )


def _by_content(value: Any, contents: Mapping[str, str]) -> Any:
    """The same value with the hash of what is there instead of every text that is a path."""
    if isinstance(value, str):
        return contents.get(value, value)
    if isinstance(value, Mapping):
        return {key: _by_content(inner, contents) for key, inner in value.items()}
    return [_by_content(inner, contents) for inner in value] if isinstance(value, list) else value


def _base_of(planned: Planned, recipe: Recipe) -> list[tuple[str, Path]]:
    """The recipe's model, where a stage calls it by the name "base"."""
    named = {text for _, text in names_in(planned.stage)} - set(planned.needs)
    return [(recipe.model, Path(recipe.model))] if "base" in named and recipe.model else []


def files_of(planned: Planned) -> list[tuple[str, Path]]:
    """(text of the recipe, file or folder it means) of everything on disk that a stage reads."""
    fields = [*REFERENCES[planned.stage.do], "annotators", "settings"]
    texts = [t for f in fields for t in _texts(getattr(planned.stage, f, None), True) if t not in planned.needs]
    return [(text, path) for text in dict.fromkeys(texts) if (path := _path(text)) is not None]


def _texts(value: Any, may_be_path: bool) -> Iterator[str]:
    if isinstance(value, str):
        if may_be_path and value:
            yield value
    elif isinstance(value, Mapping):
        arguments = "function" in value  # any argument of a function may be the file that it reads
        for key, inner in value.items():
            yield from _texts(inner, arguments or key in PATH_KEYS or isinstance(inner, Mapping))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, may_be_path)


def _path(text: str) -> Path | None:
    if Path(text).exists():
        return Path(text)
    place, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        return None
    if place.endswith(".py"):
        return Path(place) if Path(place).is_file() else None
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None
