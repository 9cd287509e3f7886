"""Simulated annotators: what was planted is found, and nothing depends on the order of work."""

import math

import pytest

from alignloop.core.errors import ConfigError
from alignloop.feedback.aggregate import AggregateConfig, aggregate
from alignloop.feedback.judgements import Card
from alignloop.feedback.projects import ProjectConfig, create_project
from alignloop.feedback.quality import pair_agreement, position_bias, project_quality
from alignloop.feedback.simulate import Group, SimulatedAnnotator, annotate, bayes_accuracy, judge, panel, uniforms
from alignloop.feedback.tasks import Overlap, create_tasks
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.votes import Vote, load_votes, project_row


def card(task="t", handle="a", left=0):
    from alignloop.core.types import Completion, Message, Prompt

    texts = tuple(Completion(k, "p", (Message("assistant", "word " * 50),)) for k in "xy")
    order = (0, 1) if left == 0 else (1, 0)
    prompt = Prompt("p", (Message("user", "Why?"),))
    return Card("s", "tok", "votes", "id", task, "aid", handle, prompt, texts, ("x", "y"), order, 0)


def gold_of(prompt, completion):
    """A fixed pseudo-random gold, about N(0, 1)."""
    u, v, _, _ = uniforms(99, "gold", completion.id)
    return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)


def verdicts(annotator, difference, n=4000, left=None):
    return [
        judge(annotator, card(f"task{k}", left=(k % 2 if left is None else left)), difference, 0).strength
        for k in range(n)
    ]


def test_the_default_panel_is_the_tutors():
    people = panel(20, seed=1)
    kinds = sorted((a.slope, a.left_bias, a.spam) for a in people if a.spam == "none")
    assert kinds == [(1.5, 0.0, "none")] * 6 + [(1.5, 0.6, "none")] * 4 + [(2.0, 0.0, "none")] * 8
    assert sum(a.spam == "random" for a in people) == 2
    assert panel(20, seed=1) == people != panel(20, seed=2)
    assert len({a.handle for a in people}) == 20
    assert len(panel(1)) == 1
    with pytest.raises(ConfigError, match="at least 1"):
        panel(0)


def test_without_a_tie_band_preferences_are_bradley_terry():
    # P(slot 0) = 1 / (1 + exp(-2 * .5)) = .731; 4000 draws: sd .007
    share = sum(s > 0 for s in verdicts(SimulatedAnnotator(handle="a", tie=0), 0.5)) / 4000
    assert share == pytest.approx(0.731, abs=0.025)


def test_left_bias_follows_the_side():
    # equal gold, bias .6: P(left) = 1 / (1 + exp(-.6)) = .646
    biased = SimulatedAnnotator(handle="a", tie=0, left_bias=0.6)
    assert sum(s > 0 for s in verdicts(biased, 0.0, left=0)) / 4000 == pytest.approx(0.646, abs=0.025)
    assert sum(s > 0 for s in verdicts(biased, 0.0, left=1)) / 4000 == pytest.approx(0.354, abs=0.025)


def test_ties_strengths_and_slips():
    # P(|logistic| < .5) = 2 / (1 + exp(-.5)) - 1 = .245; P(|logistic| > 2) = 2 / (1 + exp(2)) = .238
    drawn = verdicts(SimulatedAnnotator(handle="a", tie=0.5, strong=2.0), 0.0)
    assert drawn.count(0) / 4000 == pytest.approx(0.245, abs=0.025)
    assert sum(abs(s) == 2 for s in drawn) / 4000 == pytest.approx(0.238, abs=0.025)
    slips = verdicts(SimulatedAnnotator(handle="a", flip=0.25), 50.0)
    assert set(slips) == {2, -2}
    assert slips.count(-2) / 4000 == pytest.approx(0.25, abs=0.025)


def test_spammers_do_not_read():
    random = verdicts(SimulatedAnnotator(handle="a", spam="random"), 50.0)
    assert sum(s > 0 for s in random) / 4000 == pytest.approx(0.5, abs=0.03)
    assert set(verdicts(SimulatedAnnotator(handle="a", spam="left"), 50.0, left=1)) == {-1}
    reader = judge(SimulatedAnnotator(handle="a"), card(), 0.0, 0)
    spammer = judge(SimulatedAnnotator(handle="a", spam="random"), card(), 0.0, 0)
    assert 15_000 < reader.active_ms < 40_000  # 101 words at 250 a minute: 24 s
    assert spammer.active_ms < 4_000


@pytest.fixture
def campaign(tmp_path, fill):
    """A function that runs a campaign of 300 pairs in a fresh store."""
    opened = []

    def run(people, overlap=1, seed=0, backwards=False, name="a"):
        store = Store(tmp_path / f"{name}{len(opened)}.db")
        opened.append(store)
        pairs = fill(store, 100, per_prompt=3)
        create_project(store, "votes", ProjectConfig(seed=seed))
        create_tasks(store, "votes", pairs[::-1] if backwards else pairs, overlap=overlap)
        done = annotate(store, "votes", people, gold_of, seed=seed)
        with store.read() as session:
            votes = load_votes(session, project_row(session, "votes"))
        return store, done, votes

    yield run
    for store in opened:
        store.close()


def test_the_same_seed_gives_the_same_votes_in_every_store(campaign):
    _, first, a = campaign(panel(7, seed=3), Overlap(slice=0.2, slice_votes=3))
    _, second, b = campaign(panel(7, seed=3), Overlap(slice=0.2, slice_votes=3), backwards=True)
    _, _, c = campaign(panel(7, seed=3), Overlap(slice=0.2, slice_votes=3), seed=1)

    def facts(votes: list[Vote]):
        return [(v.task, v.annotator, v.strength, v.first_left, v.active_ms) for v in votes]

    assert facts(a) == facts(b) != facts(c)
    assert first.gold == second.gold
    assert first.judgements == len(a) == 240 + 3 * 60
    assert first.unfilled == 0


def test_the_same_annotator_says_the_same_whoever_else_is_there(campaign):
    """Counter-based noise: a vote depends on (seed, annotator, task), not on how many came before it."""
    people = panel(6, seed=0)
    _, _, few = campaign(people[:4], overlap=2)
    _, _, all_of_them = campaign(people, overlap=2)
    said = {(v.task, v.annotator): v.strength for v in few}
    both = [(said[v.task, v.annotator], v.strength) for v in all_of_them if (v.task, v.annotator) in said]
    assert len(both) > 100
    assert all(x == y for x, y in both)


def test_planted_side_bias_and_agreement_are_found(campaign):
    biased = [SimulatedAnnotator(handle=f"b{k}", slope=0.0, left_bias=0.6, tie=0) for k in range(4)]
    _, _, votes = campaign(biased, overlap=4)
    rate = position_bias(votes)  # 1200 votes; P(left) = .646
    assert rate.value == pytest.approx(0.646, abs=0.045)  # three standard errors
    assert rate.low > 0.5
    expert = [SimulatedAnnotator(handle=f"e{k}", slope=100.0, tie=0) for k in range(3)]
    _, done, votes = campaign(expert, overlap=3)
    assert pair_agreement(votes).value > 0.97
    assert position_bias(votes).low < 0.5 < position_bias(votes).high
    right = [v.strength * done.differences[v.task] > 0 for v in votes]
    assert sum(right) / len(right) > 0.98


def test_the_truth_stays_with_the_caller(campaign):
    store, done, _ = campaign(panel(5), overlap=1)
    with store.read() as session:
        assert session.query(t.Score).count() == 0
    result = aggregate(store, "votes", AggregateConfig(method="majority"))
    assert set(done.differences) == {r.id for r in result.records}
    assert all(r.kind == "simulated" for r in result.records)
    assert not any("gold" in key for key in result.report)
    gold = done.gold
    by_hand = [gold[r.chosen.id] > gold[r.rejected.id] for r in result.records if r.p > 0.5]
    assert bayes_accuracy(result.records, gold) == pytest.approx(sum(by_hand) / len(by_hand))
    assert 0.65 < bayes_accuracy(result.records, gold) < 0.92
    assert bayes_accuracy([], gold) is None


def test_an_overlap_larger_than_the_panel_is_reported(campaign):
    _, done, _ = campaign(panel(2), overlap=3)
    assert (done.judgements, done.unfilled) == (600, 300)


def test_speed_shares_the_work(campaign):
    quick = SimulatedAnnotator(handle="quick", words_per_minute=1000)
    slow = SimulatedAnnotator(handle="slow", words_per_minute=100)
    store, _, _ = campaign([quick, slow], overlap=1)
    quick_n, slow_n = (a.n for a in project_quality(store, "votes").annotators)
    assert quick_n > 1.5 * slow_n


def test_panels_can_be_made_to_measure():
    people = panel(3, groups=(Group(share=1, slope=9.0), Group(share=2, spam="left")))
    assert sorted(a.spam for a in people) == ["left", "left", "none"]
    with pytest.raises(ConfigError, match="annotators: give at least one"):
        annotate(None, "votes", [people[0], people[0]], gold_of)
