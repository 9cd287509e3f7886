"""Lineage: from a checkpoint to the people behind it, and from a prompt to the checkpoints made with it."""

import json

import pytest

from alignloop.core.errors import StoreError
from alignloop.core.types import Completion, Message, ModelRef, Prompt
from alignloop.feedback.aggregate import AggregateConfig, aggregate
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.projects import add_annotators, create_project
from alignloop.feedback.queue import claim, submit
from alignloop.feedback.tasks import create_tasks
from alignloop.store import Store
from alignloop.store.lineage import descendants, lineage
from alignloop.store.snapshots import SnapshotSpec, create_snapshot


@pytest.fixture
def store(tmp_path):
    """base -> sft; its completions judged by ann (2) and bob (1); reward from the votes; ppo from sft and reward."""
    with Store(tmp_path / "a.db") as s:
        s.add_model(ModelRef("base", "policy", "hub/base"), name="base")
        run = s.add_run("sft", "train", method="sft", inputs=[("model", s.model("base").id, "start")])
        s.add_model(ModelRef("sft-1", "policy", "", parents=("base",), run=run), name="sft")
        s.add_prompts([Prompt(k, (Message("user", k),), split=x) for k, x in (("p", "train"), ("q", "test"))])
        texts = [Completion(k + i, k, (Message("assistant", i),), author="model:sft@0") for k in "pq" for i in "01"]
        s.add_completions(texts, model="sft", version=0)
        create_project(s, "votes")
        add_annotators(s, ["ann", "bob"])
        create_tasks(s, "votes", [("p0", "p1"), ("q0", "q1")], overlap=2)
        for name, n in (("ann", 2), ("bob", 1)):
            for _ in range(n):
                submit(s, claim(s, "votes", name), Verdict(1))
        aggregate(s, "votes", AggregateConfig(method="majority"))
        votes = create_snapshot(s, "v1", SnapshotSpec(projects=("votes",), method="majority"), tmp_path)
        run = s.add_run("reward", "train", method="reward", inputs=[("snapshot", votes.id, "data")])
        s.add_model(ModelRef("rm-1", "reward", "", run=run), name="reward")
        inputs = [("model", s.model("sft").id, "start"), ("model", s.model("reward").id, "reward")]
        run = s.add_run("policy", "train", method="ppo", inputs=inputs)
        s.add_model(ModelRef("ppo-1", "policy", "", parents=("sft",), run=run), name="policy")
        yield s


def test_a_checkpoint_is_walked_back_to_the_judgements(store):
    tree = lineage(store, "policy")
    assert [(n.edge, n.type, n.label) for n in tree.walk()][:2] == [
        ("", "model", "policy"),
        ("produced", "run", "policy"),
    ]
    found = {(n.type, n.label) for n in tree.walk()}
    assert {("model", "reward"), ("snapshot", "v1"), ("model", "sft"), ("model", "base"), ("run", "reward")} <= found
    groups = {n.type: n.facts for n in tree.walk() if n.type in ("judgements", "completions", "prompts")}
    assert groups["judgements"] == {"by": {"ann": 2, "bob": 1}}
    assert groups["completions"] == {"by": {"model:sft@0": 4}}
    assert groups["prompts"] == {"split": {"test": 1, "train": 1}}


def test_a_thing_stands_in_full_once(store):
    nodes = [n for n in lineage(store, "policy").walk() if n.label == "sft" and n.type == "model"]
    assert [n.repeated for n in nodes].count(False) == 1
    assert all(not n.children for n in nodes if n.repeated)
    assert len(nodes) == 2  # start of the policy, author of the completions; not a third time as "parent"


def test_a_prompt_is_walked_forward_to_the_checkpoints(store):
    tree = descendants(store, "prompt", "p")
    found = {(n.type, n.label) for n in tree.walk()}
    assert {("completion", "p0"), ("snapshot", "v1"), ("model", "reward"), ("model", "policy")} <= found
    assert ("completion", "q0") not in found
    forward = descendants(store, "model", "sft")
    assert {("snapshot", "v1"), ("model", "policy")} <= {(n.type, n.label) for n in forward.walk()}
    assert ("model", "base") not in {(n.type, n.label) for n in forward.walk()}


def test_both_directions_agree(store):
    """Every judgement behind a model leads forward to that model."""
    snapshot = next(n for n in lineage(store, "policy").walk() if n.type == "snapshot")
    with store.read() as session:
        from alignloop.store import tables as t

        judgements = [
            e.parent_id for e in session.query(t.Edge).filter_by(child_id=snapshot.id, parent_type="judgement")
        ]
    assert len(judgements) == 3
    for judgement in judgements:
        assert "policy" in {n.label for n in descendants(store, "judgement", judgement).walk() if n.type == "model"}


def test_text_json_and_graph_tell_the_same_story(store):
    tree = lineage(store, "policy")
    text = tree.to_text()
    assert text.splitlines()[0].startswith("model policy  role: policy")
    assert "judgements 3  by: ann 2, bob 1" in text
    assert "└── " in text
    assert len(text.splitlines()) == len(list(tree.walk()))
    assert json.loads(json.dumps(tree.to_json()))["children"][0]["type"] == "run"
    graph = tree.graph()
    ids = {n["id"] for n in graph["nodes"]}
    assert all(e["source"] in ids and e["target"] in ids for e in graph["edges"])
    assert len(ids) == len(graph["nodes"])
    kinds = {(e["kind"], e["source"].split(":")[0], e["target"].split(":")[0]) for e in graph["edges"]}
    assert {("data", "snapshot", "run"), ("produced", "run", "model"), ("reward", "model", "run")} <= kinds
    forward = descendants(store, "prompt", "p").graph(forward=True)
    kinds = {(e["kind"], e["source"].split(":")[0], e["target"].split(":")[0]) for e in forward["edges"]}
    assert {("answered", "prompt", "completion"), ("data", "snapshot", "run")} <= kinds


def test_unknown_names_are_explained(store):
    with pytest.raises(StoreError, match="did you mean 'policy'"):
        lineage(store, "polic")
    with pytest.raises(StoreError, match="prompt 'zzz': not in the store; give its row id, key or name"):
        descendants(store, "prompt", "zzz")
    with pytest.raises(StoreError, match="did you mean 'model'"):
        descendants(store, "modle", "x")
