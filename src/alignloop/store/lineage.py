"""Lineage: from a model back to the judgements, texts and prompts behind it, and from any of these forward to models.

The tree says a thing once: what was shown higher up is named again without its branches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError, nearest
from alignloop.store import tables as t
from alignloop.store.records import NODE_TYPES, chunks
from alignloop.store.store import Store

Step = tuple[str, str, str]  # kind of the edge, type and id of what it leads to

_TABLES: dict[str, Any] = {
    "prompt": t.Prompt,
    "completion": t.Completion,
    "judgement": t.Judgement,
    "snapshot": t.Snapshot,
    "run": t.Run,
    "model": t.Model,
    "shard": t.RolloutShard,
}


@dataclass(frozen=True)
class Node:
    """A thing in the tree. `edge` says how it hangs on its parent, `repeated` that it stands in full elsewhere.

    Groups ("judgements", "completions", "prompts") stand for many rows; `facts` counts them.
    """

    type: str
    id: str
    label: str
    edge: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()
    repeated: bool = False

    def to_json(self) -> dict[str, Any]:
        """The tree as plain JSON."""
        own = {"type": self.type, "id": self.id, "label": self.label, "edge": self.edge, "facts": self.facts}
        return own | {"repeated": self.repeated, "children": [c.to_json() for c in self.children]}

    def to_text(self) -> str:
        """The tree drawn in plain text."""
        return "\n".join(self._lines("", ""))

    def _lines(self, first: str, rest: str) -> list[str]:
        facts = "  ".join(f"{k}: {_short(v)}" for k, v in self.facts.items() if v not in (None, "", {}, []))
        edge = f"{self.edge}: " if self.edge else ""
        lines = [f"{first}{edge}{self.type} {self.label}{'  ' + facts if facts else ''}"]
        if self.repeated:
            lines[0] += "  (see above)"
        for k, child in enumerate(self.children):
            last = k == len(self.children) - 1
            lines += child._lines(rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "))
        return lines

    def walk(self) -> Iterable[Node]:
        """This node and all below it, top down."""
        yield self
        for child in self.children:
            yield from child.walk()

    def graph(self, forward: bool = False) -> dict[str, list[dict[str, Any]]]:
        """Nodes and edges for a drawing: {"nodes": [{id, type, label, facts}], "edges": [{source, target, kind}]}.

        Edges run from what was used to what was made of it. forward: the tree came from `descendants`.
        """
        nodes: dict[str, dict[str, Any]] = {}
        edges: dict[tuple[str, str, str], None] = {}
        for node in self.walk():
            key = f"{node.type}:{node.id}"
            if not node.repeated or key not in nodes:
                nodes[key] = {"id": key, "type": node.type, "label": node.label, "facts": node.facts}
            for child in node.children:
                other = f"{child.type}:{child.id}"
                edges[(key, other, child.edge) if forward else (other, key, child.edge)] = None
        drawn = [{"source": source, "target": target, "kind": kind} for source, target, kind in edges]
        return {"nodes": list(nodes.values()), "edges": drawn}


def lineage(store: Store, model: str) -> Node:
    """What a model was made from: runs, snapshots, judgements by annotator, completions by author, prompts by split.

    model: row id, key, path or name. Errors: StoreError with the nearest name if it is not in the store.
    """
    with store.read() as session:
        row = store.model_in(session, model)
        return _tree(session, ("", "model", row.id), _sources, set())


def descendants(store: Store, kind: str, ref: str) -> Node:
    """What was made from a prompt, completion, judgement, snapshot, run or model (row id, key or name).

    Errors: StoreError for a type or id that is not known.
    """
    if kind not in _TABLES and kind != "file":
        raise StoreError(f"lineage of '{kind}': {nearest(kind, NODE_TYPES)}")
    with store.read() as session:
        return _tree(session, ("", kind, _find(store, session, kind, ref)), _products, set())


def _find(store: Store, session: Session, kind: str, ref: str) -> str:
    if kind == "file":
        return ref
    if kind == "model":
        return store.model_in(session, ref).id
    table = _TABLES[kind]
    names = [getattr(table, c) for c in ("id", "key", "name") if hasattr(table, c)]
    for column in names:
        found = session.scalar(select(table.id).where(column == ref).order_by(table.id.desc()).limit(1))
        if found is not None:
            return str(found)
    raise StoreError(f"{kind} '{ref}': not in the store; give its row id" + (", key or name" if len(names) > 1 else ""))


def _tree(
    session: Session, step: Step, follow: Callable[[Session, str, str], tuple[list[Step], list[Node]]], seen: set[str]
) -> Node:
    edge, kind, key = step
    label, facts = _describe(session, kind, key)
    if f"{kind}:{key}" in seen:
        return Node(kind, key, label, edge, repeated=True)
    seen.add(f"{kind}:{key}")
    steps, groups = follow(session, kind, key)
    children = [_tree(session, s, follow, seen) for s in steps]
    return Node(kind, key, label, edge, facts, (*children, *groups))


def _sources(session: Session, kind: str, key: str) -> tuple[list[Step], list[Node]]:
    """What a thing was made from: its recorded edges, and for a snapshot the groups behind its votes."""
    query = select(t.Edge).where(t.Edge.child_type == kind, t.Edge.child_id == key)
    edges = [e for e in session.scalars(query) if e.parent_type != "judgement"]
    steps = sorted(((e.kind, e.parent_type, e.parent_id) for e in edges), key=lambda s: (s[1] != "run", s))
    if kind == "model" and any(s[0] == "produced" for s in steps):
        # the run names the model it started from: a second line of the same says nothing
        of_runs = [_sources(session, "run", s[2])[0] for s in steps if s[0] == "produced"]
        used = {s[2] for run in of_runs for s in run}
        steps = [s for s in steps if not (s[0] == "parent" and s[2] in used)]
    if kind != "snapshot":
        return steps, []
    groups, authors = _votes_behind(session, key)
    return steps + [("sampled", "model", m) for m in authors], groups


def _votes_behind(session: Session, snapshot: str) -> tuple[list[Node], list[str]]:
    """The judgements, completions and prompts behind a snapshot, counted; and the models that wrote the completions."""
    people: Counter[str] = Counter()
    tasks: set[str] = set()
    query = (
        select(t.Annotator.handle, t.Judgement.task_id)
        .join(t.Judgement, t.Judgement.annotator_id == t.Annotator.id)
        .join(t.Edge, (t.Edge.parent_id == t.Judgement.id) & (t.Edge.parent_type == "judgement"))
        .where(t.Edge.child_type == "snapshot", t.Edge.child_id == snapshot)
    )
    for handle, task in session.execute(query):
        people[handle] += 1
        tasks.add(task)
    if not people:
        return [], []
    completions: dict[str, tuple[str, str | None, str]] = {}
    for part in chunks(tasks):
        c = t.Completion
        texts = select(c.id, c.author, c.model_id, c.prompt_id).join(t.TaskItem, t.TaskItem.completion_id == c.id)
        for row in session.execute(texts.where(t.TaskItem.task_id.in_(part))):
            completions[row[0]] = (row[1], row[2], row[3])
    splits: Counter[str] = Counter()
    for part in chunks({prompt for _, _, prompt in completions.values()}):
        splits.update(session.scalars(select(t.Prompt.split).where(t.Prompt.id.in_(part))))
    authors = Counter(author or "unknown" for author, _, _ in completions.values())
    groups = [
        _group("judgements", snapshot, people, "by"),
        _group("completions", snapshot, authors, "by"),
        _group("prompts", snapshot, splits, "split"),
    ]
    return groups, sorted({model for _, model, _ in completions.values() if model is not None})


def _group(kind: str, owner: str, counts: Counter[str], by: str) -> Node:
    return Node(kind, owner, str(sum(counts.values())), "from", {by: dict(sorted(counts.items()))})


def _products(session: Session, kind: str, key: str) -> tuple[list[Step], list[Node]]:
    """What was made from a thing: recorded edges, and the keys that lead from prompts to judgements."""
    query = select(t.Edge).where(t.Edge.parent_type == kind, t.Edge.parent_id == key)
    steps = sorted((e.kind, e.child_type, e.child_id) for e in session.scalars(query))
    runs = {s[2] for s in steps if s[1] == "run"}
    if kind == "model" and runs:  # a child reached through its run is not listed twice
        made_by_run = set(session.scalars(select(t.Model.id).where(t.Model.run_id.in_(runs))))
        steps = [s for s in steps if not (s[0] == "parent" and s[2] in made_by_run)]
    if kind == "prompt":
        found = session.scalars(select(t.Completion.id).where(t.Completion.prompt_id == key))
        steps += [("answered", "completion", c) for c in sorted(found)]
    if kind == "completion":
        task = select(t.TaskItem.task_id).where(t.TaskItem.completion_id == key)
        found = session.scalars(select(t.Judgement.id).where(t.Judgement.task_id.in_(task)))
        steps += [("judged", "judgement", j) for j in sorted(found)]
    if kind == "model":
        judged = (
            select(t.Edge.child_id)
            .join(t.Judgement, t.Judgement.id == t.Edge.parent_id)
            .join(t.TaskItem, t.TaskItem.task_id == t.Judgement.task_id)
            .join(t.Completion, t.Completion.id == t.TaskItem.completion_id)
            .where(t.Edge.parent_type == "judgement", t.Completion.model_id == key)
            .distinct()
        )
        steps += [("sampled", "snapshot", s) for s in sorted(session.scalars(judged))]
    return steps, []


def _describe(session: Session, kind: str, key: str) -> tuple[str, dict[str, Any]]:
    """The label and facts of a row; a thing whose row is not here is named by its id."""
    row = session.get(_TABLES[kind], key) if kind in _TABLES else None
    if row is None:
        return key, {}
    describe: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
        "prompt": lambda r: (r.key, {"split": r.split, "source": r.source}),
        "completion": lambda r: (r.key, {"author": r.author}),
        "judgement": lambda r: (r.id, {"outcome": r.outcome, "strength": r.strength, "revision": r.revision}),
        "snapshot": lambda r: (r.name, {"rows": r.n_rows, "sha256": r.manifest_sha256[:12]}),
        "run": lambda r: (r.name, {"kind": r.kind, "method": r.method, "state": r.state}),
        "model": lambda r: (r.name, {"role": r.role, "path": r.path, "sha256": (r.sha256 or "")[:12]}),
        "shard": lambda r: (r.path, {"samples": r.n_samples, "version": r.version}),
    }
    label, facts = describe[kind](row)
    return str(label), facts


def _short(value: Any) -> str:
    if isinstance(value, dict):
        shown: Sequence[str] = [f"{k} {v}" for k, v in value.items()]
        return ", ".join(shown[:12]) + (f", and {len(shown) - 12} more" if len(shown) > 12 else "")
    return str(value)
