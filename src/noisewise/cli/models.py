"""Commands on one model: prune, sample, evaluate."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from noisewise.cli.recipes import Overrides, Sampler
from noisewise.errors import SettingError

Importance = Literal["taylor", "magnitude", "random", "diff-pruning"]
ProposerKind = Literal["importance", "evolution", "random", "llm"]
Recovery = Literal["none", "least-squares"]


def prune(
    model: Path,
    /,
    *,
    budget: str,
    out: Path,
    importance: Importance = "magnitude",
    depth: bool = False,
    recipe: Path | None = None,
    set_: Overrides = (),
    timesteps: tuple[int, int] | None = None,
    recovery: Recovery | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    proposer: ProposerKind | None = None,
    base_url: str | None = None,
    model_name: str | None = None,
    api_key_env: str | None = None,
    replay: Path | None = None,
) -> None:
    """Prune one model to one budget and save it as a diffusers folder.

    Args:
        model: folder of a diffusers pipeline or model, or a name on the Hub.
        budget: MACs to keep, as a fraction of the model's, between 0 and 1; met within 2 % or refused. seconds=0.7: the
            same of the time a forward pass takes here, measured, met within 5 % or refused.
        out: folder to write; must not exist yet, or be empty.
        importance: which channels matter; taylor and diff-pruning look at images and need --recipe.
        depth: leave out whole residual blocks and attentions too, where they only add to their input.
        recipe: recipe whose data, schedule and objective score the channels and a proposer's candidates.
        set_: change a setting of the recipe, e.g. --set prune.proposer.rounds=2; may be given many times.
        timesteps: score on these timesteps only, first and last but one, e.g. --timesteps 0 139.
        recovery: least-squares fits the layers behind a cut to the full network's answers; needs --recipe, whose
            prune.recovery it overrides.
        batch_size: with --budget seconds=..., images of the forward passes that are timed (default 64).
        seed: seed of random importances and of noise.
        proposer: measure candidates in rounds instead of taking the solver's answer; needs --recipe.
        base_url: with --proposer llm, the server's address, e.g. http://127.0.0.1:8080/v1.
        model_name: with --proposer llm, the language model's name, as the server knows it.
        api_key_env: with --proposer llm, the environment variable that holds the server's key.
        replay: with --proposer llm, a transcript to replay instead of asking a server.
    """
    from noisewise.pruning.settings import TimingSettings
    from noisewise.workflow.recipe import load_recipe
    from noisewise.workflow.single import prune_model

    _check_range("--seed", seed, 0)
    asked = _budget(budget)
    if set_ and recipe is None:
        raise SettingError("--set: changes the settings of a recipe; name one by --recipe")
    if recovery is not None:
        if recipe is None and recovery != "none":
            raise SettingError("--recovery: it looks at images; name a recipe with their `data` by --recipe")
        set_ = (*set_, f"prune.recovery={recovery}")
    settings = None if recipe is None else load_recipe(recipe, set_)
    timing = TimingSettings() if settings is None else settings.prune.timing
    if batch_size is not None:
        if not isinstance(asked, dict):
            raise SettingError("--batch-size: belongs to --budget seconds=...; MACs are the same share at any")
        _check_range("--batch-size", batch_size, 1)
        timing = timing.model_copy(update={"batch_size": batch_size})
    options = {
        "--base-url": ("base_url", base_url),
        "--model-name": ("model", model_name),
        "--api-key-env": ("api_key_env", api_key_env),
        "--replay": ("replay", replay),
    }
    given = {option: change for option, change in options.items() if change[1] is not None}
    search = None
    if proposer is None and given:
        raise SettingError(f"{next(iter(given))}: belongs to --proposer llm")
    if proposer is not None and settings is None:
        raise SettingError("--proposer: it measures candidates on images; name a recipe with their `data` by --recipe")
    if proposer is not None and settings is not None:
        from noisewise.workflow.proposing import proposer_settings

        changes: dict[str, Any] = dict(given.values())
        search = proposer_settings(settings, proposer, {**changes, "depth": True} if depth else changes)
    info = prune_model(
        model, asked, out, importance, settings, timesteps, seed, search, print, depth=depth, timing=timing
    )
    share = f"{info.macs / info.base_macs:.4f} of the MACs" + (f" (asked {info.asked})" if info.time is None else "")
    print(
        f"{out}: {share}, {info.macs:,} of {info.base_macs:,}; "
        f"{info.parameters:,} of {info.base_parameters:,} parameters"
    )
    if info.time is not None:
        print(f"time: {info.time}")
    if info.recovery is not None:
        print(f"recovery: {info.recovery}")
    if info.removed_blocks:
        print(f"left out: {', '.join(info.removed_blocks)}")


def _budget(text: str) -> float | dict[str, float]:
    """``0.7``, ``macs=0.7`` or ``seconds=0.7``."""
    unit, named, number = text.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if math.isnan(share) or (named and unit not in ("macs", "seconds")):
        raise SettingError(f"--budget: {text} given; a fraction such as 0.7, or seconds=0.7")
    return {"seconds": share} if unit == "seconds" else share


def sample(
    model: Path,
    /,
    *,
    out: Path,
    num_images: int = 64,
    sampler: Sampler | None = None,
    num_inference_steps: int = 50,
    seed: int = 0,
    batch_size: int = 64,
    eta: float = 0.0,
    guidance_scale: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = (1.0,),
    class_labels: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    prompts: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    prompts_from: Path | None = None,
) -> None:
    """Images from a model, as PNG files and a grid of the first 64; of prompts, metadata.csv says which is of which.

    Args:
        model: folder of a diffusers pipeline, e.g. runs/digits/pipeline, or a name on the Hub.
        out: folder to write; must not exist yet, or be empty.
        num_images: 1 or more.
        sampler: the scheduler; by default ddim, or edm-heun or flow-euler where the model's noise schedule is theirs.
        num_inference_steps: 1 or more.
        seed: image i depends on the seed and i, not on its batch.
        batch_size: images made at once, 1 or more.
        eta: DDIM's noise, 0 (deterministic) to 1.
        guidance_scale: of models told a text, or a class that their training dropped at times: how far to lead away
            from what they answer without, e.g. 7.5, or one value per group from data to noise, e.g. 1 2 3.
        class_labels: classes of the images, in turn, e.g. 7 or 0 1 2; by default every class.
        prompts: texts of the images, in turn, e.g. "a cat" "a dog"; pipelines with a text encoder need one or more.
        prompts_from: file of prompts instead, one a line.
    """
    from noisewise.workflow.prompts import read_prompts
    from noisewise.workflow.single import sample_model

    _check_range("--num-images", num_images, 1)
    _check_range("--num-inference-steps", num_inference_steps, 1)
    _check_range("--batch-size", batch_size, 1)
    _check_range("--seed", seed, 0)
    _check_range("--eta", eta, 0, 1)
    if prompts_from is not None:
        if prompts is not None:
            raise SettingError("--prompts-from: given together with --prompts; one of them is needed")
        prompts = read_prompts(prompts_from)
    if prompts is not None and class_labels is not None:
        raise SettingError("--class-labels: given together with prompts; a model is told one or the other")
    with _bar("images", num_images) as progress:
        sample_model(
            model, out, num_images, sampler, num_inference_steps, seed, batch_size, eta, progress,
            guidance_scale=guidance_scale, class_labels=class_labels, prompts=prompts,
        )  # fmt: skip
    print(f"{out}: {num_images} images, and grid.png" + ("" if prompts is None else "; metadata.csv has their prompts"))


def evaluate(
    model: Path,
    /,
    *,
    recipe: Path,
    set_: Overrides = (),
    reference: Path | None = None,
    save_statistics: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Fréchet distance, KID, precision and recall of a model's images, with where the numbers come from.

    Where the recipe's data has classes, also the distance of each; where it has captions and
    evaluate.text_image_encoder names an encoder, also CLIP's score of the images against them.

    Args:
        model: folder of a diffusers pipeline, or a name on the Hub.
        recipe: recipe whose data (its held-out half), sample and evaluate settings are used.
        set_: change a setting, e.g. --set sample.num_inference_steps=20; may be given many times.
        reference: statistics (.npz, pytorch-fid's layout) to compare with instead of the held-out images.
        save_statistics: file (.npz) for the statistics of the model's images.
        json_file: file for the numbers with their provenance.
    """
    from noisewise.files import check_target, write_json
    from noisewise.workflow.evaluating import evaluate_model
    from noisewise.workflow.recipe import load_recipe

    for option, path in (("--save-statistics", save_statistics), ("--json-file", json_file)):
        if path is not None:
            check_target(path, option)
    settings = load_recipe(recipe, set_)
    with _bar("images", settings.sample.num_images) as progress:
        found = evaluate_model(model, settings, reference, save_statistics, progress)
    frechet, kid = found["frechet"], found["kid"]
    print(f"{frechet['metric']}: {frechet['value']:.3f}")
    if kid is not None:
        print(f"{kid['metric']}: {kid['value']:.5f} [{kid['low']:.5f}, {kid['high']:.5f}]")
    if found.get("precision") is not None:
        print(f"precision {found['precision']:.4f}, recall {found['recall']:.4f} (k = {found['k']})")
    if (classes := found.get("classes")) is not None:
        for name, score in zip(classes["names"], classes["values"], strict=False):
            print(f"class {name}: {score['metric']} {score['value']:.5f}")
        print(f"by class: {classes['why']}")
    if (text := found.get("text_score")) is not None:
        print(f"{_text_score(text)}; real images {_text_score(text['real'])} ({text['encoder']})")
    for side in ("samples", "reference"):
        known = {key: value for key, value in frechet[side].items() if value is not None}
        print(f"{side}: {json.dumps(known)}")
    for flag in frechet["flags"]:
        print(f"note: {flag}")
    if json_file is not None:
        write_json(json_file, found)
        print(json_file)


def _text_score(found: dict[str, Any]) -> str:
    """A score with its standard error, where it has one."""
    error = found["standard_error"]
    return f"{found['metric']} {found['value']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _check_range(option: str, number: float, lowest: int, highest: float = math.inf) -> None:
    if not lowest <= number <= highest:
        possible = f"{lowest} or more" if highest == math.inf else f"{lowest} to {highest}"
        raise SettingError(f"{option}: {number} given; {possible} are possible")


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[float], None]]:
    """Progress of one job."""
    from noisewise.workflow.progress import Event, open_sink

    with open_sink() as sink:
        yield lambda done: sink(Event(name, "update", "", int(done), total))
