"""Projects and the people who judge in them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from alignloop.core.config import Config
from alignloop.core.errors import StoreError, nearest
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import text_sha256
from alignloop.store.votes import project_row


class ProjectConfig(Config):
    """How a project hands out its tasks."""

    kind: str = Field("pairwise", pattern="^(" + "|".join(t.PROJECT_KINDS) + ")$")
    """What is asked: pairwise, rank, rate, thumbs, edit or mixed."""
    lease_s: int = Field(900, gt=0)
    """Seconds after which an unanswered card goes back to the queue."""
    max_skips: int = Field(3, ge=1)
    """Skips of one task after which it goes to a curator instead of the next annotator."""
    blind: bool = True
    """Annotators never see who wrote a completion."""
    seed: int = 0
    """Seed of sides and order."""


def create_project(store: Store, slug: str, config: ProjectConfig | None = None, *, name: str = "") -> str:
    """Make a project, open for judging, and return its row id; one of that slug and settings is returned as it is.

    Errors: StoreError if the slug is in use with other settings.
    """
    cfg = config or ProjectConfig()
    settings = cfg.model_dump()
    with store.write() as session:
        row = session.scalar(select(t.Project).where(t.Project.slug == slug))
        if row is not None:
            if row.config != settings:
                raise StoreError(f"project '{slug}': exists with other settings; choose another name")
            return row.id
        row = t.Project(
            slug=slug,
            name=name or slug,
            kind=cfg.kind,
            state="open",
            config=settings,
            blind=cfg.blind,
            lease_s=cfg.lease_s,
            seed=cfg.seed,
            pseudonym_key=secrets.token_hex(32),
        )
        session.add(row)
    return row.id


def set_project_state(store: Store, project: str, state: str) -> None:
    """Open, pause or close a project; answers to cards already out are still kept."""
    if state not in t.PROJECT_STATES:
        raise StoreError(f"project state '{state}': {nearest(state, t.PROJECT_STATES)}")
    with store.write() as session:
        row = project_row(session, project)
        session.execute(update(t.Project).where(t.Project.id == row.id).values(state=state))


def publish_guideline(store: Store, project: str, body_md: str) -> str:
    """Put a guideline in force and return its row id; the text in force already is not published again."""
    sha = text_sha256(body_md)
    with store.write() as session:
        row = project_row(session, project)
        current = guideline_in_force(session, row.id)
        if current is not None and current.sha256 == sha:
            return current.id
        version = (current.version if current is not None else 0) + 1
        new = t.Guideline(project_id=row.id, version=version, body_md=body_md, sha256=sha)
        session.add(new)
    return new.id


def guideline_in_force(session: Session, project_id: str) -> t.Guideline | None:
    """The newest version of a project's guideline."""
    newest = select(func.max(t.Guideline.version)).where(t.Guideline.project_id == project_id).scalar_subquery()
    return session.scalar(
        select(t.Guideline).where(t.Guideline.project_id == project_id, t.Guideline.version == newest)
    )


def add_annotators(store: Store, handles: Sequence[str], *, kind: str = "human", role: str = "annotator") -> list[str]:
    """Make sure that these annotators exist, and return their row ids, in order.

    Errors: StoreError for an unknown kind, or a handle in use by another kind of annotator.
    """
    if kind not in t.ANNOTATOR_KINDS:
        raise StoreError(f"annotator kind '{kind}': {nearest(kind, t.ANNOTATOR_KINDS)}")
    with store.write() as session:
        rows = {r.handle: r for r in session.scalars(select(t.Annotator).where(t.Annotator.handle.in_(handles)))}
        for handle in handles:
            if handle not in rows:
                person: dict[str, Any] = {
                    "display_name": handle,
                    "email": None,
                    "state": "active",
                    "langs": [],
                    "skills": {},
                }
                rows[handle] = t.Annotator(handle=handle, kind=kind, role=role, **person)
                session.add(rows[handle])
            elif rows[handle].kind != kind:
                raise StoreError(
                    f"annotator '{handle}': is already a {rows[handle].kind} annotator; choose another name"
                )
    return [rows[handle].id for handle in handles]


def annotator_row(session: Session, handle: str) -> t.Annotator:
    """An annotator by handle or row id. Errors: StoreError with the nearest handle."""
    row = session.scalar(select(t.Annotator).where((t.Annotator.handle == handle) | (t.Annotator.id == handle)))
    if row is None:
        known = session.scalars(select(t.Annotator.handle)).all()
        raise StoreError(f"annotator '{handle}': not in the store; {nearest(handle, known)}")
    return row
