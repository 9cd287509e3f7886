"""Many annotators at once, on both databases: no task given twice, no vote too many, nothing lost."""

import importlib.util
import threading
from collections import Counter

import pytest
from sqlalchemy import func, select

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.projects import add_annotators, create_project
from alignloop.feedback.queue import claim, submit
from alignloop.feedback.tasks import create_tasks
from alignloop.store import Store
from alignloop.store import tables as t


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'many.db'}"
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    return request.getfixturevalue("postgres").url


def test_eight_annotators_at_once_never_overassign(url):
    tasks, overlap, people = 40, 3, 8
    with Store(url) as store:
        store.add_prompts([Prompt(f"p{i}", (Message("user", f"Why {i}?"),)) for i in range(tasks)])
        texts = [Completion(f"{k}{i}", f"p{i}", (Message("assistant", k),)) for i in range(tasks) for k in "ab"]
        store.add_completions(texts)
        create_project(store, "votes")
        names = [f"ann-{k}" for k in range(people)]
        add_annotators(store, names)
        create_tasks(store, "votes", [(f"a{i}", f"b{i}") for i in range(tasks)], overlap=overlap)
        errors: list[BaseException] = []
        start = threading.Barrier(people)

        def work(name: str) -> None:
            try:
                start.wait()
                while (card := claim(store, "votes", name)) is not None:
                    submit(store, card, Verdict(1))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert errors == []
        with store.read() as session:
            pairs = session.execute(select(t.Judgement.task_id, t.Judgement.annotator_id)).all()
            assert len(pairs) == len(set(map(tuple, pairs))) == tasks * overlap
            assert set(Counter(task for task, _ in pairs).values()) == {overlap}
            assert session.scalar(select(func.count(t.Seat.id))) == tasks * overlap
            assert set(session.scalars(select(t.Seat.state))) == {"done"}
            assert set(session.scalars(select(t.Task.state))) == {"done"}
