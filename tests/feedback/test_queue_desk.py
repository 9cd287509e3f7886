"""What an answer reads and writes: few statements, and nothing that may change is remembered from card to card."""

from dataclasses import replace

import pytest
from sqlalchemy import event, select

from alignloop.core.errors import DataError, StoreError
from alignloop.feedback.desk import desk_of, handed
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.people import invite
from alignloop.feedback.projects import publish_guideline, set_criteria, set_project_state
from alignloop.feedback.queue import answer, answer_sent, card_of, claim, claim_many, submit, submit_many
from alignloop.feedback.review import pause_person
from alignloop.feedback.tasks import create_tasks
from alignloop.feedback.wording import CriterionSpec
from alignloop.store import tables as t
from alignloop.store.ids import uuid7


def said_of(store, work):
    """The statements that `work` sends, by their first words."""
    sent: list[str] = []

    def note(_conn, _cursor, statement, *_):
        sent.append(statement)

    event.listen(store._engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(store._engine, "before_cursor_execute", note)
    return [" ".join(s.split()[:2]) for s in sent if not s.startswith("BEGIN")]


def test_an_answer_with_its_next_card_is_eight_statements(store, pairs):
    create_tasks(store, "votes", pairs, overlap=3)
    for who in ("ann", "bob"):
        invite(store, "votes", who, "annotator", actor="system")
    first = claim(store, "votes", "ann")
    answer(store, first, Verdict(1))  # the texts of the first two tasks are remembered now
    card = claim(store, "votes", "bob")
    assert card.task_id == first.task_id
    sent = said_of(
        store, lambda: answer_sent(store, *named(card), lambda _: Verdict(1), judgement_id=uuid7(), ui="api")
    )
    assert sent == [
        "SELECT seat.project_id,",  # the seat, its task, the project and the person
        "UPDATE seat",  # done
        "INSERT INTO",  # the judgement
        "SELECT seat.task_id,",  # which seats of the task still wait
        "SELECT seat.project_id,",  # leases that are over, or one's own
        "SELECT seat.project_id,",  # the next free seat
        "UPDATE membership",  # cards served
        "UPDATE seat",  # leased
    ]


def named(card):
    return card.seat_id, card.token, card.annotator_id


def test_texts_come_from_memory_and_are_the_same(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=2)
    ann, bob = claim(store, "votes", "ann"), claim(store, "votes", "bob")
    assert (ann.prompt, ann.completions, ann.task) == (bob.prompt, bob.completions, bob.task)
    assert ann.completions[0] is bob.completions[0]
    assert card_of(store, *named(ann)) == ann


def test_a_guideline_a_pause_and_a_criterion_hold_from_the_next_request_on(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    invite(store, "votes", "ann", "annotator", actor="system")
    card = claim(store, "votes", "ann")
    assert card.guideline_id is None
    guideline = publish_guideline(store, "votes", "Prefer the shorter one.")
    card = answer(store, card, Verdict(1)).next
    assert card.guideline_id == guideline
    set_criteria(store, "votes", [CriterionSpec("true", "True?", "", "likert1-5", True)])
    with pytest.raises(DataError, match="required") as error:
        answer(store, card, Verdict(1))
    assert error.value.field == "ratings.true"
    with pytest.raises(DataError, match="required"):
        submit_many(store, [(card, Verdict(1))])
    with store.read() as session:
        criterion = session.scalar(select(t.Criterion.id))
    rated = Verdict(1, ratings={(criterion, 0): 4, (criterion, 1): 2})
    pause_person(store, "votes", "ann", actor="system", reason="a look is needed")
    answered = answer(store, card, rated)
    assert answered.next is None  # and the answer itself is kept
    with store.read() as session:
        assert session.get_one(t.Judgement, answered.judgement_id).guideline_id == guideline
    set_project_state(store, "votes", "closed")
    with pytest.raises(StoreError, match="closed"):
        claim(store, "votes", "ann")


def test_an_id_that_is_stored_is_stored_once_and_another_persons_is_refused(store, pairs):
    create_tasks(store, "votes", pairs, overlap=2)
    ann, bob, key = claim(store, "votes", "ann"), claim(store, "votes", "bob"), uuid7()
    once = answer(store, ann, Verdict(1), judgement_id=key)
    again = answer_sent(store, *named(ann), lambda _: Verdict(-2), judgement_id=key, ui="api")
    assert again == once
    for send in (
        lambda: answer(store, bob, Verdict(1), judgement_id=key),
        lambda: submit_many(store, [(bob, Verdict(1))], judgement_ids=[key]),
    ):
        with pytest.raises(StoreError, match="the id is in use"):
            send()
    with store.read() as session:
        assert session.scalars(select(t.Judgement.strength)).all() == [1]


def test_a_card_of_another_store_is_refused_alone_or_with_the_next_card(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    card = replace(claim(store, "votes", "ann"), seat_id="of-another-store")
    for send in (answer, submit):
        with pytest.raises(StoreError, match="seat 'of-another-store': not in this store"):
            send(store, card, Verdict(1))


def test_answers_of_one_person_keep_their_order_where_the_clock_was_put_back(store, pairs):
    """By hand: 5000, then one and two at once at 1000, each after the one before; another person's are not moved."""
    create_tasks(store, "votes", pairs, overlap=2)
    answer(store, claim(store, "votes", "ann", now=5000), Verdict(1), now=5000)
    answer(store, claim(store, "votes", "ann", now=5000), Verdict(1), now=1000)
    cards = claim_many(store, "votes", "ann", 2, now=1000)
    submit_many(store, [(card, Verdict(1)) for card in cards], now=1000)
    answer(store, claim(store, "votes", "bob", now=1000), Verdict(1), now=1000)
    with store.read() as session:
        rows = session.execute(
            select(t.Annotator.handle, t.Judgement.created_at)
            .join(t.Judgement, t.Judgement.annotator_id == t.Annotator.id)
            .order_by(t.Judgement.id)
        ).all()
    assert [tuple(row) for row in rows] == [("ann", 5000), ("ann", 5001), ("ann", 5002), ("ann", 5003), ("bob", 1000)]


def test_a_desk_is_found_by_names_and_by_ids_and_says_what_is_unknown(store):
    with store.read() as session:
        desk = desk_of(session, "votes", "ann")
        assert desk_of(session, desk.project.id, desk.person.id) == desk
        assert (desk.project.slug, desk.person.handle) == ("votes", "ann")
        assert (desk.member, desk.guideline, desk.asked) == (None, None, False)
        with pytest.raises(StoreError, match="votes"):
            desk_of(session, "vote", "ann")
        with pytest.raises(StoreError, match="ann"):
            desk_of(session, "votes", "anna")
        assert handed(session, "no-such-seat", "ann") is None
