"""A judged store, and a private PostgreSQL where the machine has one."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.projects import add_annotators, create_project
from alignloop.feedback.queue import claim, submit
from alignloop.feedback.tasks import create_tasks
from alignloop.store import Store
from alignloop.store import tables as t


@pytest.fixture
def judged(tmp_path) -> Iterator[tuple[Store, str]]:
    """A store with one prompt, two completions, one task and one judgement with a comment and a rating."""
    with Store(tmp_path / "judged.db") as store:
        store.add_prompts([Prompt("p", (Message("user", "Why?"),))])
        store.add_completions([Completion(k, "p", (Message("assistant", k),)) for k in ("a", "b")])
        project = create_project(store, "votes")
        add_annotators(store, ["ann"])
        create_tasks(store, "votes", [("a", "b")], overlap=1)
        with store.write() as session:
            facts = {"help_md": "", "scale": "likert1-5", "required": False, "position": 0}
            criterion = t.Criterion(project_id=project, key="helpful", label="Helpful", **facts)
            session.add(criterion)
        card = claim(store, "votes", "ann")
        assert card is not None
        verdict = Verdict(1, comment="because", ratings={(criterion.id, 0): 4})
        yield store, submit(store, card, verdict)


@dataclass(frozen=True)
class Postgres:
    """`run` runs SQL through psql (AssertionError with the server's words); `url` is for the driver."""

    run: Callable[[str], str]
    url: str


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A private server that listens on a socket of its own folder only."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    if not servers:
        pytest.skip("no PostgreSQL server on this machine")
    user = pwd.getpwuid(os.getuid()).pw_name
    if user == "root":  # initdb refuses to run as root
        user = "postgres"
        if user not in {p.pw_name for p in pwd.getpwall()} or shutil.which("su") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'")
    folder = tempfile.mkdtemp(prefix="alignloop-pg-")
    if os.getuid() == 0:
        shutil.chown(folder, user)

    def shell(command: str, sql: str | None = None) -> str:
        line = ["su", user, "-c", command] if os.getuid() == 0 else ["sh", "-c", command]
        done = subprocess.run(line, input=sql, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout

    tools = servers[-1]
    try:
        shell(f"{tools}/initdb -D {folder}/data -A trust -U app --no-sync")
        options = f"-c listen_addresses= -k {folder} -c fsync=off"
        shell(f"{tools}/pg_ctl -w -D {folder}/data -l {folder}/log -o '{options}' start")
    except AssertionError as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"a private PostgreSQL does not start here: {error}")
    try:
        yield Postgres(
            lambda sql: shell(f"{tools}/psql -h {folder} -U app -d postgres -v ON_ERROR_STOP=1 -qAt", sql),
            f"postgresql+psycopg://app@/postgres?host={folder}",
        )
    finally:
        shell(f"{tools}/pg_ctl -D {folder}/data -m immediate stop")
        shutil.rmtree(folder, ignore_errors=True)
