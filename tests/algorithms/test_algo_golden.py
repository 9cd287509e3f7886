"""Golden numbers: every check of `algo_checks.py` on the real modules, and the doctests."""

from __future__ import annotations

import doctest
from importlib import import_module
from typing import Any

import pytest

from tests.algorithms.algo_checks import CHECKS


@pytest.mark.parametrize(("module", "check"), [(m, c) for m, checks in CHECKS.items() for c in checks])
def test_golden(module: str, check: Any) -> None:
    check(import_module(f"alignloop.algorithms.{module}"))


@pytest.mark.parametrize("module", sorted(CHECKS))
def test_examples_in_docstrings(module: str) -> None:
    assert doctest.testmod(import_module(f"alignloop.algorithms.{module}")).failed == 0
