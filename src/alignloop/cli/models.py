"""`alignloop train`, `generate`, `score`, `eval`, `unseen-people`: single steps without a recipe.

The work is `pipeline.commands` and `pipeline.unseen_people`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from alignloop.cli.lazy import console, entry, settings_of

COMMANDS = "alignloop.pipeline.commands"


def train(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="sft, reward, dpo, ppo, ... (alignloop methods).", show_default=False)],
    model: Annotated[str, typer.Option("--model", "-m", help="What to start from: a folder or a hub name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the result.")],
    data: Annotated[str | None, typer.Option("--data", help="Demonstrations or pairs: a file or a hub name.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="Prompts of an on-policy method.")] = None,
    reward: Annotated[str | None, typer.Option("--reward", help="file.py:function, a reward model's folder.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The frozen policy (default: the model).")
    ] = None,
    pretrain_data: Annotated[
        str | None, typer.Option("--pretrain-data", help="What an on-policy method imitates besides (--ptx-coef).")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file of settings; flags win.")] = None,
) -> None:
    """Train a model with one method. Any setting may follow: --beta 0.1 --learning-rate 1e-4 --lora.r 8."""
    from alignloop.core.errors import ConfigError, nearest
    from alignloop.pipeline.methods import validate_train
    from alignloop.pipeline.recipe_file import read_recipe
    from alignloop.pipeline.spec import Train

    settings = {**(read_recipe(config) if config else {}), **settings_of(context.args)}
    inputs = {"model": model, "reference": reference, "pretrain_data": pretrain_data}
    inputs |= {"data": _mapping(data), "prompts": _mapping(prompts), "reward": _mapping(reward)}
    inputs |= {key: settings.pop(key) for key in ("eval_data", "eval_prompts", "eval_reward") if key in settings}
    taken = [key for key in settings if key in Train.model_fields]
    if taken:
        hint = nearest(taken[0], ["data", "prompts", "reward", "reference", "model"])
        raise ConfigError(f"{taken[0]}: give it on the command line ({hint})")
    stage = Train.parse({"do": "train", "method": method, **inputs, "settings": settings}, where=f"train {method}")
    validate_train(f"train {method}", stage)
    path = entry(COMMANDS, "train_command")(stage, out)
    if entry(COMMANDS, "is_first_process")():
        typer.echo(f"model: {path}")


def generate(
    model: Annotated[str, typer.Argument(help="A model's folder or hub name.", show_default=False)],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be given again.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file of prompts.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Completions of each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 128,
    temperature: Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write JSON lines to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Sample completions from a model."""
    from alignloop.core.errors import ConfigError
    from alignloop.core.types import SamplingParams

    if not prompt and prompts is None:
        raise ConfigError("nothing to answer; give --prompt TEXT or --prompts FILE")
    sampling = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )
    rows = entry(COMMANDS, "generate_command")(model, prompt or [], prompts, n, sampling)
    _output(rows, out, as_json, "completion")


def score(
    reward: Annotated[str, typer.Argument(help="file.py:function, a reward model's folder, or {rule: ...}.")],
    data: Annotated[Path, typer.Argument(help="Rows with prompt and completion.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write JSON lines to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Score completions with a rule, a function or a reward model."""
    _output(entry(COMMANDS, "score_command")(_mapping(reward), data), out, as_json, "score")


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models to compare; the first is the baseline.")],
    prompts: Annotated[str | None, typer.Option("--prompts", help="Held-out prompts.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Held-out demonstrations or pairs.")] = None,
    reward: Annotated[str | None, typer.Option("--reward", help="As in alignloop score.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="KL is measured from it (default: the first).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Prompts answered by each model.")] = 256,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path("runs/eval"),
) -> None:
    """Measure models: perplexity, ROUGE, reward, KL, win rate."""
    from alignloop.core.errors import ConfigError
    from alignloop.pipeline.spec import Evaluate

    if prompts is None and data is None:
        raise ConfigError("nothing to measure on; give --prompts FILE, --data FILE or both")
    inputs = {"prompts": prompts, "data": data, "reward": _mapping(reward), "reference": reference}
    numbers = {"limit": limit, "max_new_tokens": max_new_tokens}
    stage = Evaluate.parse({"do": "evaluate", "models": models, **inputs, **numbers}, where="eval")
    typer.echo(f"report: {entry(COMMANDS, 'eval_command')(stage, out, seed)}")


def unseen_people(
    context: typer.Context,
    snapshot: Annotated[Path, typer.Argument(help="A snapshot of comparisons.", show_default=False)],
    model: Annotated[str, typer.Option("--model", "-m", help="What reward models start from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the models and of people.json.")],
    groups: Annotated[int, typer.Option("--groups", min=2, help="Groups of people; a reward model each.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For other programs.")] = False,
) -> None:
    """Test whether reward models predict people whose votes they never saw. Settings of `train reward` may follow."""
    from dataclasses import asdict

    found = entry("alignloop.pipeline.unseen_people", "held_out_people")(
        snapshot, model, out, groups=groups, seed=seed, settings=settings_of(context.args)
    )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    typer.echo(f"votes that reward models predict, {found.people} people in {found.groups} groups:")
    for said, figure in (("people they never saw", found.unseen), ("people they saw", found.seen)):
        typer.echo(f"  {said:24}{_share(figure)}")
    typer.echo(f"  {'difference':24}{_share(found.gap)}")


def _share(figure: Any) -> str:
    """A share in per cent with its interval and n, or why there is none."""
    if figure.value is None:
        return str(figure.why)
    bounds = f"{figure.low:.1%} to {figure.high:.1%}, " if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:6.1%} ({bounds}n = {figure.n:,}{'; ' + figure.why if figure.why else ''})"


def _mapping(text: str | None) -> Any:
    """A reward or a source as it stands in a recipe: text that begins with { or [ is YAML."""
    if text is None or not text.lstrip().startswith(("{", "[")):
        return text
    from alignloop.pipeline.recipe_file import parse_yaml

    return parse_yaml(text, text)


def _output(rows: Iterable[Mapping[str, Any]], out: Path | None, as_json: bool, column: str) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as file:
            count = 0
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        typer.echo(f"{count} rows: {out}")
        return
    last = None
    for row in rows:
        if as_json:
            typer.echo(json.dumps(row, ensure_ascii=False))
            continue
        if row.get("prompt") != last:
            last = row.get("prompt")
            console().print(f"> {last}", style="bold", markup=False)
        typer.echo(str(row[column]))
