"""The models and rows that are measured on: random weights, ragged lengths, made once into a cache folder.

`../shared/bench/make_assets.py` makes them (S small 15M, M medium 42M, V a vocabulary of 151,936; data.jsonl). The
0.5B Qwen for a GPU, and the classifiers that a reward model starts from, are made here.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure.runs import ROOT

MODELS = {"small": "S", "medium": "M", "bigvocab": "V", "qwen": "Q"}
EOS_SHARE = 0.01
"""Share of the vocabulary that ends an answer, as in make_assets.py: random models then stop at a geometric length."""


def shared() -> Path:
    """The folder of the frozen opponent and prototype; SystemExit where it is absent."""
    folder = Path(os.environ.get("ALIGNLOOP_SHARED", ROOT / ".." / "shared")).resolve() / "bench"
    if not (folder / "trl_baseline.py").is_file():
        raise SystemExit(
            f"{folder} is absent: the opponent (trl_baseline.py), the packed prototype and the maker of models and "
            "rows lie there; put the folder `shared` beside the repository or name it by ALIGNLOOP_SHARED"
        )
    return folder


def default_folder() -> Path:
    """Where models and rows are kept: ALIGNLOOP_BENCH, else the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("ALIGNLOOP_BENCH", cache / "alignloop" / "bench"))


def ensure(folder: Path) -> Path:
    """The folder with its models and rows; made where absent (about a minute, 350 MB)."""
    if (folder / "data.jsonl").is_file() and (folder / "S" / "config.json").is_file():
        return folder
    maker = shared() / "make_assets.py"
    print(f"making models and rows in {folder} (once)", file=sys.stderr, flush=True)
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    subprocess.run([sys.executable, str(maker), "--out", str(fresh)], check=True, stdout=subprocess.DEVNULL)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for made in fresh.iterdir():
        if not (folder / made.name).exists():
            folder.mkdir(exist_ok=True)
            shutil.move(made, folder / made.name)
    shutil.rmtree(fresh)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows {prompt, chosen, rejected, n_prompt, ...}."""
    return [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]


def model(folder: Path, name: str) -> Path:
    """The folder of a model; the Qwen is made on first use."""
    found = folder / MODELS[name]
    if name == "qwen" and not found.is_dir():
        _make_qwen(found, folder / "S")
    if not found.is_dir():
        raise SystemExit(f"{found} is absent; delete {folder} and run again, so that make_assets.py makes it anew")
    return found


def parameters(folder: Path) -> tuple[int, int]:
    """(parameters of the body, of the LM head): the matrices that a token passes, and those where a loss reads."""
    from safetensors import safe_open

    body = head = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # no mapping
                size = math.prod(weights.get_slice(name).get_shape())
                head, body = (size, body) if "embed" in name or "lm_head" in name else (head, body + size)
    return body, head


def _make_qwen(folder: Path, tokenizer: Path) -> None:
    """A random Qwen2 of 0.5B (the sizes of Qwen2.5-0.5B) with the small model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    more = {"intermediate_size": 4864, "max_position_embeddings": 32768, "vocab_size": 151936}
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(Qwen2Config(**sizes, **more, **ends, tie_word_embeddings=True))
    count = int(EOS_SHARE * more["vocab_size"])
    made.generation_config.eos_token_id = [2, *sorted(random.Random(0).sample(range(3, more["vocab_size"]), count - 1))]
    save(made, AutoTokenizer.from_pretrained(tokenizer), folder)


def one_end(folder: Path) -> Path:
    """The same model with the tokenizer's end token as the only one that ends an answer: all that TRL's PPO knows."""
    found = folder.with_name(f"{folder.name}_one_end")
    if not found.is_dir():
        from transformers import AutoTokenizer

        fresh = folder.with_name(f".{folder.name}_one_end.new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(folder, fresh)
        config = json.loads((fresh / "generation_config.json").read_text(encoding="utf-8"))
        config["eos_token_id"] = AutoTokenizer.from_pretrained(folder).eos_token_id
        (fresh / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
        fresh.rename(found)
    return found


def classifier(folder: Path) -> Path:
    """A classifier beside a model folder, with the very head that our reward training begins with.

    TRL would draw another head, and the losses of the two sides could not be compared.
    """
    found = folder.with_name(f"{folder.name}_head")
    if not found.is_dir():
        from alignloop.models.load import init_scalar, load_tokenizer

        policy = init_scalar(folder, seed=0)
        policy.model.config.pad_token_id = 0
        save(policy.model, load_tokenizer(folder), found)
    return found


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write a model folder, whole or not at all, and without a progress bar."""
    from transformers import logging

    logging.disable_progress_bar()
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    return fresh.rename(folder)
