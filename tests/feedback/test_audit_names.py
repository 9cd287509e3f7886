"""The chain of the audit log holds nobody's name, so that somebody who is forgotten is forgotten there too."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from alignloop.feedback import audit
from alignloop.feedback.people import LEFT, change_profile, invite, leave
from alignloop.feedback.projects import add_annotators, create_project
from alignloop.feedback.review import pause_person
from alignloop.store import Store
from alignloop.store import tables as t


@pytest.fixture
def house(tmp_path):
    with Store(tmp_path / "s.db") as store:
        create_project(store, "votes")
        add_annotators(store, ["root"], role="owner")
        (mona,) = add_annotators(store, ["mona"])
        invite(store, "votes", "mona", "annotator", actor="root")
        change_profile(store, mona, display_name="Mona Lisa")
        yield store, mona


def reasons(store: Store) -> list[str]:
    return [line.reason for line in audit.events(store) if line.action == "test"]


def say(store: Store, reason: str) -> None:
    audit.record(store, actor="root", action="test", object_type="o", object_id="1", reason=reason)


def stored(store: Store) -> str:
    """Everything that the log holds, as text."""
    with store.read() as session:
        rows = session.scalars(select(t.AuditEvent)).all()
        return json.dumps([[getattr(row, name) for name in audit.FIELDS] for row in rows])


def test_a_name_in_a_reason_is_read_back_as_the_name_of_today(house):
    store, mona = house
    say(store, "Mona Lisa asked root (mona, not monad) for it")
    assert reasons(store) == ["mona asked root (mona, not monad) for it"]
    with store.read() as session:
        kept = session.scalar(select(t.AuditEvent.reason).where(t.AuditEvent.action == "test"))
    assert kept.startswith(f"{{person:{mona}}} asked {{person:") and kept.endswith("not monad) for it")


def test_who_is_forgotten_is_forgotten_in_the_log_and_the_chain_is_whole(house):
    store, mona = house
    pause_person(store, "votes", "mona", actor="root", reason="MONA clicks too fast")
    say(store, "mona said so")
    leave(store, "mona", actor="root", reason="mona asked for it")
    with store.read() as session:
        person = session.get_one(t.Annotator, mona)
        member = session.scalars(select(t.Membership).where(t.Membership.annotator_id == mona)).one()
        assert (person.display_name, member.pause_reason) == (LEFT, "")
    assert "mona" not in stored(store).lower()
    assert reasons(store) == [f"{person.handle} said so"]
    assert audit.verify(store).ok


def test_a_reference_to_nobody_stays_as_it_was_written(house):
    store, _ = house
    say(store, "see {person:nobody} and {braces}")
    assert reasons(store) == ["see {person:nobody} and {braces}"]


def test_names_with_signs_are_taken_as_they_are(house):
    store, _ = house
    add_annotators(store, ["c++ (guest)"])
    say(store, "C++ (guest): done")
    assert reasons(store) == ["c++ (guest): done"] and "guest" not in stored(store)


@pytest.mark.parametrize("name", ["İpek", "Straße", "ſam", "李雷"])
def test_names_of_any_script(house, name):
    store, _ = house
    add_annotators(store, [name])
    say(store, f"asked by {name}, twice")
    assert reasons(store) == [f"asked by {name}, twice"] and "{person:" in stored(store)
