"""What the steps that make networks do: take, train, prune, assemble, from their settings and inputs alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisewise.errors import SettingError
from noisewise.models.cost import count_parameters, layer_macs
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.objectives import Objective
from noisewise.planning.plan import Plan
from noisewise.pruning.time_budget import Budget
from noisewise.schedule import NoiseSchedule
from noisewise.streams import seed_of
from noisewise.workflow import covering, decoders, measure, merging, text_scores, texts
from noisewise.workflow import latent_steps as latents
from noisewise.workflow import stage_steps as stages
from noisewise.workflow.conditioning import guidance_of, guided_routes
from noisewise.workflow.machine import device, process_rank
from noisewise.workflow.networks import make_objective, new_unet2d
from noisewise.workflow.stitching import steps as stitching
from noisewise.workflow.study import score_steps as scoring
from noisewise.workflow.study import steps as study

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.workflow.executor import Job

MODEL = "model"  # folder of a step's network
Result = dict[str, Any]


def objective_of(job: Job) -> Objective:
    return make_objective(job.settings["objective"], NoiseSchedule.from_dict(job.settings["schedule"]))


def load_model(folder: Path) -> ModelMixin:
    """The network that a step made, on the device where work is done."""
    model, _ = load_denoiser(folder / MODEL)
    return model.to(device())


def save_model(job: Job, model: ModelMixin) -> Result:
    """Write a step's network; what it costs is its result."""
    folder = job.workspace / MODEL
    if folder.exists():
        shutil.rmtree(folder)  # of an attempt that was stopped here
    without_places(model).to("cpu").save_pretrained(folder)
    return cost_of(model)


def without_places(model: ModelMixin) -> ModelMixin:
    """A network that has forgotten the folder it came from, which diffusers would write into config.json."""
    from diffusers import ConfigMixin

    for module in model.modules():
        if isinstance(module, ConfigMixin):
            module.register_to_config(_name_or_path="")
    return model


def cost_of(model: ModelMixin) -> Result:
    """MACs of one forward pass on one image and parameters; of a network of several groups [N] MACs, None if empty.

    ``paper_macs`` leave attention out, its projections too, as the counts printed in arXiv:2312.09181 do.
    """
    from diffusers.models.attention_processor import Attention

    from noisewise.models.experts import ExpertDenoiser

    if isinstance(model, ExpertDenoiser):
        costs = [None if expert is None else cost_of(expert) for expert in model.experts]
        each = {key: [None if cost is None else cost[key] for cost in costs] for key in ("macs", "paper_macs")}
        return {**each, "active_parameters": model.active_parameters(), "parameters": model.resident_parameters()}
    macs = layer_macs(model, describe(model).example_inputs(model))
    attentions = tuple(path for path, module in model.named_modules() if isinstance(module, Attention))
    paper_macs = sum(value for path, value in macs.items() if not _is_within(path, attentions))
    return {"macs": sum(macs.values()), "paper_macs": paper_macs, "parameters": count_parameters(model)}


def _is_within(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def new_network(network: dict[str, Any], names: tuple[object, ...]) -> ModelMixin:
    """The network that settings describe: a new one with seeded weights, or an existing one."""
    if "config" in network:
        return new_unet2d(network["config"], names)
    if decoders.KEY in network:
        return decoders.new_multi_decoder(network, names)
    model, _ = load_denoiser(network["from"])
    return model


def take(job: Job) -> Result:
    """An existing network as it is."""
    return save_model(job, new_network(job.settings["network"], ()))


def untrained(job: Job) -> Result:
    """A new network as it is."""
    return save_model(job, new_network(job.settings["network"], (job.settings["seed"], "untrained")))


def train(job: Job) -> Result:
    """Stage 1, stage 2, from scratch, joint: `training.train` on this step's network and noise levels."""
    from noisewise.training.loop import train as run_training

    settings = job.settings
    images = job.learned().train
    if "held_out" in settings:
        images, _ = stages.split_off(images, settings["held_out"], settings["seed"])
    model = network_to_train(job)
    teacher = load_model(job.input("teacher")) if "teacher" in job.step.inputs else None
    total = settings["train"].num_images
    snapshots = settings.get("snapshots", [])
    result = run_training(
        model,
        objective_of(job),
        images,
        settings["train"],
        seed=settings["seed"],
        workspace=job.workspace,
        names=settings["names"],
        timesteps=settings["timesteps"],
        teacher=teacher,
        horizontal_flip=settings["horizontal_flip"],
        snapshots=snapshots,
        **{name: settings[name] for name in ("ranges", "group_draws", "label_dropout") if name in settings},
        log=lambda step: job.update(
            step.images_seen, total, f"loss {step.loss:.4f}, {step.images_per_second:,.0f} images/s"
        ),
    )
    if process_rank() > 0:
        return {}  # the first process has the same weights and keeps them
    keep_snapshots(job, result.model, snapshots)
    return {
        **save_model(job, result.model),
        "num_images": result.num_images,
        "training_seconds": round(result.seconds, 3),
        "resumed_at": result.resumed_at,
        "bin_edges": list(result.bin_edges),
    }


def network_to_train(job: Job) -> ModelMixin:
    """The network that a training starts from: another step's, the shape of one, or a new one."""
    settings = job.settings
    names = (settings["seed"], *settings["names"])
    if "shape" in job.step.inputs:
        shaped: Any = load_model(job.input("shape"))
        return reinitialised(shaped.experts[settings["expert"]] if "expert" in settings else shaped, names)
    if "source" not in job.step.inputs:
        return new_network(settings["network"], names).to(device())
    folder = job.input("source")
    model = load_model(folder / scoring.SCHEME.format(settings["scheme"]) if "scheme" in settings else folder)
    return reinitialised(model, names) if settings.get("fresh") else model


def reinitialised(model: ModelMixin, names: tuple[object, ...]) -> ModelMixin:
    """A network of the same shape with fresh weights."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*names, "weights"))
        return type(model).from_config(model.config).to(model.device)


def keep_snapshots(job: Job, model: ModelMixin, snapshots: list[int]) -> None:
    """Turn the weights kept on the way into networks of their own, so that anything can load them.

    The weights stay until the step is done: a second attempt, which trains no further, needs them again.
    """
    import copy

    from noisewise.files import load_tensors

    for images in snapshots:
        snapshot = copy.deepcopy(model).to("cpu")
        snapshot.load_state_dict(load_tensors(job.workspace / "snapshots" / f"{images}.safetensors"))
        without_places(snapshot).save_pretrained(job.workspace / f"snapshot-{images}" / MODEL)


def prune(job: Job) -> Result:
    """Rounds of candidate widths within the budget, the best of which is cut from the source."""
    from noisewise.pruning.search import search

    settings, prune = job.settings, job.settings["prune"]
    budget = settings["budget"]
    asked: Budget = prune.asked(budget) if budget is not None else 0.0
    if budget is None:
        asked = budget = job.result_of("match")["mean_fraction"]
        if budget >= 1:
            job.note("the cost to match is the base's, so nothing is pruned")
            return {**save_model(job, load_model(job.input("source"))), "budget": 1.0, "achieved": 1.0}
    source = load_model(job.input("source"))
    group = settings["names"][-1]
    done, total = 0, prune.proposer.rounds * prune.proposer.candidates

    def log(line: str) -> None:
        nonlocal done
        done += 1
        job.update(done, total, line.partition(": ")[2])

    found = search(
        source,
        describe(source).example_inputs(source),
        asked,
        prune.proposer,
        objective=objective_of(job),
        images=job.learned().train,
        timesteps=settings["timesteps"],
        group=group if isinstance(group, int) else -1,
        importance=prune.importance,
        timestep_stride=prune.timestep_stride,
        tolerance=prune.tolerance,
        timing=prune.timing,
        recovery=prune.recovery,
        num_recovery_images=prune.num_recovery_images,
        workspace=job.workspace,
        seed=settings["seed"],
        log=log,
    )
    said = {"proposed": found.proposed, "proposer": dict(found.account)}
    return {**save_model(job, found.model), "budget": budget, **found.info.to_dict(), **said}


def cost(job: Job) -> Result:
    """What an image by the recipe's method costs, before its networks are trained."""
    settings = job.settings
    plan = Plan.from_dict(settings["plan"])
    if "macs" in settings:
        macs = list(settings["macs"])
    elif "decoders" in job.step.inputs:
        macs = job.result_of("decoders")["macs"]
    else:
        roles = [f"expert[{g.index}]" for g in plan.groups]
        macs = [job.result_of(role)["macs"] if role in job.step.inputs else None for role in roles]
    routes = plan.routes(measure.scheduler_of(settings), settings["num_inference_steps"], macs)
    guidance = guidance_of(settings)
    calls = sum(guidance.calls_at(step.t) for step in routes.steps) / len(routes.steps)  # of a step
    routes = guided_routes(routes, guidance)
    mean_fraction = routes.mean / (calls * settings["base_macs"])
    return {"macs_per_image": routes.total, "mean_fraction": mean_fraction, "base_macs": settings["base_macs"]}


def assemble(job: Job) -> Result:
    """The experts as one diffusers model."""
    from noisewise.models.experts import ExpertDenoiser

    plan = Plan.from_dict(job.settings["plan"])
    experts: list[Any] = [None] * len(plan.groups)
    for group in plan.groups:
        if not group.is_empty:
            experts[group.index], _ = load_denoiser(job.input(f"expert[{group.index}]") / MODEL)
    model = without_places(ExpertDenoiser(experts, plan))
    folder = job.workspace / MODEL
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    return cost_of(model)


ACTIONS: dict[str, Callable[[Job], Result]] = {
    "take_autoencoder": latents.take,
    "train_autoencoder": latents.train,
    "encode": latents.encode,
    "encode_text": texts.encode,
    "text_score": text_scores.text_score,
    "reconstruction": latents.reconstruction,
    "take": take,
    "untrained": untrained,
    "train": train,
    "prune": prune,
    "decoders": stages.decoders,
    "pick": stages.pick,
    "cost": cost,
    "assemble": assemble,
    "merge": merging.merge,
    "sample": measure.sample,
    "reference": measure.reference,
    "evaluate": measure.evaluate,
    "coverage": covering.coverage,
    "loss": measure.loss,
    "ideal_loss": measure.ideal_loss,
    "timing": measure.timing,
    "floor": study.floor,
    "neighbours": study.neighbours,
    "resample": study.resample,
    "schemes": scoring.schemes,
    "probe": scoring.probe,
    "stitch_loss": stitching.stitch_loss,
    "stitch_sample": stitching.stitch_sample,
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSONL file; none where it does not exist."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line]
    except json.JSONDecodeError as error:
        raise SettingError(f"{path}: is not whole ({error})") from None
