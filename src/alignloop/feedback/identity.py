"""Who is asking: the person behind a session's cookie or an API token, with their place in every project."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, select

from alignloop.store import tables as t


@dataclass(frozen=True)
class Place:
    """A membership: the role in a project, whether it is paused there, whether data may be exported."""

    role: str
    state: str
    can_export: bool


@dataclass(frozen=True)
class SessionInfo:
    """A person who is logged in, or an API token's person.

    key: SHA-256 of the cookie or token, the row's key. csrf: the session's second secret, empty for API tokens.
    places: by project slug; empty for an owner of the store, who needs none. scope: of an API token.
    """

    key: str
    annotator_id: str
    handle: str
    display_name: str
    is_owner: bool
    csrf: str = ""
    places: Mapping[str, Place] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    scope: Mapping[str, Any] = field(default_factory=dict)


def secret() -> str:
    """256 random bits, safe in a URL and in a cookie."""
    return secrets.token_urlsafe(32)


def sealed(value: str) -> str:
    """What is stored of a secret: its SHA-256. Plain hashing is enough for 256 random bits; passwords get argon2id."""
    return hashlib.sha256(value.encode(errors="replace")).hexdigest()


def with_person(*columns: Any, owner: Any, where: ColumnElement[bool]) -> Select[Any]:
    """A query of `columns` of a login row, its person (active ones only) and all their memberships, by primary keys.

    owner: the column that names the person.
    """
    person, member, project = t.Annotator, t.Membership, t.Project
    theirs = and_(member.annotator_id == person.id, member.state != "left")
    return (
        select(
            *columns,
            person.id.label("annotator_id"),
            person.handle,
            person.display_name,
            person.role.label("store_role"),
            person.settings,
            member.role.label("role"),
            member.state.label("member_state"),
            member.can_export,
            project.slug,
        )
        .join(person, person.id == owner)
        .outerjoin(member, theirs)
        .outerjoin(project, project.id == member.project_id)
        .where(where, person.state == "active")
    )


def person_of(
    rows: Sequence[Row[Any]], key: str, *, csrf: str = "", scope: Mapping[str, Any] | None = None
) -> SessionInfo:
    """The rows of `with_person`, one for each membership, as one SessionInfo."""
    first = rows[0]
    places = {r.slug: Place(r.role, r.member_state, r.can_export) for r in rows if r.slug is not None}
    return SessionInfo(
        key=key,
        annotator_id=first.annotator_id,
        handle=first.handle,
        display_name=first.display_name,
        is_owner=first.store_role == "owner",
        csrf=csrf,
        places=places,
        settings=first.settings or {},
        scope=scope or {},
    )
