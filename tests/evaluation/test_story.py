"""The story says what the numbers allow, and no more; the lineage drawing keeps its order."""

import pytest

from alignloop.core.errors import DataError
from alignloop.evaluation.lineage_graph import HEIGHT, layers, layout, lineage_svg
from alignloop.evaluation.marks import legend
from alignloop.evaluation.plots import slots
from alignloop.evaluation.schema import Lineage, model_order, parse_report
from alignloop.evaluation.story import tell
from tests.evaluation.fake_report import full, generic, minimal


def chapters(report):
    return {c.title: c for c in tell(parse_report(report))}


def test_a_clear_gain_is_told_with_its_numbers():
    told = chapters(full())["Learning from demonstrations"]
    assert told.verdict == "better"
    assert told.sentences[0] == (
        "The gold score rises from 4.23 (Base) to 5.41 (SFT): +1.18 ± 0.14, 8.3 standard errors."
    )
    assert "Most of it is age appropriateness (0.64 → 1.62)." in told.sentences
    assert "It pays with clarity (1.86 → 1.57)." in told.sentences


def test_noise_is_not_called_progress():
    report = minimal()
    report["gold"]["ppo"] |= {"mean": 5.5, "se": 0.1}
    report["win_rate"]["ppo_vs_sft"] = {"rate": 0.52, "ci": [0.46, 0.58]}
    told = chapters(report)["Optimising for the votes: PPO"]
    assert (told.verdict, told.verdict_words) == ("same", "no measurable change")
    assert "within the noise" in " ".join(told.sentences)
    assert "neither can be called the winner" in " ".join(told.sentences)


def test_a_loss_is_told():
    report = minimal()
    report["gold"]["dpo"] |= {"mean": 4.1}
    report["readability"]["dpo"] = 0.9
    report["kl"]["dpo"] = {"mean": 43.0, "se": 1.0}
    told = chapters(report)["Optimising for the votes: DPO"]
    words = " ".join(told.sentences)
    assert told.verdict == "worse"
    assert "falls from 5.41 (SFT) to 4.10 (DPO)" in words
    assert "Its text reads worse: 0.90 faulty sentences per answer against 0.38." in words
    assert "That is far" in words


def test_readability_may_be_a_number_per_fault():
    report = minimal()
    report["readability"] = {m: {"wrong_topic": 0.25, "garbled": 0.05} for m in ("base", "sft", "dpo", "ppo")}
    words = " ".join(chapters(report)["Optimising for the votes: PPO"].sentences)
    assert "(0.30 faulty sentences per answer, 0.30 before)" in words


def test_reward_model_against_its_ceiling():
    near = chapters(minimal())["Learning what the voters like"]
    assert near.verdict_words == "close to the ceiling"  # .752 of .801
    report = minimal()
    report["reward_model"]["accuracy"] = 0.68
    far = chapters(report)["Learning what the voters like"]
    assert far.verdict_words == "well below the ceiling"
    assert "It misses 12.1 points of what could be learnt." in far.sentences
    own = generic() | {"reward_model": {"accuracy": 0.52, "pairs": 100, "ci": [0.42, 0.62]}}
    assert chapters(own)["Learning what the voters like"].verdict == "worse"


def test_votes_are_described():
    words = " ".join(chapters(minimal())["Asking which answer is better"].sentences)
    assert "8 annotators" in words and "moderate (alpha 0.41)" in words and "52% of the votes" in words
    report = minimal()
    report["annotators"] |= {"alpha": None, "position_bias": 0.1}
    words = " ".join(chapters(report)["Asking which answer is better"].sentences)
    assert "alpha" not in words and "60% of the votes: a bias to allow for" in words


def test_over_optimisation_is_noticed_only_where_it_happened():
    words = " ".join(chapters(full())["Pushing too hard"].sentences)
    assert "ppo, too hot: the true score peaks at update 6" in words
    assert words.count("gamed") == 1


def test_two_methods_within_noise_are_not_ranked():
    words = " ".join(chapters(full())["What came of it"].sentences)
    assert "DPO and PPO cannot be told apart" in words
    assert "the best of 8 plain answers" in words
    report = minimal()
    report["gold"]["ppo"]["mean"] = 8.0
    assert "PPO ends above DPO by 1.43." in " ".join(chapters(report)["What came of it"].sentences)


def test_a_run_without_gold_or_sft_has_a_story():
    told = chapters(generic())
    assert list(told) == ["Where it starts: stories260K", "Optimising: happy"]
    assert told["Optimising: happy"].verdict == "better"
    assert tell(parse_report({})) == []


def test_a_score_without_error_gets_no_verdict():
    report = generic()
    report["reward"] = {"a": {"mean": 1.0}, "b": {"mean": 2.0}}
    assert chapters(report | {"models": ["a", "b"]})["Optimising: b"].verdict == ""


def test_order_and_colours_of_models():
    assert model_order(parse_report(dict(sorted(minimal().items())))) == ["base", "sft", "dpo", "ppo"]
    assert model_order(parse_report(generic())) == ["stories260K", "happy"]
    assert slots(["base", "ppo", "mine"]) == {"base": 0, "ppo": 3, "mine": 4}
    assert len(set(slots([f"m{i}" for i in range(8)]).values())) == 8


def test_marks_have_different_letters():
    marks = legend({"p": {"m": [("a", "garbled"), ("b", "grumpy"), ("c", "good"), ("d", "gg")]}})
    letters = [m.letter for m in marks.values()]
    assert len(set(letters)) == 4
    assert marks["garbled"].bad


def test_layers_and_layout():
    assert layers(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")]) == {"a": 0, "b": 1, "c": 2}
    lineage = Lineage.model_validate(full()["lineage"])
    plan = layout(lineage)
    for a, b in lineage.edges:
        assert plan.nodes[a][1] + HEIGHT < plan.nodes[b][1]  # made from above
    places = list(plan.nodes.values())
    assert len(set(places)) == len(places)
    assert all(0 <= x <= plan.width and 0 <= y <= plan.height for x, y in places)
    assert lineage_svg(lineage).count('class="edge"') == len(lineage.edges)


@pytest.mark.parametrize("edges, words", [([("a", "x")], "unknown node x"), ([("a", "b"), ("b", "a")], "cycle")])
def test_a_broken_lineage_is_told(edges, words):
    with pytest.raises(DataError, match=words):
        layers(["a", "b"], edges)
