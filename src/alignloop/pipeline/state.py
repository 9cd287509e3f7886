"""What a run folder holds, and how it is read while another process writes it.

    run.json                       name, status, stages in order and the key of each
    recipe.yaml, recipe.given.yaml resolved (every default) and as given
    hashes.json                    hashes of data files already read
    lock                           held by the process that runs
    stages/NAME/KEY/state.json     status, times, outputs, metrics, error of one stage
    stages/NAME/KEY/progress.json  where it is now
    stages/NAME/KEY/log.txt        what it said
    stages/NAME/KEY/files/          its own files: checkpoints first of all

Every file is replaced atomically: a reader, or a run continued after a crash, sees the old or the new one, whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignloop.core.errors import ConfigError

StageStatus = Literal["pending", "running", "done", "waiting", "failed", "interrupted"]


@dataclass(frozen=True)
class StageState:
    """One stage, as far as it has come. `outputs` are paths relative to the run folder where they lie in it."""

    status: StageStatus = "pending"
    key: str = ""
    started: float = 0.0
    finished: float = 0.0
    seconds: float = 0.0
    attempts: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    message: str = ""


@dataclass(frozen=True)
class StageRow:
    """One line of `status`."""

    name: str
    do: str
    round: int
    state: StageState
    done: float = 0.0
    total: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A run as another process sees it. `status` is "interrupted" where run.json says running and nobody runs."""

    name: str
    folder: Path
    status: str
    pid: int
    started: float
    updated: float
    store: str
    stages: tuple[StageRow, ...]


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: on any error the old one stays as it was and nothing is left beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None where the file is missing. ConfigError where it is not JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ConfigError(f"{path}: not JSON; delete this file and start the run again") from None
    return value if isinstance(value, dict) else None


def store_url(run_dir: Path, given: str | None) -> str:
    """The database of a run: the recipe's, or sqlite in the run folder (wherever that has been moved)."""
    return given or f"sqlite:///{(run_dir / 'store.db').resolve()}"


def stage_folder(run_dir: Path, name: str, key: str) -> Path:
    """Where a stage of this name and key keeps its things."""
    return run_dir / "stages" / name / key[:12]


def read_stage(run_dir: Path, name: str, key: str) -> StageState:
    """What is known of a stage; pending where nothing is. Fields of other versions are left out."""
    raw = read_json(stage_folder(run_dir, name, key) / "state.json") or {}
    known = {f: raw[f] for f in StageState.__dataclass_fields__ if f in raw}
    state = StageState(**known)
    return state if state.key == key else StageState(key=key)


def write_stage(run_dir: Path, name: str, state: StageState) -> None:
    write_json(stage_folder(run_dir, name, state.key) / "state.json", asdict(state))


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run folder. ConfigError where another process does. The kernel lets go when a process dies."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise ConfigError(f"{run_dir}: process {pid} is running it; wait, or give another --out") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(run_dir: Path) -> bool:
    """True if some process runs it now."""
    try:
        with (run_dir / "lock").open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def read_status(run_dir: Path) -> RunStatus:
    """The state of a run, read from its folder. ConfigError where the folder holds no run."""
    run = read_json(run_dir / "run.json")
    if run is None:
        raise ConfigError(f"{run_dir}: holds no run (no run.json); start one with alignloop run RECIPE")
    locked = is_locked(run_dir)
    rows = []
    for entry in run["stages"]:
        key = entry.get("key") or ""
        state = read_stage(run_dir, entry["name"], key) if key else StageState()
        if state.status == "running" and not locked:
            state = StageState(**{**asdict(state), "status": "interrupted"})
        now = (read_json(stage_folder(run_dir, entry["name"], key) / "progress.json") or {}) if key else {}
        rows.append(
            StageRow(
                entry["name"],
                entry["do"],
                int(entry.get("round", 0)),
                state,
                float(now.get("done", 0)),
                float(now.get("total", 0)),
                str(now.get("note", "")),
            )
        )
    status = "interrupted" if run["status"] == "running" and not locked else run["status"]
    return RunStatus(
        name=run["name"],
        folder=run_dir,
        status=status,
        pid=int(run.get("pid", 0)),
        started=run["started"],
        updated=run["updated"],
        store=store_url(run_dir, run.get("store")),
        stages=tuple(rows),
    )


def find_runs(root: Path) -> list[Path]:
    """Run folders below `root`, the last changed first."""
    found = [p.parent for p in [*root.glob("run.json"), *root.glob("*/run.json"), *root.glob("*/*/run.json")]]
    return sorted(found, key=lambda p: (p / "run.json").stat().st_mtime, reverse=True)


def now() -> float:
    """Seconds since the epoch: for people, never for seeds or keys."""
    return time.time()
