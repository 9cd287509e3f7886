"""Adapters, references, precision and accumulation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.invariants.references import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_reference(check: Callable[[], None]) -> None:
    check()
