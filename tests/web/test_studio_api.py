"""The JSON API: cards by places, answers into slots, refusals that programs can read, and the client that speaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.projects import ProjectConfig, create_project, project_view, set_criteria, update_project
from alignloop.feedback.queue import progress
from alignloop.feedback.tasks import create_tasks
from alignloop.feedback.tokens import api_token
from alignloop.feedback.wording import CriterionSpec, Wording
from alignloop.store import tables as t
from alignloop.web.client import StudioClient, StudioError
from alignloop.web.settings import RateLimits, StudioSettings
from tests.web.conftest import Browser, Studio


@pytest.fixture
def api(studio: Studio) -> Callable[..., Any]:
    """Calls the API as a person of the house: (method, path below the project, body) -> response."""
    store = studio.store
    store.add_prompts([Prompt(f"p{i}", (Message("user", f"Why {i}?"),)) for i in range(4)])
    texts = [(f"p{i}", f"{side} answer {i}") for i in range(4) for side in ("first", "second")]
    store.add_completions([Completion(text, p, (Message("assistant", text),), author="model:m@1") for p, text in texts])
    create_tasks(store, "tutor", [(f"first answer {i}", f"second answer {i}") for i in range(4)], overlap=2)
    browser = Browser(studio.app)

    def call(path: str, body: Any = None, who: str = "annotator", method: str = "POST", **kwargs: Any) -> Any:
        headers = studio.bearer(who) | kwargs.pop("headers", {})
        return browser.request(method, f"/api/p/tutor{path}", json=body, headers=headers, **kwargs)

    return call


def answered(card: dict[str, Any], **verdict: Any) -> dict[str, Any]:
    return {"seat": card["seat"], "token": card["token"], "judgement_id": str(uuid4()), "verdict": verdict}


def judgement(studio: Studio, key: str) -> t.Judgement:
    with studio.store.read() as session:
        return session.scalars(select(t.Judgement).where(t.Judgement.id == key)).one()


def test_an_answer_goes_from_the_left_side_into_the_slots(studio, api):
    card = api("/claim").json()["card"]
    for _ in range(4):
        left = card["answers"][0][0]["content"]
        body = answered(card, strength=2, comment="clear", active_ms=40, wall_ms=50)
        reply = api("/answer", body).json()
        row = judgement(studio, reply["judgement_id"])
        assert reply["judgement_id"] == body["judgement_id"]
        assert row.strength == (2 if left.startswith("first") else -2)  # slot 0 holds the first answer
        assert (row.comment, row.active_ms, row.wall_ms, row.ui) == ("clear", 40, 50, "api")
        card = reply["next"]
    assert card is None and reply["why"]["code"] == "yours_done"


def test_a_card_tells_nothing_but_texts_and_its_lease(studio, api):
    raw = api("/claim").text
    assert set(json.loads(raw)["card"]) == {
        *("seat", "token", "guideline", "work", "prompt", "answers", "lease_until", "note")
    }
    with studio.store.read() as session:
        secrets = set(session.scalars(select(t.Completion.id))) | set(session.scalars(select(t.Task.id)))
        secrets |= set(session.scalars(select(t.Task.key))) | {"model:m@1", "normal", "slot"}
    assert not [word for word in secrets if word in raw]


def test_an_answer_sent_twice_is_stored_once(studio, api):
    body = answered(api("/claim").json()["card"], strength=1)
    first, again = api("/answer", body).json(), api("/answer", body).json()
    assert first == again  # the same id, and the same next card
    assert progress(studio.store, "tutor")["judgements"] == 1


def test_skip_undo_heartbeat_release(studio, api):
    card = api("/claim").json()["card"]
    named = {"seat": card["seat"], "token": card["token"]}
    assert api("/heartbeat", named).json()["lease_until"] >= card["lease_until"]
    reply = api("/skip", named | {"reason": "not my subject", "judgement_id": str(uuid4())}).json()
    assert reply["next"]["seat"] != card["seat"] and judgement(studio, reply["judgement_id"]).outcome == "skip"
    kept = api("/answer", answered(reply["next"], strength=-1)).json()
    back = api("/undo", {"judgement_id": kept["judgement_id"]}).json()["card"]
    assert back["seat"] == reply["next"]["seat"]
    assert api("/release").json() == {"released": 2}  # the card taken back, and the one after it
    assert api("/undo", {}).json()["card"] is not None  # the skip
    assert api("/mine", method="GET").json()["done"] == 0


def test_progress_is_for_reviewers(api):
    assert api("/progress", method="GET").json()["code"] == "forbidden"
    assert api("/progress", method="GET", who="reviewer").json() == {
        "open": 8, "leased": 0, "done": 0, "released": 0, "late": 0, "judgements": 0
    }  # fmt: skip


def test_the_project_is_told_in_words(studio, api):
    set_criteria(studio.store, "tutor", [CriterionSpec("clarity", "Clarity", "Is it clear?", "5pt", True)])
    said = api("", method="GET").json()
    assert said["wording"]["options"][0] == "Response A is significantly better" and said["guideline"] is None
    assert said["criteria"] == [
        {"key": "clarity", "label": "Clarity", "help_md": "Is it clear?", "scale": "5pt", "required": True}
    ]


def test_ratings_go_by_key_and_place(studio, api):
    specs = [
        CriterionSpec("clarity", "Clarity", scale="5pt", required=True),
        CriterionSpec("true", "True", scale="bool"),
    ]
    set_criteria(studio.store, "tutor", specs)
    ids = {c.key: c.id for c in project_view(studio.store, "tutor").criteria}
    card = api("/claim").json()["card"]
    missing = api("/answer", answered(card, strength=1))
    assert missing.status_code == 422 and missing.json()["field"] == "ratings.clarity"
    unknown = api("/answer", answered(card, strength=1, ratings=[{"criterion": "clarty", "value": 1}]))
    assert unknown.status_code == 422 and "did you mean 'clarity'?" in unknown.json()["error"]
    ratings = [{"criterion": "clarity", "value": 1}, {"criterion": "true", "place": 1, "value": 0}]
    key = api("/answer", answered(card, strength=1, ratings=ratings)).json()["judgement_id"]
    first_left = card["answers"][0][0]["content"].startswith("first")
    with studio.store.read() as session:
        rows = session.execute(select(t.Rating.criterion_id, t.Rating.slot, t.Rating.value)).all()
    assert judgement(studio, key).strength == (1 if first_left else -1)
    assert {tuple(r) for r in rows} == {
        (ids["clarity"], -1, 1 if first_left else -1),
        (ids["true"], 1 if first_left else 0, 0),
    }


@pytest.mark.parametrize(
    "change, field",
    [
        ({"strength": 3}, "strength"),
        ({"strength": "1"}, "strength"),
        ({"strength": 1.0}, "strength"),
        ({"strenght": 1}, "strenght"),
        ({}, "strength"),
        ({"strength": 1, "both_bad": True, "both_good": True}, "both_bad"),
        ({"strength": 1, "rewrite": "better", "rewrite_of": 5}, "rewrite_of"),
        ({"strength": 1, "active_ms": -1}, "active_ms"),
    ],
)
def test_a_wrong_answer_is_refused_by_field(studio, api, change, field):
    reply = api("/answer", answered(api("/claim").json()["card"], **change))
    said = reply.json()
    assert reply.status_code == 422 and said["code"] == "invalid"
    assert field in said.get("field", said["error"])
    assert progress(studio.store, "tutor")["judgements"] == 0


def test_refusals_have_codes(studio, api):
    card = api("/claim").json()["card"]
    assert api("/answer", answered(card, strength=1), who="curator").json()["code"] == "refused"  # another's card
    assert api("/claim", headers={"Authorization": "Bearer nonsense"}).json()["code"] == "unauthorized"
    assert api("/claim", who="stranger").json()["code"] == "not_found"
    reply = api("/skip", {"seat": card["seat"], "token": card["token"], "reason": "lunch"})
    assert (reply.status_code, reply.json()["field"]) == (422, "reason")


def test_conditions_are_agreed_to_on_a_page_first(studio, api):
    update_project(studio.store, "tutor", ProjectConfig(seed=1, wording=Wording(consent_md="Be kind.")), actor="root")
    assert api("/claim").json()["code"] == "forbidden"


def test_a_card_of_another_project_is_not_answered_here(studio, api):
    store = studio.store
    store.add_prompts([Prompt("q", (Message("user", "Other?"),))])
    store.add_completions([Completion(x, "q", (Message("assistant", x),)) for x in ("a", "b")])
    create_tasks(store, "other", [("a", "b")])
    browser, root = Browser(studio.app), studio.bearer("root")
    card = browser.post("/api/p/other/claim", headers=root).json()["card"]
    assert browser.post("/api/p/tutor/answer", json=answered(card, strength=1), headers=root).status_code == 404


def test_a_token_has_its_own_rate(make_studio, tmp_path):
    limits = RateLimits(api_per_minute=3)
    studio = make_studio(StudioSettings(store_url=f"sqlite:///{tmp_path / 'limited.db'}", limits=limits))
    browser = Browser(studio.app)
    narrow, free = studio.bearer("annotator"), studio.bearer("annotator", per_minute=0)
    codes = [browser.get("/api/p/tutor/mine", headers=narrow).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    refused = browser.get("/api/p/tutor/mine", headers=narrow)
    assert refused.json()["code"] == "too_fast" and int(refused.headers["retry-after"]) > 0
    assert {browser.get("/api/p/tutor/mine", headers=free).status_code for _ in range(9)} == {200}


def test_health_needs_no_login_and_tells_nothing(studio):
    assert Browser(studio.app).get("/healthz").json() == {"status": "ok"}


@pytest.fixture
def client(studio: Studio, api: Any) -> StudioClient:
    """The client, its wire put straight into the application."""
    made = StudioClient("http://127.0.0.1:8321", api_token(studio.store, studio.ids["annotator"], {}), "tutor")
    headers = dict(made._http.headers)
    made._http = TestClient(studio.app, base_url="http://127.0.0.1:8321", headers=headers)
    return made


def test_the_client_works_a_queue_empty(studio, client):
    reply, n = client.claim(), 0
    while reply.card is not None:
        assert sorted(t.split()[0] for t in reply.card.texts) == ["first", "second"]
        reply, n = client.answer(reply.card, {"strength": 0}), n + 1
    assert (n, reply.why) == (4, "yours_done") and client.mine()["done"] == 4
    assert client.undo().card is not None and client.release() == 1
    with pytest.raises(StudioError, match="role") as refused:
        client.progress()
    assert (refused.value.status, refused.value.code) == (403, "forbidden")


def test_other_kinds_of_work(studio, tmp_path):
    store, browser, root = studio.store, Browser(studio.app), studio.bearer("root")
    store.add_prompts([Prompt("q", (Message("user", "Say!"),))])
    store.add_completions([Completion(x, "q", (Message("assistant", x),)) for x in ("aa", "bb", "cc")])
    for kind, group in (("rank", ("aa", "bb", "cc")), ("thumbs", ("aa",)), ("edit", ("bb",))):
        create_project(store, kind, ProjectConfig(kind=kind))
        create_tasks(store, kind, [group], overlap=1)

    def card(kind: str) -> Any:
        return browser.post(f"/api/p/{kind}/claim", headers=root).json()["card"]

    def send(kind: str, shown: Any, **verdict: Any) -> t.Judgement:
        reply = browser.post(f"/api/p/{kind}/answer", json=answered(shown, **verdict), headers=root)
        return judgement(studio, reply.json()["judgement_id"])

    shown = card("rank")
    texts = [a[0]["content"] for a in shown["answers"]]
    row = send("rank", shown, ranking=[[2], [0, 1]])
    slots = ["aa", "bb", "cc"]
    assert row.ranking == [[slots.index(texts[2])], [slots.index(texts[0]), slots.index(texts[1])]]
    assert send("thumbs", card("thumbs"), thumb=False).thumb is False
    send("edit", card("edit"), rewrite="better")
    assert "better" in {c.text for c in store.completions().values()}


def test_the_schema_of_a_verdict_is_the_services_own():
    from dataclasses import fields

    from alignloop.feedback.shown import Said
    from alignloop.web.api import VerdictBody

    assert set(VerdictBody.model_fields) == {f.name for f in fields(Said)}
