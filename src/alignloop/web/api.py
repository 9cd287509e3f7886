"""The JSON API: judging by script, with `Authorization: Bearer TOKEN`. `client.StudioClient` speaks it.

A card is what a page shows of it and no more: texts by their places from the left, the lease, nothing of models, tasks
or hidden checks. Errors are {"error": what to do, "code": a word for programs}, with "field" where a value is wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from alignloop.core.errors import DataError
from alignloop.core.types import Message
from alignloop.feedback import queue
from alignloop.feedback.judgements import SKIP_REASONS, Answered, Card, Verdict
from alignloop.feedback.people import has_consented
from alignloop.feedback.projects import project_view
from alignloop.feedback.shown import Said, verdict_of
from alignloop.feedback.waiting import why_no_card
from alignloop.store import Store
from alignloop.store.ids import uuid7
from alignloop.web.access import Visitor, require
from alignloop.web.cards import LONGEST_MS, NOTE_LENGTH
from alignloop.web.limits import limited
from alignloop.web.page import store_of

router = APIRouter()
Worker = Annotated[Visitor, require("work")]
COUNTED = [limited("submit")]
CRITERION = ("key", "label", "help_md", "scale", "required")  # what is told of each
Strength = Annotated[int, Field(ge=-2, le=2)]
Place = Annotated[int, Field(ge=0, lt=9)]
Ms = Annotated[int, Field(ge=0, le=LONGEST_MS)]


class Body(BaseModel):
    """What is sent as JSON: exact types, and no field that is not known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Leased(Body):
    """The card that a call is about, as `claim` or the last answer gave it. guideline: the version that was shown."""

    seat: Annotated[str, Field(max_length=64)]
    token: Annotated[str, Field(max_length=64)]
    guideline: Annotated[str, Field(max_length=64)] = ""


class Rating(Body):
    """One criterion, by its key; without a place it compares the two answers, > 0 for the left one."""

    criterion: str
    place: Place | None = None
    value: int


class VerdictBody(Body):
    """An answer by places from the left: `feedback.shown.Said`."""

    strength: Strength | None = None
    both_bad: bool = False
    both_good: bool = False
    ranking: list[list[Place]] | None = None
    thumb: bool | None = None
    ratings: list[Rating] = []
    rewrite: str | None = None
    rewrite_of: Place | None = None
    comment: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""
    active_ms: Ms | None = None
    wall_ms: Ms | None = None
    n_focus_loss: Annotated[int, Field(ge=0)] = 0

    def said(self) -> Said:
        """As the services take it."""
        fields = {name: getattr(self, name) for name in VerdictBody.model_fields}
        ranking = tuple(map(tuple, self.ranking)) if self.ranking is not None else None
        return Said(**fields | {"ranking": ranking, "ratings": {(r.criterion, r.place): r.value for r in self.ratings}})


class AnswerBody(Leased):
    """judgement_id: a UUID made before it is sent. Sent again with the same one, it is stored once."""

    judgement_id: UUID = Field(default_factory=lambda: UUID(uuid7()), strict=False)
    verdict: VerdictBody


class SkipBody(Leased):
    """A card passed on; with `flag` it goes to a curator at once."""

    judgement_id: UUID = Field(default_factory=lambda: UUID(uuid7()), strict=False)
    reason: str = "other"
    flag: bool = False
    comment: Annotated[str, Field(max_length=NOTE_LENGTH)] = ""
    active_ms: Ms | None = None


class UndoBody(Body):
    """The judgement to take back; without an id the last one."""

    judgement_id: UUID | None = Field(None, strict=False)


@router.get("/healthz")
def health(request: Request) -> dict[str, str]:
    """Whether the studio and its store answer."""
    with store_of(request).read() as session:
        session.connection().exec_driver_sql("SELECT 1")
    return {"status": "ok"}


@router.get("/api/p/{project}", dependencies=COUNTED)
def about(request: Request, project: str, who: Worker) -> dict[str, Any]:
    """The project's words: question, options, criteria, guideline, and what one agrees to."""
    view = project_view(store_of(request), project)
    return {
        "slug": view.slug,
        "name": view.name,
        "kind": view.kind,
        "state": view.state,
        "wording": view.config.wording.model_dump(),
        "criteria": [{name: getattr(c, name) for name in CRITERION} for c in view.criteria],
        "guideline": view.guideline.body_md if view.guideline is not None else None,
        "skip_reasons": SKIP_REASONS,
    }


@router.post("/api/p/{project}/claim", dependencies=COUNTED)
def claim(request: Request, project: str, who: Worker) -> Response:
    """The card one holds, or the next one: {"card": ...}, or {"card": null, "why": ...} where there is none."""
    store = store_of(request)
    consent = project_view(store, project).config.wording.consent_md
    if project in who.places and not has_consented(store, project, who.annotator_id, consent):
        raise HTTPException(403, "Agree to the project's conditions first: open its page in a browser once.")
    card = queue.claim(store, project, who.annotator_id)
    return _json({"card": _card(card), **_why(store, project, who, card)})


@router.post("/api/p/{project}/answer", dependencies=COUNTED)
def answer(request: Request, project: str, who: Worker, body: AnswerBody) -> Response:
    """Store an answer: {"judgement_id": ..., "next": the next card or null}. It is on disk when this returns."""
    store, said = store_of(request), body.verdict.said()
    criteria = project_view(store, project).criteria if said.ratings else ()

    def decide(card: Card) -> Verdict:
        return verdict_of(said, _here(card, project), criteria)

    sent = (body.seat, body.token, who.annotator_id)
    key = str(body.judgement_id)
    try:
        answered = queue.answer_sent(store, *sent, decide, guideline=body.guideline, judgement_id=key, ui=_ui(who))
    except DataError as error:
        return _json({"error": str(error), "code": "invalid", "field": error.field}, 422)
    return _answered(store, project, who, answered)


@router.post("/api/p/{project}/skip", dependencies=COUNTED)
def skip(request: Request, project: str, who: Worker, body: SkipBody) -> Response:
    """Pass a card on; the response is as for an answer."""
    if body.reason not in SKIP_REASONS:
        return _json({"error": f"reason: one of {', '.join(SKIP_REASONS)}", "code": "invalid", "field": "reason"}, 422)
    store = store_of(request)
    passed = queue.pass_on(
        store,
        _here(queue.card_of(store, body.seat, body.token, who.annotator_id, guideline=body.guideline), project),
        body.reason,
        flag=body.flag,
        judgement_id=str(body.judgement_id),
        active_ms=body.active_ms,
        comment=body.comment,
        ui=_ui(who),
    )
    return _answered(store, project, who, passed)


@router.post("/api/p/{project}/undo", dependencies=COUNTED)
def undo(request: Request, project: str, who: Worker, body: UndoBody) -> Response:
    """Take an answer back: {"card": its card}, or null where there is none to take back."""
    named = str(body.judgement_id) if body.judgement_id is not None else None
    return _json({"card": _card(queue.undo(store_of(request), project, who.annotator_id, named, ui=_ui(who)))})


@router.post("/api/p/{project}/heartbeat", dependencies=COUNTED)
def heartbeat(request: Request, project: str, who: Worker, body: Leased) -> dict[str, int]:
    """Keep a card that is being read: {"lease_until": UTC ms}, 0 where the lease is over (answers are kept anyway)."""
    return {"lease_until": queue.heartbeat(store_of(request), body.seat, body.token, who.annotator_id)}


@router.post("/api/p/{project}/release", dependencies=COUNTED)
def release(request: Request, project: str, who: Worker) -> dict[str, int]:
    """Give one's cards back to the queue: {"released": how many}."""
    return {"released": queue.release(store_of(request), project, who.annotator_id)}


@router.get("/api/p/{project}/mine", dependencies=COUNTED)
def mine(request: Request, project: str, who: Worker) -> dict[str, int | None]:
    """One's own progress."""
    return asdict(queue.my_progress(store_of(request), project, who.annotator_id))


@router.get("/api/p/{project}/progress", dependencies=COUNTED)
def progress(request: Request, project: str, who: Annotated[Visitor, require("progress")]) -> dict[str, int]:
    """Votes wanted, by state, and all judgements."""
    return queue.progress(store_of(request), project)


def _card(card: Card | None) -> dict[str, Any] | None:
    if card is None:
        return None
    return {
        "seat": card.seat_id,
        "token": card.token,
        "guideline": card.guideline_id or "",
        "work": card.work,
        "prompt": _messages(card.prompt.messages),
        "answers": [_messages(completion.messages) for completion in card.shown],
        "lease_until": card.lease_until,
        "note": card.note,
    }


def _messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _here(card: Card, project: str) -> Card:
    """The card, if it is of this project: the path is what permissions were checked for."""
    if card.project != project:
        raise HTTPException(404, "This card belongs to another project.")
    return card


def _answered(store: Store, project: str, who: Visitor, found: Answered) -> Response:
    return _json(
        {
            "judgement_id": found.judgement_id,
            "next": _card(found.next),
            **_why(store, project, who, found.next),
        }
    )


def _why(store: Store, project: str, who: Visitor, card: Card | None) -> dict[str, Any]:
    """Why there is no card, and when there may be one again; nothing where there is one."""
    return {} if card is not None else {"why": asdict(why_no_card(store, project, who.annotator_id))}


def _ui(who: Visitor) -> str:
    """What judgements name as their origin: tokens of simulated people say so."""
    return "sim" if who.scope.get("simulated") is True else "api"


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(value, status)
