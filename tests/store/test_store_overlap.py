"""Training rows that share words with what is evaluated on stay out of snapshots and exports, and are counted."""

from __future__ import annotations

import json

import pytest

from alignloop.cli.main import main
from alignloop.core.overlap import HeldOut
from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.aggregate import AggregateConfig, aggregate
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.projects import add_annotators, create_project
from alignloop.feedback.queue import claim, submit
from alignloop.feedback.tasks import create_tasks
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.exports import Form, export_project
from alignloop.store.selection import SnapshotSpec
from alignloop.store.snapshots import create_snapshot, load_rows, verify

NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen"
ASKED = {
    "plain": ("Why?", "train"),
    "asks": (f"Please count: {NUMBERS}.", "train"),
    "tells": ("Go on.", "train"),
    "bench": ("Name the seven colours of the rainbow.", "train"),
    "held": (f"Count {NUMBERS} for me", "test"),
}


def spec(**more):
    return SnapshotSpec(projects=("votes",), method="majority", **more)


@pytest.fixture
def store(tmp_path):
    """One comparison a prompt; `asks` holds a test prompt's words itself, an answer of `tells` does."""
    with Store(tmp_path / "s.db") as opened:
        opened.add_prompts([Prompt(k, (Message("user", words),), "made", split) for k, (words, split) in ASKED.items()])
        answers = {(k, s): f"{k} {s}" for k in ASKED for s in (0, 1)} | {("tells", 1): f"well, {NUMBERS} and so on"}
        opened.add_completions(
            [Completion(f"{k}-{s}", k, (Message("assistant", said),)) for (k, s), said in answers.items()]
        )
        create_project(opened, "votes")
        create_tasks(opened, "votes", [(f"{k}-0", f"{k}-1") for k in ASKED], overlap=1)
        add_annotators(opened, ["ann"])
        while (card := claim(opened, "votes", "ann")) is not None:
            submit(opened, card, Verdict(1, both_good=True))
        aggregate(opened, "votes", AggregateConfig(method="majority"))
        yield opened


def prompts_of(snapshot, kind="pairs"):
    return {row["prompt_id"] for row in load_rows(snapshot.path, kind)}


def test_rows_that_share_words_with_a_test_prompt_stay_out_and_are_counted(store, tmp_path):
    made = verify(create_snapshot(store, "v1", spec(kinds=("pairs", "kto", "sft", "raw")), tmp_path).path)
    assert prompts_of(made) == {"plain", "bench", "held"} and made.overlapping == 8
    overlap = made.manifest["overlap"]
    assert (overlap["words"], overlap["benchmarks"]) == (13, None)
    assert overlap["left_out"] == {"kto": 3, "pairs": 2, "sft": 3}
    assert [r["completion_id"] for r in load_rows(made.path, "kto") if r["prompt_id"] == "tells"] == ["tells-0"]
    assert {name for _, _, name in overlap["examples"]} == {"held"}
    assert "- left out of train: 2 that share 13 words in a row with a held-out prompt" in (
        made.path / "README.md"
    ).read_text(encoding="utf-8")
    assert prompts_of(made, "raw") == set(ASKED)


def test_what_is_left_out_is_no_part_of_the_lineage(store, tmp_path):
    made = create_snapshot(store, "v1", spec(), tmp_path)
    with store.read() as session:
        edges = session.query(t.Edge).filter_by(child_id=made.id, parent_type="judgement").count()
    assert edges == 3


def test_a_spec_may_keep_them(store, tmp_path):
    made = create_snapshot(store, "v1", spec(overlap="keep"), tmp_path)
    assert prompts_of(made) == set(ASKED) and made.overlapping == 0


def test_benchmarks_are_named_by_their_hash_and_always_stay_out(store, tmp_path):
    bench = HeldOut([("q7", "name the seven colours of the rainbow")])
    made = create_snapshot(store, "v1", spec(overlap="keep"), tmp_path, without=bench)
    assert prompts_of(made) == set(ASKED) - {"bench"}
    assert made.manifest["overlap"]["benchmarks"] == bench.sha256
    assert made.manifest["overlap"]["examples"][0][2] == "q7"
    again = create_snapshot(store, "v2", spec(overlap="keep"), tmp_path, without=HeldOut([("q7", ASKED["bench"][0])]))
    assert again.sha256 == made.sha256
    assert create_snapshot(store, "v3", spec(overlap="keep"), tmp_path).sha256 != made.sha256


def test_an_instruction_before_every_prompt_is_no_leak(tmp_path):
    with Store(tmp_path / "s.db") as store:
        before = f"Please answer in simple words that every child of ten years can understand, and {NUMBERS}"
        asked = [Prompt(f"p{k}", (Message("user", f"{before}: {k} {k}a {k}b {k}c"),), "", "train") for k in range(12)]
        test = Prompt("test", (Message("user", f"{before}: what rain is and where it has come from all these years"),))
        store.add_prompts([*asked, Prompt("test", test.messages, "", "test")])
        store.add_completions(
            [Completion(f"c{k}{s}", f"p{k}", (Message("assistant", f"{s}"),)) for k in range(12) for s in "ab"]
        )
        create_project(store, "votes")
        create_tasks(store, "votes", [(f"c{k}a", f"c{k}b") for k in range(12)], overlap=1)
        add_annotators(store, ["ann"])
        while (card := claim(store, "votes", "ann")) is not None:
            submit(store, card, Verdict(1))
        aggregate(store, "votes", AggregateConfig(method="majority"))
        made = create_snapshot(store, "v1", spec(), tmp_path)
        assert (made.n_rows, made.overlapping) == (12, 0)


def test_exports_leave_them_out_too_and_say_how_many(store, tmp_path):
    done = export_project(store, spec(), tmp_path / "out", Form("pairs"))
    assert (done.rows, done.overlapping) == (3, 2) and done.to_json()["overlapping"] == 2


def test_the_commands(store, tmp_path, capsys):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": "Name the seven colours of the rainbow"}) + "\n")
    where = (
        "--project",
        "votes",
        "--method",
        "majority",
        "--store",
        str(store.url),
        "--without",
        str(tmp_path / "bench.jsonl"),
    )

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main((*words, *where))
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    told = "3 training rows share 13 words in a row with a held-out prompt: left out"
    assert told in run("snapshot", "create", "v1", "--out", str(tmp_path / "data"))
    assert told in run("export", "--out", str(tmp_path / "out"), "--reason", "test")
