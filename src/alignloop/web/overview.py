"""All projects, and one project at a glance: how far it is, when it will be done, who is at work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from alignloop.feedback.activity import Forecast
from alignloop.feedback.projects import ProjectSummary, list_projects, project_view, set_project_state
from alignloop.web.access import Visitor, require
from alignloop.web.charts import columns
from alignloop.web.figures import Shown
from alignloop.web.me import form_fields
from alignloop.web.page import render, store_of

router = APIRouter()
Fields = Annotated[dict[str, str], Depends(form_fields)]
STATES = ("open", "paused", "closed")  # that a button leads to


def shown(request: Request, what: str, project: str) -> Shown:
    """A statistic of the project, from what is computed behind the pages."""
    found: Shown = request.app.state.figures.show(what, project)
    return found


def unchanged(request: Request, figures: Shown) -> bool:
    """Whether a live part that asks again has these figures already."""
    asks = request.headers.get("hx-request") == "true"
    return asks and not figures.computing and request.query_params.get("mark") == figures.mark


def part_or_page(request: Request, name: str, figures: Shown, **context: Any) -> Response:
    """A page, or its live part alone for a page that asks again: 204 where nothing has changed."""
    if unchanged(request, figures):
        return Response(status_code=204)
    part = "_live" if request.headers.get("hx-request") == "true" else ""
    return render(request, f"owner/{name}{part}.html", shown=figures, **context)


@router.get("/projects")
def projects_page(request: Request, who: Annotated[Visitor, require("self")]) -> Response:
    """The projects whose progress one may see."""
    mine = [p for p in list_projects(store_of(request)) if who.may("progress", p.slug)]
    return render(request, "owner/projects.html", projects=[(p, votes_wanted(p)) for p in mine])


@router.get("/p/{project}")
def overview_page(request: Request, project: str, who: Annotated[Visitor, require("progress")]) -> Response:
    """One project: progress, forecast, votes per day, who is at work, what needs somebody."""
    store = store_of(request)
    view, figures = project_view(store, project), shown(request, "activity", project)
    summary = next(p for p in list_projects(store) if p.slug == view.slug)
    found = figures.value
    days = found.days if found is not None else ()
    chart = columns(days, f"Votes per day, {days[0][0]} to {days[-1][0]}") if days else None
    report = shown(request, "report", project) if found is not None and found.standing.votes else None
    people = [p for p in report.value.annotators if p.flags] if report is not None and report.value else []
    return part_or_page(
        request,
        "overview",
        figures,
        project=view,
        summary=summary,
        wanted=votes_wanted(summary),
        chart=chart,
        alarms=report.value.alarms if report is not None and report.value else (),
        flagged=len(people),
        pace_words=duration(found.paced_ms / 3_600_000) if found is not None else "",
        hours=duration(found.work.hours) if found is not None and found.work is not None else "",
        to_come=eta_words(found.work.to_come) if found is not None and found.work and found.work.to_come else None,
        eta=eta_words(found.forecast) if found is not None and found.forecast is not None else None,
    )


@router.post("/p/{project}/state")
def change_state(request: Request, project: str, who: Annotated[Visitor, require("manage")], form: Fields) -> Response:
    """Open, pause or close the project."""
    reason = form.get("reason", "").strip()
    set_project_state(store_of(request), project, form.get("state", ""), actor=who.annotator_id, reason=reason)
    return RedirectResponse(f"/p/{project}", 303)


def votes_wanted(project: ProjectSummary) -> int:
    """Votes that the project's cards ask for, those that are there included."""
    return project.open + project.leased + project.done


def duration(hours: float) -> str:
    """A time in words, to what can be known of it.

    >>> duration(0.4), duration(7.6), duration(50), duration(900)
    ('24 minutes', '7.6 hours', '2.1 days', '5 weeks')
    """
    if hours < 1:
        return _counted(max(1, round(60 * hours)), "minute")
    if hours < 48:
        return _counted(round(hours, 1) if hours < 10 else round(hours), "hour")
    if hours < 21 * 24:
        return _counted(round(hours / 24, 1) if hours < 240 else round(hours / 24), "day")
    return _counted(round(hours / 168), "week")


def eta_words(found: Forecast) -> tuple[str, str, str]:
    """(about, at the earliest, at the latest) in words; "" for a bound that is open."""
    low, high = (duration(hours) if hours is not None else "" for hours in (found.low, found.high))
    return duration(found.hours), low, high


def _counted(n: float, unit: str) -> str:
    return f"{n:g} {unit}" + ("" if n == 1 else "s")
