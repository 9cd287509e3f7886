"""Opening, migrating and refusing databases; what the database itself forbids."""

import json
import sqlite3
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, delete, insert, inspect, text, update
from sqlalchemy.exc import IntegrityError

from alignloop.core.errors import StoreError
from alignloop.store import Store, database
from alignloop.store import tables as t
from alignloop.store.database import FIRST, HEAD, MIGRATIONS, filesystem_of, migrate, open_engine, parse_url
from alignloop.store.ids import canonical, path_sha256, uuid7


def test_migrations_go_up_down_and_up_again(tmp_path):
    engine = open_engine(parse_url(tmp_path / "a.db"))
    migrate(engine)
    tables = set(inspect(engine).get_table_names())
    assert {"prompt", "completion", "judgement", "seat", "snapshot", "edge"} <= tables
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'")).scalar() == 8
    migrate(engine, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine)
    assert set(inspect(engine).get_table_names()) == tables
    engine.dispose()


def test_migrations_make_exactly_the_tables_of_the_models(tmp_path):
    engine = open_engine(parse_url(tmp_path / "a.db"))
    migrate(engine)
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("error")
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, t.Base.metadata) == []
    engine.dispose()


def test_head_is_the_newest_migration():
    script = ScriptDirectory(str(MIGRATIONS))
    assert script.get_heads() == [HEAD]
    assert script.get_bases() == [FIRST]


def test_an_older_file_is_copied_before_it_is_migrated(tmp_path):
    engine = open_engine(parse_url(tmp_path / "a.db"))
    migrate(engine, "0001")
    engine.dispose()
    with Store(tmp_path / "a.db"):
        pass
    with sqlite3.connect(tmp_path / "a.db.schema-0001.bak") as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    copy.close()


def test_opening_twice_changes_nothing(tmp_path):
    with Store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        store.add_run("sft", "train")
    with Store(tmp_path / "a.db") as store, store.read() as session:
        assert session.query(t.Run).count() == 1
    assert not list(tmp_path.glob("*.bak"))


def test_sqlite_runs_with_the_settings_promised(tmp_path):
    with Store(tmp_path / "a.db") as store, store.read() as session:
        values = [
            session.execute(text(f"PRAGMA {p}")).scalar() for p in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert values == ["wal", 2, 1]


@pytest.mark.parametrize("table", ["judgement", "rating"])
def test_rows_of_judgements_cannot_be_changed_or_deleted(tmp_path, judged, table):
    store, judgement = judged
    model = {"judgement": t.Judgement, "rating": t.Rating}[table]
    column = {"judgement": {"comment": "changed"}, "rating": {"value": 1}}[table]
    for statement in (update(model).values(**column), delete(model)):
        with pytest.raises(IntegrityError, match="append-only"), store.write() as session:
            session.execute(statement)
    with store.read() as session:
        assert session.get(t.Judgement, judgement).comment == "because"
        assert session.query(t.Rating).one().value == 4


def test_people_and_texts_behind_a_judgement_cannot_be_deleted(judged):
    store, _ = judged
    for model in (t.Annotator, t.Completion, t.Prompt, t.Seat, t.Task):
        with pytest.raises(IntegrityError), store.write() as session:
            session.execute(delete(model))


@pytest.mark.parametrize(
    ("columns", "error"),
    [({"strength": 3}, "strength"), ({"outcome": "maybe"}, "outcome"), ({"revision": 1}, "UNIQUE")],
)
def test_the_database_refuses_impossible_judgements(judged, columns, error):
    store, judgement = judged
    with store.read() as session:
        row = session.get(t.Judgement, judgement)
        facts = {c.name: getattr(row, c.name) for c in t.Judgement.__table__.columns}
    facts |= {"id": uuid7(), "revision": 2, "supersedes_id": judgement} | columns
    with pytest.raises(IntegrityError, match=error), store.write() as session:
        session.execute(insert(t.Judgement), [facts])


def test_a_missing_folder_names_the_cure(tmp_path):
    with pytest.raises(StoreError, match=r"does not exist; create it \(mkdir -p"):
        Store(tmp_path / "no" / "a.db")


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(StoreError, match="is a folder; name a file in it"):
        Store(tmp_path)


def test_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("alignloop.store.database.os.access", lambda path, mode: False)
    with pytest.raises(StoreError, match="is read-only; choose another place"):
        Store(tmp_path / "a.db")


def test_a_file_that_is_not_a_database(tmp_path):
    (tmp_path / "a.db").write_bytes(b"just some text, long enough to be no database header" * 20)
    with pytest.raises(StoreError, match="not an alignloop database; choose another name"):
        Store(tmp_path / "a.db")


def test_the_database_of_another_program(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("CREATE TABLE recipes (id INTEGER)")
    other.close()
    with pytest.raises(StoreError, match="not made by alignloop"):
        Store(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    other.close()


def test_the_database_of_a_newer_version(tmp_path):
    Store(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    newer.close()
    with pytest.raises(StoreError, match=f"newer alignloop .schema 9999, here {HEAD}.; upgrade"):
        Store(tmp_path / "a.db")


def test_a_database_locked_by_another_process(tmp_path):
    with Store(tmp_path / "a.db", busy_ms=50) as store:
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process is writing to it"):
            store.add_run("sft", "train")
        other.execute("ROLLBACK")
        other.close()
        assert store.add_run("sft", "train")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "in memory"),
        ("mysql://x/y", "only sqlite and postgresql|not a database"),
        ("oops://", "not a data"),
    ],
)
def test_addresses_that_are_refused(url, said):
    with pytest.raises(StoreError, match=said):
        Store(url)


def test_a_write_inside_a_write_is_refused_instead_of_waiting_for_itself(tmp_path):
    with Store(tmp_path / "a.db") as store, store.write(), pytest.raises(StoreError, match="pass the session on"):
        store.add_run("sft", "train")


def test_a_failed_write_leaves_nothing_and_frees_the_lock(tmp_path):
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(RuntimeError), store.write() as session:
            session.add(t.Edge(parent_type="run", parent_id="a", child_type="model", child_id="b", kind="produced"))
            session.flush()
            raise RuntimeError
        with store.read() as session:
            assert session.query(t.Edge).count() == 0
        done = []
        thread = threading.Thread(target=lambda: done.append(store.add_run("sft", "train")))
        thread.start()
        thread.join(timeout=10)
        assert len(done) == 1


def test_keys_increase_are_unique_and_of_version_7():
    keys = [uuid7() for _ in range(20_000)]
    assert keys == sorted(set(keys))
    assert {(len(k), k[14], k[19] in "89ab") for k in keys} == {(36, "7", True)}


def test_canonical_json():
    assert (
        canonical({"b": [1.00000049, True, None], "a": "é\u2028", "c": -0.0})
        == '{"a":"é\u2028","b":[1.0,true,null],"c":0.0}'
    )
    with pytest.raises(StoreError, match="finite numbers"):
        canonical(float("nan"))


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path):
    for folder, name, content in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    a, b, c, d = (path_sha256(tmp_path / f) for f in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_store_and_feedback_do_not_import_torch():
    code = (
        "import sys, alignloop.store.lineage, alignloop.store.snapshots, alignloop.feedback.aggregate, "
        "alignloop.feedback.simulate; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_postgresql_migrations_render_offline():
    """The statements for PostgreSQL can be printed without a driver or server: JSONB, triggers, partial indexes."""
    sql = postgres_sql("upgrade", "head")
    assert "JSONB" in sql
    assert "CREATE FUNCTION alignloop_append_only()" in sql
    assert "WHERE state = 'leased' AND batch = 0" in sql


def postgres_sql(direction: str, target: str) -> str:
    import io

    from alembic import command
    from alembic.config import Config

    out = io.StringIO()
    config = Config(output_buffer=out)
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes |= {"dialect": "postgresql", "output": out}
    (command.upgrade if direction == "upgrade" else command.downgrade)(config, target, sql=True)
    return out.getvalue()


def test_postgresql_server_takes_the_migrations_and_keeps_judgements(postgres):
    run = postgres.run
    run(postgres_sql("upgrade", "head"))
    assert run("SELECT version_num FROM alembic_version;").strip() == HEAD
    run(
        "INSERT INTO project (id, created_at, slug, name, kind, state, config, blind, lease_s, seed, pseudonym_key) "
        "VALUES ('p', 0, 'p', 'p', 'pairwise', 'open', '{}', true, 900, 0, 'k');"
        "INSERT INTO prompt (id, created_at, key, messages, text_sha256, cluster_id, split, source, meta) "
        "VALUES ('q', 0, 'q', '[]', 's', 'c', 'train', '', '{}');"
        "INSERT INTO annotator (id, created_at, handle, display_name, kind, role, state, langs, skills) "
        "VALUES ('a', 0, 'a', 'a', 'human', 'annotator', 'active', '[]', '{}');"
        "INSERT INTO task (id, created_at, project_id, key, kind, prompt_id, n_items, priority, order_key, state, "
        "created_by_strategy) VALUES ('t', 0, 'p', 't', 'normal', 'q', 2, 0, 0, 'open', 'random');"
        "INSERT INTO seat (id, created_at, project_id, task_id, state, annotator_id, batch, place, order_key) "
        "VALUES ('s', 0, 'p', 't', 'done', 'a', 0, 0, 0);"
        "INSERT INTO judgement (id, created_at, seat_id, task_id, revision, annotator_id, outcome, strength, "
        "shown_order, both_bad, both_good, comment, n_focus_loss, ui, app_version) "
        "VALUES ('j', 0, 's', 't', 1, 'a', 'answer', 2, '[0, 1]', false, false, '', 0, 'web', '0');"
    )
    for statement in ("UPDATE judgement SET strength = 1;", "DELETE FROM judgement;"):
        with pytest.raises(AssertionError, match="append-only"):
            run(statement)
    with pytest.raises(AssertionError, match="uq_seat_task_id_annotator_id"):
        run(
            "INSERT INTO seat (id, created_at, project_id, task_id, state, annotator_id, batch, place, order_key) "
            "VALUES ('s2', 0, 'p', 't', 'done', 'a', 0, 0, 0);"
        )
    run(postgres_sql("downgrade", "head:base"))
    assert run("SELECT tablename FROM pg_tables WHERE schemaname = 'public';").split() in ([], ["alembic_version"])
    run("DROP TABLE IF EXISTS alembic_version;")  # printed SQL makes it anew, a connection would not
    run(postgres_sql("upgrade", "head"))


def test_postgresql_without_a_driver_names_the_extra():
    try:
        import psycopg  # noqa: F401
    except ImportError:
        with pytest.raises(StoreError, match=r"pip install 'alignloop\[postgres\]'"):
            Store("postgresql+psycopg://nobody@127.0.0.1:1/none")
    else:
        pytest.skip("psycopg is installed")


def test_create_engine_is_not_needed_to_read_a_snapshot(tmp_path):
    """A plain SQLite reader can open the file: JSON columns hold JSON text."""
    with Store(tmp_path / "a.db") as store:
        store.add_run("sft", "train", config={"lr": 0.1})
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with engine.connect() as connection:
        assert json.loads(connection.execute(text("SELECT config FROM run")).scalar()) == {"lr": 0.1}
    engine.dispose()
    assert Path(tmp_path / "a.db").exists()


def test_a_network_filesystem_is_named_and_warned_of(tmp_path, monkeypatch, caplog):
    mounts = tmp_path / "mounts"
    share = "/mnt/my\\040share"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nbox:/x {share} nfs4 rw 0 0\n/dev/b {share}/disk xfs rw 0 0\n")
    kinds = {
        "/home/me": "ext4",
        "/mnt/my share": "nfs4",
        "/mnt/my share/runs": "nfs4",
        "/mnt/my share/disk": "xfs",
        "/mnt/my shared": "ext4",
    }
    assert {place: filesystem_of(Path(place), mounts) for place in kinds} == kinds
    assert filesystem_of(tmp_path, tmp_path / "none") == ""
    monkeypatch.setattr(database, "filesystem_of", lambda folder: "nfs4")
    Store(tmp_path / "s.db").close()
    assert "lies on a network filesystem (nfs4)" in caplog.text and "PostgreSQL" in caplog.text
