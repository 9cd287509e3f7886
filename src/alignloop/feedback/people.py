"""People: who is invited where, with which role, and what happens when somebody leaves.

A person has one account and a place in each of their projects. Owners of the store have every right everywhere; an
owner of a project has rights over that project only, and so gets no link into the account of somebody who also has a
place elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from alignloop.core.errors import DataError, StoreError, nearest
from alignloop.feedback import audit
from alignloop.feedback.passwords import check_policy, hash_password, keep_hash
from alignloop.feedback.projects import annotator_row
from alignloop.feedback.sessions import end_sessions
from alignloop.feedback.tokens import DEAD_LINK, add_token, peek, use_token
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms, text_sha256
from alignloop.store.studio_tables import ROLES
from alignloop.store.votes import project_row, pseudonym

NAME_LENGTH = 80
LEFT = "someone who left"
STORE_ROLES = ("annotator", "owner")  # in the whole store one is its owner, or nothing special


@dataclass(frozen=True)
class Member:
    """A person's place in a project, or in the store where `role` is the store's; times in UTC milliseconds."""

    annotator_id: str
    handle: str
    display_name: str
    kind: str
    role: str
    state: str
    account: str  # invited, active, paused or left
    pause_reason: str
    can_export: bool
    consented_at: int | None
    last_seen: int | None


def ensure_owner(store: Store, handle: str = "owner") -> str:
    """The row id of an owner of the store: the first there is, else a new person of that handle."""
    with store.write() as session:
        owners = select(t.Annotator.id).where(t.Annotator.role == "owner", t.Annotator.state == "active")
        found = session.scalar(owners.order_by(t.Annotator.created_at, t.Annotator.id).limit(1))
        if found is not None:
            return found
        person = _new_person(session, handle, role="owner", state="active")
        _log(session, audit.SYSTEM, "person.owner", person.id, after={"role": "owner"})
        return person.id


def invite(store: Store, project: str | None, handle: str, role: str, *, actor: str, hours: float = 72) -> str | None:
    """Give a person a place in a project (None: a role in the whole store), and return the value of their link.

    None instead of a link for somebody who has an account already and whom the actor may not impersonate: they find
    the project on their start page. Errors: StoreError for an unknown role, or for a member who is there already.
    """
    _known_role(role, project)
    with store.write() as session:
        person = session.scalar(select(t.Annotator).where(t.Annotator.handle == handle))
        fresh = person is None
        if person is None:
            person = _new_person(session, handle, role=role if project is None else "annotator", state="invited")
        elif person.kind != "human" or person.state == "left":
            raise StoreError(f"annotator '{handle}': cannot be invited ({person.kind}, {person.state}); choose another")
        may_link = fresh or may_impersonate(session, actor, person)
        if project is None:
            _set_store_role(session, person, role)
        else:
            _join(session, project_row(session, project), person, role)
        _log(session, actor, "person.invite", person.id, after={"project": project, "role": role})
        return _link(session, person, hours) if may_link else None


def fresh_link(store: Store, annotator: str, *, actor: str, purpose: str | None = None, hours: float = 72) -> str:
    """Another link for somebody who lost theirs or has no password; purpose "reset" makes them choose a new one.

    Errors: StoreError where the actor may not act for this person.
    """
    with store.write() as session:
        person = annotator_row(session, annotator)
        if person.state not in ("invited", "active") or person.kind != "human":
            raise StoreError(f"annotator '{person.handle}': is {person.state} and cannot log in; invite somebody else")
        if not may_impersonate(session, actor, person):
            raise StoreError(
                f"annotator '{person.handle}': has a place in projects that are not yours; ask an owner of the store"
            )
        _log(session, actor, "person.link", person.id, after={"purpose": purpose or "login"})
        return _link(session, person, hours, purpose)


def may_impersonate(session: Session, actor: str, person: t.Annotator) -> bool:
    """Whether the actor may hold a link into this person's account.

    Owners of the store may. An owner of projects may where all of the person's projects are among them.
    """
    if actor == audit.SYSTEM:
        return True
    host = annotator_row(session, actor)
    if host.role == "owner" or host.id == person.id:
        return True
    if person.role == "owner":
        return False
    member = t.Membership
    theirs = set(session.scalars(select(member.project_id).where(member.annotator_id == person.id)))
    own = select(member.project_id).where(member.annotator_id == host.id, member.role == "owner")
    return bool(theirs) and theirs <= set(session.scalars(own.where(member.state != "left")))


def accept(store: Store, token: str, purpose: str, *, display_name: str = "", password: str = "") -> str:
    """Use a link: the person gets the name and the password given (empty: as before), and is active. Returns row id.

    A name or password that is refused does not use the link up. A reset ends all sessions.
    Errors: StoreError for a link that cannot be used, DataError for a bad name or password, or a reset without one.
    """
    link = peek(store, token)
    if link is None or link.purpose != purpose:
        raise StoreError(DEAD_LINK)
    name = check_name(display_name) if display_name else ""
    if password:
        check_policy(password, link.handle, name or link.display_name)
    elif purpose == "reset":
        raise DataError("is missing; choose a new one", field="password")
    hashed = hash_password(password) if password else ""
    with store.write() as session:
        person = session.get_one(t.Annotator, use_token(session, token, purpose, now_ms()))
        person.display_name = name or person.display_name
        if person.state == "invited":
            person.state = "active"
            _log(session, person.id, "person.join", person.id)
        if hashed:
            keep_hash(session, person.id, hashed)
        if purpose == "reset":
            end_sessions(session, t.WebSession.annotator_id == person.id)
    return person.id


def members(store: Store, project: str | None = None) -> list[Member]:
    """The people of a project, or with None everybody in the store with their role there; by handle."""
    person, place = t.Annotator, t.Membership
    seen = select(func.max(t.WebSession.last_seen)).where(t.WebSession.annotator_id == person.id).scalar_subquery()
    with store.read() as session:
        if project is None:
            everybody = select(person, seen).order_by(person.handle)
            return [_member(p, None, last) for p, last in session.execute(everybody)]
        joined = select(person, place, seen).join(place, place.annotator_id == person.id)
        here = joined.where(place.project_id == project_row(session, project).id).order_by(person.handle)
        return [_member(p, m, last) for p, m, last in session.execute(here)]


def set_role(store: Store, project: str | None, annotator: str, role: str, *, actor: str) -> None:
    """Change a member's role, or with project None the role in the whole store.

    Errors: StoreError for a role or a member that does not exist, or when the store would be left without an owner.
    """
    _known_role(role, project)
    with store.write() as session:
        person = annotator_row(session, annotator)
        row = person if project is None else _membership(session, project, person)
        change = {"before": {"role": row.role}, "after": {"role": role, "project": project}}
        if row.role == role:
            return
        if isinstance(row, t.Annotator):
            _set_store_role(session, row, role)
        else:
            row.role = role
        _log(session, actor, "person.role", person.id, **change)


def set_can_export(store: Store, project: str, annotator: str, allowed: bool, *, actor: str) -> None:
    """Let a member export a project's data, or no longer; off unless given."""
    with store.write() as session:
        person = annotator_row(session, annotator)
        row = _membership(session, project, person)
        if row.can_export != allowed:
            _log(session, actor, "person.export", person.id, after={"can_export": allowed, "project": project})
            row.can_export = allowed


def remove(store: Store, project: str, annotator: str, *, actor: str, reason: str = "") -> None:
    """Take somebody's place in a project away; their judgements stay, and they can be invited again."""
    with store.write() as session:
        person = annotator_row(session, annotator)
        row = _membership(session, project, person)
        row.state, row.can_export = "left", False
        _log(session, actor, "person.remove", person.id, after={"project": project}, reason=reason)


def leave(store: Store, annotator: str, *, actor: str | None = None, reason: str = "") -> None:
    """Take a person's name away for good: handle, name, e-mail, password, logins and settings. Judgements stay.

    Their pseudonyms in exports stay what they were: the same votes still make the same snapshot.
    Errors: StoreError for the last owner of the store.
    """
    with store.write() as session:
        person = annotator_row(session, annotator)
        _keep_an_owner(session, person)
        projects = session.scalars(select(t.Project)).all()
        kept = {project.id: pseudonym(project, person) for project in projects}
        _log(session, actor or person.id, "person.leave", person.id, reason=reason)
        person.handle, person.display_name, person.email = f"left-{secrets.token_hex(6)}", LEFT, None
        person.state, person.role, person.langs, person.skills = "left", "annotator", [], {}
        person.settings = {"pseudonyms": kept}
        theirs = t.Membership.annotator_id == person.id
        session.execute(update(t.Membership).where(theirs).values(state="left", can_export=False, pause_reason=""))
        session.execute(delete(t.Credential).where(t.Credential.annotator_id == person.id))
        session.execute(delete(t.WebSession).where(t.WebSession.annotator_id == person.id))
        session.execute(delete(t.LoginToken).where(t.LoginToken.annotator_id == person.id))


def permissions(store: Store, annotator_id: str, project: str | None = None) -> str | None:
    """A person's role in a project, or in the store; None for who has no place there or is not active."""
    with store.read() as session:
        person = session.get(t.Annotator, annotator_id)
        if person is None or person.state != "active":
            return None
        if project is None or person.role == "owner":
            return person.role
        row = session.get(t.Membership, (project_row(session, project).id, annotator_id))
        return row.role if row is not None and row.state != "left" else None


def record_consent(store: Store, project: str, annotator_id: str, text: str) -> None:
    """Keep that a member agreed to this consent text, by its hash; another text asks again."""
    with store.write() as session:
        row = _membership(session, project, annotator_row(session, annotator_id))
        row.consented_at, row.consent_sha256 = now_ms(), text_sha256(text)


def has_consented(store: Store, project: str, annotator_id: str, text: str) -> bool:
    """Whether a member agreed to exactly this text; an empty text asks nobody."""
    if not text:
        return True
    with store.read() as session:
        row = session.get(t.Membership, (project_row(session, project).id, annotator_id))
        return row is not None and row.consent_sha256 == text_sha256(text)


def change_profile(
    store: Store, annotator_id: str, *, display_name: str | None = None, settings: Mapping[str, Any] | None = None
) -> None:
    """Change a person's name, and those of their settings that are given (None takes one away)."""
    with store.write() as session:
        person = session.get_one(t.Annotator, annotator_id)
        if display_name is not None:
            person.display_name = check_name(display_name)
        merged = {**(person.settings or {}), **(settings or {})}
        person.settings = {key: value for key, value in merged.items() if value is not None}


def check_name(name: str) -> str:
    """A display name on one line, without characters that cannot be seen. Errors: DataError."""
    tidy = " ".join(name.split())
    if not tidy or len(tidy) > NAME_LENGTH or not tidy.isprintable():
        raise DataError(f"is 1 to {NAME_LENGTH} characters that can be printed", field="name")
    return tidy


def _new_person(session: Session, handle: str, *, role: str, state: str) -> t.Annotator:
    if handle != handle.strip() or check_name(handle) != handle or "/" in handle:
        raise DataError("is one word or several, without / and without spaces at its ends", field="handle")
    if _belonged_to_another(session, handle):
        raise StoreError(f"annotator '{handle}': was the name of someone who left; choose another")
    person = t.Annotator(handle=handle, display_name=handle, kind="human", role=role, state=state, langs=[], skills={})
    session.add(person)
    session.flush()
    return person


def _belonged_to_another(session: Session, handle: str) -> bool:
    """Whether exports would call a new person of this handle the same as somebody who left."""
    gone = session.scalars(select(t.Annotator.settings).where(t.Annotator.state == "left")).all()
    kept = {item for settings in gone for item in (settings or {}).get("pseudonyms", {}).items()}
    would_be = t.Annotator(handle=handle, kind="human", settings=None)
    return any((p.id, pseudonym(p, would_be)) in kept for p in session.scalars(select(t.Project)))


def _join(session: Session, project: t.Project, person: t.Annotator, role: str) -> None:
    row = session.get(t.Membership, (project.id, person.id))
    if row is None:
        session.add(t.Membership(project_id=project.id, annotator_id=person.id, role=role))
    elif row.state == "left":
        row.state, row.role = "active", role
    else:
        raise StoreError(f"annotator '{person.handle}': is in project '{project.slug}' already; change the role there")
    session.flush()


def _link(session: Session, person: t.Annotator, hours: float, purpose: str | None = None) -> str:
    purpose = "invite" if person.state == "invited" else purpose or "login"
    return add_token(session, person.id, purpose, {}, hours, now_ms())


def _membership(session: Session, project: str, person: t.Annotator) -> t.Membership:
    row = session.get(t.Membership, (project_row(session, project).id, person.id))
    if row is None:
        raise StoreError(f"annotator '{person.handle}': has no place in project '{project}'; invite them first")
    return row


def _member(person: t.Annotator, place: t.Membership | None, last_seen: int | None) -> Member:
    return Member(
        annotator_id=person.id,
        handle=person.handle,
        display_name=person.display_name,
        kind=person.kind,
        role=place.role if place is not None else person.role,
        state=place.state if place is not None else person.state,
        account=person.state,
        pause_reason=place.pause_reason if place is not None else "",
        can_export=place.can_export if place is not None else person.role == "owner",
        consented_at=place.consented_at if place is not None else None,
        last_seen=last_seen,
    )


def _set_store_role(session: Session, person: t.Annotator, role: str) -> None:
    if role != "owner":
        _keep_an_owner(session, person)
    person.role = role


def _keep_an_owner(session: Session, person: t.Annotator) -> None:
    others = select(func.count(t.Annotator.id)).where(
        t.Annotator.role == "owner", t.Annotator.state == "active", t.Annotator.id != person.id
    )
    if person.role == "owner" and not session.scalar(others):
        raise StoreError(f"annotator '{person.handle}': is the last owner of the store; make somebody else one first")


def _known_role(role: str, project: str | None) -> None:
    known = ROLES if project is not None else STORE_ROLES
    if role not in known:
        raise StoreError(f"role '{role}': {nearest(role, known)}")


def _log(session: Session, actor: str, action: str, person_id: str, **facts: Any) -> None:
    audit.record(session, actor=actor, action=action, object_type="person", object_id=person_id, **facts)
