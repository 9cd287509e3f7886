"""Write the generated parts of the documentation, or (with --check) say which of them are stale.

    python scripts/make_docs.py            # after a setting, a metric, a command or a method has changed
    python scripts/make_docs.py --check

A generated part stands between ``<!-- generated: KIND ARGUMENT -->`` and ``<!-- end -->``; `GENERATORS` has the kinds.
Everything comes from the package itself: settings from the Config classes and the docstrings under their fields,
metrics from the report's glossary, commands from the command line, masks from a real tokenizer.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
SKIP = {"results.md"}  # measured tables, written by hand
PART = re.compile(
    r"(?P<head><!-- generated: (?P<kind>[a-z]+)(?: (?P<argument>[^>\n]+?))? -->\n).*?(?P<tail><!-- end -->)", re.S
)

Rows = Iterable[Sequence[str]]


def pages() -> list[Path]:
    """Every page of the documentation that this script and its tests look after."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in SKIP)]


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


# Settings


def settings(place: str) -> str:
    """The fields of a Config class, given as ``package.module:Class``."""
    module, _, name = place.partition(":")
    config = getattr(importlib.import_module(module), name)
    return table(("setting", "default", "allowed", "meaning"), _fields(config))


def _fields(config: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    schema = config.model_json_schema()
    for name, field in config.model_fields.items():
        shown = field.alias or name
        if name in ("do", "rule"):  # the word that chooses the class
            continue
        about = schema["properties"][shown]
        yield f"`{shown}`", _default(field), _allowed(about, schema.get("$defs", {})), field.description or ""


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its own table"
    if value is None:
        return "none"
    return (
        "empty" if value in ((), {}, "") else f"`{str(value).lower() if isinstance(value, bool) else _number(value)}`"
    )


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _allowed(about: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in about:
        words = [_allowed(option, definitions) for option in about["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(w for w in words if w))
    if "$ref" in about:
        found = definitions[about["$ref"].rpartition("/")[2]]
        return "block" if "properties" in found else _allowed(found, definitions)
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    signs = (("exclusiveMinimum", "> "), ("minimum", "≥ "), ("exclusiveMaximum", "< "), ("maximum", "≤ "))
    limits = [f"{sign}{about[key]:g}" for key, sign in signs if key in about]
    kinds = {"boolean": "true, false", "string": "text", "integer": "whole number", "number": "number", "array": "list"}
    kind = kinds.get(about.get("type", ""), "mapping" if about.get("type") == "object" else "")
    return ", ".join([kind, *limits] if kind else limits)


# Methods


def known_methods() -> dict[str, Any]:
    """Methods and procedures by name."""
    from alignloop.algorithms import METHODS
    from alignloop.training.procedures import PROCEDURES

    return {**METHODS, **PROCEDURES}


def method(name: str) -> str:
    """What the registry says of one method, for a page of docs/methods."""
    from alignloop.core.protocols import Method

    m = known_methods()[name]
    off = isinstance(m, Method) and "ref" in m.needs - m.needed(m.config())
    frozen = "a frozen reference" + (" where `kl.beta` is above 0" if off else "")
    held = {"policy": "the policy", "reference": frozen, "critic": "a critic", "reward": "a reward", "judge": "a judge"}
    further = {"greedy": "a greedy answer to every prompt", "mismatched": "answers to other prompts"}
    needs = [held[n] for n in m.models] + [words for n, words in further.items() if n in getattr(m, "needs", ())]
    file = Path(importlib.import_module(m.config.__module__).__file__ or "").name
    rows = [
        ("what it does", m.summary),
        ("use it when", m.when),
        ("starts from", m.data),
        ("needs", ", ".join(needs)),
        ("paper", f"[arXiv:{m.paper}](https://arxiv.org/abs/{m.paper})"),
        ("code", f"[`{file}`](../../src/alignloop/algorithms/{file})"),
    ]
    return table(("", ""), rows)


def methods(_: str) -> str:
    """All methods in a line each."""
    rows = ((f"[`{m.name}`](methods/{m.name}.md)", m.data, m.summary, m.when) for m in known_methods().values())
    return table(("method", "starts from", "what it does", "use it when"), rows)


# Metrics

PAIRS = (
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
)  # fmt: skip
SAMPLED = (
    "rewards/{func}/mean", "rewards/{func}/std", "rewards/{func}/multiplier", "objective/scores",
    "val/num_eos_tokens", "completions/mean_length",
    "completions/min_length", "completions/max_length", "completions/mean_terminated_length",
    "completions/clipped_ratio", "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
    "unscorable", "updates", "eval_reward", "eval_ended",
)  # fmt: skip
GRADIENT = (
    *SAMPLED, "objective/scores_std", "objective/kl", "objective/kl_se", "objective/kl_token", "objective/kl_k3",
    "objective/non_score_reward", "objective/rlhf_reward", "objective/entropy", "kl_coef", "policy/approxkl_avg",
    "policy/kl_old", "policy/clipfrac_avg", "clip_ratio/low_mean", "clip_ratio/high_mean", "policy/entropy_avg",
    "loss/policy_avg", "val/ratio", "val/ratio_var",
)  # fmt: skip
CRITIC = (
    "loss/value_avg", "critic/loss", "critic/grad_norm", "critic/learning_rate", "critic/updates",
    "critic/skipped_updates", "val/clipfrac_avg", "val/explained_variance",
)  # fmt: skip
DRIFT = ("sampling/policy_drift/mean", "sampling/policy_drift/max")
WEIGHTS = (
    "sampling/importance_sampling_ratio/mean", "sampling/importance_sampling_ratio/limited",
    "sampling/effective_sample_size", *DRIFT,
)  # fmt: skip
ALONE = (
    *GRADIENT, "loss/kl_avg", "advantage/abs_mean", "completions/mean_length_better", "completions/mean_length_worse",
    *WEIGHTS,
)  # fmt: skip
GROUP = (*ALONE, "reward", "reward_std", "frac_reward_zero_std")
SELECTED = (
    "reward/mean", "reward/kept", "kl", "improve", "selection/keep_fraction", "selection/coverage",
    "selection/distinct_2", "selection/distinct_answers", "sft_loss", "sft_nll", "completions/clipped_ratio",
    "unscorable", "rewards/{func}/mean", "rewards/{func}/std", "eval_reward", "eval_proxy", "eval_ended",
)  # fmt: skip
JUDGED = (
    "judge/pairs", "judge/unread", "judge/flipped", "judge/first_shown", "judge/confidence",
    "judge/length_correlation", "completions/clipped_ratio", "reward_loss", "reward_accuracy", "eval_reward",
    "eval_ended",
)  # fmt: skip
WRITTEN: dict[str, tuple[str, ...]] = {
    "every": (
        "loss", "eval_loss", "grad_norm", "learning_rate", "skipped_updates", "step_tokens", "num_tokens",
        "epoch",
    ),
    "sft": ("nll", "entropy"),
    "reward": ("accuracy", "margin", "mean_reward", "longer_preferred", "longer_chosen", "tie_width"),
    "reward_kwise": ("accuracy", "margin", "mean_reward", "top1"),
    "reward_stepwise": ("accuracy", "mean_reward", "steps/correct"),
    "dpo": (*PAIRS, "logps/displaced", "nll_loss"),
    "ipo": (*PAIRS, "logps/displaced"),
    "kto": ("kl", "class_balance", *(name for name in PAIRS if name != "rewards/margins")),
    "orpo": (*PAIRS, "nll_loss", "log_odds_chosen", "log_odds_ratio"),
    "simpo": PAIRS,
    "cpo": (*PAIRS, "nll_loss"),
    "slic": (*PAIRS, "nll_loss"),
    "online_dpo": (*SAMPLED, *DRIFT, *PAIRS, "logps/displaced", "objective/scores_margin", "pairs/skipped"),
    "ppo": (*GRADIENT, *CRITIC, *WEIGHTS, "loss/kl_avg", "loss/positive_nll", "ptx/nll", "ptx/grad_ratio"),
    "trpo": (
        *GRADIENT, *CRITIC, "trpo/kl", "trpo/gain", "trpo/gain_linear", "trpo/slope", "trpo/cg_residual",
        "trpo/backtracks", "trpo/accepted",
    ),
    "reinforce": ALONE,
    "reinforce_pp": ALONE,
    "rloo": GROUP,
    "remax": (*ALONE, "reward_greedy"),
    "grpo": GROUP,
    "dr_grpo": GROUP,
    "dapo": (*GROUP, "sampling/acceptance", "sampling/attempts", "sampling/reward"),
    "gspo": GROUP,
    "cispo": GROUP,
    "best_of_n": (
        "reward/mean", "reward/selected", "reward/best_of_{n}", "gold/mean", "gold/selected", "gold/best_of_{n}",
        "kl_upper_bound", "kl_exact", "kl_exact_prompts", "distinct_candidates", "unanswered",
    ),
    "raft": ("round", *SELECTED, "selection/improved_prompts", "selection/fresh"),
    "rest": ("grow", *SELECTED, "selection/threshold"),
    "rlaif": JUDGED,
    "constitutional": (
        *JUDGED, "sft_loss", "sft_nll", "constitution/revisions", "constitution/no_critique",
        "constitution/no_revision", "constitution/unchanged", "constitution/clipped_ratio",
    ),
    "test_time_po": (
        "depth", "reward/best", "reward/mean", "reward/worst", "gold/best", "gold/mean", "improved",
        "distinct_candidates", "parse_failures", "blank", "unscorable", "completions/clipped_ratio", "stopped",
        "unanswered", "calls", "tokens",
    ),
}  # fmt: skip
"""Metrics that training writes to metrics.jsonl, by method (tests/docs compares them with real runs)."""

UNWRITTEN = (
    "mean_token_accuracy", "min_reward", "max_reward", "center_rewards", "logits/chosen", "logits/rejected",
    "skipped_steps", "num_sequences", "tokens_per_second", "length_mean", "length_p95", "explained_variance",
    "advantage_mean", "advantage_std", "value_mean", "sampler_kl", "early_stop", "repeats", "nll_per_token",
)  # fmt: skip
"""Names that the glossary explains and that nothing writes yet."""

ALARMS = {
    "loss": "not a number, or rising for long: lower `learning_rate`",
    "eval_loss": "rises while loss falls: stop earlier, or get more data",
    "grad_norm": "jumps by ten times: look at the rows of that step, lower `learning_rate`",
    "skipped_updates": "above 0: a loss was not finite; see the log of that step",
    "accuracy": "1.0 within a few steps: the labels leak through length or format",
    "longer_preferred": "far above longer_chosen: the model learns length",
    "mean_reward": "runs away: set `center_rewards_coefficient: 0.01`",
    "rewards/accuracies": "1.0 within a few steps: the labels leak through length or format",
    "rewards/margins": "stays at exactly 0: policy and reference are one object",
    "logps/chosen": "falls steeply: raise `beta`, lower `learning_rate`, or stop earlier",
    "objective/kl": "below −2 objective/kl_se for many steps: sampling and scoring differ; far above 15: raise kl.beta",
    "objective/scores": "rises while eval_reward or gold falls: the reward is being gamed",
    "objective/scores_std": "near 0: the reward no longer tells answers apart",
    "policy/entropy_avg": "collapses early: raise clip.eps_high or c_h, sample at temperature 1",
    "policy/clipfrac_avg": "0 for ever: the rate is too small; above 0.3: too large",
    "policy/kl_old": "above 0.05: lower `learning_rate`, fewer num_ppo_epochs, or set target_kl",
    "val/ratio": "not 1 at the first update of a batch: a broken contract, please report it",
    "val/explained_variance": "at or below 0 after many steps: raise critic_learning_rate or value_pretraining_steps",
    "val/num_eos_tokens": "falls: answers stop ending; see shaping.missing_eos",
    "completions/mean_length": "explodes or collapses: missing-EOS penalty, or a reward that follows length",
    "completions/clipped_ratio": "above 0.1: raise max_completion_length, or punish missing ends",
    "sampling/sampling_logp_difference/mean": "above 0.5 the run stops: engine and trainer differ",
    "sampling/policy_drift/mean": "above 0.3: a lower `learning_rate`, fewer passes over a batch, or no `draw_ahead`",
    "unscorable": "above 0: the reward returned None for some answers",
    "rewards/{func}/multiplier": "stays at its `most`: the bound cannot be kept; swings: lower its `rate`",
    "frac_reward_zero_std": "near 1: all answers to a prompt earn the same; other prompts, or a finer reward",
    "completions/mean_length_worse": "grows while the better do not: the loss forgives long failures (dr_grpo)",
    "logps/displaced": "above 0.5: set `rpo_alpha`, raise `beta`, lower `learning_rate`",
    "pairs/skipped": "above 0.5: draw more answers to a prompt, or take a finer reward",
    "class_balance": "outside: set `desirable_weight` and `undesirable_weight`",
    "trpo/accepted": "0 for many steps: larger batches or a smaller `trust.delta`",
    "ptx/grad_ratio": "far from 1: change `ptx_coef`",
    "sampling/acceptance": "near 0: all prompts are solved, or none",
    "sampling/effective_sample_size": "below 0.5: engine and trainer differ too much",
    "selection/coverage": "falls: only easy prompts are learnt",
    "selection/distinct_2": "falls by a third: sameness",
    "judge/unread": "above a tenth of judge/pairs: templates that it follows, reply: text, or another judge",
    "judge/flipped": "above 0.3: a better judge, average: logit, or exemplars",
    "judge/length_correlation": "above 0.5: it counts words; say in the templates that length is no merit",
    "constitution/unchanged": "above 0.5: the critic does not follow instructions, or there is nothing to mend",
    "parse_failures": "more than half of them: the model cannot follow the texts; a more capable one, or simpler texts",
    "stopped": "above 0.5: all scores equal (a finer reward), silent critiques, or a context that is too short",
    "gold/best": "falls with depth while reward/best rises: the reward is being gamed",
    "gold/selected": "falls with n while reward/selected rises: the reward is being gamed",
    "kl": "above 15 nats with a score that still rises: look at the texts",
    "reward_model.ece": "above 0.15: scores are not to be read as probabilities",
    "reward_model.length_correlation": "near 1: it only counts words",
    "annotators.alpha": "near 0: people do not agree, or the guideline is unclear",
    "annotators.position_bias": "beyond 45–55 %: someone clicks one side",
    "repeated_trigrams": "above 0.1 and rising: answers loop",
    "truncated": "above 0.1: answers run into the length limit",
    "distinct_2": "falls by a third: sameness",
}
"""When to look closer, and at what."""


ALSO_REPORTED = {"kl", "reward"}
"""Names of the report that training writes too."""

NO_REFERENCE = {
    "rewards/chosen": ("Log-probability of the preferred answers as the loss takes it.", "above rewards/rejected", ""),
    "rewards/rejected": ("The same of the other answers.", "falls against rewards/chosen", ""),
    "rewards/margins": ("The first less the second.", "rises", ""),
    "rewards/accuracies": ("Share of pairs whose preferred answer leads.", "rises; 0.6-0.9", ""),
}
OF_THE_METHOD = {
    ("kto", "kl"): ("z0, the reference point of the step, in nats.", "0 at first, then a few; never negative", ""),
    ("kto", "rewards/chosen"): ("How much likelier than before good answers became, times beta.", "above the next", ""),
    ("kto", "rewards/rejected"): ("The same of bad answers.", "falls below 0", ""),
    ("kto", "rewards/accuracies"): ("Share of answers on the right side of z0.", "0.5 at the start; 0.6-0.9", ""),
    ("kto", "logps/chosen"): ("Log-probability of the good answers, in nats.", "does not fall steeply", ""),
    ("kto", "logps/rejected"): ("Log-probability of the bad answers, in nats.", "falls", ""),
    ("fixed", "kl"): ("Of KTO: z0, the reference point of the step, in nats.", "0 at first, then a few", ""),
    ("test_time_po", "reward/mean"): ("Mean score of the answers that this depth added.", "rises with depth", ""),
    ("test_time_po", "gold/mean"): ("The same by the second reward.", "rises with reward/mean", ""),
    ("test_time_po", "distinct_candidates"): ("Different answers to a prompt so far.", "close to N(D + 1)", ""),
    ("best_of_n", "reward/mean"): ("Mean score of all answers drawn.", "below reward/selected", ""),
    **{
        (section, "reward"): ("Mean of the scores, less the KL where it is in the reward.", "rises", "")
        for section in ("sampling", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")
    },
    **{(m, name): about for m in ("orpo", "simpo", "cpo", "slic") for name, about in NO_REFERENCE.items()},
}
"""(method, metric) -> meaning, normal range, alarm, where a method means something of its own by a name."""


def sections() -> dict[str, tuple[str, ...]]:
    """Metrics by section: of each method, of kinds of methods together, of the report, and those not written yet."""
    from alignloop.core.protocols import Method
    from alignloop.evaluation.glossary import EXPLANATIONS

    kinds: dict[str, dict[str, None]] = {"fixed": {}, "sampling": {}, "selection": {}}
    for name, m in known_methods().items():
        kind = "selection" if not isinstance(m, Method) else "sampling" if m.data == "prompts" else "fixed"
        kinds[kind].update(dict.fromkeys(WRITTEN[name]))
    others = {name for names in WRITTEN.values() for name in names} - ALSO_REPORTED | set(UNWRITTEN)
    report = tuple(name for name in EXPLANATIONS if name not in others)
    return {**WRITTEN, **{k: tuple(v) for k, v in kinds.items()}, "report": report, "unwritten": UNWRITTEN}


def metrics(section: str) -> str:
    """Metric, meaning, normal range and alarm of a section."""
    from alignloop.evaluation.glossary import explain

    rows = []
    for name in sections()[section]:
        found = explain(name)
        assert found is not None, f"{name} has no entry in evaluation/glossary.py"
        about = OF_THE_METHOD.get((section, name), (found.text, found.normal, ALARMS.get(name, "")))
        rows.append((f"`{name}`", *about))
    return table(("metric", "meaning", "normal", "alarm"), rows)


# Commands


def commands(_: str) -> str:
    """The command line, from the parser itself: usage, help, arguments, options."""
    return "\n\n".join(_command(path, command) for path, command in command_tree())


def command_tree() -> list[tuple[str, Any]]:
    """("run", command) of every command; of a group only its members."""
    import typer.main

    from alignloop.cli.main import app

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                yield from walk(f"{path} {name}".strip(), inner)
        else:
            yield path, command

    return list(walk("", typer.main.get_command(app)))


def _command(path: str, command: Any) -> str:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    words = " ".join(_argument(p) for p in arguments)
    rows = [(f"`{_argument(p)}`", _help(p)) for p in arguments]
    rows += [("`" + "`, `".join(sorted(p.opts, key=len, reverse=True)) + "`", _help(p)) for p in options]
    usage = " ".join(part for part in ("alignloop", path, words, "[OPTIONS]" if options else "") if part)
    parts = [f"### {path}", inspect.cleandoc(command.help or ""), f"```\n{usage}\n```"]
    return "\n\n".join([*parts, table(("", ""), rows)] if rows else parts)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name or "").strip("[]").upper()
    name += "..." if parameter.nargs == -1 else ""
    return name if parameter.required else f"[{name}]"


def _help(parameter: Any) -> str:
    notes = [parameter.help or ""]
    if parameter.required and parameter.opts[0].startswith("-"):
        notes.append("Required.")
    default = parameter.default
    shown = default is not None and not isinstance(default, bool) and default != () and not callable(default)
    if shown and parameter.opts[0].startswith("-"):
        notes.append(f"Default: {default}.")
    return " ".join(n for n in notes if n)


# Data


def formats(kind: str) -> str:
    """Formats of one kind of record: name and the columns by which it is known."""
    from alignloop.data.formats import FORMATS

    rows = []
    for name, layout in FORMATS[kind].items():  # type: ignore[index]
        further = ", ".join(f"`{c}`" for c in layout.optional)
        rows.append((f"`{name}`", ", ".join(f"`{c}`" for c in layout.needs), further))
    return table(("format", "columns it needs", "columns it also reads"), rows)


def ballots(_: str) -> str:
    """The formats that only an import reads, in the words of their parsers."""
    from alignloop.data.ballots import BALLOTS

    return table(
        ("format", "what a row is"),
        [(f"`{name}`", (inspect.getdoc(layout.parse) or "").split("\n\n")[0]) for name, layout in BALLOTS.items()],
    )


def mask(example: str) -> str:
    """A row as tokens, those that a loss reads underlined; by the tokenizer of the embedded demo."""
    from transformers import AutoTokenizer

    from alignloop.core.types import Message, text
    from alignloop.data.chat import ChatFormat

    chat = ChatFormat(AutoTokenizer.from_pretrained(str(ROOT / "src" / "alignloop" / "demo" / "assets" / "base")))
    say = Message
    rows: dict[str, tuple[Any, Any]] = {
        "text": (text("Why is the sky blue?"), text(" Air scatters blue light.")),
        "chat": ((say("user", "Why is the sky blue?"),), (say("assistant", "Air scatters blue light."),)),
        "turns": (
            (say("user", "Why is the sky blue?"),),
            (say("assistant", "Air."), say("user", "What of it?"), say("assistant", "Air scatters blue light.")),
        ),
    }
    prompt, answer = rows[example]
    ids = chat.prompt_ids(prompt)
    response, trained = chat.completion_ids(prompt, answer)
    words = [chat.tokenizer.decode([i]).replace("\n", "⏎").replace(" ", "·") for i in (*ids, *response)]
    return "```\n" + _underlined(words, [False] * len(ids) + trained) + "\n```"


def _underlined(words: Sequence[str], trained: Sequence[bool], width: int = 92) -> str:
    lines: list[str] = []
    above = below = ""
    for word, yes in zip(words, trained):
        if len(above) + len(word) + 1 > width:
            lines += [above.rstrip(), below.rstrip()]
            above = below = ""
        above, below = above + word + " ", below + ("^" if yes else " ") * len(word) + " "
    return "\n".join(line for line in [*lines, above.rstrip(), below.rstrip()] if line)


GENERATORS: dict[str, Callable[[str], str]] = {
    "settings": settings,
    "method": method,
    "methods": methods,
    "metrics": metrics,
    "commands": commands,
    "formats": formats,
    "ballots": ballots,
    "mask": mask,
}


def generated(text: str) -> str:
    """A page with all its generated parts made afresh."""

    def fresh(match: re.Match[str]) -> str:
        return f"{match['head']}{GENERATORS[match['kind']](match['argument'] or '')}\n{match['tail']}"

    return PART.sub(fresh, text)


def main(arguments: Sequence[str]) -> int:
    """Write, or with --check only compare; the number of stale pages."""
    stale = 0
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = generated(before)
        if before == after:
            continue
        stale += 1
        print(f"{page.relative_to(ROOT)}: {'stale' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            page.write_text(after, encoding="utf-8")
    return stale if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
