"""Prompts, completions, scores, models, runs: what goes in comes out, once."""

import pytest

from alignloop.core.errors import StoreError
from alignloop.core.types import Completion, Message, ModelRef, Prompt, Sample, SamplingParams, Score
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import path_sha256


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "a.db") as opened:
        yield opened


def prompt(key, words="Why?", **more):
    return Prompt(key, (Message("user", words),), **more)


def test_a_prompt_is_stored_once_and_comes_back_whole(store):
    given = Prompt(
        "p1", (Message("system", "Be kind."), Message("user", "Why?")), "file.jsonl", "test", {"answer": "42"}
    )
    ids = store.add_prompts([given, prompt("p2", "How?"), given])
    assert ids[0] == ids[2] != ids[1]
    assert store.add_prompts([prompt("other", "How?")]) == [ids[1]]  # the same messages under another id
    assert store.prompts() == {ids[0]: given, ids[1]: prompt("p2", "How?")}
    assert list(store.prompts(["p2"])) == list(store.prompts([ids[1]])) == [ids[1]]


def test_the_first_to_add_a_prompt_fixes_its_split(store):
    store.add_prompts([prompt("p", split="test")])
    [row] = store.add_prompts([prompt("p", split="train")])
    assert store.prompts()[row].split == "test"


def test_one_id_for_two_prompts_is_refused(store):
    store.add_prompts([prompt("p")])
    with pytest.raises(StoreError, match=r"prompts\[1\]: id 'p' is already used for another prompt"):
        store.add_prompts([prompt("q", "When?"), prompt("p", "How?")])
    assert len(store.prompts()) == 1


def test_what_json_cannot_say_is_refused_with_the_cure(store):
    with pytest.raises(StoreError, match="finite numbers"):
        store.add_prompts([prompt("p", extra={"x": float("inf")})])


def test_a_completion_keeps_who_wrote_it_and_how(store):
    store.add_prompts([prompt("p")])
    model = store.add_model(ModelRef("m", "policy", ""), name="sft")
    sampling = SamplingParams(temperature=0.7, max_new_tokens=5, seed=3)
    sample = Sample("s1", "p", "m", 4, 0, sampling, (1, 2, 3), 1, (False, True, True), (0.0, -0.5, -1.5), "stop", "Hi")
    [row] = store.add_samples([sample], model="sft")
    assert store.add_samples([sample], model="sft") == [row]
    record = store.completions()[row]
    assert (record.text, record.author, record.sample_id, record.prompt_id) == ("Hi", "model:m@4", "s1", "p")
    assert record.messages == (Message("assistant", "Hi"),)
    with store.read() as session:
        kept = session.get(t.Completion, row)
        assert (kept.model_id, kept.model_version, kept.n_tokens, kept.finish_reason) == (model, 4, 2, "stop")
        assert kept.logprob_sum == -2.0
        assert kept.sampling["temperature"] == 0.7


def test_an_answer_to_a_plain_prompt_is_plain(store):
    store.add_prompts([Prompt("p", (Message("text", "Once"),))])
    sample = Sample("s", "p", "m", 0, 0, SamplingParams(), (1, 2), 1, (False, True), (0.0, -1.0), "length", " upon")
    [row] = store.add_samples([sample])
    assert store.completions()[row].messages == (Message("text", " upon"),)


def test_the_same_words_by_two_models_are_two_completions(store):
    store.add_prompts([prompt("p")])
    first, second = (
        store.add_completions([Completion("same", "p", (Message("assistant", "Hi"),), author=author)])[0]
        for author in ("model:sft@0", "model:ppo@9")
    )
    assert first != second
    assert len({c.id for c in store.completions().values()}) == 2


def test_completions_name_what_is_missing(store):
    with pytest.raises(StoreError, match=r"completions\[0\]: prompt 'nowhere' is not in the store; call add_prompts"):
        store.add_completions([Completion("c", "nowhere", (Message("assistant", "Hi"),))])


def test_a_score_is_replaced_by_a_later_one(store):
    store.add_prompts([prompt("p")])
    [row] = store.add_completions([Completion("c", "p", (Message("assistant", "Hi"),))])
    store.add_scores([Score("c", "rule", 0.5, {"length": 0.25}), Score(row, "gold", None)])
    store.add_scores([Score("c", "rule", 0.75)])
    assert store.scores("rule") == {row: Score(row, "rule", 0.75)}
    assert store.scores("gold", [row])[row].value is None
    assert store.scores("gold", ["elsewhere"]) == {}


def test_a_model_is_found_by_key_path_and_name_and_its_files_are_hashed(store, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "weights").write_bytes(b"123")
    run = store.add_run("ppo", "train", method="ppo", config={"lr": 1e-4})
    base = store.add_model(ModelRef("base", "policy", "hub/base"), name="base")
    row = store.add_model(ModelRef("m1", "policy", str(folder), parents=("base",), run=run), name="policy")
    assert store.add_model(ModelRef("m1", "policy", str(folder))) == row
    for name in (row, "m1", str(folder), "policy"):
        assert store.model(name).id == row
    assert store.model("policy").sha256 == path_sha256(folder)
    with store.read() as session:
        edges = {(e.parent_type, e.parent_id, e.child_id, e.kind) for e in session.query(t.Edge)}
    assert edges == {("run", run, row, "produced"), ("model", base, row, "parent")}
    (folder / "weights").write_bytes(b"456")
    with pytest.raises(StoreError, match="already recorded with other files"):
        store.add_model(ModelRef("m1", "policy", str(folder)))


def test_an_unknown_model_names_the_nearest(store):
    store.add_model(ModelRef("m", "policy", ""), name="policy")
    with pytest.raises(StoreError, match="model 'polcy': not in the store; did you mean 'policy'"):
        store.model("polcy")


def test_a_run_ends_and_its_shards_are_hashed(store, tmp_path):
    run = store.add_run("ppo", "train")
    (tmp_path / "shard-0.jsonl").write_text("{}\n")
    first = store.add_shard(run, tmp_path / "shard-0.jsonl", n_samples=1, version=2)
    assert store.add_shard("ppo", tmp_path / "shard-0.jsonl", n_samples=1, version=2) == first
    store.finish_run(run, metrics={"reward": 1.5})
    with store.read() as session:
        row = session.get(t.Run, run)
        assert (row.state, row.metrics, row.finished_at >= row.created_at) == ("done", {"reward": 1.5}, True)
        shard = session.get(t.RolloutShard, first)
        assert (shard.sha256, shard.version) == (path_sha256(tmp_path / "shard-0.jsonl"), 2)
    with pytest.raises(StoreError, match="cannot be read"):
        store.add_shard(run, tmp_path / "gone", n_samples=1)


def test_edges_of_unknown_types_are_refused(store):
    with pytest.raises(StoreError, match="edge: unknown type 'modle'"):
        store.link(("run", "r"), ("modle", "m"), "produced")
