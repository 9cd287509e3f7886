"""How a project is getting on: votes by day, who is at work, what it costs in hours, and when it will be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from alignloop.feedback.intervals import Figure, normal_figure, undefined
from alignloop.feedback.revisions import STANDS
from alignloop.feedback.stopping import HOUR_MS, Standing, standing
from alignloop.feedback.tasks import ORDINARY
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms
from alignloop.store.votes import project_row

DAY_MS = 24 * HOUR_MS
DAYS = 30  # that are listed
AT_WORK_MS = 10 * 60_000  # since the last sign of somebody who is at work
WINDOWS = ((DAY_MS, 7), (HOUR_MS, 24), (HOUR_MS // 6, 18))  # (bin, bins) of the pace: the first with enough votes
LEAST_VOTES, LEAST_BINS = 10, 3
TOO_FEW = f"fewer than {LEAST_VOTES} votes within half an hour or more, lately"
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class AtWork:
    """Somebody who answered, or took a card, within the last ten minutes. today: answers since midnight UTC."""

    handle: str
    display_name: str
    last_at: int
    today: int


@dataclass(frozen=True)
class Forecast:
    """Hours until every vote is there at the pace of lately, with its 95 % interval; a bound None is open."""

    hours: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Work:
    """People's time with a card before them, in use. hours: so far, skips and revisions included.

    seconds: of it for each vote; n counts votes, the interval is over people. to_come: hours of it for the votes that
    are waiting, None where none are.
    """

    hours: float
    seconds: Figure
    to_come: Forecast | None


@dataclass(frozen=True)
class Activity:
    """days: votes of each of the last 30 days, oldest first, from the first vote on. pace: votes an hour, lately.

    paced_ms: over how long it was taken. forecast: None where nothing is left to do, or the pace is not known. work:
    None where nobody's time was taken.
    """

    standing: Standing
    days: tuple[tuple[date, int], ...]
    at_work: tuple[AtWork, ...]
    pace: Figure
    paced_ms: int
    forecast: Forecast | None
    work: Work | None


def activity(store: Store, project: str, *, now: int | None = None) -> Activity:
    """How a project is getting on."""
    at = now if now is not None else now_ms()
    found = standing(store, project, now=at)
    with store.read() as session:
        row = project_row(session, project)
        made = t.Judgement.created_at
        days = _counts(session, row.id, made // DAY_MS, at - at % DAY_MS - (DAYS - 1) * DAY_MS)
        speed, paced_ms = undefined(TOO_FEW), 0
        for size, bins in WINDOWS:
            votes = _counts(session, row.id, (at - made) // size, at - bins * size + 1)
            speed, paced_ms = pace_of(votes, size), size * (max(votes, default=-1) + 1)
            if speed.value is not None:
                break
        at_work = _at_work(session, row.id, at)
        times = _times(session, row.id)
    ahead = forecast(found.waiting, speed)
    return Activity(found, _by_day(days, at), at_work, speed, paced_ms, ahead, work_of(times, found.waiting))


def pace_of(votes: Mapping[int, int], size: int) -> Figure:
    """Votes an hour. votes: how many in each bin of `size` milliseconds, bin 0 the one that ends now.

    Bins, not votes, are the units of the interval, since people work in sittings; n counts votes. Bins before the
    first vote are left out, so that a young campaign is not taken for a slow one.
    """
    n, used = sum(votes.values()), max(votes, default=-1) + 1
    if n < LEAST_VOTES or used < LEAST_BINS:
        return undefined(TOO_FEW, n)
    counts = np.array([votes.get(k, 0) for k in range(used)]) * (HOUR_MS / size)
    return normal_figure(float(counts.mean()), float(counts.std(ddof=1) / np.sqrt(used)), n)


def forecast(waiting: int, pace: Figure) -> Forecast | None:
    """How long the votes that are waiting take. The faster bound of the pace is the lower one of the time."""
    if not waiting or pace.value is None or pace.value <= 0:
        return None
    low = waiting / pace.high if pace.high else None
    high = waiting / pace.low if pace.low is not None and pace.low > 0 else None
    return Forecast(waiting / pace.value, low, high)


def work_of(people: Sequence[tuple[int, int]], waiting: int) -> Work | None:
    """The work of people, each given as (milliseconds, votes), and what the votes that are waiting will take."""
    spent = np.array([ms for ms, _ in people], dtype=np.float64) / HOUR_MS
    votes = np.array([n for _, n in people], dtype=np.float64)
    n, groups = int(votes.sum()), len(people)
    if not n:
        return None
    mean = float(spent.sum() / n)
    off = float(((spent - mean * votes) ** 2).sum())
    sd = np.sqrt(groups / (groups - 1) * off) / n if groups > 1 else np.nan  # of a ratio over people (Cochran 1977)
    seconds = normal_figure(3600 * mean, 3600 * float(sd), n)
    bounds = [None if bound is None else waiting * max(bound, 0.0) / 3600 for bound in (seconds.low, seconds.high)]
    return Work(float(spent.sum()), seconds, Forecast(waiting * mean, *bounds) if waiting else None)


def _times(session: Session, project_id: str) -> list[tuple[int, int]]:
    """(active milliseconds, votes that stand) of everybody whose time was taken."""
    j = t.Judgement
    voted = case(((j.outcome == "answer") & STANDS, 1), else_=0)
    query = (
        select(func.sum(j.active_ms), func.sum(voted))
        .join(t.Task, t.Task.id == j.task_id)
        .where(t.Task.project_id == project_id, t.Task.kind.in_(ORDINARY), j.active_ms.is_not(None))
        .group_by(j.annotator_id)
    )
    return [(int(ms), int(n)) for ms, n in session.execute(query).tuples()]


def _counts(session: Session, project_id: str, group: ColumnElement[int], since: int) -> dict[int, int]:
    """Votes on ordinary tasks from `since` on, by group."""
    j = t.Judgement
    query = (
        select(group, func.count())
        .join(t.Task, t.Task.id == j.task_id)
        .where(t.Task.project_id == project_id, t.Task.kind.in_(ORDINARY), j.outcome == "answer", STANDS)
        .where(j.created_at >= since)
        .group_by(group)
    )
    return {int(key): n for key, n in session.execute(query).tuples() if key >= 0}


def _by_day(votes: Mapping[int, int], now: int) -> tuple[tuple[date, int], ...]:
    """votes: by number of the day since 1970."""
    if not votes:
        return ()
    first, last = min(votes), now // DAY_MS
    return tuple((EPOCH + timedelta(days=k), votes.get(k, 0)) for k in range(first, last + 1))


def _at_work(session: Session, project_id: str, now: int) -> tuple[AtWork, ...]:
    j, s = t.Judgement, t.Seat
    answered = (
        select(j.annotator_id, func.max(j.created_at))
        .join(t.Task, t.Task.id == j.task_id)
        .where(t.Task.project_id == project_id, j.created_at > now - AT_WORK_MS, j.created_at <= now)
        .group_by(j.annotator_id)
    )
    leased = (
        select(s.annotator_id, func.max(s.leased_at))
        .where(s.project_id == project_id, s.state == "leased", s.leased_at > now - AT_WORK_MS, s.lease_until > now)
        .group_by(s.annotator_id)
    )
    last: dict[str, int] = {}
    for person, at in [*session.execute(answered).tuples(), *session.execute(leased).tuples()]:
        last[person] = max(at, last.get(person, 0))
    today = (
        select(j.annotator_id, func.count())
        .join(t.Task, t.Task.id == j.task_id)
        .where(t.Task.project_id == project_id, j.created_at >= now - now % DAY_MS, j.outcome == "answer", STANDS)
        .where(j.annotator_id.in_(last))
        .group_by(j.annotator_id)
    )
    done = dict(session.execute(today).tuples().all())
    people = session.scalars(select(t.Annotator).where(t.Annotator.id.in_(last)))
    found = [AtWork(p.handle, p.display_name, last[p.id], done.get(p.id, 0)) for p in people]
    return tuple(sorted(found, key=lambda one: (-one.last_at, one.handle)))
