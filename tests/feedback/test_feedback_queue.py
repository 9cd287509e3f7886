"""Claiming, submitting, skipping, undoing: what each leaves in the tables."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alignloop.core.errors import DataError, StoreError
from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.judgements import Verdict, shown_order
from alignloop.feedback.projects import (
    ProjectConfig,
    add_annotators,
    create_project,
    publish_guideline,
    set_project_state,
)
from alignloop.feedback.queue import claim, claim_many, close_seats, progress, release, skip, submit, submit_many, undo
from alignloop.feedback.tasks import Overlap, create_tasks
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import uuid7
from alignloop.store.votes import load_votes, project_row

T0 = 1_000_000_000_000  # a fixed clock, in ms; leases last 60 s


def judgements(store):
    with store.read() as session:
        rows = session.query(t.Judgement).order_by(t.Judgement.seat_id, t.Judgement.revision).all()
    return [(r.outcome, r.strength, r.revision) for r in rows]


def votes(store):
    with store.read() as session:
        return load_votes(session, project_row(session, "votes"))


def seats(store):
    return Counter({k: v for k, v in progress(store, "votes").items() if k != "judgements" and v})


# Tasks


def test_overlap_gives_one_seat_a_vote_and_more_on_a_slice(store, pairs):
    ids = create_tasks(store, "votes", pairs, overlap=Overlap(votes=1, slice=0.3, slice_votes=4))
    with store.read() as session:
        per_task = Counter(session.scalars(t.Seat.__table__.select().with_only_columns(t.Seat.task_id)))
    assert sorted(per_task.values()) == [1] * 7 + [4] * 3
    assert set(per_task) == set(ids)


def test_making_tasks_again_changes_nothing_and_new_ones_queue_behind(store, pairs):
    first = create_tasks(store, "votes", pairs[:4], overlap=1)
    again = create_tasks(store, "votes", [pairs[0][::-1], *pairs[1:5]], overlap=1)
    assert again[:4] == first
    assert seats(store) == {"open": 5}
    served = []
    while (card := claim(store, "votes", "ann")) is not None:
        served.append(card.task_id)
        submit(store, card, Verdict(1))
    assert set(served[:4]) == set(first)
    assert served[4] == again[4]


def test_order_and_slice_come_from_the_content_not_from_the_order_given(tmp_path, pairs, fill):
    served = []
    for name, given in (("a", pairs), ("b", pairs[::-1])):
        with Store(tmp_path / f"{name}{len(served)}.sqlite") as s:
            fill(s, 10)
            create_project(s, "votes", ProjectConfig(seed=3))
            add_annotators(s, ["ann", "bob"])
            create_tasks(s, "votes", given, overlap=Overlap(slice=0.3, slice_votes=2))
            cards = claim_many(s, "votes", "ann", 10) + claim_many(s, "votes", "bob", 10)
            served.append([(c.annotator, c.task, c.shown_order) for c in cards])
    assert served[0] == served[1]
    assert [t[1] for t in served[0][:10]] != sorted(t[1] for t in served[0][:10])


def test_higher_priority_is_served_first(store, pairs):
    create_tasks(store, "votes", pairs[:5], overlap=1)
    [urgent] = create_tasks(store, "votes", pairs[5:6], overlap=1, priority=2.0)
    assert claim(store, "votes", "ann").task_id == urgent


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (("p0-0",), "needs at least two"),
        (("p0-0", "nothing"), "completion 'nothing' is not in the store"),
        (("p0-0", "p1-0"), "answer different prompts"),
        (("p0-0", "p0-0"), "two completions have the same text"),
    ],
)
def test_comparisons_that_make_no_sense_are_named(store, pairs, group, said):
    with pytest.raises(StoreError, match=rf"comparisons\[1\]: .*{said}"):
        create_tasks(store, "votes", [pairs[5], group])
    assert seats(store) == {}


# Claim and submit


def test_a_second_tab_shows_the_same_card(store, pairs):
    create_tasks(store, "votes", pairs, overlap=3)
    card = claim(store, "votes", "ann")
    assert claim(store, "votes", "ann") == card
    assert seats(store) == {"open": 29, "leased": 1}


def test_nobody_judges_a_task_twice_and_others_get_the_rest(store, pairs):
    create_tasks(store, "votes", pairs[:2], overlap=2)
    got = {name: [] for name in ("ann", "bob", "cy")}
    for name in ("ann", "bob", "cy"):
        while (card := claim(store, "votes", name)) is not None:
            got[name].append(card.task)
            submit(store, card, Verdict(1))
    assert [len(got[n]) for n in ("ann", "bob", "cy")] == [2, 2, 0]
    assert len(set(got["ann"])) == 2


def test_a_card_carries_texts_and_sides_and_no_author(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    card = claim(store, "votes", "ann")
    assert card.prompt.text == "Question number 0?"
    assert [c.id for c in card.completions] == ["p0-0", "p0-1"]
    assert [c.id for c in card.shown] == [f"p0-{k}" for k in card.shown_order]
    sign = 1 if card.shown_order == (0, 1) else -1
    assert (card.item_frame(2), card.item_frame(-1), card.item_frame(0)) == (2 * sign, -sign, 0)


def test_sides_are_random_and_stay_as_they_are():
    orders = [shown_order(0, "votes", f"task{i}", f"ann{j}", 2) for i in range(200) for j in range(10)]
    left = sum(o == (0, 1) for o in orders)
    assert 900 < left < 1100  # 2000 fair coins: sd 22
    assert orders[0] == shown_order(0, "votes", "task0", "ann0", 2)
    assert {shown_order(0, "votes", f"t{i}", "a", 3) for i in range(200)} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0),
    }  # fmt: skip


def test_the_judgement_row_keeps_what_was_seen_and_said(store, pairs):
    guideline = publish_guideline(store, "votes", "Prefer the kinder.")
    assert publish_guideline(store, "votes", "Prefer the kinder.") == guideline
    create_tasks(store, "votes", pairs[:1], overlap=1)
    card = claim(store, "votes", "ann")
    verdict = Verdict(-2, both_bad=True, comment="hm", active_ms=4200, wall_ms=9000, n_focus_loss=1)
    key = submit(store, card, verdict, ui="web", now=T0)
    with store.read() as session:
        row = session.get(t.Judgement, key)
        assert (row.strength, row.both_bad, row.comment, row.active_ms, row.wall_ms) == (-2, True, "hm", 4200, 9000)
        assert (row.shown_order, row.guideline_id, row.ui, row.created_at) == (
            list(card.shown_order),
            guideline,
            "web",
            T0,
        )
        assert session.get(t.Seat, card.seat_id).state == session.get(t.Task, card.task_id).state == "done"


def test_an_answer_sent_twice_is_stored_once(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    card, key = claim(store, "votes", "ann"), uuid7()
    assert submit(store, card, Verdict(2), judgement_id=key) == key
    assert submit(store, card, Verdict(2), judgement_id=key) == key
    assert judgements(store) == [("answer", 2, 1)]
    other = claim(store, "votes", "bob")
    with pytest.raises(StoreError, match="the id is in use; make a new UUID"):
        submit(store, other, Verdict(2), judgement_id=key)


def test_another_answer_to_a_card_already_answered_is_a_revision(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    card = claim(store, "votes", "ann")
    submit(store, card, Verdict(2))
    submit(store, card, Verdict(-1))
    assert judgements(store) == [("answer", 2, 1), ("answer", -1, 2)]
    assert [v.strength for v in votes(store)] == [-1]
    assert seats(store) == {"open": 9, "done": 1}


@pytest.mark.parametrize(
    ("verdict", "field"),
    [
        (Verdict(), "strength"),
        (Verdict(3), "strength"),
        (Verdict(1, both_bad=True, both_good=True), "both_bad"),
        (Verdict(1, active_ms=-1), "active_ms"),
        (Verdict(ranking=((0,), (0,))), "ranking"),
    ],
)
def test_answers_that_do_not_fit_are_refused_and_the_lease_stays(store, pairs, verdict, field):
    create_tasks(store, "votes", pairs, overlap=1)
    card = claim(store, "votes", "ann")
    with pytest.raises(DataError, match=f"row 0, field '{field}'"):
        submit(store, card, verdict)
    assert claim(store, "votes", "ann") == card


def test_three_completions_are_ranked_in_tiers(tmp_path, fill):
    with Store(tmp_path / "rank.db") as s:
        fill(s, 1, per_prompt=3)
        create_project(s, "votes", ProjectConfig(kind="rank"))
        add_annotators(s, ["ann"])
        create_tasks(s, "votes", [("p0-0", "p0-1", "p0-2")], overlap=1)
        card = claim(s, "votes", "ann")
        with pytest.raises(DataError, match="strength"):
            submit(s, card, Verdict(1))
        key = submit(s, card, Verdict(ranking=((2,), (0, 1))))
        with s.read() as session:
            assert session.get(t.Judgement, key).ranking == [[2], [0, 1]]


def test_closed_projects_and_absent_people_get_no_cards_but_answers_are_kept(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    card = claim(store, "votes", "ann")
    set_project_state(store, "votes", "paused")
    with pytest.raises(StoreError, match="project 'votes': is paused; open it"):
        claim(store, "votes", "bob")
    submit(store, card, Verdict(1))
    assert len(votes(store)) == 1
    with pytest.raises(StoreError, match="annotator 'anne': not in the store; did you mean 'ann'"):
        set_project_state(store, "votes", "open")
        claim(store, "votes", "anne")


# Leases that run out


def test_an_expired_seat_goes_to_another_and_the_late_answer_is_kept(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    late = claim(store, "votes", "ann", now=T0)
    assert claim(store, "votes", "bob", now=T0 + 59_000) is None
    card = claim(store, "votes", "bob", now=T0 + 60_001)
    assert card.task == late.task
    submit(store, late, Verdict(2), now=T0 + 61_000)
    submit(store, card, Verdict(1), now=T0 + 62_000)
    assert seats(store) == {"done": 1, "late": 1}
    assert sorted((v.annotator == card.annotator, v.strength) for v in votes(store)) == [(False, 1), (False, 2)]


def test_a_late_answer_takes_a_seat_back_that_nobody_took(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    late = claim(store, "votes", "ann", now=T0)
    create_tasks(store, "votes", pairs[1:2], overlap=1)
    assert claim(store, "votes", "bob", now=T0 + 70_000).task == late.task  # expiry happens here
    release(store, "votes", "bob")
    submit(store, late, Verdict(2), now=T0 + 71_000)
    assert seats(store) == {"open": 1, "done": 1}


def test_a_late_answer_lands_on_the_new_lease_of_the_same_task(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    old = claim(store, "votes", "ann", now=T0)
    new = claim(store, "votes", "ann", now=T0 + 61_000)
    assert (old.seat_id, old.task) == (new.seat_id, new.task)
    assert old.token != new.token
    submit(store, old, Verdict(2), now=T0 + 62_000)
    assert seats(store) == {"done": 1}
    assert judgements(store) == [("answer", 2, 1)]


# Skip and undo


def test_a_skipped_card_goes_to_someone_else(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    skip(store, claim(store, "votes", "ann"), "cannot judge")
    assert claim(store, "votes", "ann") is None
    card = claim(store, "votes", "bob")
    submit(store, card, Verdict(0))
    assert judgements(store).count(("skip", None, 1)) == 1
    assert [v.strength for v in votes(store)] == [0]


def test_three_skips_or_a_flag_send_a_task_to_the_curator(store, pairs):
    add_annotators(store, ["dee"])
    [task, other] = create_tasks(store, "votes", pairs[:2], overlap=1)
    for name in ("ann", "bob", "cy"):
        while (card := claim(store, "votes", name)) is not None and card.task_id != task:
            release(store, "votes", name)
            submit(store, card, Verdict(1))
        if card is not None:
            skip(store, card, "broken")
    with store.read() as session:
        assert session.get(t.Task, task).state == "review"
    assert claim(store, "votes", "dee") is None
    [flagged] = create_tasks(store, "votes", pairs[2:3], overlap=3)
    skip(store, claim(store, "votes", "dee"), "offensive", flag=True)
    with store.read() as session:
        assert session.get(t.Task, flagged).state == "review"
    assert other != task


def test_undo_makes_revisions_and_brings_the_card_back(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    card = claim(store, "votes", "ann", now=T0)
    submit(store, card, Verdict(2), now=T0 + 1)
    following = claim(store, "votes", "ann", now=T0 + 2)
    back = undo(store, "votes", "ann", now=T0 + 3)
    assert (back.task, back.shown_order, back.seat_id) == (card.task, card.shown_order, card.seat_id)
    assert votes(store) == []
    assert claim(store, "votes", "ann", now=T0 + 4) == back  # first the card taken back, then the one put aside
    submit(store, back, Verdict(-1), now=T0 + 5)
    assert judgements(store) == [("answer", 2, 1), ("undo", None, 2), ("answer", -1, 3)]
    assert [v.strength for v in votes(store)] == [-1]
    assert claim(store, "votes", "ann", now=T0 + 6) == following


def test_undo_twice_steps_back_twice(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    cards = []
    for k in range(2):
        cards.append(claim(store, "votes", "ann", now=T0 + 10 * k))
        submit(store, cards[-1], Verdict(1), now=T0 + 10 * k + 1)
    assert undo(store, "votes", "ann", now=T0 + 100).task == cards[1].task
    assert undo(store, "votes", "ann", now=T0 + 101).task == cards[0].task
    assert undo(store, "votes", "ann", now=T0 + 102) is None
    assert undo(store, "votes", "bob") is None


def test_an_undone_answer_that_is_not_given_again_leaves_room_for_another_person(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    submit(store, claim(store, "votes", "ann", now=T0), Verdict(2), now=T0)
    undo(store, "votes", "ann", now=T0 + 1)
    card = claim(store, "votes", "bob", now=T0 + 61_002)
    submit(store, card, Verdict(1), now=T0 + 61_003)
    assert [v.strength for v in votes(store)] == [1]
    assert judgements(store).count(("answer", 1, 1)) == 1


def test_a_skip_can_be_undone(store, pairs):
    create_tasks(store, "votes", pairs[:1], overlap=1)
    skip(store, claim(store, "votes", "ann"), "other", flag=True)
    submit(store, undo(store, "votes", "ann"), Verdict(1))
    assert [v.strength for v in votes(store)] == [1]
    assert seats(store) == {"done": 1, "released": 1}
    with store.read() as session:
        assert session.query(t.Task).one().state == "done"


def test_only_ones_own_recent_answers_can_be_undone(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    key = submit(store, claim(store, "votes", "ann"), Verdict(1))
    with pytest.raises(StoreError, match="not among the last 20 of 'bob'"):
        undo(store, "votes", "bob", judgement_id=key)
    assert undo(store, "votes", "ann", judgement_id=key) is not None


# Many at once


def test_many_cards_obey_the_rules_of_one(store, pairs):
    create_tasks(store, "votes", pairs, overlap=2)
    cards = claim_many(store, "votes", "ann", 100)
    assert len({c.task for c in cards}) == len(cards) == 10
    assert claim_many(store, "votes", "ann", 100) == cards  # after a crash the same cards come back
    keys = submit_many(store, [(c, Verdict(k % 3 - 1)) for k, c in enumerate(cards)])
    assert submit_many(store, [(cards[0], Verdict(2))], judgement_ids=[keys[0]]) == [keys[0]]
    assert len(judgements(store)) == 10
    assert claim_many(store, "votes", "ann", 100) == []
    assert len(claim_many(store, "votes", "bob", 3)) == 3
    assert seats(store) == {"done": 10, "open": 7, "leased": 3}


def test_many_write_the_same_rows_as_one_by_one(tmp_path, pairs, fill):
    kept = []
    for many in (True, False):
        with Store(tmp_path / f"{many}.db") as s:
            fill(s, 10)
            create_project(s, "votes")
            add_annotators(s, ["ann"])
            create_tasks(s, "votes", pairs, overlap=1)
            if many:
                submit_many(
                    s, [(c, Verdict(2, active_ms=5)) for c in claim_many(s, "votes", "ann", 10)], ui="sim", now=T0
                )
            else:
                while (card := claim(s, "votes", "ann")) is not None:
                    submit(s, card, Verdict(2, active_ms=5), ui="sim", now=T0)
            hidden = {"id", "seat_id", "task_id", "annotator_id"}
            with s.read() as session:
                rows = session.query(t.Judgement, t.Task.key).join(t.Task, t.Task.id == t.Judgement.task_id)
                columns = [c.name for c in t.Judgement.__table__.columns if c.name not in hidden]
                kept.append(sorted((key, [getattr(j, c) for c in columns]) for j, key in rows))
                assert {x.state for x in session.query(t.Seat)} == {x.state for x in session.query(t.Task)} == {"done"}
    assert kept[0] == kept[1]


def test_many_are_stored_together_or_not_at_all(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    cards = claim_many(store, "votes", "ann", 3)
    with pytest.raises(DataError, match="row 2, field 'strength'"):
        submit_many(store, [(cards[0], Verdict(1)), (cards[1], Verdict(1)), (cards[2], Verdict(9))])
    with pytest.raises(StoreError, match="two of them are for one card"):
        submit_many(store, [(cards[0], Verdict(1)), (cards[0], Verdict(2))])
    assert judgements(store) == []


def test_a_campaign_can_end_early(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    card = claim(store, "votes", "ann")
    assert close_seats(store, "votes") == 9
    assert claim(store, "votes", "bob") is None
    submit(store, card, Verdict(1))
    assert len(votes(store)) == 1


class Campaign(RuleBasedStateMachine):
    """Any order of claims, answers, skips, undos and expiries keeps the promises."""

    people = st.sampled_from(["ann", "bob", "cy"])

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name) / "a.db")
        self.store.add_prompts([Prompt(k, (Message("user", k),)) for k in "pqr"])
        texts = [Completion(k + side, k, (Message("assistant", side),)) for k in "pqr" for side in "01"]
        self.store.add_completions(texts)
        create_project(self.store, "votes", ProjectConfig(lease_s=60, max_skips=99))
        add_annotators(self.store, ["ann", "bob", "cy"])
        create_tasks(self.store, "votes", [(k + "0", k + "1") for k in "pqr"], overlap=2)
        self.now, self.cards, self.answered = T0, [], set()

    @rule(who=people)
    def claims(self, who):
        card = claim(self.store, "votes", who, now=self.now)
        if card is not None:
            self.cards.append(card)

    @precondition(lambda self: self.cards)
    @rule(data=st.data(), strength=st.integers(-2, 2))
    def answers(self, data, strength):
        card = data.draw(st.sampled_from(self.cards))
        submit(self.store, card, Verdict(strength), now=self.now)
        self.answered.add((card.task, card.annotator))

    @precondition(lambda self: self.cards)
    @rule(data=st.data())
    def skips(self, data):
        card = data.draw(st.sampled_from(self.cards))
        skip(self.store, card, "other", now=self.now)
        self.answered.discard((card.task, card.annotator))

    @rule(who=people)
    def undoes(self, who):
        card = undo(self.store, "votes", who, now=self.now)
        if card is not None:
            self.cards.append(card)
            self.answered.discard((card.task, card.annotator))

    @rule(seconds=st.sampled_from([1, 30, 90]))
    def waits(self, seconds):
        self.now += 1000 * seconds

    @invariant()
    def votes_are_the_answers_that_stand(self):
        if not hasattr(self, "store"):
            return
        with self.store.read() as session:
            project = project_row(session, "votes")
            people = {a.id: a.handle for a in session.query(t.Annotator)}
            by_id = {j.id: people[j.annotator_id] for j in session.query(t.Judgement)}
            found = [(v.task, by_id[v.judgement_id]) for v in load_votes(session, project)]
            assert sorted(found) == sorted(self.answered)
            held = [(s.annotator_id, s.task_id) for s in session.query(t.Seat) if s.annotator_id is not None]
            assert len(held) == len(set(held))
            chain = Counter((j.seat_id, j.revision) for j in session.query(t.Judgement))
            assert set(chain.values()) <= {1}

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


TestCampaign = Campaign.TestCase
TestCampaign.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
