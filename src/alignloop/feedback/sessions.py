"""Sessions of the web studio, kept on the server: a cookie is a random value that can be revoked at any time.

A session ends 12 hours after it was last used and 7 days after the login, whichever comes first.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sqlalchemy import BigInteger, BindParameter, ColumnElement, bindparam, delete, select, update
from sqlalchemy.orm import Session

from alignloop.feedback import audit
from alignloop.feedback.identity import SessionInfo, person_of, sealed, secret, with_person
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms

HOUR = 3_600_000
IDLE_MS, ABSOLUTE_MS = 12 * HOUR, 7 * 24 * HOUR
SEEN_MS = 60_000  # `last_seen` is written at most this often, so that a request is one read
KEEP_MS = 30 * 24 * HOUR  # ended sessions are forgotten after this


def _live(at: int | BindParameter[int]) -> ColumnElement[bool]:
    row = t.WebSession
    return row.revoked_at.is_(None) & (row.expires_at > at) & (row.last_seen + IDLE_MS > at)


_BY_COOKIE = with_person(  # built once: building it takes longer than running it
    t.WebSession.csrf_token,
    t.WebSession.last_seen,
    owner=t.WebSession.annotator_id,
    where=(t.WebSession.id_sha256 == bindparam("key")) & _live(bindparam("at", type_=BigInteger)),
)


@dataclass(frozen=True)
class SessionLine:
    """A live session as its person sees it on their own page."""

    key: str
    created_at: int
    last_seen: int
    expires_at: int
    ip_prefix: str


def ip_prefix(address: str) -> str:
    """The network of an address, /24 or /48 for IPv6; "" for what is no address. Whole addresses are not kept.

    >>> ip_prefix("203.0.113.7"), ip_prefix("2001:db8:1:2::3"), ip_prefix("::ffff:203.0.113.7")
    ('203.0.113.0/24', '2001:db8:1::/48', '203.0.113.0/24')
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))


def open_session(
    store: Store, annotator_id: str, ip: str, user_agent: str, *, how: str, replaces: str = "", now: int | None = None
) -> tuple[str, str]:
    """Log a person in: (value of the cookie, CSRF token of the session). The store keeps only the cookie's SHA-256.

    how: "password" or the purpose of a link, for the audit log. replaces: the cookie that the browser still had; its
    session ends. Was it the same person's, the CSRF token goes on, so that a page left open while the login ran out
    can still send what was typed into it.
    """
    at = now if now is not None else now_ms()
    cookie, csrf = secret(), secret()
    row = t.WebSession
    with store.write() as session:
        old = session.get(row, sealed(replaces)) if replaces else None
        if old is not None:
            old.revoked_at = old.revoked_at or at
            csrf = old.csrf_token if old.annotator_id == annotator_id else csrf
        session.execute(delete(row).where(row.annotator_id == annotator_id, row.expires_at < at - KEEP_MS))
        session.add(
            row(
                id_sha256=sealed(cookie),
                annotator_id=annotator_id,
                csrf_token=csrf,
                last_seen=at,
                expires_at=at + ABSOLUTE_MS,
                ip_prefix=ip_prefix(ip),
                ua_sha256=sealed(user_agent),
                created_at=at,
            )
        )
        audit.record(
            session,
            actor=annotator_id,
            action="person.login",
            object_type="person",
            object_id=annotator_id,
            after={"how": how},
        )
    return cookie, csrf


def read_session(store: Store, cookie: str, *, now: int | None = None) -> SessionInfo | None:
    """Who holds this cookie; None for a value that is unknown, revoked or over, or whose person is not active."""
    if not cookie:
        return None
    at = now if now is not None else now_ms()
    key = sealed(cookie)
    rows = store.rows(_BY_COOKIE, {"key": key, "at": at})
    if not rows:
        return None
    if at - rows[0].last_seen >= SEEN_MS:
        with store.write() as session:
            session.execute(update(t.WebSession).where(t.WebSession.id_sha256 == key).values(last_seen=at))
    return person_of(rows, key, csrf=rows[0].csrf_token)


def sessions_of(store: Store, annotator_id: str, *, now: int | None = None) -> list[SessionLine]:
    """A person's live sessions, the one used last first."""
    row = t.WebSession
    query = select(row).where(row.annotator_id == annotator_id, _live(now if now is not None else now_ms()))
    with store.read() as session:
        found = session.scalars(query.order_by(row.last_seen.desc())).all()
    return [SessionLine(r.id_sha256, r.created_at, r.last_seen, r.expires_at, r.ip_prefix) for r in found]


def revoke_session(store: Store, key: str, annotator_id: str) -> bool:
    """End one session of this person (`SessionInfo.key`); False if there is no such live session of theirs."""
    with store.write() as session:
        return end_sessions(session, (t.WebSession.id_sha256 == key) & (t.WebSession.annotator_id == annotator_id)) > 0


def revoke_all(store: Store, annotator_id: str, *, but: str = "") -> int:
    """End all sessions of a person, but for the one with key `but`; returns how many."""
    with store.write() as session:
        return end_sessions(session, (t.WebSession.annotator_id == annotator_id) & (t.WebSession.id_sha256 != but))


def end_sessions(session: Session, which: ColumnElement[bool]) -> int:
    """Revoke the sessions that match and are not revoked yet; returns how many."""
    row = t.WebSession
    ended = update(row).where(which, row.revoked_at.is_(None)).values(revoked_at=now_ms()).returning(row.id_sha256)
    return len(session.scalars(ended).all())
