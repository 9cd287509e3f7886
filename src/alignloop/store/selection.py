"""Which rows a data set takes: the spec, the stream of what it lets through, and what is counted on the way.

Snapshots freeze this stream and exports write it; both hold one row in memory at a time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alignloop.core.config import Config
from alignloop.core.errors import StoreError
from alignloop.core.overlap import HeldOut
from alignloop.store import tables as t
from alignloop.store.clusters import QUARANTINE
from alignloop.store.records import STREAM
from alignloop.store.row_kinds import Kind, Row, Targets
from alignloop.store.rows import current_aggregation, rows_of_project
from alignloop.store.votes import project_row

Choice = Literal["keep", "drop"]


class SnapshotSpec(Config):
    """What a data set holds. The same spec and the same data give the same bytes, in either database."""

    projects: tuple[str, ...] = Field(min_length=1)
    """Projects whose judgements are taken, together."""
    kinds: tuple[Kind, ...] = Field(("pairs",), min_length=1)
    """What is made of them, a file each: pairs, kto, sft, ranking, raw."""
    use: Literal["reward", "dpo"] = "reward"
    """What pairs are for: DPO, unlike a reward model, has no use for ties and for answers that are both bad."""
    method: str = "ordinal"
    """Method of aggregation; the newest of each project by this method is taken, and it must be up to date."""
    splits: tuple[str, ...] = ()
    """Splits of the prompts taken; empty takes all but quarantined ones."""
    ties: Choice | None = None
    """Pairs on which every vote was a tie (p = .5); null: as `use` wants."""
    disputed: Choice = "keep"
    """Pairs whose three or more votes are split; most disagreement is taste, not noise (arXiv:2410.14632)."""
    both_bad: Choice | None = None
    """Pairs that most annotators called both bad; null: as `use` wants."""
    held_out_votes: int = Field(1, ge=1)
    """Votes that a pair outside the split train needs, unless it was adjudicated."""
    targets: Targets = Targets()
    """What judgements are worth where no aggregation says so."""
    overlap: Choice = "drop"
    """Training rows that share 13 words in a row with a validation or test prompt of the store."""
    comments: bool = False
    """Whether raw rows carry what annotators wrote beside their answers."""

    def wants(self, kind: Kind, row: Row) -> bool:
        """Whether a row belongs to the data set. Raw rows are a record, not training data: quarantined ones too."""
        if self.splits:
            wanted = row["split"] in self.splits
        else:
            wanted = kind == "raw" or row["split"] != QUARANTINE
        return wanted and (kind != "pairs" or self._wants_pair(row))

    def _wants_pair(self, row: Row) -> bool:
        useless = "keep" if self.use == "reward" else "drop"
        if (self.ties or useless) == "drop" and row["tie"]:
            return False
        if self.disputed == "drop" and row["disputed"]:
            return False
        if (self.both_bad or useless) == "drop" and 2 * row["both_bad"] > row["n_votes"] and row["origin"] != "edit":
            return False
        settled = row["split"] == "train" or row["adjudicated"] or row["origin"] == "edit"
        return bool(settled or row["n_votes"] >= self.held_out_votes)


class Selection:
    """The rows of a spec in one transaction. `sources` says what they come from, `judgements` grows as they are read.

    without: prompts of benchmarks; training rows that share words with one are left out, whatever the spec says.
    `overlaps` grows by what is left out so: (kind, row id) -> the name of the held-out prompt.
    Errors: StoreError for a project that is not aggregated as it stands, or a cluster of prompts in two splits.
    """

    def __init__(self, session: Session, spec: SnapshotSpec, without: HeldOut | None = None):
        self.session, self.spec = session, spec
        self.projects = [project_row(session, slug) for slug in dict.fromkeys(spec.projects)]
        _check_clusters(session)
        pairs = "pairs" in spec.kinds
        self.aggregations = [current_aggregation(session, p, spec.method) if pairs else None for p in self.projects]
        self.sources = [self._source(p, a) for p, a in zip(self.projects, self.aggregations)]
        self.judgements: dict[str, None] = {}
        self.overlaps: dict[tuple[Kind, str], str] = {}
        self._held = held_out_of(session, without, own=spec.overlap == "drop") if self._trains() else ()

    def rows(self, kind: Kind) -> Iterator[Row]:
        """The rows of a kind by id. Errors: StoreError for two rows of one id, or a pair of equal sides."""
        streams = [
            rows_of_project(self.session, project, kind, self.spec.targets, aggregation)
            for project, aggregation in zip(self.projects, self.aggregations)
        ]
        last, copies = "", set[str]()
        for row, judgements in heapq.merge(*streams, key=lambda found: str(found[0]["id"])):
            if not self.spec.wants(kind, row):
                continue
            if kind != "raw" and row["split"] == "train" and (match := self._shared(row)) is not None:
                self.overlaps[kind, row["id"]] = match
                continue
            if row["id"] <= last:
                raise StoreError(f"{kind} row '{row['id']}': comes twice; give each project once")
            last = row["id"]
            if kind == "sft":
                if row["completion_id"] in copies:
                    continue  # an answer that two tasks found good is learnt once
                copies.add(row["completion_id"])
            if kind == "raw" and not self.spec.comments:
                del row["comment"]
            if kind == "pairs" and row["chosen"] == row["rejected"]:
                raise StoreError(f"pairs row '{row['id']}': chosen and rejected are the same text; void the task")
            self.judgements.update(dict.fromkeys(judgements))
            yield row

    def _trains(self) -> bool:
        spec = self.spec
        return set(spec.kinds) != {"raw"} and (not spec.splits or "train" in spec.splits)

    def _shared(self, row: Row) -> str | None:
        if not self._held:
            return None
        sides = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
        answers = [spoken(said) for said in [*sides, *row.get("completions", ())]]
        prompt = spoken(row["prompt"])
        return next(filter(None, (held.match(prompt, answers) for held in self._held)), None)

    def _source(self, project: t.Project, aggregation: t.Aggregation | None) -> dict[str, Any]:
        query = select(t.Guideline.sha256).where(t.Guideline.project_id == project.id).order_by(t.Guideline.version)
        source: dict[str, Any] = {
            "project": project.slug,
            "guideline_sha256": list(self.session.scalars(query)),
        }
        if aggregation is None:
            return source
        facts = ("alpha", "alpha_figure", "agreement", "position_bias", "temperature")
        return source | {
            "method": aggregation.method,
            "params": aggregation.params,
            "votes_sha256": aggregation.votes_sha256,
            "report": {name: aggregation.report.get(name) for name in facts},
        }


class Tally:
    """What a manifest says of the rows of one kind, counted as they pass."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.rows, self.votes = kind, 0, 0
        self.by = {name: Counter[str]() for name in ("split", "kind", "origin", "tie", "disputed", "label")}
        self.sides = {side: Counter[str]() for side in ("chosen", "rejected")}
        self.longer, self.unequal = 0, 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self.votes += row.get("n_votes", 1)
        for name, counter in self.by.items():
            if name in row:
                counter[str(row[name]).lower()] += 1
        if self.kind == "pairs" and row["p"] > 0.5:
            lengths = [sum(len(m["content"]) for m in row[side]) for side in self.sides]
            self.unequal += lengths[0] != lengths[1]
            self.longer += lengths[0] > lengths[1]
            for side, counter in self.sides.items():
                counter[row[f"{side}_author"]] += 1

    def facts(self) -> dict[str, Any]:
        """Counts, and of pairs: the share whose longer answer was chosen, and how often each author was."""
        found: dict[str, Any] = {"rows": self.rows, "votes": self.votes}
        found |= {f"by_{name}": dict(sorted(counter.items())) for name, counter in self.by.items() if counter}
        if self.kind == "pairs":
            authors = sorted({*self.sides["chosen"], *self.sides["rejected"]})
            found["longer_chosen"] = self.longer / self.unequal if self.unequal else None
            found["authors"] = {a: {side: counter[a] for side, counter in self.sides.items()} for a in authors}
        return found


def held_out_of(session: Session, benchmarks: HeldOut | None, *, own: bool) -> tuple[HeldOut, ...]:
    """What training rows are compared with: benchmarks, and with `own` the store's validation and test prompts.

    What many training prompts of the store share is boilerplate.
    """
    p = t.Prompt
    stored = select(p.key, p.messages).where(p.split.not_in(("train", QUARANTINE))).order_by(p.id)
    mine = HeldOut((key, spoken(messages)) for key, messages in session.execute(stored)) if own else HeldOut()
    trained = select(p.messages).where(p.split == "train").execution_options(yield_per=STREAM)
    return tuple(held.among(map(spoken, session.scalars(trained))) for held in (benchmarks, mine) if held)


def spoken(messages: Sequence[Mapping[str, str]]) -> str:
    """What messages say, without those of the system, which are often one for all."""
    return "\n\n".join(m["content"] for m in messages if m["role"] != "system")


def _check_clusters(session: Session) -> None:
    """No cluster of near-duplicates stands in two splits, in the whole store."""
    p = t.Prompt
    mixed = select(p.cluster_id).where(p.split != QUARANTINE).group_by(p.cluster_id)
    found = session.scalar(mixed.having(func.count(p.split.distinct()) > 1).order_by(p.cluster_id).limit(1))
    if found is not None:
        named = session.execute(select(p.key, p.split).where(p.cluster_id == found).order_by(p.id).limit(5))
        listed = ", ".join(f"'{key}' ({split})" for key, split in named)
        raise StoreError(f"prompts {listed} are near-duplicates in different splits; put them all in one split")
