"""The pages on which people judge. Every one works as plain forms and redirects; with htmx an answer's response is the
next card, so that a judgement costs one round trip.

Nothing of a card but its texts and its lease reaches the browser (`cards.CardView`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response

from alignloop.core.errors import DataError, StoreError
from alignloop.feedback import queue
from alignloop.feedback.history import MANY
from alignloop.feedback.judgements import Card, Verdict
from alignloop.feedback.people import change_profile, has_consented, record_consent
from alignloop.feedback.projects import ProjectView, list_projects, project_view
from alignloop.feedback.review import claim_adjudication
from alignloop.feedback.waiting import why_no_card
from alignloop.store import Store
from alignloop.store.ids import text_sha256
from alignloop.web.access import Visitor, require
from alignloop.web.cards import IncompleteError, card_view, criterion_view, judgement_id, passing, spent, verdict
from alignloop.web.keys import key_name, keymap
from alignloop.web.limits import limited
from alignloop.web.me import form_fields
from alignloop.web.page import THEMES, render, store_of
from alignloop.web.text import render_text

router = APIRouter()
Worker = Annotated[Visitor, require("work")]
Reviewer = Annotated[Visitor, require("review")]
Fields = Annotated[dict[str, str], Depends(form_fields)]
NEWS = ("undone", "nothing")  # what the template notice.html can say beside problems


@router.get("/")
def home(request: Request, who: Annotated[Visitor, require("self")]) -> Response:
    """One's projects. An annotator of a single open project goes straight to its cards."""
    store = store_of(request)
    mine = [p for p in list_projects(store) if who.is_owner or p.slug in who.places]
    if len(mine) == 1 and mine[0].state == "open" and who.role_in(mine[0].slug) == "annotator":
        return RedirectResponse(f"/p/{mine[0].slug}/work", 303)
    lines = [
        {
            "slug": p.slug,
            "name": p.name,
            "kind": p.kind,
            "state": p.state,
            "paused": p.slug in who.places and who.places[p.slug].state == "paused",
            "mine": queue.my_progress(store, p.slug, who.annotator_id),
        }
        for p in mine
    ]
    return render(request, "work/home.html", projects=lines, many=MANY)


@router.get("/p/{project}/work")
def work_page(
    request: Request,
    project: str,
    who: Worker,
    news: str = "",
    shown_as: Annotated[str, Query(alias="as")] = "",
) -> Response:
    """The card to judge; before the first one the guideline, what one agrees to, and the keys."""
    store = store_of(request)
    view = project_view(store, project)
    greeting = _greeting(store, view, who)
    if greeting is not None:
        return render(request, "work/welcome.html", project=view, url=_url(view), **greeting)
    card = _next(store, project, who)
    return _page(request, view, who, card, news=news, shown_as=shown_as)


@router.get("/p/{project}/card")
def card_fragment(request: Request, project: str, who: Worker) -> Response:
    """The card alone, for a page that asks for it again."""
    store = store_of(request)
    return _page(request, project_view(store, project), who, _next(store, project, who), fragment=True)


@router.get("/p/{project}/review")
def review_page(request: Request, project: str, who: Reviewer) -> Response:
    """A card whose votes are split, for somebody who sees none of them."""
    store = store_of(request)
    try:
        card = claim_adjudication(store, project, who.annotator_id)
    except StoreError:
        card = None
    return _page(request, project_view(store, project), who, card, third_view=True)


@router.post("/p/{project}/answer", dependencies=[limited("submit")])
def answer(request: Request, project: str, who: Worker, form: Fields) -> Response:
    """Store an answer; the response is the next card. An incomplete one is sent back with what it lacks."""
    store = store_of(request)
    view, key = project_view(store, project), judgement_id(form.get("judgement_id", ""))

    def decide(card: Card) -> Verdict:
        return verdict(form, _here(card, project), view)

    sent = (form.get("seat", ""), form.get("token", ""), who.annotator_id)
    shown = form.get("guideline", "")
    try:
        answered = queue.answer_sent(store, *sent, decide, guideline=shown, judgement_id=key, ui="web")
    except IncompleteError as error:
        return _not_taken(request, view, who, form, error.code)
    except DataError as error:
        return _not_taken(request, view, who, form, str(error))
    return _after(request, view, who, answered.next, form)


@router.post("/p/{project}/skip", dependencies=[limited("submit")])
def skip(request: Request, project: str, who: Worker, form: Fields) -> Response:
    """Skip or flag a card; the response is the next one."""
    store = store_of(request)
    card = _sent_card(store, project, who, form)
    reason, flag = passing(form)
    passed = queue.pass_on(
        store,
        card,
        reason,
        flag=flag,
        judgement_id=judgement_id(form.get("judgement_id", "")),
        active_ms=spent(form).get("active_ms"),
        comment=form.get("comment", "").strip(),
        ui="web",
    )
    return _after(request, project_view(store, project), who, passed.next, form)


@router.post("/p/{project}/undo", dependencies=[limited("submit")])
def undo(request: Request, project: str, who: Worker, form: Fields) -> Response:
    """Take back the last answer, or the one that is named; the response is its card."""
    store = store_of(request)
    card = queue.undo(store, project, who.annotator_id, form.get("judgement_id") or None, ui="web")
    news = "undone" if card is not None else "nothing"
    if not _by_htmx(request):
        return RedirectResponse(f"/p/{project}/work?news={news}", 303)
    view = project_view(store, project)
    return _page(request, view, who, card or _next(store, project, who), fragment=True, news=news)


@router.post("/p/{project}/release")
def release(request: Request, project: str, who: Worker) -> Response:
    """Give one's card back to the queue and stop."""
    queue.release(store_of(request), project, who.annotator_id)
    return RedirectResponse(f"/p/{project}/recent", 303)


@router.post("/p/{project}/heartbeat")
def heartbeat(request: Request, project: str, who: Worker, form: Fields) -> Response:
    """Keep a card that is being read: 204, or 409 if its lease ran out (an answer is kept all the same)."""
    until = queue.heartbeat(store_of(request), form.get("seat", ""), form.get("token", ""), who.annotator_id)
    return Response(status_code=204 if until else 409)


@router.get("/p/{project}/recent")
def recent(request: Request, project: str, who: Worker) -> Response:
    """One's last answers; each of the last 20 can be taken back."""
    store = store_of(request)
    view, mine = project_view(store, project), queue.my_progress(store, project, who.annotator_id)
    rows = queue.recent(store, project, who.annotator_id)
    pace = pace_words(mine.median_active_ms)
    return render(request, "work/recent.html", project=view, url=_url(view), rows=rows, mine=mine, pace=pace)


@router.get("/p/{project}/guideline")
def guideline(request: Request, project: str, who: Worker) -> Response:
    """The guideline in force, the criteria, the keys."""
    view = project_view(store_of(request), project)
    return render(
        request,
        "work/guideline.html",
        project=view,
        url=_url(view),
        guideline=_guideline(view),
        criteria=[criterion_view(c) for c in view.criteria],
        **_keys(who),
    )


@router.post("/p/{project}/consent")
def consent(request: Request, project: str, who: Worker, form: Fields) -> Response:
    """Note that the guideline was read, and that the person agreed to the text that they were shown."""
    store = store_of(request)
    text = project_view(store, project).config.wording.consent_md
    if project in who.places and form.get("agree") == text_sha256(text):
        record_consent(store, project, who.annotator_id, text)
    version = form.get("guideline", "")
    seen = dict(who.settings.get("seen", {})) | {project: int(version) if version.isdecimal() else 0}
    change_profile(store, who.annotator_id, settings={"seen": seen})
    return RedirectResponse(f"/p/{project}/work", 303)


@router.post("/me/look")
def look(request: Request, who: Annotated[Visitor, require("self")], form: Fields) -> Response:
    """Light or dark, from the menu of any page."""
    if form.get("theme") not in THEMES:
        raise HTTPException(422, f"The theme is one of {', '.join(THEMES)}.")
    change_profile(store_of(request), who.annotator_id, settings={"theme": form["theme"]})
    return Response(status_code=204)


def pace_words(ms: int | None) -> str:
    """A time per card, to the second.

    >>> pace_words(34_400), pace_words(95_000), pace_words(None)
    ('34 s', '1 min 35 s', '')
    """
    if ms is None:
        return ""
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _sent_card(store: Store, project: str, who: Visitor, form: Mapping[str, str]) -> Card:
    """The card that a form is about. Errors: StoreError, HTTPException 404, unless it was theirs, in this project."""
    sent = (form.get("seat", ""), form.get("token", ""), who.annotator_id)
    return _here(queue.card_of(store, *sent, guideline=form.get("guideline", "")), project)


def _here(card: Card, project: str) -> Card:
    """The card, if it is of this project: the path is what permissions were checked for."""
    if card.project != project:
        raise HTTPException(404, "This card belongs to another project. Open the project's page again.")
    return card


def _next(store: Store, project: str, who: Visitor) -> Card | None:
    try:
        return queue.claim(store, project, who.annotator_id)
    except StoreError:  # no cards for this person now: `why_no_card` says why
        return None


def _greeting(store: Store, view: ProjectView, who: Visitor) -> dict[str, Any] | None:
    """What has to be read before a card: all of it at the first visit, later what is new. None: nothing."""
    seen = who.settings.get("seen", {}).get(view.slug)
    text = view.config.wording.consent_md
    agreed = view.slug not in who.places or has_consented(store, view.slug, who.annotator_id, text)
    if agreed and seen is not None and not _has_new_guideline(view, who):
        return None
    return {
        "first": seen is None,
        "guideline": _guideline(view),
        "consent": None if agreed else render_text(text),
        "consent_sha256": text_sha256(text),
        **_keys(who),
    }


def _after(request: Request, view: ProjectView, who: Visitor, card: Card | None, form: Mapping[str, str]) -> Response:
    third_view = form.get("view") == "review"
    if not _by_htmx(request):
        return RedirectResponse(f"/p/{view.slug}/{'review' if third_view else 'work'}", 303)
    if _has_new_guideline(view, who):
        return Response(status_code=204, headers={"HX-Redirect": f"{_url(view)}/work"})
    return _page(request, view, who, card, fragment=True, third_view=third_view)


def _has_new_guideline(view: ProjectView, who: Visitor) -> bool:
    """Whether a version came into force since this person read one: it is to be read before the next card."""
    seen = who.settings.get("seen", {}).get(view.slug)
    return seen is not None and view.guideline is not None and seen < view.guideline.version


def _not_taken(request: Request, view: ProjectView, who: Visitor, form: Mapping[str, str], problem: str) -> Response:
    """Why an answer was not stored: beside the card on screen, or the page again with all that was entered."""
    if _by_htmx(request):
        headers = {"HX-Retarget": "#notice", "HX-Reswap": "outerHTML"}
        page = render(request, "work/notice.html", 422, problem=problem, news="", card=None)
        page.headers.update(headers)
        return page
    card, third_view = _sent_card(store_of(request), view.slug, who, form), form.get("view") == "review"
    return _page(request, view, who, card, status=422, problem=problem, said=form, third_view=third_view)


def _page(
    request: Request,
    view: ProjectView,
    who: Visitor,
    card: Card | None,
    *,
    status: int = 200,
    fragment: bool = False,
    third_view: bool = False,
    problem: str = "",
    news: str = "",
    said: Mapping[str, str] | None = None,
    shown_as: str = "",
) -> Response:
    """The whole page or, as a fragment, the card with what changes beside it."""
    store = store_of(request)
    mine = queue.my_progress(store, view.slug, who.annotator_id)
    template = "page" if not fragment else "card" if card is not None else "empty"
    return render(
        request,
        f"work/{template}.html",
        status,
        project=view,
        url=_url(view),
        card=card_view(card, view) if card is not None else None,
        why=why_no_card(store, view.slug, who.annotator_id, third_view=third_view) if card is None else None,
        mine=mine,
        many=MANY,
        pace=pace_words(mine.median_active_ms),
        fragment=fragment,
        third_view=third_view,
        problem=problem,
        news=news if news in NEWS else "",
        said=said or {},
        shown_as="raw" if shown_as == "raw" else "rendered",
        **_keys(who),
    )


def _keys(who: Visitor) -> dict[str, Any]:
    return {"keys": keymap(who.settings.get("keymap")), "key_name": key_name}


def _guideline(view: ProjectView) -> Any:
    return render_text(view.guideline.body_md) if view.guideline is not None else None


def _url(view: ProjectView) -> str:
    return f"/p/{view.slug}"


def _by_htmx(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"
