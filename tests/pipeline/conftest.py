"""A place for recipes: a folder with the toy world and a tiny base model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e import toys

from alignloop.models.tiny import save_tiny


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, which is also where the test runs."""
    toys.write_world(tmp_path)
    save_tiny(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path
