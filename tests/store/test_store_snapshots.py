"""Snapshots: the same bytes from the same data, whatever the order, and refusal of what has changed."""

import json

import pytest
from sqlalchemy import update

from alignloop.core.errors import StoreError
from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.aggregate import AggregateConfig, aggregate
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.projects import ProjectConfig, add_annotators, create_project, publish_guideline
from alignloop.feedback.queue import claim, submit, undo
from alignloop.feedback.tasks import create_tasks
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.snapshots import (
    SnapshotSpec,
    create_snapshot,
    diff,
    list_snapshots,
    load_rows,
    load_snapshot,
    read_snapshot,
    verify,
)

SPEC = SnapshotSpec(projects=("votes",))
MAJORITY = AggregateConfig(method="majority")
# task -> votes of ann and bob in the item's frame; c has a word that str.splitlines would cut at
ANSWERS = {"a": (2, 1), "b": (0, 0), "c": (-1, -2), "d": (1, -1)}


def campaign(path, order="abcd", bob="simulated"):
    store = Store(path)
    splits = {"a": "train", "b": "train", "c": "test", "d": "train"}
    store.add_prompts([Prompt(f"p-{k}", (Message("user", f"Why {k}?"),), "made", splits[k]) for k in order])
    store.add_completions(
        [
            Completion(f"{k}{s}", f"p-{k}", (Message("assistant", f"{k} {s} \u2028 word"),), author=f"model:m{s}@0")
            for k in order
            for s in (1, 0)
        ]
    )
    create_project(store, "votes", ProjectConfig(seed=5))
    publish_guideline(store, "votes", "Be fair.")
    create_tasks(store, "votes", [(f"{k}0", f"{k}1") for k in order], overlap=2)
    add_annotators(store, ["ann"], kind="simulated")
    add_annotators(store, ["bob"], kind=bob)
    for j, name in enumerate(("ann", "bob")):
        while (card := claim(store, "votes", name)) is not None:
            submit(store, card, Verdict(ANSWERS[card.completions[0].id[0]][j], active_ms=1000))
    return store


@pytest.fixture
def store(tmp_path):
    with campaign(tmp_path / "a.db") as opened:
        aggregate(opened, "votes", MAJORITY)
        yield opened


def spec(**more):
    return SnapshotSpec(projects=("votes",), method="majority", **more)


def test_the_bytes_depend_on_the_data_alone(store, tmp_path):
    first = create_snapshot(store, "v1", spec(), tmp_path / "here")
    again = create_snapshot(store, "v2", spec(), tmp_path / "there")
    with campaign(tmp_path / "b.db", order="dbca") as other:  # another store, filled in another order
        aggregate(other, "votes", MAJORITY)
        third = create_snapshot(other, "v1", spec(), tmp_path / "elsewhere")
    bodies = [(s.path / "pairs.jsonl").read_bytes() for s in (first, again, third)]
    assert bodies[0] == bodies[1] == bodies[2]
    assert first.sha256 == again.sha256 == third.sha256
    assert b"\r" not in bodies[0]
    ids = [json.loads(line)["id"] for line in bodies[0].decode().split("\n")[:-1]]
    assert ids == sorted(ids)
    assert len(ids) == 4


def test_rows_hold_votes_in_the_frame_of_the_chosen(store, tmp_path):
    snapshot = create_snapshot(store, "v1", spec(), tmp_path)
    rows = {row["prompt_id"]: row for row in load_rows(snapshot.path)}
    a, b, c, d = (rows[f"p-{k}"] for k in "abcd")
    assert (a["chosen_id"], a["rejected_id"], a["p"], a["strength"], a["margin"]) == ("a0", "a1", 1.0, 1.5, 2.25)
    assert [(v["a"], v["s"], v["ms"]) for v in a["votes"]] == [("ann", 2, 1000), ("bob", 1, 1000)]
    assert (b["p"], b["margin"], b["tie"]) == (0.5, 0.0, True)
    assert (c["chosen_id"], c["strength"], c["split"]) == ("c1", 1.5, "test")
    assert (d["p"], d["margin"], d["tie"], d["n_votes"]) == (0.5, 0.0, False, 2)
    assert a["chosen_author"] == "model:m0@0"
    assert a["chosen"] == [{"role": "assistant", "content": "a 0 \u2028 word"}]


def test_records_come_back_without_a_store(store, tmp_path):
    snapshot = create_snapshot(store, "v1", spec(), tmp_path)
    store.close()
    records = {r.prompt.id: r for r in load_snapshot(snapshot.path)}
    record = records["p-c"]
    assert (record.chosen.id, record.rejected.id, record.p, record.kind) == ("c1", "c0", 1.0, "simulated")
    assert (record.prompt.split, record.prompt.text, record.group) == ("test", "Why c?", "p-c")
    assert record.annotators == ("ann", "bob")
    assert record.chosen.messages[0].content == "c 1 \u2028 word"


def test_people_leave_as_pseudonyms_and_comments_not_at_all(tmp_path):
    with campaign(tmp_path / "a.db", bob="human") as store:
        done = aggregate(store, "votes", MAJORITY)
        snapshot = create_snapshot(store, "v1", spec(), tmp_path)
    text = (snapshot.path / "pairs.jsonl").read_text()
    assert "bob" not in text
    assert "comment" not in text
    [record] = [r for r in load_snapshot(snapshot.path) if r.prompt.id == "p-a"]
    assert record.kind == "human"
    assert len(next(a for a in record.annotators if a != "ann")) == 12
    assert {r.id for r in done.records} == {r.id for r in load_snapshot(snapshot.path)}


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({"ties": "drop"}, ["p-a", "p-c", "p-d"]),
        ({"splits": ("test",)}, ["p-c"]),
        ({"splits": ("train",), "ties": "drop"}, ["p-a", "p-d"]),
    ],
)
def test_the_spec_chooses_the_rows(store, tmp_path, options, prompts):
    snapshot = create_snapshot(store, "v1", spec(**options), tmp_path)
    assert sorted(r.prompt.id for r in load_snapshot(snapshot.path)) == prompts
    assert snapshot.manifest["rows"] == len(prompts)


def test_the_manifest_says_what_is_inside(store, tmp_path):
    manifest = create_snapshot(store, "v1", spec(), tmp_path).manifest
    facts = manifest["counts"]["pairs"]
    assert (manifest["rows"], facts["rows"], facts["votes"]) == (4, 4, 8)
    assert facts["by_split"] == {"test": 1, "train": 3}
    assert facts["by_kind"] == {"simulated": 4}
    assert facts["by_tie"] == {"false": 3, "true": 1}
    # decided: a (0 chosen) and c (1 chosen); the texts of a pair are equally long
    assert facts["longer_chosen"] is None
    assert facts["authors"] == {"model:m0@0": {"chosen": 1, "rejected": 1}, "model:m1@0": {"chosen": 1, "rejected": 1}}
    assert manifest["sources"][0]["params"]["method"] == "majority"
    assert len(manifest["sources"][0]["guideline_sha256"]) == 1


def test_a_changed_file_or_manifest_is_found(store, tmp_path):
    path = create_snapshot(store, "v1", spec(), tmp_path).path
    assert verify(path).n_rows == 4
    rows, manifest = (path / "pairs.jsonl").read_text(), (path / "manifest.json").read_text()
    (path / "pairs.jsonl").write_text(rows.replace('"p":1.0', '"p":0.9', 1))
    with pytest.raises(StoreError, match=r"pairs.jsonl was changed"):
        load_snapshot(path)
    (path / "pairs.jsonl").write_text(rows)
    (path / "manifest.json").write_text(manifest.replace('"rows": 4', '"rows": 5'))
    with pytest.raises(StoreError, match=r"manifest.json was changed"):
        verify(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        verify(path)
    (path / "manifest.json").unlink()
    (path.parent / "a-file").write_text("no folder")
    for place in (path, path.parent / "a-file"):
        with pytest.raises(StoreError, match=r"no manifest.json here"):
            read_snapshot(place)


def test_a_name_holds_one_data_set_for_ever(store, tmp_path):
    first = create_snapshot(store, "v1", spec(), tmp_path)
    assert create_snapshot(store, "v1", spec(), tmp_path).id == first.id
    with pytest.raises(StoreError, match="snapshots never change; choose a new name"):
        create_snapshot(store, "v1", spec(ties="drop"), tmp_path)
    with pytest.raises(StoreError, match="use letters, digits"):
        create_snapshot(store, "../v1", spec(), tmp_path)


def test_votes_that_came_after_the_aggregation_are_not_left_out_silently(store, tmp_path):
    create_snapshot(store, "v1", spec(), tmp_path)
    card = undo(store, "votes", "bob")
    with pytest.raises(StoreError, match="votes changed after they were aggregated; aggregate again"):
        create_snapshot(store, "v2", spec(), tmp_path)
    submit(store, card, Verdict(-2, active_ms=1000))
    aggregate(store, "votes", MAJORITY)
    second = create_snapshot(store, "v2", spec(), tmp_path, parent="v1")
    found = diff(tmp_path / "v1", second.path)
    task = card.completions[0].id[0]
    assert found.added == found.removed == ()
    assert len(found.relabelled) + len(found.changed) == (0 if ANSWERS[task][1] == -2 else 1)
    assert second.manifest["parent"] == read_snapshot(tmp_path / "v1").sha256


def test_diff_counts_rows_that_came_went_and_turned(store, tmp_path):
    whole = create_snapshot(store, "whole", spec(), tmp_path).path
    part = create_snapshot(store, "part", spec(ties="drop"), tmp_path).path
    assert [len(x) for x in (diff(whole, part).added, diff(whole, part).removed)] == [0, 1]
    assert [len(x) for x in (diff(part, whole).added, diff(part, whole).removed)] == [1, 0]


def test_diff_names_rows_whose_label_turned_and_rows_whose_votes_changed(store, tmp_path):
    old = create_snapshot(store, "old", spec(kinds=("pairs", "raw")), tmp_path).path
    keys = {row["prompt_id"]: row["id"] for row in load_rows(old, "pairs")}
    with store.write() as session:
        tasks = {task.key: task.id for task in session.query(t.Task)}
        for prompt, p in (("p-a", 0.2), ("p-c", 0.1)):  # a was for slot 0, c for slot 1 with certainty
            where = update(t.Estimate).where(t.Estimate.task_id == tasks[keys[prompt]])
            session.execute(where.values(p_slot0=p))
    new = create_snapshot(store, "new", spec(kinds=("pairs", "raw")), tmp_path).path
    found = diff(old, new)
    assert (found.added, found.removed) == ((), ())
    assert (found.relabelled, found.changed) == ((f"pairs:{keys['p-a']}",), (f"pairs:{keys['p-c']}",))


def test_what_is_not_aggregated_is_not_frozen(store, tmp_path):
    with pytest.raises(StoreError, match="not aggregated by 'ordinal' yet"):
        create_snapshot(store, "v1", SPEC, tmp_path)
    with pytest.raises(StoreError, match="project 'vote': not in the store; did you mean 'votes'"):
        create_snapshot(store, "v1", SnapshotSpec(projects=("vote",)), tmp_path)


def test_near_duplicates_in_two_splits_are_refused(store, tmp_path):
    store.add_prompts([Prompt("twin", (Message("user", "why  A?"),), split="test")])  # of p-a: inherits train
    create_snapshot(store, "v1", spec(), tmp_path)
    with store.write() as session:  # as only another tool can
        session.execute(update(t.Prompt).where(t.Prompt.key == "twin").values(split="test"))
    with pytest.raises(StoreError, match=r"'p-a' \(train\), 'twin' \(test\) are near-duplicates in different splits"):
        create_snapshot(store, "v2", spec(), tmp_path)


def test_quarantined_prompts_stay_out(store, tmp_path):
    with store.write() as session:
        session.execute(update(t.Prompt).where(t.Prompt.key == "p-a").values(split="none"))
    rows = create_snapshot(store, "v1", spec(kinds=("pairs", "raw")), tmp_path).manifest["counts"]
    assert rows["pairs"]["by_split"] == {"test": 1, "train": 2}
    assert rows["raw"]["by_split"] == {"none": 2, "test": 2, "train": 4}  # raw is a record of what was said


def test_dpo_has_no_use_for_ties(store, tmp_path):
    rows = load_rows(create_snapshot(store, "v1", spec(use="dpo"), tmp_path).path)
    assert sorted(row["prompt_id"] for row in rows) == ["p-a", "p-c", "p-d"]
    rows = load_rows(create_snapshot(store, "v2", spec(use="dpo", ties="keep"), tmp_path).path)
    assert len(rows) == 4


def test_held_out_pairs_can_be_asked_for_more_votes(store, tmp_path):
    rows = load_rows(create_snapshot(store, "v1", spec(held_out_votes=3), tmp_path).path)
    assert sorted(row["prompt_id"] for row in rows) == ["p-a", "p-b", "p-d"]  # c is of the test split, with two


def test_a_broken_attempt_leaves_nothing(store, tmp_path):
    with pytest.raises(StoreError, match="not aggregated"):
        create_snapshot(store, "v1", SPEC, tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_several_kinds_in_one_snapshot(store, tmp_path):
    made = create_snapshot(store, "v1", spec(kinds=("pairs", "raw", "kto")), tmp_path)
    assert sorted(made.manifest["files"]) == ["kto.jsonl", "pairs.jsonl", "raw.jsonl"]
    assert (len(load_rows(made.path, "raw")), load_rows(made.path, "kto")) == (8, [])
    assert made.n_rows == 12
    with pytest.raises(StoreError, match="holds several kinds; it has kto, pairs, raw"):
        load_rows(made.path)
    with pytest.raises(StoreError, match="holds no sft"):
        load_rows(made.path, "sft")
    raw = load_rows(made.path, "raw")[0]
    assert "comment" not in raw and raw["annotator"] == "ann" and raw["outcome"] == "answer"
    told = create_snapshot(store, "v2", spec(kinds=("raw",), comments=True), tmp_path)
    assert load_rows(told.path)[0]["comment"] == ""


def test_the_card_lets_datasets_find_the_files(store, tmp_path):
    datasets = pytest.importorskip("datasets")
    made = create_snapshot(store, "v1", spec(kinds=("pairs", "raw")), tmp_path / "sets")
    loaded = datasets.load_dataset(str(made.path), "pairs", cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["id"] == [row["id"] for row in load_rows(made.path, "pairs")]
    text = (made.path / "README.md").read_text()
    assert "# v1" in text and "- split: test 1, train 3" in text and made.sha256 in text


def test_snapshots_are_listed(store, tmp_path):
    for name in ("v1", "v2"):
        create_snapshot(store, name, spec(), tmp_path)
    assert [(s.name, s.kind, s.n_rows) for s in list_snapshots(store)] == [("v1", "pairs", 4), ("v2", "pairs", 4)]
