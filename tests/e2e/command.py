"""Starting the command line: in a process of its own, in this process, or in a forked child that kills itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignloop.cli.main import main

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    # a proxy that nobody answers: whatever went to the network in spite of the above would fail at once
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), "http://127.0.0.1:9"),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "COLUMNS": "200",
}


@dataclass(frozen=True)
class Ended:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def refusal(self) -> str:
        """The one line of an error that the user can mend."""
        lines = [line for line in self.err.strip().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        assert self.code == 2 and len(errors) == 1, f"{self.code}\n{self.out}\n{self.err}"
        assert lines[-1] == errors[0] and "Traceback" not in self.err, self.err
        return errors[0]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **OFFLINE, **more}


def start(*arguments: str, cwd: Path, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen[str]:
    """The command in a process of its own, running."""
    line = [*(launcher or (sys.executable, "-m", "alignloop.cli")), *arguments]
    return subprocess.Popen(
        line, cwd=cwd, env=environment(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def alignloop(*arguments: str, cwd: Path, launcher: tuple[str, ...] = (), **more: str) -> Ended:
    """The command in a process of its own, to its end."""
    process = start(*arguments, cwd=cwd, launcher=launcher, **more)
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def here(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """The command in this process: the same entry point without seconds of imports; a traceback lands in `err`."""
    out, err = io.StringIO(), io.StringIO()
    before, kept = Path.cwd(), dict(os.environ)
    os.environ.update(env or {})
    os.chdir(cwd)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(arguments)
            except SystemExit as left:
                code = int(left.code or 0)
            except Exception:
                code = 1
                traceback.print_exc()
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(kept)
    return Ended(code, out.getvalue(), err.getvalue())


def forked(*arguments: str, cwd: Path, arrange: Callable[[], None] = lambda: None) -> int:
    """The command in a forked child, which `arrange` may first prepare to die; its exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with (cwd / "forked.log").open("a", encoding="utf-8") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            arrange()
            code = here(*arguments, cwd=cwd).code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    """Be killed, as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
