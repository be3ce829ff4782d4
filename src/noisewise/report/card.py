"""A short model card for the pipeline folder: what it is, what it scores, how to load it, what it does not promise."""

from __future__ import annotations

from pathlib import Path

from noisewise.files import write_atomic
from noisewise.models.card import with_results
from noisewise.report.class_table import class_markdown
from noisewise.report.results import Results, load_results
from noisewise.report.tables import markdown_table


def model_card(results: Results) -> str:
    """The card as markdown with the front matter that model hubs read."""
    import yaml

    task = "unconditional-image-generation" if results.captions is None else "text-to-image"
    front = {"library_name": "diffusers", "tags": ["diffusion", "noisewise", task]}
    data, metric, plan = results.data, results.metric, results.plan
    parts = [f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n", f"# {_plain(results.name)}\n"]
    if results.verdict:
        parts.append(f"{_plain(results.verdict)}\n")
    if plan and plan.groups:
        costs = results.group_costs if results.method == "multi-decoder" else [g.cost_limit for g in plan.groups]
        limits = ", ".join(
            f"[{g.t_start:g}, {g.t_stop:g}): {cost:.2f}"
            for g, cost in zip(plan.groups, costs, strict=False)
            if cost is not None and not g.is_empty
        )
        verb = "costs" if results.method == "multi-decoder" else "may cost"
        what = {"timestep": "training timestep", "sigma": "noise level sigma", "flow-time": "flow time"}
        parts.append(
            f"One denoiser per range of noise levels. Ranges of the {what.get(plan.coordinate, plan.coordinate)} and "
            f"the share of the base's compute that each {verb}: {limits}.\n"
        )
    parts += _usage(results)
    if results.rows:
        parts += ["## Measured\n", markdown_table(results), class_markdown(results)]
    facts = []
    if data:
        facts.append(
            f"Trained on {_plain(data.name)} ({_count(data.num_train)} images); held out: {_count(data.num_test)}."
        )
    if metric and metric.name:
        facts.append(f"Metric: `{metric.name}`, {_count(metric.n)} images a side; comparable only within this table.")
    if results.command:
        facts.append(f"Made by `{results.command}`.")
    if facts:
        parts += ["## How it was made\n", "\n".join(f"- {fact}" for fact in facts) + "\n"]
    return "\n".join(parts)


def _made_by(results: Results) -> str:
    metric = f"Metric: `{results.metric.name}`. " if results.metric and results.metric.name else ""
    return f"{metric}Made by `{results.command}`." if results.command else metric


def _usage(results: Results) -> list[str]:
    """How to make images; of models that are told something also what the stock pipeline cannot do."""
    classes = results.data.num_classes if results.data else None
    scale = results.recipe.get("sample", {}).get("guidance_scale", 1.0)
    scales = [f"{each:g}" for each in (scale if isinstance(scale, list) else [scale])]
    told = "batch_size=2, class_labels=[0, 1], " if classes else ""
    if results.captions is not None:
        told = f'"a caption", guidance_scale={max(scales, key=float)}, '
    code = (
        "```python\nimport noisewise  # the denoiser's class\nfrom diffusers import DiffusionPipeline\n\n"
        f'images = DiffusionPipeline.from_pretrained("path/to/this/folder")({told}num_inference_steps='
        f"{_steps(results)}).images\n```\n"
    )
    made = "The images measured below were made with classifier-free guidance, at scale " + ", ".join(scales)
    made += " (from data to noise)" if len(scales) > 1 else ""
    command, guiding = (
        "```\nnoisewise sample path/to/this/folder --out images",
        f"--guidance-scale {' '.join(scales)}\n```\n",
    )
    if results.captions is not None and len(scales) > 1:
        text = f"diffusers' pipeline guides all noise levels alike. {made}, which noisewise does:\n"
        return [code, text, f'{command} --prompts "a caption" {guiding}']
    if not classes:
        return [code]
    text = f"It knows {classes} classes, labels 0 to {classes - 1}. diffusers' pipeline tells it one per image"
    if set(scales) == {"1"}:
        return [code, f"{text}.\n"]
    return [code, f"{text} and does not guide. {made}, which noisewise does:\n", f"{command} {guiding}"]


def write_card(run_folder: Path) -> Path | None:
    """Write ``pipeline/README.md`` of a run; None where the run has no pipeline."""
    folder = Path(run_folder) / "pipeline"
    if not folder.is_dir():
        return None
    results = load_results(Path(run_folder))
    write_atomic(folder / "README.md", model_card(results))
    for component in folder.glob("*/README.md"):  # of a model that may be shared alone
        facts = [markdown_table(results), f"Data: {results.data.name}." if results.data else "", _made_by(results)]
        text = with_results(component.read_text(encoding="utf-8"), "\n\n".join(fact for fact in facts if fact))
        write_atomic(component, text)
    return folder / "README.md"


def _steps(results: Results) -> int:
    row = results.row(results.method)
    return (row.num_inference_steps if row else None) or len(results.routes) or 50


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("\n", " ")
