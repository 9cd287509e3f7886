"""The store: one database that holds prompts, completions, judgements, data sets, models, runs and their edges.

Large files (weights, rollouts, snapshots) stay on disk; the database holds their paths and hashes. Records go in and
come out as `core.types`; a record's own id becomes the row's `key`, so what comes out carries the ids that went in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, insert, select, update
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError, nearest
from alignloop.core.types import (
    Completion,
    Message,
    ModelRef,
    Prompt,
    Sample,
    SamplingParams,
    Score,
    content_id,
)
from alignloop.store import tables as t
from alignloop.store.clusters import settle
from alignloop.store.database import explain, migrate, open_engine, parse_url, single, write_lock
from alignloop.store.ids import json_sha256, now_ms, path_sha256, uuid7
from alignloop.store.memo import Memo
from alignloop.store.records import (
    add_edges,
    answer_role,
    as_json,
    chunks,
    completion_record,
    completion_row,
    fetch,
    identity,
    known_completions,
    pairs,
    prompt_record,
    prompt_row,
    resolver,
)

REMEMBERED = 1024  # tasks whose texts stay in memory (`feedback.cards`): rows that no statement changes


class Store:
    """An open store. ``Store("sqlite:///runs/tutor.db")`` creates the file or migrates it to the present schema.

    Errors: StoreError for a missing or read-only folder, a locked, damaged or foreign database.
    """

    def __init__(self, url: str | Path | URL, *, busy_ms: int = 30_000):
        self.url = parse_url(url)
        self._engine = open_engine(self.url, busy_ms)
        self._writer = self._engine.execution_options(alignloop_write=True)
        self._single = single(self._engine)
        self._lock = write_lock(self.url)
        self._local = threading.local()
        self._info = {"memo": Memo[Any](REMEMBERED)}
        try:
            migrate(self._engine)
        except DatabaseError as error:
            self._engine.dispose()
            raise explain(error, self.url) from error
        except StoreError:
            self._engine.dispose()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; the store can be used no more."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent state and changes nothing."""
        with self._explained(), Session(self._engine, expire_on_commit=False, info=self._info) as session:
            if self.url.get_backend_name() == "postgresql":
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session  # closing ends the transaction; what was read stays readable

    def rows(self, query: Select[Any], facts: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of one query, which sees one consistent state by itself: cheaper than `read`, for columns only."""
        with self._explained(), self._single.connect() as connection:
            return connection.execute(query, facts).all()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are committed together at the end, or not at all."""
        if getattr(self._local, "writing", False):
            raise StoreError(
                "store: write() inside write() of the same thread would wait for itself; pass the session on"
            )
        if self._lock is not None:
            self._lock.acquire()
        self._local.writing = True
        try:
            session = Session(self._writer, expire_on_commit=False, info=self._info)
            with self._explained(), session, session.begin():
                yield session
        finally:
            self._local.writing = False
            if self._lock is not None:
                self._lock.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DatabaseError as error:
            raise explain(error, self.url) from error

    # Prompts and completions

    def add_prompts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Add prompts and return their row ids, in order. A prompt already there (same messages) is not added again.

        The first to arrive fixes the split, its near-duplicates inherit it (`store.clusters`). Errors: StoreError if an
        id is in use for other messages.
        """
        wanted = [(p, json_sha256(as_json(p.messages))) for p in prompts]
        with self.write() as session:
            by_sha = dict(pairs(session, t.Prompt.text_sha256, t.Prompt.id, {sha for _, sha in wanted}))
            keys = dict(pairs(session, t.Prompt.key, t.Prompt.text_sha256, {p.id for p, _ in wanted}))
            new = []
            for index, (prompt, sha) in enumerate(wanted):
                if sha in by_sha:
                    continue
                key = prompt.id or sha[:16]
                if keys.setdefault(key, sha) != sha:
                    raise StoreError(
                        f"prompts[{index}]: id '{key}' is already used for another prompt; give it its own id"
                    )
                by_sha[sha] = uuid7()
                new.append(prompt_row(by_sha[sha], key, sha, prompt))
            if new:
                settle(session, new)
                session.execute(insert(t.Prompt), new)
        return [by_sha[sha] for _, sha in wanted]

    def add_completions(
        self,
        completions: Sequence[Completion],
        *,
        model: str | None = None,
        version: int | None = None,
        sampling: SamplingParams | None = None,
        samples: Iterable[Sample] = (),
    ) -> list[str]:
        """Add completions and return their row ids, in order; one already there is not added again.

        `model` (id, key, path or name) and `version` say who wrote them. `samples` are the engine's token records:
        where `completion.sample_id` names one, its version, sampling, length, log-probability (nats) are kept.
        Equal are: prompt, messages, model, version and author. Errors: StoreError for a prompt that is not stored.
        """
        drawn = {s.id: s for s in samples}
        with self.write() as session:
            model_id = self.model_in(session, model).id if model else None
            prompts = resolver(session, t.Prompt, {c.prompt_id for c in completions}, "completions", "add_prompts")
            rows = [
                completion_row(c, prompts(i, c.prompt_id), model_id, version, sampling, drawn.get(c.sample_id or ""))
                for i, c in enumerate(completions)
            ]
            keys, same = known_completions(session, rows)
            ids, new = [], []
            for index, row in enumerate(rows):
                if identity(row) not in same:
                    if keys.get(row["key"]) == row["text_sha256"]:  # the same words by another author
                        row["key"] = content_id(row["key"], row["author"], row["model_version"])
                    if row["key"] in keys:
                        raise StoreError(
                            f"completions[{index}]: id '{row['key']}' is already used for another completion; "
                            "give it its own id"
                        )
                    keys[row["key"]] = row["text_sha256"]
                    same[identity(row)] = row["id"]
                    new.append(row)
                ids.append(same[identity(row)])
            if new:
                session.execute(insert(t.Completion), new)
        return ids

    def add_samples(self, samples: Sequence[Sample], *, model: str | None = None) -> list[str]:
        """Add what an engine drew as completions (role "text" after a plain prompt, else "assistant")."""
        with self.read() as session:
            prompts = resolver(session, t.Prompt, {s.prompt_id for s in samples}, "samples", "add_prompts")
            rows = {s.prompt_id: prompts(i, s.prompt_id) for i, s in enumerate(samples)}
            roles = dict(pairs(session, t.Prompt.id, t.Prompt.messages, set(rows.values())))
        completions = [
            Completion(
                id=content_id("completion", s.prompt_id, s.model_id, s.version, s.text),
                prompt_id=rows[s.prompt_id],
                messages=(Message(answer_role(roles[rows[s.prompt_id]]), s.text),),
                author=f"model:{s.model_id}@{s.version}",
                sample_id=s.id,
            )
            for s in samples
        ]
        return self.add_completions(completions, model=model, samples=samples)

    def prompts(self, ids: Iterable[str] | None = None) -> dict[str, Prompt]:
        """Prompts by row id (all, or those of `ids`: row ids or keys), in the order they were added."""
        with self.read() as session:
            rows = fetch(session, select(t.Prompt), t.Prompt, ids)
        return {r.id: prompt_record(r) for r in rows}

    def completions(self, ids: Iterable[str] | None = None) -> dict[str, Completion]:
        """Completions by row id (all, or those of `ids`: row ids or keys); `prompt_id` is the prompt's key."""
        with self.read() as session:
            rows = fetch(session, select(t.Completion), t.Completion, ids)
            keys = dict(pairs(session, t.Prompt.id, t.Prompt.key, {r.prompt_id for r in rows}))
        return {r.id: completion_record(r, keys[r.prompt_id]) for r in rows}

    # Scores

    def add_scores(self, scores: Sequence[Score], *, model: str | None = None) -> None:
        """Keep scores; a completion scored again by the same scorer has its score replaced (scores are a cache)."""
        with self.write() as session:
            model_id = self.model_in(session, model).id if model else None
            place = resolver(session, t.Completion, {s.completion_id for s in scores}, "scores", "add_completions")
            rows = {
                (place(i, s.completion_id), s.scorer): {"value": s.value, "parts": dict(s.parts), "model_id": model_id}
                for i, s in enumerate(scores)
            }
            found: dict[tuple[str, str], str] = {}
            for part in chunks({c for c, _ in rows}):
                query = select(t.Score.completion_id, t.Score.scorer, t.Score.id).where(t.Score.completion_id.in_(part))
                found.update({(c, s): i for c, s, i in session.execute(query)})
            old = [{"id": found[k], **v} for k, v in rows.items() if k in found]
            new = [{"completion_id": k[0], "scorer": k[1], **v} for k, v in rows.items() if k not in found]
            if old:
                session.execute(update(t.Score), old)
            if new:
                session.execute(insert(t.Score), new)

    def scores(self, scorer: str, ids: Iterable[str] | None = None) -> dict[str, Score]:
        """A scorer's scores by completion row id."""
        wanted = None if ids is None else set(ids)
        with self.read() as session:
            rows = session.scalars(select(t.Score).where(t.Score.scorer == scorer).order_by(t.Score.id)).all()
        return {
            r.completion_id: Score(r.completion_id, scorer, r.value, r.parts)
            for r in rows
            if wanted is None or r.completion_id in wanted
        }

    # Models, runs, files, edges

    def add_model(self, ref: ModelRef, *, name: str = "", stage: str = "", tokenizer_sha256: str | None = None) -> str:
        """Record a model, with the hash of its folder where that is on this disk, and return its row id.

        `ref.run` (row id or name) becomes the edge run -> model "produced", `ref.parents` (any way to name a model)
        edges model -> model "parent". Recording the same id again is harmless; with other files it is a StoreError.
        """
        path = Path(ref.path)
        sha = path_sha256(path) if ref.path and path.exists() else None
        with self.write() as session:
            key = ref.id or content_id(ref.role, ref.path, sha)
            row = session.scalar(select(t.Model).where(t.Model.key == key))
            if row is not None and row.sha256 != sha:
                raise StoreError(
                    f"model '{key}': already recorded with other files ({row.path}); give the new one its own id"
                )
            if row is None:
                run = self._run(session, ref.run).id if ref.run else None
                row = t.Model(
                    key=key,
                    name=name or path.name or key,
                    role=ref.role,
                    stage=stage,
                    path=ref.path,
                    sha256=sha,
                    base_model=ref.base,
                    tokenizer_sha256=tokenizer_sha256,
                    run_id=run,
                )
                session.add(row)
                session.flush()
                edges = [("model", self.model_in(session, p).id, "model", row.id, "parent") for p in ref.parents]
                add_edges(session, edges + ([("run", run, "model", row.id, "produced")] if run else []))
        return row.id

    def model(self, name: str) -> t.Model:
        """A model by row id, key, path or name (the newest of that name). Errors: StoreError with the nearest name."""
        with self.read() as session:
            return self.model_in(session, name)

    def models(self) -> list[t.Model]:
        """Every model, oldest first."""
        with self.read() as session:
            return list(session.scalars(select(t.Model).order_by(t.Model.id)))

    def add_run(
        self,
        name: str,
        kind: str,
        *,
        method: str = "",
        config: Mapping[str, Any] | None = None,
        path: str | Path = "",
        inputs: Sequence[tuple[str, str, str]] = (),
    ) -> str:
        """Record the start of a run, return its row id; inputs are (type, row id, kind): ("snapshot", id, "data")."""
        settings = dict(config or {})
        with self.write() as session:
            row = t.Run(
                name=name,
                kind=kind,
                method=method,
                config=settings,
                config_sha256=json_sha256(settings),
                path=str(path),
                state="running",
                metrics={},
            )
            session.add(row)
            session.flush()
            add_edges(session, [(parent, key, "run", row.id, kind) for parent, key, kind in inputs])
        return row.id

    def finish_run(self, run: str, *, state: str = "done", metrics: Mapping[str, float] | None = None) -> None:
        """Record how a run ended ("done" or "failed") and its last metrics."""
        with self.write() as session:
            row = self._run(session, run)
            row.state, row.metrics, row.finished_at = state, dict(metrics or {}), now_ms()

    def add_shard(
        self, run: str, path: str | Path, *, n_samples: int, version: int = 0, model: str | None = None
    ) -> str:
        """Record a file of rollouts by path and hash; the same path again gives the same row id."""
        sha = path_sha256(path)
        with self.write() as session:
            run_id = self._run(session, run).id
            model_id = self.model_in(session, model).id if model else None
            found = select(t.RolloutShard).where(t.RolloutShard.run_id == run_id, t.RolloutShard.path == str(path))
            row = session.scalar(found)
            if row is None:
                row = t.RolloutShard(run_id=run_id, path=str(path), model_id=model_id)
                session.add(row)
            row.sha256, row.n_samples, row.version = sha, n_samples, version
        return row.id

    def link(self, parent: tuple[str, str], child: tuple[str, str], kind: str) -> None:
        """Record that `child` (type, id) was made from `parent` (type, id); recording it again changes nothing."""
        with self.write() as session:
            add_edges(session, [(*parent, *child, kind)])

    def model_in(self, session: Session, name: str) -> t.Model:
        """`model`, inside a session that is open."""
        same = [
            t.Model.id == name,
            t.Model.key == name,
            t.Model.path.in_({name, str(Path(name))}),
            t.Model.name == name,
        ]
        for condition in same:
            row = session.scalar(select(t.Model).where(condition).order_by(t.Model.id.desc()).limit(1))
            if row is not None:
                return row
        names = session.scalars(select(t.Model.name).distinct()).all()
        raise StoreError(f"model '{name}': not in the store; {nearest(name, names)}")

    def _run(self, session: Session, name: str) -> t.Run:
        query = select(t.Run).where((t.Run.id == name) | (t.Run.name == name)).order_by(t.Run.id.desc()).limit(1)
        row = session.scalar(query)
        if row is None:
            raise StoreError(
                f"run '{name}': not in the store; {nearest(name, session.scalars(select(t.Run.name)).all())}"
            )
        return row
