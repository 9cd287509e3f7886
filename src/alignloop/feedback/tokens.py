"""Links that work once (invite, login, reset) and API tokens. Values are 256 random bits; the store keeps SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, bindparam, select, update
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError, nearest
from alignloop.feedback import audit
from alignloop.feedback.identity import SessionInfo, person_of, sealed, secret, with_person
from alignloop.feedback.projects import annotator_row
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms

HOUR, DAY = 3_600_000, 24 * 3_600_000
LINKS = ("invite", "login", "reset")
USED_MS = 60_000  # an API token's last use is written at most this often
DEAD_LINK = "this link has been used, has run out, or was never made; ask for another one"

_BY_TOKEN = with_person(  # built once: building it takes longer than running it
    t.LoginToken.scope,
    t.LoginToken.used_at,
    owner=t.LoginToken.annotator_id,
    where=(t.LoginToken.token_sha256 == bindparam("key"))
    & (t.LoginToken.purpose == "api")
    & t.LoginToken.revoked_at.is_(None)
    & (t.LoginToken.expires_at > bindparam("at", type_=BigInteger)),
)


@dataclass(frozen=True)
class Link:
    """A link that could be used now, seen without using it."""

    purpose: str
    annotator_id: str
    handle: str
    display_name: str
    scope: Mapping[str, Any]


@dataclass(frozen=True)
class TokenLine:
    """An API token as its person sees it; the value itself was shown once and is not known any more."""

    key: str
    scope: Mapping[str, Any]
    created_at: int
    expires_at: int
    last_used: int | None


def make_token(
    store: Store,
    annotator: str,
    purpose: str,
    *,
    scope: Mapping[str, Any] | None = None,
    hours: float,
    now: int | None = None,
) -> str:
    """The value of a new link or API token for a person (handle or row id); it is returned here and never again.

    Of links, a person has one of each purpose: a new one ends the one before.
    """
    with store.write() as session:
        person = annotator_row(session, annotator)
        return add_token(session, person.id, purpose, scope or {}, hours, now if now is not None else now_ms())


def add_token(
    session: Session, annotator_id: str, purpose: str, scope: Mapping[str, Any], hours: float, now: int
) -> str:
    """`make_token`, inside a session that is open."""
    row = t.LoginToken
    if purpose in LINKS:
        before = (row.annotator_id == annotator_id) & (row.purpose == purpose) & _usable(now)
        session.execute(update(row).where(before).values(revoked_at=now))
    elif purpose != "api":
        raise StoreError(f"token purpose '{purpose}': {nearest(purpose, (*LINKS, 'api'))}")
    value = secret()
    session.add(
        row(
            token_sha256=sealed(value),
            annotator_id=annotator_id,
            purpose=purpose,
            scope=dict(scope),
            expires_at=now + int(hours * HOUR),
            created_at=now,
        )
    )
    session.flush()
    return value


def peek(store: Store, token: str, *, now: int | None = None) -> Link | None:
    """What a link is for, without using it up; None where it cannot be used."""
    row, person = t.LoginToken, t.Annotator
    query = (
        select(row.purpose, row.scope, person.id, person.handle, person.display_name)
        .join(person, person.id == row.annotator_id)
        .where(row.token_sha256 == sealed(token), row.purpose.in_(LINKS), person.state.in_(("invited", "active")))
        .where(_usable(now if now is not None else now_ms()))
    )
    with store.read() as session:
        found = session.execute(query).one_or_none()
    return Link(found.purpose, found.id, found.handle, found.display_name, found.scope) if found is not None else None


def redeem(store: Store, token: str, purpose: str, *, now: int | None = None) -> str:
    """Use a link up and return its person's row id. Errors: StoreError for one that is used, over, or for another use.

    Of two who send the same link at once, one gets in.
    """
    with store.write() as session:
        return use_token(session, token, purpose, now if now is not None else now_ms())


def use_token(session: Session, token: str, purpose: str, now: int) -> str:
    """`redeem`, inside a session that is open."""
    row = t.LoginToken
    good = (row.token_sha256 == sealed(token)) & (row.purpose == purpose) & row.purpose.in_(LINKS) & _usable(now)
    used = session.scalar(update(row).where(good).values(used_at=now).returning(row.annotator_id))
    if used is None:
        raise StoreError(DEAD_LINK)
    return str(used)


def api_token(
    store: Store,
    annotator: str,
    scope: Mapping[str, Any] | None = None,
    days: float = 90,
    *,
    actor: str = audit.SYSTEM,
    now: int | None = None,
) -> str:
    """A token for scripts: `Authorization: Bearer ...`.

    scope: {"name": what it is for, "project": the only project it opens, "per_minute": its own rate limit, 0 for none}.
    """
    with store.write() as session:
        person = annotator_row(session, annotator)
        _log(session, actor, "token.create", person.id, dict(scope or {}))
        return add_token(session, person.id, "api", scope or {}, 24 * days, now if now is not None else now_ms())


def read_api_token(store: Store, token: str, *, now: int | None = None) -> SessionInfo | None:
    """Who holds this API token; None for a value that is unknown, revoked or over, or whose person is not active."""
    if not token:
        return None
    at = now if now is not None else now_ms()
    key = sealed(token)
    rows = store.rows(_BY_TOKEN, {"key": key, "at": at})
    if not rows:
        return None
    if at - (rows[0].used_at or 0) >= USED_MS:
        with store.write() as session:
            session.execute(update(t.LoginToken).where(t.LoginToken.token_sha256 == key).values(used_at=at))
    return person_of(rows, key, scope=rows[0].scope)


def tokens_of(store: Store, annotator_id: str, *, now: int | None = None) -> list[TokenLine]:
    """A person's API tokens that still work, newest first."""
    row, at = t.LoginToken, now if now is not None else now_ms()
    query = select(row).where(row.annotator_id == annotator_id, row.purpose == "api", row.revoked_at.is_(None))
    with store.read() as session:
        found = session.scalars(query.where(row.expires_at > at).order_by(row.created_at.desc())).all()
    return [TokenLine(r.token_sha256, r.scope, r.created_at, r.expires_at, r.used_at) for r in found]


def revoke_token(store: Store, key: str, annotator_id: str) -> bool:
    """End one API token of this person (`TokenLine.key`); False if there is no such token of theirs."""
    row = t.LoginToken
    same = (row.token_sha256 == key) & (row.annotator_id == annotator_id) & row.revoked_at.is_(None)
    with store.write() as session:
        ended = update(row).where(same, row.purpose == "api").values(revoked_at=now_ms()).returning(row.scope)
        scope = session.scalar(ended)
        if scope is not None:
            _log(session, annotator_id, "token.end", annotator_id, scope)
    return scope is not None


def _log(session: Session, actor: str, action: str, person_id: str, scope: Mapping[str, Any]) -> None:
    audit.record(session, actor=actor, action=action, object_type="person", object_id=person_id, after=scope)


def _usable(now: int) -> ColumnElement[bool]:
    row = t.LoginToken
    return row.used_at.is_(None) & row.revoked_at.is_(None) & (row.expires_at > now)
