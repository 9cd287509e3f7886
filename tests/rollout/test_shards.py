"""Shards, the scripted engine and the order of work."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignloop.core.errors import DataError
from alignloop.core.types import Prompt, Sample, SamplingParams, text
from alignloop.rollout.scheduler import Backlog, groups
from alignloop.rollout.scripted import ScriptedEngine
from alignloop.rollout.shards import ShardWriter, read_all, read_shard, shards

HELLO = Prompt("a", text("hello"))
BYE = Prompt("b", text("bye"))


def samples(n: int = 2) -> list[Sample]:
    script = ScriptedEngine({"a": ["one", "zwei ä"], "bye": ["drei"]}, logp=-0.1234567890123456)
    return script.generate_all([HELLO, BYE], n, SamplingParams(stop=("x",), temperature=0.7))


def test_script() -> None:
    one, two, three, four = samples()
    assert [s.text for s in (one, two, three, four)] == ["one", "zwei ä", "drei", "drei"]
    assert one.tokens == (105, 102, 109, 109, 112, 112, 111, 102, 0)  # bytes + 1, then the end
    assert one.prompt_length == 5
    assert one.mask == (False,) * 5 + (True,) * 4
    assert one.finish_reason == "stop"
    cut = ScriptedEngine(lambda p, i: f"{p.id}{i}").generate_all([HELLO], 2, SamplingParams(max_new_tokens=2))
    assert [s.text for s in cut] == ["a0", "a1"]
    assert cut[0].finish_reason == "length"
    with pytest.raises(DataError, match="'b'"):
        ScriptedEngine({"a": ["x"]}).generate([BYE], 1, SamplingParams())
    engine = ScriptedEngine({"a": ["x"]})
    engine.load(None, 7)
    assert engine.loaded == [7]
    assert engine.generate_all([HELLO, HELLO], 1, SamplingParams())[1].index == 1


def test_shards_return_what_was_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "rollouts")
    first = writer.write(samples())
    second = ShardWriter(tmp_path / "rollouts").write(samples(1))
    assert (first.samples, first.tokens) == (4, sum(len(s.tokens) for s in samples()))
    assert [p.name for p in shards(tmp_path / "rollouts")] == ["rollouts-00000.jsonl", "rollouts-00001.jsonl"]
    assert read_shard(first.path) == samples()
    assert list(read_all(tmp_path / "rollouts")) == samples() + samples(1)
    assert second.sha256 != first.sha256


def test_an_interrupted_write_is_no_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.write(samples())
    (tmp_path / "rollouts-00001.safetensors").write_bytes(b"half")
    (tmp_path / "rollouts-00001.jsonl.part").write_bytes(b"half")
    assert len(shards(tmp_path)) == 1
    assert writer.write(samples(1)).path.name == "rollouts-00001.jsonl"
    assert list(read_all(tmp_path)) == samples() + samples(1)


def test_damage_is_found(tmp_path: Path) -> None:
    path = ShardWriter(tmp_path).write(samples()).path
    tensors = path.with_suffix(".safetensors")
    blob = tensors.read_bytes()
    tensors.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(DataError, match="do not belong together"):
        read_shard(path)
    tensors.unlink()
    with pytest.raises(DataError, match="cannot read"):
        read_shard(path)
    path.write_text('{"format": 9}\n')
    tensors.write_bytes(blob)
    with pytest.raises(DataError, match="format 1"):
        read_shard(path)
    with pytest.raises(DataError, match="at least one"):
        ShardWriter(tmp_path).write([])


def test_longest_prompts_first_and_groups_may_be_cut() -> None:
    short, long = Prompt("s", text("")), Prompt("l", text(""))
    work = groups([short, long, short], [[1], [1, 2, 3], [1]], 3, 10, 12)
    assert [(g.first, g.limit) for g in work] == [(0, 10), (0, 9), (3, 10)]
    backlog = Backlog(work)
    assert len(backlog) == 9
    assert [(g.order, first, n) for g, first, n in backlog.take(4, 100)] == [(1, 0, 3), (0, 0, 1)]
    assert [(g.order, first, n) for g, first, n in backlog.take(4, 100)] == [(0, 1, 2), (2, 3, 2)]
    assert len(backlog) == 1
    assert [(g.order, first, n) for g, first, n in backlog.take(4, 100)] == [(2, 5, 1)]
    assert not backlog


def test_a_prefill_has_a_budget_of_tokens() -> None:
    work = groups([Prompt(str(i), text("")) for i in range(3)], [[1] * 50] * 3, 1, 10, None)
    backlog = Backlog(work)
    assert [g.order for g, _, _ in backlog.take(9, 100)] == [0, 1]
    assert [g.order for g, _, _ in backlog.take(9, 10)] == [2]  # the first is always taken
