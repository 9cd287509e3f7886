"""The judging pages without a browser: what forms mean, what is stored, what a page may know."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from sqlalchemy import select

from alignloop.core.errors import DataError
from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.judgements import Card, Verdict
from alignloop.feedback.projects import (
    Criterion,
    ProjectConfig,
    ProjectView,
    create_project,
    project_view,
    publish_guideline,
    set_criteria,
    set_project_state,
    update_project,
)
from alignloop.feedback.queue import claim, submit
from alignloop.feedback.review import pause_person
from alignloop.feedback.tasks import create_tasks
from alignloop.feedback.wording import EXPLAINER, EXPLAINER_CRITERIA, CriterionSpec, Wording
from alignloop.store import tables as t
from alignloop.web.cards import IncompleteError, card_view, passing, spent, split_turns, verdict
from alignloop.web.keys import KEYS, check_keymap, keymap
from tests.web.conftest import Browser, Studio, field
from tests.web.work_site import add_pair

CLARITY = Criterion("row-clarity", "clarity", "Clarity", "", "5pt", False)
SAFE = Criterion("row-safe", "safe", "Safe", "", "bool", False)
DEPTH = Criterion("row-depth", "depth", "Depth", "", "likert1-5", True)


def card(
    work: str = "pairwise", order: tuple[int, ...] = (1, 0), texts: tuple[str, ...] = ("zero", "one", "two")
) -> Card:
    answers = tuple(Completion(f"c{k}", "p", (Message("assistant", texts[k]),)) for k in range(len(order)))
    prompt = Prompt("p", (Message("user", "Why?"),))
    ids = tuple(f"row{k}" for k in range(len(order)))
    return Card("seat", "token", "tutor", "task", "key", "me", "Me", prompt, answers, ids, order, 0, None, work)


def view(*criteria: Criterion, **config: object) -> ProjectView:
    return ProjectView("p", "tutor", "Tutor", "pairwise", "open", ProjectConfig(**config), criteria, None)


# ---- what a form means


@pytest.mark.parametrize(
    ("order", "sent", "strength"), [((0, 1), "2", 2), ((1, 0), "2", -2), ((1, 0), "-1", 1), ((1, 0), "0", 0)]
)
def test_the_side_is_turned_into_the_frame_of_the_slots(order, sent, strength):
    assert verdict({"strength": sent}, card(order=order), view()).strength == strength


def test_comparative_criteria_are_turned_like_the_strength_and_others_belong_to_an_answer():
    form = {"strength": "1", "rate.all.clarity": "2", "rate.0.safe": "1", "rate.1.safe": "0"}
    said = verdict(form, card(order=(1, 0)), view(CLARITY, SAFE))
    assert said.ratings == {"row-clarity": -2, ("row-safe", 1): 1, ("row-safe", 0): 0}


def test_a_ranking_is_tiers_of_slots_best_first():
    form = {"touched": "1", "place-0": "2", "place-1": "1", "place-2": "2"}
    assert verdict(form, card("rank", order=(2, 0, 1)), view()).ranking == ((0,), (2, 1))


def test_a_rewrite_belongs_to_the_slot_that_was_shown_there():
    said = verdict({"strength": "0", "rewrite-0": "one, better", "rewrite-1": "zero"}, card(order=(1, 0)), view())
    assert (said.rewrite_of, said.rewrite) == (1, "one, better")


def test_line_ends_of_browsers_are_no_change():
    with pytest.raises(IncompleteError, match="unchanged"):
        verdict({"rewrite-0": "a\r\nb\r\n"}, card("edit", (0,), ("a\nb",)), view())
    assert verdict({"rewrite-0": "a\r\nc"}, card("edit", (0,), ("a\nb",)), view()).rewrite == "a\nc"


@pytest.mark.parametrize(
    ("form", "shown", "project", "code"),
    [
        ({}, card(), view(), "choose"),
        ({"strength": "3"}, card(), view(), "choose"),
        ({"thumb": ""}, card("thumbs", (0,)), view(), "choose"),
        ({"strength": "0", "both_good": "1", "both_bad": "1"}, card(), view(), "both"),
        ({"touched": "1", "place-0": "1", "place-1": "4", "place-2": "2"}, card("rank", (0, 1, 2)), view(), "order"),
        ({"touched": "1", "place-0": "1"}, card("rank", (0, 1, 2)), view(), "order"),
        ({"touched": "", "place-0": "1", "place-1": "2", "place-2": "3"}, card("rank", (0, 1, 2)), view(), "untouched"),
        ({}, card("edit", (0,)), view(), "unchanged"),
        ({"rewrite-0": "x", "rewrite-1": "y", "strength": "0"}, card(), view(), "two"),
        ({}, card("rate", (0,)), view(SAFE), "nothing"),
        ({"rate.0.safe": "1"}, card("rate", (0,)), view(SAFE, DEPTH), "criteria"),
        ({"strength": "0"}, card(), view(comment_required=True), "comment"),
    ],
)
def test_what_an_answer_lacks_is_named(form, shown, project, code):
    with pytest.raises(IncompleteError) as error:
        verdict(form, shown, project)
    assert error.value.code == code


def test_an_untouched_order_may_be_said_to_be_right():
    form = {"touched": "", "order_right": "1", "place-0": "1", "place-1": "2"}
    assert verdict(form, card("rank", (1, 0)), view()).ranking == ((1,), (0,))


def test_times_are_whole_numbers_of_at_most_a_day():
    assert spent({"active_ms": "1200", "wall_ms": "999999999999", "n_focus_loss": "2"}) == {
        "active_ms": 1200,
        "wall_ms": 86_400_000,
        "n_focus_loss": 2,
    }
    assert spent({"active_ms": "-1", "wall_ms": "1.5", "n_focus_loss": "²"}) == {}


def test_a_reason_nobody_offered_is_another_reason():
    assert passing({"skip": "not my subject"}) == ("not my subject", False)
    assert passing({"flag": "<b>"}) == ("other", True)


def test_a_conversation_is_split_at_the_last_turn_of_a_person():
    turns = [Message(role, role) for role in ("system", "user", "assistant", "user", "tool")]
    assert [len(part) for part in split_turns(turns)] == [3, 2]
    assert [len(part) for part in split_turns([Message("text", "x")])] == [0, 1]
    assert [len(part) for part in split_turns([Message("assistant", "x")])] == [0, 1]


def test_a_page_knows_places_and_nothing_else():
    shown = card_view(card(order=(1, 0)), view(CLARITY, SAFE))
    assert [(a.place, a.letter, a.source, a.words) for a in shown.answers] == [
        (0, "A", "one", None),
        (1, "B", "zero", None),
    ]
    assert [c.field(None) for c in shown.criteria] == ["rate.all.clarity"]
    assert [c.field(1) for c in shown.each] == ["rate.1.safe"]
    assert [(o.value, o.short) for o in shown.options] == [(2, "A≫B"), (1, "A>B"), (0, "A=B"), (-1, "B>A"), (-2, "B≫A")]
    assert card_view(card(), view(show_length=True)).answers[0].words == 1
    assert card_view(card("thumbs", (0,)), view()).answers[0].letter == ""


def test_keys_can_be_chosen_but_never_twice():
    assert check_keymap({"submit": "x", "skip": "s"}) == {"submit": "x"}
    assert keymap({"submit": "x", "gone": "y"})["submit"] == "x"
    assert KEYS["rewrite"] == KEYS["value_3"] == "e"  # the second acts in a criterion only
    for own, field_name in (
        ({"submit": "s"}, "submit|skip"),
        ({"fly": "x"}, "fly"),
        ({"skip": "Tab"}, "skip"),
        ({"skip": "F5"}, "skip"),
    ):
        with pytest.raises(DataError, match=field_name):
            check_keymap(own)


# ---- the pages


@pytest.fixture
def work(studio: Studio) -> Studio:
    """The house with three comparisons in "tutor", every one read by one person."""
    update_project(studio.store, "tutor", ProjectConfig(seed=1, wording=EXPLAINER), actor="root")
    pairs = [
        add_pair(studio.store, [Message("user", f"Question {k}")], (f"first of {k}", f"second of {k}"))
        for k in range(3)
    ]
    create_tasks(studio.store, "tutor", pairs, overlap=1)
    return studio


def started(studio: Studio, handle: str = "annotator", project: str = "tutor") -> Browser:
    browser = studio.browser(handle)
    browser.submit(f"/p/{project}/consent", guideline="0")
    return browser


def card_form(page: str) -> dict[str, str]:
    return {name: field(page, name) for name in ("seat", "token", "guideline", "judgement_id")}


def stored(studio: Studio) -> list[t.Judgement]:
    with studio.store.read() as session:
        return list(session.scalars(select(t.Judgement).order_by(t.Judgement.created_at, t.Judgement.id)))


def first_is_left(page: str) -> bool:
    return page.index("first of") < page.index("second of")


def test_one_project_is_where_one_starts(work):
    assert work.browser("annotator").get("/").headers["location"] == "/p/tutor/work"
    assert "Judge" in work.browser("reviewer").get("/").text
    everything = work.browser("root").get("/").text
    assert "tutor" in everything and "other" in everything


def test_the_first_visit_shows_guideline_and_consent_and_later_only_what_is_new(work):
    text = "You can stop **at any time**."
    wording = EXPLAINER.model_copy(update={"consent_md": text})
    update_project(work.store, "tutor", ProjectConfig(seed=1, wording=wording), actor="root")
    publish_guideline(work.store, "tutor", "Be *fair*.")
    browser = work.browser("annotator")
    page = browser.get("/p/tutor/work").text
    assert "<em>fair</em>" in page and "<strong>at any time</strong>" in page and 'name="seat"' not in page
    assert browser.submit("/p/tutor/consent", guideline="1").headers["location"] == "/p/tutor/work"
    assert "<strong>at any time</strong>" in browser.get("/p/tutor/work").text  # read, but not agreed to
    browser.submit("/p/tutor/consent", guideline="1", agree=field(page, "agree"))
    assert 'name="seat"' in browser.get("/p/tutor/work").text
    with work.store.read() as session:
        member = session.scalars(select(t.Membership).where(t.Membership.annotator_id == work.ids["annotator"])).one()
        assert member.consented_at is not None
    publish_guideline(work.store, "tutor", "Be fair and *quick*.")
    page = browser.get("/p/tutor/work").text
    assert "Version 2 is in force" in page and "<em>quick</em>" in page and "at any time" not in page
    browser.submit("/p/tutor/consent", guideline=field(page, "guideline"))
    assert 'name="seat"' in browser.get("/p/tutor/work").text


def test_a_judgement_names_the_guideline_that_was_shown_and_a_new_one_is_read_before_the_next_card(work):
    browser, htmx = work.browser("annotator"), {"hx-request": "true"}
    first = publish_guideline(work.store, "tutor", "Be *fair*.")
    browser.submit("/p/tutor/consent", guideline="1")
    page = browser.get("/p/tutor/work").text
    second = publish_guideline(work.store, "tutor", "Be *quick*.")
    said = {"csrf": browser.csrf, **card_form(page), "strength": "2"}
    sent = browser.post("/p/tutor/answer", data=said, headers=htmx)
    assert (sent.status_code, sent.headers["hx-redirect"]) == (204, "/p/tutor/work")
    assert "Version 2 is in force" in browser.get("/p/tutor/work").text
    browser.submit("/p/tutor/consent", guideline="2")
    said |= {**card_form(browser.get("/p/tutor/work").text), "guideline": "no such version"}
    assert browser.post("/p/tutor/answer", data=said, headers=htmx).status_code == 200
    assert [row.guideline_id for row in stored(work)] == [first, second]


def test_an_answer_without_javascript_is_stored_and_leads_to_the_next_card(work):
    browser = started(work)
    page = browser.get("/p/tutor/work").text
    sent = browser.submit("/p/tutor/answer", **card_form(page), strength="2", both_good="1", comment=" clear ")
    assert (sent.status_code, sent.headers["location"]) == (303, "/p/tutor/work")
    (row,) = stored(work)
    assert row.strength == (2 if first_is_left(page) else -2)
    assert (row.both_good, row.both_bad, row.comment, row.ui, row.active_ms) == (True, False, "clear", "web", None)
    following = browser.get("/p/tutor/work").text
    assert field(following, "seat") != field(page, "seat")
    assert "1 today" in following


def test_with_htmx_the_answer_to_an_answer_is_the_next_card(work):
    browser = started(work)
    form = card_form(browser.get("/p/tutor/work").text)
    times = {"active_ms": "900", "wall_ms": "1500", "n_focus_loss": "1"}
    said = {"csrf": browser.csrf, **form, **times, "strength": "0"}
    sent = browser.post("/p/tutor/answer", data=said, headers={"hx-request": "true"})
    assert sent.status_code == 200 and sent.text.lstrip().startswith('<section id="card"')
    assert 'id="progress"' in sent.text and 'hx-swap-oob="true"' in sent.text and "1 today" in sent.text
    (row,) = stored(work)
    assert (row.strength, row.active_ms, row.wall_ms, row.n_focus_loss) == (0, 900, 1500, 1)
    assert row.id == form["judgement_id"]


def test_an_answer_sent_twice_is_stored_once_and_gives_the_same_next_card(work):
    browser = started(work)
    form = card_form(browser.get("/p/tutor/work").text) | {"judgement_id": str(uuid4()), "strength": "1"}
    first, second = (
        browser.post("/p/tutor/answer", data={"csrf": browser.csrf, **form}, headers={"hx-request": "true"}).text
        for _ in range(2)
    )
    assert field(first, "seat") == field(second, "seat")
    assert len(stored(work)) == 1


def test_an_incomplete_answer_is_not_stored_and_nothing_entered_is_lost(work):
    browser = started(work)
    form = card_form(browser.get("/p/tutor/work").text)
    sent = browser.submit("/p/tutor/answer", **form, comment="a <long> thought", both_bad="1")
    assert sent.status_code == 422 and "Choose one of the options" in sent.text
    assert "a &lt;long&gt; thought" in sent.text and re.search(r'name="both_bad" value="1" checked', sent.text)
    said = {"csrf": browser.csrf, **form}
    short = browser.post("/p/tutor/answer", data=said, headers={"hx-request": "true"})
    assert short.status_code == 422 and short.headers["hx-retarget"] == "#notice"
    assert "Choose one of the options" in short.text and "<section" not in short.text
    assert stored(work) == []


def test_a_card_of_somebody_else_or_of_another_project_is_refused(work):
    form = card_form(started(work).get("/p/tutor/work").text) | {"strength": "1"}
    assert started(work, "reviewer").submit("/p/tutor/answer", **form).status_code == 400
    thief = work.browser("stranger")
    assert thief.submit("/p/other/answer", **form).status_code == 400
    assert thief.submit("/p/tutor/answer", **form).status_code == 404
    assert stored(work) == []


def test_skip_and_flag_pass_the_card_on_with_reason_and_note(work):
    browser = started(work)
    form = card_form(browser.get("/p/tutor/work").text)
    assert browser.submit("/p/tutor/skip", **form, skip="not my subject", comment="no idea").status_code == 303
    form = card_form(browser.get("/p/tutor/work").text)
    browser.submit("/p/tutor/skip", **form, flag="broken")
    skipped, flagged = stored(work)
    assert (skipped.outcome, skipped.skip_reason, skipped.comment) == ("skip", "not my subject", "no idea")
    assert (flagged.outcome, flagged.skip_reason) == ("flag", "broken")


def test_undo_gives_the_last_card_back_and_any_of_the_last_can_be_named(work):
    browser = started(work)
    seats = []
    for strength in ("2", "-1"):
        page = browser.get("/p/tutor/work").text
        seats.append(field(page, "seat"))
        browser.submit("/p/tutor/answer", **card_form(page), strength=strength)
    recent = browser.get("/p/tutor/recent").text
    assert recent.count("Take back:") == 2
    oldest = re.findall(r'name="judgement_id" value="([^"]+)"', recent)[-1]
    sent = browser.submit("/p/tutor/undo", judgement_id=oldest)
    assert sent.headers["location"] == "/p/tutor/work?news=undone"
    page = browser.get("/p/tutor/work?news=undone").text
    assert field(page, "seat") == seats[0] and "taken back" in page
    again = browser.post("/p/tutor/undo", data={"csrf": browser.csrf}, headers={"hx-request": "true"}).text
    assert field(again, "seat") == seats[1]
    assert [j.outcome for j in stored(work)] == ["answer", "answer", "undo", "undo"]
    none = browser.post("/p/tutor/undo", data={"csrf": browser.csrf}, headers={"hx-request": "true"}).text
    assert "nothing to take back" in none


def test_a_heartbeat_keeps_the_card_until_its_lease_is_over(work):
    browser = started(work)
    page = browser.get("/p/tutor/work").text
    lease = {"seat": field(page, "seat"), "token": field(page, "token")}
    assert browser.submit("/p/tutor/heartbeat", **lease).status_code == 204
    assert browser.submit("/p/tutor/release").headers["location"] == "/p/tutor/recent"
    assert browser.submit("/p/tutor/heartbeat", **lease).status_code == 409
    late = browser.submit("/p/tutor/answer", **card_form(page), strength="1")
    assert late.status_code == 303 and len(stored(work)) == 1  # late, and kept


def test_an_empty_queue_says_why(work):
    reviewer, browser = started(work, "reviewer"), started(work)
    for _ in range(2):
        browser.submit("/p/tutor/answer", **card_form(browser.get("/p/tutor/work").text), strength="0")
    browser.get("/p/tutor/work")  # holds the last one
    assert "1 card is being judged" in " ".join(reviewer.get("/p/tutor/work").text.split())
    browser.submit("/p/tutor/answer", **card_form(browser.get("/p/tutor/work").text), strength="0")
    assert "All done" in reviewer.get("/p/tutor/work").text
    pair = add_pair(work.store, [Message("user", "Late")], ("x", "y"))
    create_tasks(work.store, "tutor", [pair], overlap=2)
    browser.submit("/p/tutor/answer", **card_form(browser.get("/p/tutor/work").text), strength="0")
    assert "You have seen every card" in browser.get("/p/tutor/work").text
    pause_person(work.store, "tutor", "reviewer", actor="curator", reason="too fast, see golds")
    paused = reviewer.get("/p/tutor/work").text
    assert "Your work here is paused" in paused and "golds" not in paused
    set_project_state(work.store, "tutor", "paused")
    assert "The project is paused" in browser.get("/p/tutor/work").text
    with work.store.write() as session:
        member = session.scalars(select(t.Membership).where(t.Membership.annotator_id == work.ids["annotator"])).one()
        member.quota = 4
    set_project_state(work.store, "tutor", "open")
    assert "asked for 4 answers" in browser.get("/p/tutor/work").text


def test_a_third_view_is_blind_and_settles_the_card(studio):
    config = ProjectConfig.model_validate({"seed": 1, "conflicts": {"adjudicate": True}})
    update_project(studio.store, "tutor", config, actor="root")
    pair = add_pair(studio.store, [Message("user", "Q")], ("first of 1", "second of 1"))
    create_tasks(studio.store, "tutor", [pair], overlap=2)
    for handle, left in (("annotator", 2), ("owner", -2)):
        browser = started(studio, handle)
        page = browser.get("/p/tutor/work").text
        sign = left if first_is_left(page) else -left
        browser.submit("/p/tutor/answer", **card_form(page), strength=str(sign))
    assert started(studio).get("/p/tutor/review").status_code == 403
    reviewer = started(studio, "reviewer")
    page = reviewer.get("/p/tutor/review").text
    assert field(page, "view") == "review"
    sent = reviewer.submit("/p/tutor/answer", **card_form(page), view="review", strength="1")
    assert sent.headers["location"] == "/p/tutor/review"
    assert "Nothing to settle" in reviewer.get("/p/tutor/review").text
    with studio.store.read() as session:
        assert session.scalars(select(t.Adjudication)).one().judge_id == studio.ids["reviewer"]


def test_rank_rate_thumbs_and_edit_are_stored_without_javascript(studio):
    texts = ("first of 1", "second of 1")
    for kind, form in (
        ("rank", {"touched": "1", "place-0": "2", "place-1": "1"}),
        ("rate", {"rate.0.safe": "0"}),
        ("thumbs", {"thumb": "0"}),
        ("edit", {"rewrite-0": "much better"}),
    ):
        create_project(studio.store, kind, ProjectConfig(kind=kind, wording=Wording(question=f"How to {kind}?")))
        rows = add_pair(studio.store, [Message("user", "Q")], texts)
        create_tasks(studio.store, kind, [rows] if kind == "rank" else [rows[:1]], overlap=1)
        if kind == "rate":
            set_criteria(studio.store, kind, [CriterionSpec("safe", "Safe", scale="bool")])
        browser = started(studio, "root", kind)
        page = browser.get(f"/p/{kind}/work").text
        assert f"How to {kind}?" in page
        assert browser.submit(f"/p/{kind}/answer", **card_form(page), **form).status_code == 303
        order = [0, 1] if first_is_left(page + "second of") else [1, 0]
        last = stored(studio)[-1]
        if kind == "rank":
            assert last.ranking == [[order[1]], [order[0]]]
        elif kind == "thumbs":
            assert last.thumb is False
    with studio.store.read() as session:
        assert [(r.slot, r.value) for r in session.scalars(select(t.Rating))] == [(0, 0)]
        rewrite = session.scalars(select(t.Rewrite)).one()
        assert session.get_one(t.Completion, rewrite.completion_id).author == "human"


def test_pages_tell_nobody_who_wrote_what_or_what_others_said(work):
    set_criteria(work.store, "tutor", EXPLAINER_CRITERIA)
    with work.store.write() as session:
        session.execute(t.Task.__table__.update().values(kind="calibration"))
        secret = [*session.scalars(select(t.Completion.id)), *session.scalars(select(t.Completion.key))]
        secret += [*session.scalars(select(t.Task.id)), *session.scalars(select(t.Task.key))]
        secret += [*session.scalars(select(t.Prompt.id)), *session.scalars(select(t.Prompt.key))]
        secret += [*session.scalars(select(t.Criterion.id)), *session.scalars(select(t.Completion.author))]
    submit(work.store, claim(work.store, "tutor", "owner"), Verdict(strength=2, comment="a note of somebody else"))
    browser = started(work)
    pages = [browser.get(f"/p/tutor/{name}").text for name in ("work", "card", "recent", "guideline")]
    page = pages[0]
    sent = {"csrf": browser.csrf, **card_form(page), "strength": "0"}
    pages.append(browser.post("/p/tutor/answer", data=sent, headers={"hx-request": "true"}).text)
    for html in pages:
        for word in [*secret, "secret", "model:", "calibration", "gold", "repeat", "a note of somebody else", "slot"]:
            assert word not in html, word


def test_every_form_carries_the_session_s_token_and_completions_are_out_of_htmx_s_reach(work):
    page = started(work).get("/p/tutor/work").text
    forms = re.findall(r"<form method=\"post\".*?</form>", page, re.S)
    assert len(forms) >= 3 and all('name="csrf"' in form for form in forms)
    bodies = re.findall(r'<div class="answer-body"[^>]*>', page)
    assert len(bodies) == 2 and all("hx-disable" in body for body in bodies)
    config = re.search(r"name=\"htmx-config\" content='([^']+)'", page)
    assert config and '"allowEval":false' in config[1] and '"selfRequestsOnly":true' in config[1]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", page)


def test_the_theme_is_kept_for_the_person(work):
    browser = started(work)
    assert browser.submit("/me/look", theme="dark").status_code == 204
    assert 'data-theme="dark"' in browser.get("/p/tutor/work").text
    assert browser.submit("/me/look", theme="neon").status_code == 422


def test_a_guideline_page_shows_guideline_criteria_and_keys(work):
    set_criteria(work.store, "tutor", EXPLAINER_CRITERIA)
    publish_guideline(work.store, "tutor", "Be *fair*.")
    page = started(work).get("/p/tutor/guideline").text
    assert "<em>fair</em>" in page and "Interactivity" in page and "take the last answer back" in page
    assert project_view(work.store, "tutor").guideline.version == 1
