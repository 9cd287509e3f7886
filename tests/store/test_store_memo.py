"""What is remembered, what is forgotten, and what is read in one statement without a transaction."""

import importlib.util
import threading

import pytest
from sqlalchemy import event, select, text

from alignloop.core.errors import StoreError
from alignloop.core.types import Message, Prompt
from alignloop.store import Store, database
from alignloop.store import tables as t
from alignloop.store.memo import Memo


def test_a_memo_reads_what_it_does_not_hold_and_forgets_what_was_used_least():
    asked: list[list[str]] = []

    def read(missing):
        asked.append(missing)
        return {key: key.upper() for key in missing}

    memo: Memo[str] = Memo(2)
    assert memo.get(["a", "b", "a"], read) == {"a": "A", "b": "B"}
    assert memo.get(["b"], read) == {"b": "B"}
    assert memo.get(["a"], read) == {"a": "A"}
    assert asked == [["a", "b"]]
    assert memo.get(["c"], read) == {"c": "C"}  # b is the one used least lately
    assert memo.get(["a", "c"], read) == {"a": "A", "c": "C"}
    assert memo.get(["b"], read) == {"b": "B"}
    assert asked == [["a", "b"], ["c"], ["b"]]
    assert memo.get(list("defg"), read) == {k: k.upper() for k in "defg"}  # more than it holds are given all the same


def test_what_is_not_found_is_not_remembered():
    memo: Memo[str] = Memo(2)
    assert memo.get(["a"], lambda _: {}) == {}
    assert memo.get(["a"], lambda _: {"a": "now"}) == {"a": "now"}


def test_threads_share_a_memo():
    memo: Memo[int] = Memo(8)
    wrong: list[int] = []

    def work(start):
        for k in range(400):
            n = (start + k) % 20
            if memo.get([str(n)], lambda missing: {key: int(key) for key in missing}) != {str(n): n}:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(memo._values) == 8


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "postgresql" and importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    with Store(tmp_path / "a.db" if request.param == "sqlite" else request.getfixturevalue("postgres").url) as opened:
        yield opened


def test_rows_are_one_statement_in_no_transaction_and_the_next_write_has_one(store):
    said: list[str] = []
    event.listen(store._engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: said.append(statement))
    query = select(t.Prompt.key).where(t.Prompt.source == "book").order_by(t.Prompt.key)
    assert store.rows(query) == []
    assert [s.split()[0] for s in said] == ["SELECT"]
    store.add_prompts(
        [Prompt("p", (Message("user", "Why?"),), "book"), Prompt("q", (Message("user", "How?"),), "book")]
    )
    assert [row.key for row in store.rows(query)] == ["p", "q"]
    with pytest.raises(ZeroDivisionError), store.write() as session:  # over the same connection: all or nothing still
        session.get_one(t.Prompt, store_id(session)).source = "torn"
        session.flush()
        1 / 0  # noqa: B018
    assert [row.key for row in store.rows(query)] == ["p", "q"]


def store_id(session):
    return session.scalar(select(t.Prompt.id).where(t.Prompt.key == "p"))


def test_rows_say_what_is_wrong_as_the_store_does(store):
    with pytest.raises(StoreError, match="nowhere"):
        store.rows(select(text("1")).select_from(text("nowhere")))


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
def test_a_connection_that_the_server_closed_while_it_rested_is_replaced(store, postgres, monkeypatch):
    ours = "usename = 'app' AND pid <> pg_backend_pid()"
    query = select(t.Prompt.key)
    assert store.rows(query) == []
    assert int(postgres.run(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {ours}")) >= 1
    monkeypatch.setattr(database, "REST_S", 0.0)
    assert store.rows(query) == []
    with store.write() as session:
        assert session.scalars(query).all() == []
