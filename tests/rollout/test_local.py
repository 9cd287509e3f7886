"""The local engine: the right tokens, the same in every batch, with the trainer's own log-probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from alignloop.core.errors import ConfigError, DataError, ModelError, TrainingError
from alignloop.core.types import Prompt, Sample, SamplingParams, text
from alignloop.models.attention import NO_MASK
from alignloop.models.packing import plan_of
from alignloop.models.tiny import tiny_model
from alignloop.rollout.local import LocalEngine, default_slots

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "opt", "opt_postnorm", "gpt_neox", "phi"]
F64 = torch.float64


def encode(prompt: Prompt) -> list[int]:
    return [int(x) for x in prompt.text.split()]


def decode(ids: Any) -> str:
    return " ".join(map(str, ids))


def prompts(*lengths: int, seed: int = 0) -> list[Prompt]:
    g = torch.Generator().manual_seed(seed)
    return [
        Prompt(f"p{i}", text(decode(torch.randint(3, 64, (n,), generator=g).tolist()))) for i, n in enumerate(lengths)
    ]


def engine(model: Any, slots: int | None = None, stop_ids: tuple[int, ...] = (2,)) -> LocalEngine:
    return LocalEngine(model, encode, decode, stop_ids, "tiny", slots=slots)


def trainer_logp(model: Any, samples: list[Sample]) -> list[torch.Tensor]:
    """Log-probabilities of one prompt's samples by a packed forward that shares the prompt, as training computes."""
    first, start = samples[0], samples[0].prompt_length
    spans, parent, ids, positions = [(0, 0, start)], [-1], list(first.tokens[:start]), list(range(start))
    for s in samples:
        spans.append((0, len(ids), len(ids) + len(s.response)))
        parent.append(0)
        ids += s.response
        positions += range(start, start + len(s.response))
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=NO_MASK,
            plan=plan_of(spans, parent, 1, len(ids)),
            use_cache=False,
        ).logits[0]
    logits = logits if logits.dtype == F64 else logits.float()
    out = []
    for s, (_, a, b) in zip(samples, spans[1:], strict=True):
        source = [start - 1, *range(a, b - 1)]
        table = (logits[source] / (s.sampling.temperature or 1.0)).log_softmax(-1)
        out.append(table.gather(1, torch.tensor(s.response)[:, None])[:, 0])
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family: str) -> None:
    model = tiny_model(family, dtype=F64)
    work = prompts(3, 9, 1, 6, 6)
    out = engine(model, slots=3).generate_all(work, 1, SamplingParams(temperature=0, max_new_tokens=25))
    if family != "gemma2":  # which SDPA cannot run
        model.set_attn_implementation("sdpa")
    for prompt, sample in zip(work, out, strict=True):
        ids = torch.tensor([encode(prompt)])
        given = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=25, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert given[0].tolist() == list(sample.tokens)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-4)])
def test_recorded_logp_is_the_trainers(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = tiny_model(family, dtype=dtype)
    out = engine(model, slots=5).generate_all(prompts(7, 4), 6, SamplingParams(temperature=0.7, max_new_tokens=20))
    for group in (out[:6], out[6:]):
        for sample, expected in zip(group, trainer_logp(model, group), strict=True):
            given = torch.tensor(sample.logp[sample.prompt_length :], dtype=F64)
            torch.testing.assert_close(given, expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_do_not_depend_on_batch_slots_or_order(family: str) -> None:
    model, work = tiny_model(family, dtype=F64), prompts(5, 12, 1, 8, 5)
    sampling = SamplingParams(temperature=1.3, max_new_tokens=18, seed=4)
    reference = {s.id: s for s in engine(model, slots=20).generate_all(work, 4, sampling)}
    assert len(reference) == 20
    for slots, order in ((1, work), (3, work[::-1]), (7, work[2:]), (2, work[1:2])):
        for s in engine(model, slots=slots).generate_all(order, 4, sampling):
            assert s.tokens == reference[s.id].tokens
            assert s.logp == pytest.approx(reference[s.id].logp, abs=1e-10)


def test_float32_log_probabilities_agree_between_batches() -> None:
    model, work, sampling = tiny_model("llama"), prompts(5, 12, 1, 8), SamplingParams(max_new_tokens=30)
    one = engine(model, slots=2).generate_all(work, 4, sampling)
    two = engine(model, slots=16).generate_all(work, 4, sampling)
    assert sum(a.tokens != b.tokens for a, b in zip(one, two, strict=True)) <= 1
    for a, b in zip(one, two, strict=True):
        if a.tokens == b.tokens:
            assert a.logp == pytest.approx(b.logp, abs=1e-5)


def test_the_distribution_is_the_models() -> None:
    """Second tokens of 3000 two-token samples against their exact marginal, by enumeration of the first."""
    model = tiny_model("llama", vocab=64, dtype=F64)
    with torch.no_grad():
        for p in model.lm_head.parameters():
            p.mul_(0.2)  # flatten, so that many words have a chance
    (prompt,) = prompts(6)
    out = engine(model, slots=64, stop_ids=()).generate_all([prompt], 3000, SamplingParams(max_new_tokens=2))
    ids = encode(prompt)
    with torch.no_grad():
        first = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([[*ids, w] for w in range(64)])).logits[:, -1].softmax(-1)
    for place, expected in ((0, first), (1, first @ second)):
        counts = np.bincount([s.response[place] for s in out], minlength=64)
        common = (expected * 3000 >= 5).numpy()
        parts = [~common] if (~common).any() else []
        observed = np.append(counts[common], [counts[p].sum() for p in parts])
        wanted = np.append(expected.numpy()[common], [expected.numpy()[p].sum() for p in parts]) * 3000
        assert common.sum() > 5
        assert chisquare(observed, wanted).pvalue > 1e-3


def test_prompts_are_prefilled_once_and_together() -> None:
    model = tiny_model("llama", dtype=F64)
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    e = engine(model, slots=4)
    seen.clear()
    e.generate_all(prompts(5, 3), 6, SamplingParams(max_new_tokens=3, min_new_tokens=3))
    prefill = [shape for shape in seen if shape[1] > 1]
    assert sum(n for _, n in prefill) == 8  # 5 + 3 prompt tokens for 12 samples
    seen.clear()
    engine(model, slots=12).generate_all(prompts(5, 3), 6, SamplingParams(max_new_tokens=3, min_new_tokens=3))
    assert seen[-3:] == [(1, 8), (12, 1), (12, 1)]  # one packed prefill, then two steps of all twelve rows


def test_stopping() -> None:
    model = tiny_model("llama", dtype=F64)
    free = engine(model, stop_ids=()).generate_all(prompts(4), 8, SamplingParams(max_new_tokens=12))
    assert all(len(s.response) == 12 and s.finish_reason == "length" for s in free)
    stops = (free[0].response[3], free[1].response[0])
    for full, s in zip(
        free, engine(model, stop_ids=stops).generate_all(prompts(4), 8, SamplingParams(max_new_tokens=12)), strict=True
    ):
        ends = [t for t, token in enumerate(full.response) if token in stops]
        n = ends[0] + 1 if ends else 12
        assert s.response == full.response[:n]  # the stop id is part of the response
        assert s.mask == (False,) * 4 + (True,) * n
        assert s.finish_reason == ("stop" if ends else "length")
        assert s.text == decode(full.response[: n - 1] if ends else full.response)
        assert len(s.logp) == len(s.tokens)
        assert all(x < 0 for x in s.logp[4:])
        assert s.logp[:4] == (0.0,) * 4


def test_min_new_tokens_forbids_stopping_and_logp_knows() -> None:
    model = tiny_model("llama", dtype=F64)
    stops = tuple(range(3, 40))
    out = engine(model, stop_ids=stops).generate_all(prompts(4), 16, SamplingParams(max_new_tokens=9, min_new_tokens=5))
    assert all(len(s.response) > 5 or s.response[4] not in stops for s in out)
    assert all(token not in stops for s in out for token in s.response[:5])
    with torch.no_grad():
        z = model(torch.tensor([encode(prompts(4)[0])])).logits[0, -1]
    z[list(stops)] = -torch.inf
    table = z.log_softmax(-1)
    assert all(s.logp[4] == pytest.approx(table[s.response[0]].item(), abs=1e-10) for s in out)


def test_stop_strings_end_the_text() -> None:
    model = tiny_model("llama", dtype=F64)
    full = engine(model, stop_ids=()).generate_all(prompts(4), 1, SamplingParams(max_new_tokens=12))[0]
    word = f" {full.response[5]} {full.response[6]}"
    (s,) = engine(model, stop_ids=()).generate_all(prompts(4), 1, SamplingParams(max_new_tokens=12, stop=(word,)))
    assert s.finish_reason == "stop"
    assert s.response == full.response[:7]
    assert s.text == decode(full.response[:5])


def test_context_end() -> None:
    model = tiny_model("gpt2", dtype=F64)  # 128 learned positions
    out = engine(model, stop_ids=()).generate_all(prompts(127, 120, 3), 2, SamplingParams(max_new_tokens=200))
    assert [len(s.response) for s in out] == [1, 1, 8, 8, 125, 125]
    assert all(s.truncated for s in out)
    with pytest.raises(DataError, match=r"'p1'.*128"):
        engine(model).generate(prompts(3, 128), 1, SamplingParams())


def test_bad_input_is_refused_before_anything_is_drawn() -> None:
    e = engine(tiny_model("llama"))
    with pytest.raises(DataError, match="no tokens"):
        e.generate([Prompt("empty", text(""))], 1, SamplingParams())
    with pytest.raises(ConfigError, match="top_p"):
        e.generate(prompts(3), 1, SamplingParams(top_p=0))
    with pytest.raises(ConfigError, match="slots"):
        engine(tiny_model("llama"), slots=0)
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="local engine"):
        engine(model)
    assert e.generate_all([], 2, SamplingParams()) == []


def test_one_token_samples_never_take_a_slot() -> None:
    out = engine(tiny_model("llama"), slots=2).generate_all(prompts(3, 4, 5), 3, SamplingParams(max_new_tokens=1))
    assert [len(s.response) for s in out] == [1] * 9


def test_determinism_seed_and_identity() -> None:
    e, work = engine(tiny_model("llama")), prompts(4, 6)
    one, two = (e.generate_all(work, 3, SamplingParams(max_new_tokens=8, seed=5)) for _ in range(2))
    other = e.generate_all(work, 3, SamplingParams(max_new_tokens=8, seed=6))
    assert one == two
    assert [s.tokens for s in one] != [s.tokens for s in other]
    assert not {s.id for s in one} & {s.id for s in other}
    assert len({s.tokens for s in one[:3]}) > 1
    assert [(s.prompt_id, s.index, s.group) for s in one] == [(p, i, p) for p in ("p0", "p1") for i in range(3)]
    assert sorted(e.generate(work, 3, SamplingParams(max_new_tokens=8, seed=5)), key=lambda s: s.id) == sorted(
        one, key=lambda s: s.id
    )


def test_a_prompt_that_comes_twice_goes_on_counting() -> None:
    e, (p,) = engine(tiny_model("llama", dtype=F64)), prompts(5)
    twice = e.generate_all([p, p], 2, SamplingParams(max_new_tokens=6))
    assert [s.index for s in twice] == [0, 1, 2, 3]
    assert [s.tokens for s in twice] == [s.tokens for s in e.generate_all([p], 4, SamplingParams(max_new_tokens=6))]


def test_mode_and_gradients_are_the_callers_between_samples() -> None:
    model = tiny_model("gpt2")
    model.train()
    model.transformer.h[0].eval()
    before = [m.training for m in model.modules()]
    for _ in engine(model, slots=2).generate(prompts(3, 4), 3, SamplingParams(max_new_tokens=5)):
        assert [m.training for m in model.modules()] == before
        assert torch.is_grad_enabled()


def test_dropout_is_off() -> None:
    model = tiny_model("gpt2", dtype=F64)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.5
    out = engine(model).generate_all(prompts(4), 2, SamplingParams(max_new_tokens=6))
    for part in (model, model.transformer.h[0].attn):  # the whole, and one layer of a model in eval mode
        model.eval()
        part.train()
        assert out == engine(model).generate_all(prompts(4), 2, SamplingParams(max_new_tokens=6))


def test_load() -> None:
    model, other = tiny_model("llama", seed=0), tiny_model("llama", seed=1)
    e, sampling = engine(model), SamplingParams(max_new_tokens=8)
    before = e.generate_all(prompts(4), 2, sampling)
    e.load(other.state_dict(), 3)
    after = e.generate_all(prompts(4), 2, sampling)
    assert [s.tokens for s in after] == [s.tokens for s in engine(other).generate_all(prompts(4), 2, sampling)]
    assert {s.version for s in after} == {3}
    assert before[0].id != after[0].id
    e.load(None, 4)
    assert e.version == 4
    running = e.generate(prompts(4, 5), 2, sampling)
    next(running)
    with pytest.raises(TrainingError, match="in flight"):
        e.load(None, 5)
    running.close()
    e.load(None, 5)
    with pytest.raises(ModelError, match="do not fit"):
        e.load({"x": torch.zeros(1)}, 6)
    with pytest.raises(ModelError, match="state dict"):
        e.load(7, 6)


def test_non_finite_logits_are_reported() -> None:
    model = tiny_model("llama")
    e = engine(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="'p0'"):
        e.generate_all(prompts(4), 1, SamplingParams(max_new_tokens=3))


def test_bfloat16() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    out = engine(model, slots=3).generate_all(prompts(4, 9), 4, SamplingParams(max_new_tokens=10))
    assert all(np.isfinite(s.logp).all() for s in out)
    for sample, expected in zip(out[:4], trainer_logp(model, out[:4]), strict=True):
        assert np.abs(np.array(sample.logp[4:]) - expected.numpy()).mean() < 0.3


def test_default_slots_are_bounded() -> None:
    assert default_slots(tiny_model("llama")) == 96


STORIES = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "models" / "stories260K" / "hf"


@pytest.mark.skipif(not STORIES.exists(), reason="the stories260K model is not beside the repository")
def test_real_model_tells_the_story_that_generate_tells() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignloop.models.attention import ATTENTION, register

    register()
    model = AutoModelForCausalLM.from_pretrained(STORIES, attn_implementation=ATTENTION)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    openings = ["Once upon a time", "Lily and Tom went to the park.", "The dog"]
    e = LocalEngine(
        model,
        lambda p: tokenizer(p.text)["input_ids"],
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        [1, 2],
        "stories260K",
    )
    work = [Prompt(str(i), text(x)) for i, x in enumerate(openings)]
    out = e.generate_all(work, 2, SamplingParams(temperature=0, max_new_tokens=200))
    model.set_attn_implementation("sdpa")
    for prompt, (one, two) in zip(work, zip(out[::2], out[1::2], strict=True), strict=True):
        ids = torch.tensor([tokenizer(prompt.text)["input_ids"]])
        given = model.generate(ids, max_new_tokens=200, do_sample=False, eos_token_id=[1, 2])[0].tolist()
        assert given == list(one.tokens) == list(two.tokens)
        assert one.text == tokenizer.decode(given[ids.shape[1] :], skip_special_tokens=True)
