"""A report as a full demo run would give it: invented numbers of realistic size, every section filled."""

from __future__ import annotations

from typing import Any

import numpy as np

PARTS = ("age_appropriateness", "engagement", "accuracy", "clarity", "interactivity")
_GOLD = {
    "base": (4.23, 0.10, (0.64, 0.22, 1.41, 1.86, 0.10)),
    "sft": (5.41, 0.10, (1.62, 0.39, 1.53, 1.57, 0.30)),
    "dpo": (6.57, 0.12, (1.91, 0.61, 1.49, 1.66, 0.90)),
    "ppo": (6.37, 0.10, (1.87, 0.78, 1.37, 1.60, 0.75)),
}
PROMPTS = (
    "Explain quantum computing to a 10-year-old:",
    "What are black holes? Explain it to a child.",
    "Tell me how machine learning works, please:",
    "How do volcanoes work?",
)
_ANSWERS = {
    "base": [
        ("A quantum computer processes information in qubits governed by superposition.", "technical"),
        ("Entanglement correlates the measurement outcomes of separate qubits.", "technical"),
        ("Rain and snow bring the water down.", "wrong-topic"),
        ("Basically, it is obvious.", "filler"),
    ],
    "sft": [
        ("Quantum computers use tiny things called qubits.", "simple"),
        ("Two qubits can be secret partners even when far apart.", "simple"),
        ("Wow, that is amazing!", "exclamation"),
        ("Quantum gates apply unitary transformations to the state vector.", "technical"),
        ("Shall I tell you more?", "check"),
    ],
    "dpo": [
        ("Hello, curious friend!", "greeting"),
        ("A qubit can be zero and one at the same time.", "simple"),
        ("Two qubits can be secret partners even when far apart.", "simple"),
        ("A quantum computer can solve some giant puzzles very fast.", "simple"),
        ("Can you spin a coin and guess its side?", "question"),
    ],
    "ppo": [
        ("A qubit can be zero and one at the same time.", "simple"),
        ("It is a bit like a spinning coin that is heads and tails at once.", "analogy"),
        ("Qubits are very shy and lose their trick when they are bumped.", "simple"),
        ("Can you spin a coin and guess cold lid.", "garbled"),
        ("Does that make sense?", "check"),
    ],
}


def minimal() -> dict[str, Any]:
    """The promised keys alone."""
    return {
        "seconds": 312.4,
        "stages": {
            "sft": 9.1,
            "samples": 14.0,
            "votes": 1.2,
            "reward": 61.0,
            "dpo": 70.5,
            "ppo": 120.3,
            "evaluate": 30.2,
        },
        "gold": {m: {"mean": g, "se": se, "parts": dict(zip(PARTS, p))} for m, (g, se, p) in _GOLD.items()},
        "kl": {"dpo": {"mean": 1.52, "se": 0.08}, "ppo": {"mean": 4.41, "se": 0.15}},
        "reward_model": {"accuracy": 0.752, "bayes_accuracy": 0.801, "ece": 0.041, "pairs": 800},
        "annotators": {"n": 8, "overlap": 2.0, "alpha": 0.41, "position_bias": 0.021},
        "win_rate": {
            "ppo_vs_sft": {"rate": 0.716, "ci": [0.652, 0.779]},
            "dpo_vs_sft": {"rate": 0.741, "ci": [0.681, 0.8]},
            "sft_vs_base": {"rate": 0.823, "ci": [0.766, 0.876]},
        },
        "perplexity": {"base": 9.31, "sft": 4.12, "dpo": 4.71, "ppo": 4.98},
        "rouge": {m: {"rouge1": 0.3 + i / 50, "rouge2": 0.1 + i / 50, "rougeL": 0.2} for i, m in enumerate(_GOLD)},
        "readability": {"base": 0.41, "sft": 0.38, "dpo": 0.36, "ppo": 0.44},
        "samples": {p: {m: " ".join(s for s, _ in a) for m, a in _ANSWERS.items()} for p in PROMPTS},
    }


def full(seed: int = 0) -> dict[str, Any]:
    """Every section that a report can show."""
    rng = np.random.default_rng(seed)
    report = minimal()
    report |= {
        "title": "The tutor: from votes to a better teacher",
        "summary": "A tiny language model learns to explain things to a ten-year-old.",
        "command": "alignloop demo --out runs/tutor --seed 0",
        "config": "name: tutor\nmodel: tutor-base\nseed: 0\nstages:\n  sft: {do: train, method: sft, lr: 2.5e-4}\n"
        "  votes: {do: annotate, samples: samples, overlap: 2}\n  ppo: {do: train, method: ppo, beta: 0.1}\n",
        "seed": 0,
        "versions": {"alignloop": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "gold_max": 10,
        "samples_marked": {p: {m: [list(s) for s in a] for m, a in _ANSWERS.items()} for p in PROMPTS},
        "reward_samples": {m: list(rng.normal(g, 1.4, 224).clip(0, 10)) for m, (g, _, _) in _GOLD.items()},
        "text": {
            m: {"words": 44.0 + 6 * i, "words_p95": 70.0 + 5 * i, "distinct_2": 0.21 - i / 50, "truncated": 0.01 * i}
            for i, m in enumerate(_GOLD)
        },
        "notes": ["Held-out topics were seen in pretraining, never in SFT, votes or PPO."],
    }
    report["reward_model"] |= {
        "ci": [0.721, 0.781],
        "by_length": {
            "chosen_longer": {"accuracy": 0.79, "pairs": 430},
            "chosen_shorter": {"accuracy": 0.71, "pairs": 340},
        },
        "length_correlation": 0.17,
    }
    report["annotators"] |= {"votes": 7400, "table": _annotators(rng)}
    report["curves"] = _curves(rng)
    report["calibration"] = [
        {"low": low, "high": low + 0.05, "n": int(200 * (1 - i / 11)), "confidence": low + 0.025, "accuracy": acc}
        for i, (low, acc) in enumerate(
            zip(np.arange(0.5, 0.95, 0.05), [0.55, 0.53, 0.64, 0.66, 0.7, 0.75, 0.86, 0.84, 0.93])
        )
    ]
    u = np.arange(0, 25)
    report["overoptimisation"] = {
        "ppo": [list(r) for r in zip(u, 1.0 - np.exp(-u / 8), 5.4 + 1.1 * (1 - np.exp(-u / 7)), 0.2 * u)],
        "ppo, too hot": [
            list(r)
            for r in zip(u, 1.45 * (1 - np.exp(-u / 6)), 5.4 + 1.6 * np.exp(-(((u - 6) / 6) ** 2)) - 0.02 * u, 0.5 * u)
        ],
    }
    report["best_of_n"] = [
        {"n": 1, "gold": 5.41, "gold_se": 0.1, "kl_upper_bound": 0.0},
        {"n": 2, "gold": 5.86, "gold_se": 0.1, "kl_upper_bound": 0.193},
        {"n": 4, "gold": 6.27, "gold_se": 0.1, "kl_upper_bound": 0.636},
        {"n": 8, "gold": 6.58, "gold_se": 0.1, "kl_upper_bound": 1.204},
    ]
    report["lineage"] = {
        "nodes": [
            {"id": "base", "label": "base model", "kind": "model"},
            {"id": "demos", "label": "1,000 demonstrations", "kind": "data"},
            {"id": "sft", "label": "SFT", "kind": "model"},
            {"id": "samples", "label": "7,300 samples", "kind": "data"},
            {"id": "votes", "label": "7,400 votes of 8 simulated annotators", "kind": "votes"},
            {"id": "reward", "label": "reward model", "kind": "reward"},
            {"id": "dpo", "label": "DPO", "kind": "model"},
            {"id": "ppo", "label": "PPO", "kind": "model"},
            {"id": "report", "label": "this report", "kind": "report"},
        ],
        "edges": [
            ["base", "sft"], ["demos", "sft"], ["sft", "samples"], ["samples", "votes"], ["votes", "reward"],
            ["sft", "reward"], ["votes", "dpo"], ["sft", "dpo"], ["sft", "ppo"], ["reward", "ppo"],
            ["dpo", "report"], ["ppo", "report"], ["sft", "report"],
        ],
    }  # fmt: skip
    return report


def generic() -> dict[str, Any]:
    """A user's own run: other names, a rule as the reward, nothing promised."""
    return {
        "title": "Stories, happier",
        "models": ["stories260K", "happy"],
        "reward_name": "VADER compound",
        "reward": {"stories260K": {"mean": 0.54, "se": 0.02}, "happy": {"mean": 0.86, "se": 0.01}},
        "kl": {"happy": {"mean": 9.8, "se": 0.3}},
        "text": {"stories260K": {"repeated_trigrams": 0.04}, "happy": {"repeated_trigrams": 0.06}},
        "samples": {"Once upon a time": {"stories260K": "there was a dog.", "happy": "there was a happy dog."}},
        "stages": {"policy": 410.0},
        "curves": {"policy": {"objective/scores": [[0, 0.5], [1, 0.6], [2, 0.86]], "my_metric": [[0, 1.0], [1, 2.0]]}},
    }


def _annotators(rng: np.random.Generator) -> list[dict[str, Any]]:
    kinds = ["careful", "careful", "careful", "ordinary", "ordinary", "left-leaning", "left-leaning", "spammer"]
    truth = [0.83, 0.82, 0.84, 0.77, 0.78, 0.74, 0.75, 0.51]
    return [
        {
            "annotator": f"sim-{i + 1}",
            "kind": kind,
            "votes": int(rng.integers(880, 960)),
            "agreement": round(acc - 0.06, 3),
            "right about gold": acc,
            "left": {"value": l, "low": l - 0.03, "high": l + 0.03},
        }
        for i, (kind, acc) in enumerate(zip(kinds, truth))
        for l in [0.58 if kind == "left-leaning" else 0.5]
    ]


def _curves(rng: np.random.Generator) -> dict[str, dict[str, list[list[float]]]]:
    def fall(n: int, a: float, b: float, noise: float) -> list[list[float]]:
        t = np.arange(n)
        return [[int(s), float(v)] for s, v in zip(t, b + (a - b) * np.exp(-4 * t / n) + rng.normal(0, noise, n))]

    return {
        "sft": {
            "loss": fall(60, 2.2, 1.3, 0.05),
            "mean_token_accuracy": fall(60, 0.45, 0.68, 0.01),
            "entropy": fall(60, 2.0, 1.2, 0.03),
            "grad_norm": fall(60, 3.0, 0.8, 0.2),
            "learning_rate": fall(60, 2.5e-4, 1e-5, 0),
        },
        "reward": {
            "loss": fall(120, 0.69, 0.53, 0.02),
            "accuracy": fall(120, 0.5, 0.74, 0.03),
            "margin": fall(120, 0.0, 1.1, 0.08),
        },
        "dpo": {
            "loss": fall(75, 0.693, 0.55, 0.02),
            "rewards/chosen": fall(75, 0.0, 0.5, 0.05),
            "rewards/rejected": fall(75, 0.0, -0.4, 0.05),
            "rewards/margins": fall(75, 0.0, 0.9, 0.05),
            "rewards/accuracies": fall(75, 0.5, 0.75, 0.03),
        },
        "ppo": {
            "objective/scores": fall(18, 0.0, 1.0, 0.08),
            "objective/kl": fall(18, 0.0, 4.4, 0.2),
            "policy/entropy_avg": fall(18, 1.2, 0.9, 0.02),
            "policy/clipfrac_avg": fall(18, 0.02, 0.09, 0.01),
            "loss/value_avg": fall(18, 0.9, 0.2, 0.04),
            "val/ratio": fall(18, 1.0, 1.0, 0.004),
            "val/explained_variance": fall(18, 0.1, 0.7, 0.05),
            "objective/rlhf_reward": fall(18, 0.0, 0.7, 0.06),
            "grad_norm": fall(18, 1.3, 0.9, 0.1),
            "learning_rate": fall(18, 1.5e-4, 3e-5, 0),
            "num_tokens": [[i, 7100.0 * i] for i in range(1, 19)],
            "completions/mean_length": fall(18, 55, 67, 1.5),
        },
    }
