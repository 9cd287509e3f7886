"""Models and rows of the speed benchmarks in miniature: the same folder that make_assets.py makes, in a second."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # a script imports what stands beside it

import loop  # noqa: E402
import overlap  # noqa: E402
import plots  # noqa: E402
import scaling  # noqa: E402
import step_profile  # noqa: E402
import versus_trl  # noqa: E402
from measure import assets, equal_work, runs, trl_side, workload  # noqa: E402

import rollout  # noqa: E402

__all__ = [
    "ROOT",
    "assets",
    "equal_work",
    "loop",
    "make_small",
    "overlap",
    "plots",
    "rollout",
    "runs",
    "scaling",
    "step_profile",
    "trl_side",
    "versus_trl",
    "workload",
]

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box")


def sentence(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def make_small(folder: Path) -> Path:
    """S (a Llama of width 32) and data.jsonl. A space opens every answer, so that no token crosses the boundary."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(WORDS, vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=320, max_position_embeddings=2048, tie_word_embeddings=True, **sizes, **ends)
    )
    model.generation_config.eos_token_id = [2, 7, 11, 13, 17, 19, 23]
    model.save_pretrained(folder / "S")
    fast.save_pretrained(folder / "S")
    rng = random.Random(0)
    rows = [
        {"prompt": sentence(rng, 2, 8), "chosen": " " + sentence(rng, 2, 9), "rejected": " " + sentence(rng, 2, 9)}
        for _ in range(24)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
