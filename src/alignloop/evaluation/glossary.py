"""What every metric means, in a line of plain words, and where it normally lies.

The report prints these beside the numbers; a metric without an entry is shown bare.
"""

from __future__ import annotations

import re
from gettext import gettext as _
from typing import NamedTuple


class Explanation(NamedTuple):
    """One line of plain words, and the normal range."""

    text: str
    normal: str = ""


def _x(text: str, normal: str = "") -> Explanation:
    return Explanation(_(text), _(normal) if normal else "")


_EVALUATION = {
    "gold": _x("The true score of the answers, which training never saw.", "higher is better"),
    "gold.age_appropriateness": _x("Simple words and facts instead of technical ones.", "0-2"),
    "gold.engagement": _x("A greeting, a fitting picture, some delight; too much of it costs.", "0-2"),
    "gold.accuracy": _x("True sentences about the topic; sentences about something else cost.", "0-2"),
    "gold.clarity": _x("No filler, no repeats, nothing garbled, neither too long nor cut off.", "0-2"),
    "gold.interactivity": _x("A question to the child at the end; more than two cost.", "0-2"),
    "reward": _x("Mean score of the answers to held-out prompts.", "higher is better"),
    "kl": _x(
        "How far the model has moved from where it started, in nats per answer.",
        "0 is no change; 1-15 is usual, far more means it is chasing the reward",
    ),
    "win_rate": _x("How often one model's answer beats the other's; a tie is half.", "50 % is no difference"),
    "reward_model.accuracy": _x(
        "Share of unseen votes that the reward model predicts.", "50 % is a coin; 60-80 % on human votes"
    ),
    "reward_model.strict_accuracy": _x(
        "The same, with tied scores counted as wrong.", "equal to accuracy without ties"
    ),
    "reward_model.bayes_accuracy": _x(
        "What somebody who knew the true scores would reach on the same noisy votes.", "the ceiling of accuracy"
    ),
    "reward_model.ece": _x(
        "Gap between how sure the reward model is and how often it is right.", "below 0.05 is good, above 0.15 poor"
    ),
    "reward_model.nll": _x(
        "Surprise of the reward model at the votes, in nats per pair.", "0.69 is a coin, lower is better"
    ),
    "reward_model.pairs": _x("Unseen comparisons that the reward model was tested on.", "400 give about ± 4 points"),
    "reward_model.length_correlation": _x(
        "How much the reward follows the length of the answer.", "within ± 0.3; near 1 it only counts words"
    ),
    "chosen_longer": _x("Accuracy where the preferred answer is the longer one.", "close to the line below"),
    "chosen_shorter": _x("Accuracy where the preferred answer is the shorter one.", "close to the line above"),
    "annotators.n": _x("People, or simulated people, who compared answers.", "3 or more"),
    "annotators.overlap": _x("Votes on each pair of answers.", "1-3"),
    "annotators.alpha": _x(
        "Krippendorff's alpha: agreement beyond chance.", "0 is chance, 1 is perfect; 0.3-0.7 for matters of taste"
    ),
    "annotators.position_bias": _x("Share of decided votes for the answer on the left.", "45-55 %; 50 % is no bias"),
    "annotators.votes": _x("Judgements that were kept."),
    "perplexity": _x(
        "Among how many tokens the model hesitates, on held-out reference answers.", "lower fits better; 1 is certainty"
    ),
    "bits_per_byte": _x("Bits the model needs per byte of reference text.", "0.5-1.5; comparable across tokenizers"),
    "rouge1": _x("Words shared with the reference answer (F1).", "0.2-0.5 for open questions"),
    "rouge2": _x("Pairs of words shared with the reference answer (F1).", "0.05-0.3 for open questions"),
    "rougeL": _x("Longest run of words in the same order as in the reference (F1).", "0.15-0.4 for open questions"),
    "rougeLsum": _x("The same, line by line.", "0.15-0.4 for open questions"),
    "readability": _x(
        "Sentences per answer that are off the topic or broken.", "lower is better; should not rise after SFT"
    ),
    "wrong_topic": _x("Sentences per answer that belong to another topic.", "near 0"),
    "garbled": _x("Sentences per answer that do not hold together.", "near 0"),
    "repeats": _x("Sentences per answer that were said before.", "near 0"),
    "words": _x("Mean length of an answer.", "should not grow without a reason"),
    "words_p95": _x("Words in the longest answers: 1 in 20 is longer.", "below the length limit"),
    "distinct_1": _x("Different words among all words.", "compare models, not runs"),
    "distinct_2": _x("Different pairs of words among all pairs.", "a fall means sameness"),
    "distinct_3": _x("Different triples of words among all triples.", "a fall means sameness"),
    "repeated_trigrams": _x("Triples of words that the same answer already used.", "below 0.1"),
    "truncated": _x("Share of answers cut off by the length limit.", "below 0.1"),
    "self_bleu": _x("How much the answers resemble each other.", "near 1 means one answer for everything"),
    "nll_per_token": _x("Surprise per token of text, in nats.", "lower is more fluent, 0 is recitation"),
    "seconds": _x("Wall-clock time."),
    "best_of_n": _x(
        "Draw n answers, keep the one the reward model likes best: a reference without training.", "rises with n"
    ),
}

_EVERY_STAGE = {
    "loss": _x("What training lowers.", "falls, then levels off"),
    "eval_loss": _x("The loss on rows that training never sees.", "falls; rising again means over-fitting"),
    "grad_norm": _x("Size of the gradient before clipping.", "0.1-10 and steady; spikes mean trouble"),
    "learning_rate": _x("Size of the steps.", "rises during warm-up, then falls"),
    "num_tokens": _x("Tokens consumed so far."),
    "num_sequences": _x("Sequences consumed so far."),
    "epoch": _x("Passes over the data."),
    "tokens_per_second": _x("Speed.", "steady"),
    "seconds": _x("Wall-clock time so far."),
    "skipped_steps": _x("Updates dropped because a number was not finite.", "0"),
    "skipped_updates": _x("Updates dropped so far because a number was not finite.", "0"),
    "step_tokens": _x("Tokens that this step learnt from.", "steady"),
    "updates": _x("Optimizer steps on one batch of answers.", "constant; fewer after an early stop"),
    "truncated": _x("Share of answers cut off by the length limit.", "below 0.1"),
    "length_mean": _x("Tokens per answer.", "should not run to the limit"),
    "length_p95": _x("Tokens in the longest answers: 1 in 20 is longer.", "below the limit"),
}

_SUPERVISED = {
    "entropy": _x("Uncertainty of the next token, in nats.", "falls slowly; near 0 means one fixed answer"),
    "mean_token_accuracy": _x("Share of tokens that the model would have guessed.", "rises; 0.4-0.8"),
    "nll": _x("Surprise per trained token, in nats.", "falls"),
    "perplexity": _x("Among how many tokens the model hesitates.", "falls"),
}

_REWARD_MODEL = {
    "accuracy": _x("Share of votes predicted in this batch.", "0.5 is a coin; rises to 0.6-0.8"),
    "margin": _x("Mean score gap between preferred and other answer.", "rises to 0.5-2"),
    "mean_reward": _x("Mean score over all answers.", "near 0 with centring; drifts without"),
    "min_reward": _x("Lowest score in the batch.", "does not run away"),
    "max_reward": _x("Highest score in the batch.", "does not run away"),
    "center_rewards": _x("Penalty that keeps scores around 0.", "small"),
    "longer_preferred": _x("Share of pairs where the model scores the longer answer higher.", "close to longer_chosen"),
    "longer_chosen": _x("Share of pairs where people chose the longer answer.", "a property of the votes"),
}

_DPO = {
    "rewards/chosen": _x(
        "How much likelier than before the preferred answers became, times beta.", "above rewards/rejected"
    ),
    "rewards/rejected": _x("How much likelier than before the other answers became, times beta.", "falls below 0"),
    "rewards/margins": _x("How much more the preferred answers gained than the others.", "rises from 0"),
    "rewards/accuracies": _x("Share of pairs where the preferred answer gained more.", "0.5 at the start; 0.6-0.9"),
    "logps/chosen": _x(
        "Log-probability of the preferred answers, in nats.", "a steep fall means both are being unlearnt"
    ),
    "logps/rejected": _x("Log-probability of the other answers, in nats.", "falls"),
    "logits/chosen": _x("Mean raw output on preferred answers.", "steady"),
    "logits/rejected": _x("Mean raw output on the other answers.", "steady"),
    "logps/displaced": _x("Share of pairs whose preferred answer became less likely.", "below 0.5, else set rpo_alpha"),
    "nll_loss": _x("Surprise at the preferred answers, in nats per token.", "falls"),
    "log_odds_chosen": _x("Log-odds of the preferred answers over the others.", "rises"),
    "log_odds_ratio": _x("Log of the probability that those odds give to the preference.", "rises towards 0"),
    "class_balance": _x("Weight of good answers over that of bad ones.", "1 to 4/3"),
    "top1": _x("Share of rankings whose best answer has the highest score.", "rises"),
    "steps/correct": _x("Share of steps that are labelled right.", "a property of the data"),
    "tie_width": _x("How near two answers must be to tie, in units of the score.", "settles"),
    "objective/scores_margin": _x("Score of the best answer minus that of the worst.", "above 0"),
    "pairs/skipped": _x("Share of prompts whose answers all score the same.", "below 0.5"),
}

_PPO = {
    "objective/kl": _x(
        "KL to the reference, summed over an answer, in nats.", "0 at first, then 1-15; never negative for long"
    ),
    "objective/kl_token": _x("KL to the reference per token, in nats.", "below 0.2"),
    "objective/kl_k3": _x("The same KL by an estimate that is never negative.", "close to objective/kl"),
    "objective/kl_se": _x("Standard error of objective/kl.", "well below objective/kl"),
    "objective/entropy": _x("Uncertainty summed over an answer, in nats.", "falls slowly; a crash means collapse"),
    "objective/non_score_reward": _x("Penalty for moving away from the reference, per answer.", "negative and small"),
    "objective/rlhf_reward": _x("Score minus the penalty: what PPO maximises.", "rises"),
    "rewards/{func}/mean": _x("Mean of one part of the reward, under the part's own name.", "as the part is scaled"),
    "rewards/{func}/std": _x("Spread of that part over the answers.", "above 0; at 0 the part tells nothing apart"),
    "rewards/{func}/multiplier": _x(
        "Learned weight of a part that has a bound.", "settles; 0 where the bound holds by itself"
    ),
    "objective/scores": _x("Mean score from the reward model.", "rises; without end it is being gamed"),
    "objective/scores_std": _x("Spread of the scores.", "does not fall to 0"),
    "policy/approxkl_avg": _x("How far one update moves the policy.", "0.001-0.03"),
    "policy/kl_old": _x(
        "How far the policy is from the one that wrote the answers.", "0.001-0.03; far more ends the epoch"
    ),
    "policy/clipfrac_avg": _x("Share of tokens whose change was clipped.", "0.01-0.2"),
    "policy/entropy_avg": _x("Uncertainty of the next token, in nats.", "falls slowly"),
    "loss/policy_avg": _x("The policy's part of the loss.", "around 0; its level says little"),
    "loss/kl_avg": _x("The penalty for moving away, where it is part of the loss.", "small"),
    "critic/loss": _x("The value model's loss.", "falls"),
    "critic/grad_norm": _x("Size of the value model's gradient before clipping.", "steady; spikes mean trouble"),
    "critic/learning_rate": _x("Size of the value model's steps.", "as scheduled"),
    "loss/value_avg": _x("Error of the value model, squared.", "falls"),
    "val/clipfrac_avg": _x("Share of value changes that were clipped.", "below 0.3"),
    "val/ratio": _x("New over old probability of the sampled tokens.", "0.98-1.02"),
    "val/ratio_var": _x("Spread of that ratio.", "below 0.05"),
    "val/num_eos_tokens": _x("Answers that ended by themselves.", "close to the number of answers"),
    "val/explained_variance": _x(
        "How much of the outcome the value model foresees.", "0.3-0.9; below 0 is worse than a constant"
    ),
    "explained_variance": _x(
        "How much of the outcome the value model foresees.", "0.3-0.9; below 0 is worse than a constant"
    ),
    "kl_coef": _x("Weight of the penalty for moving away.", "constant, or steered to the KL target"),
    "advantage_mean": _x("Mean advantage before whitening.", "near 0"),
    "advantage_std": _x("Spread of the advantages before whitening.", "above 0"),
    "value_mean": _x("Mean forecast of the value model.", "follows the reward"),
    "sampler_kl": _x("Difference between the engine's and the trainer's log-probabilities.", "below 0.001"),
    "completions/mean_length": _x("Tokens per answer.", "should not run to the limit"),
    "completions/min_length": _x("Tokens of the shortest answer.", "not 1"),
    "completions/max_length": _x("Tokens of the longest answer.", "at most the limit"),
    "completions/mean_terminated_length": _x("Tokens per answer that ended by itself.", "close to the mean length"),
    "completions/clipped_ratio": _x("Share of answers cut off by the length limit.", "below 0.1"),
    "sampling/sampling_logp_difference/mean": _x(
        "Gap between the engine's and the trainer's log-probabilities.", "below 0.001"
    ),
    "sampling/sampling_logp_difference/max": _x("The largest such gap of a token.", "below 0.01"),
    "sampling/policy_drift/mean": _x(
        "How far the policy has moved since it drew these answers (draw_ahead), in nats per token.",
        "below 0.1; such answers are one version old",
    ),
    "sampling/policy_drift/max": _x("The largest such change of a token.", "below 3"),
    "unscorable": _x("Answers that the reward could not score.", "0"),
    "eval_reward": _x("Mean score of fresh answers to held-out prompts.", "rises with objective/scores"),
    "eval_ended": _x("Share of held-out answers that ended by themselves.", "above 0.9"),
    "early_stop": _x("Updates stopped because they moved too far.", "rare"),
}

_POLICY_GRADIENT = {
    "advantage/abs_mean": _x("Mean size of an advantage.", "steady; 0 means that nothing is learnt"),
    "clip_ratio/high_mean": _x("Share of tokens whose ratio is above the clip.", "0-0.1"),
    "clip_ratio/low_mean": _x("Share of tokens whose ratio is below the clip.", "0-0.1"),
    "completions/mean_length_better": _x("Tokens per answer that was better than its baseline.", "close to the next"),
    "completions/mean_length_worse": _x(
        "Tokens per answer that was not better than its baseline.", "does not grow by itself"
    ),
    "reward_std": _x("Mean spread of the rewards of one prompt's answers.", "above 0"),
    "frac_reward_zero_std": _x(
        "Share of prompts whose answers all earn the same.", "below 0.5; such prompts teach nothing"
    ),
    "reward_greedy": _x("Mean score of the most probable answers.", "rises with objective/scores"),
    "sampling/acceptance": _x("Share of the prompts drawn that tell answers apart.", "above 0.2"),
    "sampling/attempts": _x("Rounds of sampling that one batch took.", "below max_attempts"),
    "sampling/reward": _x("Mean score of all answers drawn, kept or not.", "rises"),
    "sampling/importance_sampling_ratio/mean": _x("Mean weight of a token before the limit.", "0.98-1.02"),
    "sampling/importance_sampling_ratio/limited": _x("Share of the weights that the limit changed.", "below 0.05"),
    "sampling/effective_sample_size": _x("Tokens that the weights leave, as a share of all.", "above 0.9"),
    "critic/updates": _x("Optimizer steps of the value model on one batch of answers.", "constant"),
    "critic/skipped_updates": _x("Updates of the value model dropped so far for a number that was not finite.", "0"),
    "loss/positive_nll": _x("Surprise at the right answers, in nats per token.", "falls"),
    "ptx/nll": _x("Surprise per token of the pretraining data, in nats.", "does not rise"),
    "ptx/grad_ratio": _x("Gradient of the pretraining data over that of the policy, by size.", "near 1"),
    "trpo/kl": _x("KL per token that the step reached, in nats.", "above 0, at most trust.delta"),
    "trpo/gain": _x("What the step gained, measured.", "above 0"),
    "trpo/gain_linear": _x("What the gradient promised for that step.", "close to trpo/gain"),
    "trpo/slope": _x("Gradient along the direction found.", "above 0"),
    "trpo/cg_residual": _x("What conjugate gradients left over, as a share.", "below 0.5"),
    "trpo/backtracks": _x("Times that the step was halved.", "0-3"),
    "trpo/accepted": _x("1: a step was taken; 0: the weights stayed.", "1"),
}

_SELECTION = {
    "reward/mean": _x("Mean score of all answers drawn.", "rises from round to round"),
    "reward/selected": _x("Mean score of the chosen answers.", "above reward/mean"),
    "reward/kept": _x("Mean score of the kept answers.", "above reward/mean"),
    "reward/best_of_{n}": _x("Estimated mean score of the best of n.", "rises with n"),
    "gold/mean": _x("The same by the second reward, of all answers drawn.", "rises with reward/mean"),
    "gold/selected": _x("The same by the second reward, of the chosen answers.", "above gold/mean"),
    "gold/best_of_{n}": _x("By the second reward, of the best of n by the first.", "a fall with n means gaming"),
    "kl_upper_bound": _x("What choosing the best of n costs at most, in nats.", "ln n - (n - 1)/n"),
    "kl_exact": _x("What it costs, where all probable answers were drawn, in nats.", "at most kl_upper_bound"),
    "kl_exact_prompts": _x("Share of the prompts for which that is known.", "0 for long answers"),
    "distinct_candidates": _x("Different answers among those drawn to a prompt.", "close to n"),
    "unanswered": _x("Prompts to which no answer could be scored.", "0"),
    "round": _x("Round of drawing, selecting and imitating."),
    "grow": _x("Set of answers drawn."),
    "improve": _x("Fine-tuning on that set."),
    "selection/keep_fraction": _x("Share of the answers that were kept.", "as asked"),
    "selection/coverage": _x("Share of the prompts that have a kept answer.", "above 0.5"),
    "selection/distinct_2": _x(
        "Different pairs of words among all pairs of the kept answers.", "a fall means sameness"
    ),
    "selection/distinct_answers": _x("Share of the kept answers that are different.", "near 1"),
    "selection/threshold": _x("Lowest score that was kept.", "rises"),
    "selection/improved_prompts": _x("Share of the prompts whose best answer is better than before.", "above 0"),
    "selection/fresh": _x("Share of the kept answers that this round drew.", "above 0"),
    "eval_proxy": _x("The score of the held-out answers by the reward that selects.", "rises with eval_reward"),
    "sft_loss": _x("Loss of the last step of the fine-tuning.", "falls"),
    "sft_nll": _x("Surprise per token at the kept answers, in nats.", "falls"),
}

_AI_FEEDBACK = {
    "judge/pairs": _x("Comparisons that were put to the judge."),
    "judge/unread": _x("Comparisons whose reply could not be read in both orders; they have no label.", "near 0"),
    "judge/flipped": _x("Share of comparisons in which the judge follows the place, not the answer.", "below 0.2"),
    "judge/first_shown": _x("Mean probability of the answer that is shown first.", "0.5 is no favour for a place"),
    "judge/confidence": _x("How far from a tie the labels are, on average.", "0.2-0.8; 0 says nothing"),
    "judge/length_correlation": _x("Correlation of the label with the difference in length.", "-0.3 to 0.3"),
    "reward_loss": _x("Loss of the reward model's last step.", "falls"),
    "reward_accuracy": _x("Share of the last step's comparisons that the reward model gets right.", "0.6-0.9"),
    "constitution/revisions": _x("Revisions that are learnt."),
    "constitution/no_critique": _x("Share of critiques without a word, or without room in the context.", "near 0"),
    "constitution/no_revision": _x("Share of revisions without a word, or without room in the context.", "near 0"),
    "constitution/unchanged": _x("Share of revisions that repeat the answer; they are not learnt.", "below 0.3"),
    "constitution/clipped_ratio": _x("Share of revisions cut off by the length limit.", "below 0.1"),
}

_TEST_TIME = {
    "depth": _x("Rounds of criticism and revision so far; 0 is the first draws."),
    "reward/best": _x("Mean over the prompts of the best score found so far.", "never falls"),
    "reward/worst": _x("Mean of the lowest score among the answers that this depth added.", "rises with depth"),
    "gold/best": _x("By the second reward, the answers with the best score so far.", "rises with reward/best"),
    "improved": _x("Share of the prompts whose best answer beats the best of their first draws.", "rises with depth"),
    "parse_failures": _x("Revisions of this depth without one answer between the tags; they are dropped.", "near 0"),
    "blank": _x("Answers of this depth without a word; they are dropped.", "0"),
    "stopped": _x("Share of the prompts whose search has ended early; train.json says why.", "near 0"),
    "calls": _x("Replies asked for so far, for each prompt.", "N(D + 1) + 2D"),
    "tokens": _x("Tokens written so far, for each prompt.", "what the budget allows"),
}

EXPLANATIONS: dict[str, Explanation] = {
    **_EVALUATION,
    **_EVERY_STAGE,
    **_SUPERVISED,
    **_REWARD_MODEL,
    **_DPO,
    **_PPO,
    **_POLICY_GRADIENT,
    **_SELECTION,
    **_AI_FEEDBACK,
    **_TEST_TIME,
    "perplexity": _EVALUATION["perplexity"],
}
"""Metric name -> explanation, for evaluation and for every training curve."""

_PREFIXES = ("eval_", "eval/", "val_", "validation/", "train/")


def explain(name: str) -> Explanation | None:
    """The explanation of a metric; ``eval_accuracy`` is explained as accuracy on unseen rows. None where unknown."""
    if name in EXPLANATIONS:
        return EXPLANATIONS[name]
    if match := re.fullmatch(r"rewards/.+/(mean|std|multiplier)", name):
        return EXPLANATIONS[f"rewards/{{func}}/{match[1]}"]
    if match := re.fullmatch(r"(reward|gold)/best_of_\d+", name):
        return EXPLANATIONS[f"{match[1]}/best_of_{{n}}"]
    for prefix in _PREFIXES:
        if name.startswith(prefix) and (found := EXPLANATIONS.get(name.removeprefix(prefix))):
            return Explanation(_("On unseen rows: {}").format(found.text[0].lower() + found.text[1:]), found.normal)
    return None
