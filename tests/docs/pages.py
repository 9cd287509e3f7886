"""The pages of the documentation, taken apart: fenced blocks, links, headings."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!-- (executed|rows: (\w+) (\w+)) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block. mark: the comment in the line above it, if it says how the block is to be tested."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def make_docs() -> Any:
    """scripts/make_docs.py as a module."""
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> list[Path]:
    """The pages that make_docs looks after, and the two beside the README that people read."""
    return [*make_docs().pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks(*languages: str) -> list[Block]:
    """Every fenced block in one of the languages ("": no language named)."""
    return [b for page in pages() for b in _blocks(page) if b.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start, before = 0, ""
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start:
            text = "\n".join(lines[start : number - 1]) + "\n"
            yield Block(page.name, start, lines[start - 1].removeprefix("```").strip(), text, before)
            start = 0
        else:
            start, before = number, lines[number - 2] if number > 1 and MARK.search(lines[number - 2]) else ""
    assert not start, f"{page.name}:{start}: a fence that is not closed"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make (GitHub's rule)."""
    found = set()
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (match := re.match(r"#+ (.*)", line)):
            words = re.sub(r"[^\w\- ]", "", match[1].strip().lower())
            found.add(words.replace(" ", "-"))
    return found
