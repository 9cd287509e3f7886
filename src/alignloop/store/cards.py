"""The data set card of a snapshot: what is in it, in words, and how `datasets` finds its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHAT = {
    "pairs": "comparisons: `prompt`, `chosen`, `rejected`, the probability `p` that a typical annotator prefers "
    "`chosen`, `margin`, and every vote",
    "kto": "thumbs: `prompt`, `completion`, `label`",
    "sft": "answers to imitate: `prompt`, `completion`, and where they come from (`origin`)",
    "ranking": "orders of several answers: `prompt`, `completions`, `tiers` (indices, best first)",
    "raw": "every revision of every judgement",
}


def card(manifest: Mapping[str, Any]) -> str:
    """Markdown with the YAML head by which ``datasets.load_dataset(folder, kind)`` knows the files."""
    counts = manifest["counts"]
    lines = ["---", "configs:"]
    for kind in counts:
        lines += [f"- config_name: {kind}", f"  data_files: {kind}.jsonl"]
    lines += ["---", "", f"# {manifest['name']}", "", _origin(manifest), ""]
    for kind, facts in counts.items():
        lines += [f"## {kind}", "", f"{facts['rows']:,} rows of {WHAT[kind]}.", ""]
        lines += [f"- {name.removeprefix('by_')}: {_listed(facts[name])}" for name in facts if name.startswith("by_")]
        if kind == "pairs":
            if facts["longer_chosen"] is not None:
                lines.append(f"- the longer answer was chosen in {facts['longer_chosen']:.1%} of decided pairs")
            for author, sides in facts["authors"].items():
                lines.append(f"- {author or 'unknown'}: chosen {sides['chosen']:,}, rejected {sides['rejected']:,}")
        if left_out := manifest["overlap"]["left_out"].get(kind):
            lines.append(f"- left out of train: {left_out:,} that share {manifest['overlap']['words']} words in a row "
                         "with a held-out prompt")  # fmt: skip
        lines.append("")
    lines += [
        "Annotators are pseudonyms of each project. Splits are decided once, for whole groups of near-duplicate",
        "prompts. `manifest.json` holds the spec and the hashes; check them with `alignloop snapshot verify`.",
        "",
    ]
    return "\n".join(lines)


def _origin(manifest: Mapping[str, Any]) -> str:
    said = []
    for source in manifest["sources"]:
        words = f"project `{source['project']}`"
        if "method" in source:
            words += f" (votes aggregated by {source['method']}"
            alpha = (source["report"] or {}).get("alpha")
            words += f", alpha {alpha:.3f})" if isinstance(alpha, float) else ")"
        said.append(words)
    return f"Made by alignloop {manifest['alignloop']} from {', '.join(said)}. SHA-256 {manifest['manifest_sha256']}."


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
