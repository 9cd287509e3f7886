"""Data of a project: cards from answers in the store, imports with a check first, snapshots, exports with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, File, Request, UploadFile
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from alignloop.core.errors import AlignloopError, ConfigError, DataError, StoreError
from alignloop.feedback.offers import offer, sources
from alignloop.feedback.projects import project_view
from alignloop.pipeline.exports import download, freeze
from alignloop.pipeline.imports import Report, check_import, import_file
from alignloop.pipeline.imports import Request as Import
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.exports import TRL_COLUMNS, form_of
from alignloop.store.row_kinds import ROWS
from alignloop.store.selection import SnapshotSpec
from alignloop.store.snapshots import Difference, diff, list_snapshots, verify
from alignloop.web.access import Visitor, require
from alignloop.web.limits import limited
from alignloop.web.me import form_fields
from alignloop.web.page import render, settings_of, store_of
from alignloop.web.project_forms import OFFER_FORM, offer_from, overlap_from, slug_of
from alignloop.web.projects import authors_sent
from alignloop.web.uploads import ENDINGS, Upload, Uploads

router = APIRouter()
Curator = Annotated[Visitor, require("curate")]
Exporter = Annotated[Visitor, require("export")]
Fields = Annotated[dict[str, str], Depends(form_fields)]
SPLITS = ("keep", "train", "validation", "test")
SHOWN_ROWS, SHOWN_IDS = 50, 20  # rejected rows, ids of a difference that a page lists
NAMES = ("prompt", "completion", "chosen", "rejected", "messages")  # columns that a form may rename


@router.get("/p/{project}/data")
def data_page(request: Request, project: str, who: Curator, news: str = "", n: int = 0) -> Response:
    """All of it."""
    return _page(request, project, who, news=news if news in ("cards", "snapshot", "verified") else "", n=n)


@router.post("/p/{project}/data/cards")
def make_cards(
    request: Request,
    project: str,
    who: Curator,
    form: Fields,
    authors: Annotated[tuple[str, ...], Depends(authors_sent)],
) -> Response:
    """Cards from answers that are in the store."""
    try:
        if not authors:
            raise ConfigError("cards: tick at least one source of answers")
        n = offer(store_of(request), project, offer_from(form, authors), overlap_from(form))
    except AlignloopError as error:
        return _page(request, project, who, form=form, authors=authors, error=str(error), section="cards")
    return RedirectResponse(f"/p/{project}/data?news=cards&n={n}#cards", 303)


@router.post("/p/{project}/data/import")
def import_data(
    request: Request, project: str, who: Curator, form: Fields, file: Annotated[UploadFile | None, File()] = None
) -> Response:
    """Check a file, or import it. The file stays here for an hour, so that after a check it need not be sent again."""
    uploads: Uploads = request.app.state.uploads
    upload, report, done = None, None, False
    try:
        if file is not None and file.filename:
            upload = uploads.keep(file.file, file.filename, who.annotator_id)
        else:
            upload = uploads.find(form.get("upload", ""), who.annotator_id)
        wanted, store = _import(form, project, upload), store_of(request)
        if form.get("do") == "import":
            report = import_file(store, wanted, actor=who.annotator_id, skip_bad="skip_bad" in form)
            done = True
        else:
            report = check_import(store, wanted)
    except AlignloopError as error:
        said = _without_path(str(error), upload)
        return _page(request, project, who, form=form, upload=upload, error=said, section="import")
    return _page(request, project, who, form=form, upload=None if done else upload, report=report, done=done)


@router.post("/p/{project}/data/snapshots")
def make_snapshot(request: Request, project: str, who: Curator, form: Fields) -> Response:
    """Aggregate the votes as they are and freeze them."""
    try:
        spec = SnapshotSpec.parse(
            {
                "projects": (project,),
                "kinds": (form.get("kind", "pairs"),),
                "use": form.get("use", "reward"),
                "ties": form.get("ties") or None,
                "disputed": form.get("disputed") or "keep",
            },
            where="snapshot",
        )
        folder = settings_of(request).snapshot_folder
        parent = form.get("parent") or None
        if parent is not None:
            _snapshot(store_of(request), project, who, parent)
        name = form.get("name", "").strip()
        made = freeze(store_of(request), name, spec, folder, parent=parent, actor=who.annotator_id)
    except AlignloopError as error:
        return _page(request, project, who, form=form, error=str(error), section="snapshots")
    return RedirectResponse(f"/p/{project}/data?news=snapshot&n={made.overlapping}#snapshots", 303)


@router.post("/p/{project}/data/verify")
def verify_snapshot(request: Request, project: str, who: Curator, form: Fields) -> Response:
    """Check that a snapshot's files are what they were."""
    try:
        verify(_snapshot(store_of(request), project, who, form.get("name", "")).path)
    except AlignloopError as error:
        return _page(request, project, who, error=str(error), section="snapshots")
    return RedirectResponse(f"/p/{project}/data?news=verified#snapshots", 303)


@router.get("/p/{project}/data/diff")
def compare(request: Request, project: str, who: Curator, a: str = "", b: str = "") -> Response:
    """What a later snapshot has, lacks and says otherwise than an earlier one."""
    store, found, error = store_of(request), None, ""
    try:
        found = diff(_snapshot(store, project, who, a).path, _snapshot(store, project, who, b).path)
    except AlignloopError as problem:
        error = str(problem)
    return _page(request, project, who, difference=found, between=(a, b), error=error, section="snapshots")


@router.post("/p/{project}/data/export", dependencies=[limited("export")])
def export_data(request: Request, project: str, who: Exporter, form: Fields) -> Response:
    """The project's data as lines of JSON. Who asked and why is on record before the first line leaves."""
    kind = form.get("kind", "pairs")
    shape = "trl" if form.get("shape") == "trl" and kind in TRL_COLUMNS else "full"
    try:
        if not form.get("reason", "").strip():
            raise ConfigError("export: say what it is for; it stays in the audit log")
        wanted = form_of(kind=kind, shape=shape, file="jsonl", splits=(form["split"],) if form.get("split") else ())
        spec = SnapshotSpec.parse(
            {"projects": (project,), "kinds": (kind,), "comments": "comments" in form}, where="export"
        )
        lines = download(store_of(request), spec, wanted, actor=who.annotator_id, reason=form["reason"].strip())
        first = next(lines, b"")  # what is wrong shows before the response has begun
    except AlignloopError as error:
        return _page(request, project, who, form=form, error=str(error), section="export")
    headers = {"Content-Disposition": f'attachment; filename="{slug_of(project) or "project"}-{kind}.jsonl"'}
    return StreamingResponse(_closing(chain([first], lines), lines), media_type="application/jsonl", headers=headers)


def _closing(chunks: Iterator[bytes], source: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks; the transaction of their source ends with them, also where nobody takes them all."""
    try:
        yield from chunks
    finally:
        cast("Any", source).close()


def _import(form: Mapping[str, str], project: str, upload: Upload) -> Import:
    split = form.get("split", "keep")
    if split not in SPLITS:
        raise DataError(f"is one of {', '.join(SPLITS)}", field="split")
    columns = {name: form[f"column-{name}"].strip() for name in NAMES if form.get(f"column-{name}", "").strip()}
    return Import(
        upload.path,
        project,
        columns=columns,
        strings="chat" if "chat" in form else "text",
        split=cast("Literal['keep', 'train', 'validation', 'test']", split),
        overlap=overlap_from(form),
    )


def _without_path(said: str, upload: Upload | None) -> str:
    """An error in the words of somebody who has no command line here, and who knows the file by its own name."""
    if upload is not None:
        said = said.replace(str(upload.path), upload.name)
    return said.replace("list them with --dry-run, leave them out with --on-bad-row skip", "check it to see them all")


def _snapshot(store: Store, project: str, who: Visitor, name: str) -> t.Snapshot:
    """A snapshot of this project by name. Errors: StoreError for one that is not there, or not theirs to see."""
    found = next((s for s in _snapshots(store, project, who) if s.name == name), None)
    if found is None:
        raise StoreError(f"snapshot '{name[:100]}': there is none of this project")
    return found


def _snapshots(store: Store, project: str, who: Visitor) -> list[t.Snapshot]:
    """The snapshots with data of this project, newest first; those with data that one may not see are left out."""
    kept = [(s, s.spec.get("projects", ())) for s in list_snapshots(store)]
    return [s for s, of in reversed(kept) if project in of and all(who.may("curate", p) for p in of)]


def _page(
    request: Request,
    project: str,
    who: Visitor,
    *,
    form: Mapping[str, str] | None = None,
    authors: tuple[str, ...] = (),
    upload: Upload | None = None,
    report: Report | None = None,
    done: bool = False,
    difference: Difference | None = None,
    between: tuple[str, str] = ("", ""),
    news: str = "",
    n: int = 0,
    error: str = "",
    section: str = "",
) -> Response:
    store = store_of(request)
    view = project_view(store, project)
    return render(
        request,
        "owner/data.html",
        400 if error else 200,
        project=view,
        form=OFFER_FORM | dict(form or {}),
        sources=sources(store),
        authors=authors,
        endings=",".join(ENDINGS),
        columns=NAMES,
        upload=upload,
        report=report,
        rejected=report.rejected[:SHOWN_ROWS] if report is not None else (),
        done=done,
        snapshots=[(s, Path(s.path).name) for s in _snapshots(store, project, who)],
        kinds=tuple(ROWS),
        difference=difference,
        shown_ids=SHOWN_IDS,
        between=between,
        news=news,
        n=n,
        error=error,
        section=section,
    )
