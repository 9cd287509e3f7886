"""Parts of the quality page that most projects never show."""

from __future__ import annotations

import re

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback import quality_report
from alignloop.feedback.copying import Alike
from alignloop.feedback.intervals import Rate
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.queue import claim, submit
from alignloop.feedback.roster import worker
from alignloop.feedback.tasks import create_tasks
from tests.web.conftest import Studio
from tests.web.test_owner_pages import fill


def quality_page(studio: Studio, handle: str) -> str:
    browser = studio.browser(handle)
    browser.app.state.figures.show("report", "tutor", patience=30)
    return re.sub(r"\s+", " ", browser.get("/p/tutor/quality").text)


def test_people_who_answer_too_much_alike_are_named_to_those_who_may_know(studio, monkeypatch):
    fill(studio.store)
    for who in ("annotator", "curator"):
        submit(studio.store, claim(studio.store, "tutor", who), Verdict(1))
    aliases = [worker(studio.store, "tutor", who).pseudonym for who in ("annotator", "curator")]
    pairs = [
        Alike(*aliases, Rate(0.95, 0.9, 0.98, 120), 0.41, 1e-9, True),
        Alike(*aliases[::-1], Rate(0.4, 0.3, 0.5, 60), 0.41, 0.6, False),
    ]
    monkeypatch.setattr(quality_report, "answer_alike", lambda *_: tuple(pairs))
    page = quality_page(studio, "root")
    section = re.search(r'aria-labelledby="alike">.*?</section>', page)
    assert section is not None and section[0].count("<tr><td>") == 1
    assert (
        "<strong>95 %</strong>" in section[0] and "(90–98 %, n = 120)" in section[0] and "<td>41 %</td>" in section[0]
    )
    assert "/people/annotator" in section[0] and "/people/curator" in section[0]
    seen_by_reviewer = quality_page(studio, "reviewer")
    assert aliases[0] in seen_by_reviewer and "/people/annotator" not in seen_by_reviewer


def test_a_project_without_copies_has_no_such_part(studio):
    fill(studio.store)
    submit(studio.store, claim(studio.store, "tutor", "annotator"), Verdict(1))
    page = quality_page(studio, "root")
    assert 'id="alike"' not in page
    assert "Right about people whose votes were all left out" in page and "one person has voted" in page


def test_rows_that_leak_are_told_of_when_votes_are_frozen(studio, tmp_path):
    store = studio.store
    numbers = "one two three four five six seven eight nine ten eleven twelve thirteen"
    asked = {"leak": (f"Say {numbers}", "train"), "fine": ("Why?", "train"), "held": (f"Count {numbers}", "test")}
    store.add_prompts([Prompt(k, (Message("user", words),), "", split) for k, (words, split) in asked.items()])
    store.add_completions([Completion(f"{k}{s}", k, (Message("assistant", s),)) for k in asked for s in "ab"])
    create_tasks(store, "tutor", [(f"{k}a", f"{k}b") for k in asked], overlap=1)
    for _ in asked:
        submit(store, claim(store, "tutor", "annotator"), Verdict(1))
    browser = studio.browser("root")
    sent = browser.submit("/p/tutor/data/snapshots", name="v1", kind="pairs", use="reward", disputed="keep")
    assert sent.status_code == 303 and sent.headers["location"].endswith("news=snapshot&n=1#snapshots")
    page = browser.get(sent.headers["location"]).text
    assert "1 row for training shares 13 words in a row with a held-out prompt, and was left out." in page
