"""The audit log: who changed settings and people, exported, logged in. Each row's hash covers the row before.

    hash = SHA-256(canonical JSON of {seq, at, actor, action, object_type, object_id, before, after, reason, prev_hash})

A row that is changed, removed or put in between breaks the chain at that place; whoever noted the last hash can also
see that rows were cut off at the end. Judgements are not in it: they are immutable rows, sealed by snapshots.

What is in the chain can never be taken out of it, and people have a right to be forgotten. So it holds no names: actors
and people are row ids, and a person who is named in a reason is written there as a reference, which is read back as
the name of today. A first name or a nickname alone is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import json_sha256, now_ms

START = "0" * 64  # prev_hash of the first row
LOCK = 0x616C6967  # PostgreSQL's advisory lock of the chain
FIELDS = ("seq", "at", "actor", "action", "object_type", "object_id", "before", "after", "reason", "prev_hash")
BATCH = 1000
REFERENCE = re.compile(r"\{person:([^{}]+)\}")  # to somebody by row id, in a reason
SYSTEM = "system"  # the actor of what the program does by itself


@dataclass(frozen=True)
class AuditCheck:
    """What `verify` found: the rows read, the first broken one (its place in the chain), the last hash."""

    ok: bool
    n: int
    broken_at: int | None
    head: str


@dataclass(frozen=True)
class AuditLine:
    """One event; `actor` is the handle of today, or the id or word that was recorded where there is no such person."""

    seq: int
    at: int
    actor: str
    action: str
    object_type: str
    object_id: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    reason: str


def record(
    place: Session | Store,
    *,
    actor: str,
    action: str,
    object_type: str,
    object_id: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str = "",
) -> int:
    """Append an event and return its number, from 1.

    place: the write session of the change itself, so that both are committed or neither; or a store.
    actor: handle or row id of a person, stored as row id, so that someone who leaves is not named in the log; any other
    word ("system", "cli") is stored as it is. reason: the handles, full names and addresses of people in it are stored
    as references, for the same reason; before and after hold no names.
    Concurrent writers queue: SQLite has one writer at a time, PostgreSQL takes a lock until the transaction ends.
    """
    if isinstance(place, Store):
        with place.write() as session:
            return record(
                session,
                actor=actor,
                action=action,
                object_type=object_type,
                object_id=object_id,
                before=before,
                after=after,
                reason=reason,
            )
    if place.get_bind().dialect.name == "postgresql":
        place.execute(select(func.pg_advisory_xact_lock(LOCK)))
    last = place.execute(select(t.AuditEvent.seq, t.AuditEvent.hash).order_by(t.AuditEvent.seq.desc()).limit(1)).first()
    row: dict[str, Any] = {
        "seq": last.seq + 1 if last is not None else 1,
        "at": now_ms(),
        "actor": _person(place, actor),
        "action": action,
        "object_type": object_type,
        "object_id": object_id,
        "before": _stable(before),
        "after": _stable(after),
        "reason": _stable(_referring(place, reason)),
        "prev_hash": last.hash if last is not None else START,
    }
    place.add(t.AuditEvent(**row, hash=json_sha256(row)))
    place.flush()
    return int(row["seq"])


def verify(store: Store) -> AuditCheck:
    """Walk the chain from its start; stops at the first row that is missing, changed or out of place."""
    n, head = 0, START
    with store.read() as session:
        while True:
            query = select(t.AuditEvent).where(t.AuditEvent.seq > n).order_by(t.AuditEvent.seq).limit(BATCH)
            rows = session.scalars(query).all()
            for row in rows:
                content = {name: getattr(row, name) for name in FIELDS}
                if row.seq != n + 1 or row.prev_hash != head or row.hash != json_sha256(content):
                    return AuditCheck(False, n, n + 1, head)
                n, head = row.seq, row.hash
            if len(rows) < BATCH:
                return AuditCheck(True, n, None, head)
            session.expunge_all()


def events(store: Store, limit: int = 100, before_seq: int | None = None, action: str | None = None) -> list[AuditLine]:
    """The newest events first; `before_seq` is the last number of the page before, `action` a prefix ("person.")."""
    row, person = t.AuditEvent, t.Annotator
    query = select(row, person.handle).outerjoin(person, person.id == row.actor).order_by(row.seq.desc()).limit(limit)
    if before_seq is not None:
        query = query.where(row.seq < before_seq)
    if action is not None:
        query = query.where(row.action.startswith(action, autoescape=True))
    with store.read() as session:
        found = session.execute(query).tuples().all()
        named = {key for e, _ in found for key in REFERENCE.findall(e.reason)}
        today = dict(session.execute(select(person.id, person.handle).where(person.id.in_(named))).tuples().all())
        return [
            AuditLine(
                *(e.seq, e.at, handle or e.actor, e.action, e.object_type, e.object_id, e.before, e.after),
                REFERENCE.sub(lambda match: today.get(match[1], match[0]), e.reason),
            )
            for e, handle in found
        ]


def _person(session: Session, actor: str) -> str:
    found = select(t.Annotator.id).where((t.Annotator.handle == actor) | (t.Annotator.id == actor))
    return session.scalar(found) or actor


def _referring(session: Session, reason: str) -> str:
    """A reason with references instead of the handles, full names and addresses of the people of the store."""
    if not reason:
        return reason
    row = t.Annotator
    people = select(row.id, row.handle, row.display_name, row.email).where(row.kind == "human", row.state != "left")
    names = {name: key for key, *several in session.execute(people) for name in several if name}
    if not names:
        return reason
    ids = {name.casefold(): key for name, key in names.items()}

    def refer(match: re.Match[str]) -> str:
        key = ids.get(match[0].casefold())
        return match[0] if key is None else f"{{person:{key}}}"

    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{known})(?!\w)", refer, reason, flags=re.IGNORECASE)


def _stable(value: Any) -> Any:
    """A value that comes back from both databases as it went in, so that its hash can be computed again.

    PostgreSQL keeps numbers as decimals (1e+20 returns as an integer) and refuses the character NUL.
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() else round(value, 6)
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, Mapping):
        return {_stable(str(k)): _stable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(v) for v in value]
    return value
