"""What the steps that measure do: sample, distances, test losses, times. Same draws and seeds for every row."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisewise.evaluation.cost import interleaved_latency, steps_at_cost
from noisewise.files import read_json, write_atomic, write_json
from noisewise.models.loading import load_denoiser
from noisewise.planning.plan import Plan
from noisewise.sampling.kinds import steps_within
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream
from noisewise.workflow.conditioning import GUIDANCE, guidance_of, guided_routes
from noisewise.workflow.machine import device
from noisewise.workflow.making import making
from noisewise.workflow.store import StepSpec, closure

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from noisewise.data.images import Images
    from noisewise.evaluation.features import FeatureExtractor
    from noisewise.workflow.executor import Job

IMAGES = "images.npy"
GRID = "grid.png"
NUM_IN_GRID, MOST_COLUMNS = 64, 16
TIMING_ROUNDS = 3
Result = dict[str, Any]


def scheduler_of(settings: Any) -> Any:
    """The sampler that settings (graph's `sampler`) name."""
    from noisewise.sampling.schedulers import build_scheduler

    schedule = NoiseSchedule.from_dict(settings["schedule"])
    return build_scheduler(
        settings["scheduler"], schedule, settings["prediction_type"], settings["variance"],
        latent=settings.get("latent", False),
    )  # fmt: skip


def macs_of(network: Any) -> int:
    """MACs of one forward pass on one image."""
    from noisewise.models.cost import count_macs
    from noisewise.models.networks import describe

    return count_macs(network, describe(network).example_inputs(network))


def image_cost(model: ModelMixin, settings: Any, num_inference_steps: int) -> Result:
    """What one image costs with ``model``: MACs over the visited steps, parameters, and the route."""
    from noisewise.models.cost import count_parameters
    from noisewise.models.experts import ExpertDenoiser

    if isinstance(model, ExpertDenoiser):
        plan, macs = model.plan, [None if expert is None else macs_of(expert) for expert in model.experts]
        active = model.active_parameters()
    else:
        plan, macs = Plan.single(NoiseSchedule.from_dict(settings["schedule"])), [macs_of(model)]
        active = [count_parameters(model)]
    routes = guided_routes(plan.routes(scheduler_of(settings), num_inference_steps, macs), guidance_of(settings))
    return {
        "macs_per_image": routes.total,
        "num_inference_steps": num_inference_steps,
        "active_parameters": active,
        "resident_parameters": count_parameters(model),
        "routes": routes.to_list(),
    }


def steps_at(model: ModelMixin, settings: Any, macs_per_image: float) -> int:
    """The most sampling steps with which ``model`` costs no more than ``macs_per_image``.

    Fewer than the settings' where the image is cheaper than by ``model``, more where it is dearer.
    """
    guidance, macs = guidance_of(settings), macs_of(model)
    steps = steps_within(settings["scheduler"], steps_at_cost(macs_per_image, macs))
    if guidance.is_off:
        return steps
    schedule, scheduler = NoiseSchedule.from_dict(settings["schedule"]), scheduler_of(settings)

    def cost(steps: int) -> int:  # how many steps are guided depends on where they fall
        return macs * sum(guidance.calls_at(float(t)) for t in schedule.visited(scheduler, steps))

    while steps > 1 and cost(steps) > macs_per_image * (1 + 1e-9):
        steps -= 1
    return steps


def cached_at(model: Any, settings: Any, num_steps: int, macs_per_image: float) -> tuple[Any, Result]:
    """``model`` by DeepCache, as often whole as ``macs_per_image`` allows; what an image costs then."""
    from noisewise.models.networks import describe
    from noisewise.sampling.deepcache import DeepCache, cost_of, costs, whole_calls

    scheduler = scheduler_of(settings)
    scheduler.set_timesteps(num_steps)
    timesteps = [float(t) for t in scheduler.timesteps]
    each = costs(model, describe(model).example_inputs(model))
    whole = whole_calls(timesteps, *each, macs_per_image)
    return DeepCache(model, whole), {"macs_per_image": cost_of(timesteps, whole, *each), "whole_calls": whole}


def sample(job: Job) -> Result:
    """Images of one row, and a grid of the first."""
    settings = job.settings
    model = network = _model_to_sample(job)
    num_steps = settings["num_inference_steps"]
    more: Result = {}
    if "deepcache" in settings:
        model, more = cached_at(model, settings, num_steps, job.result_of("match")["macs_per_image"])
    elif "match" in job.step.inputs:
        num_steps = steps_at(model, settings, job.result_of("match")["macs_per_image"])
    total = settings["sample"]["num_images"]
    started = time.perf_counter()
    made = making(job.step, job.runner)
    images = draw_images(model, settings, total, num_steps, lambda done: job.update(int(done), total), **made)
    seconds = time.perf_counter() - started
    _save_array(job.workspace / IMAGES, images)
    write_atomic(job.workspace / GRID, png_grid(images, settings["num_classes"]))
    return {**image_cost(network, settings, num_steps), **more, "seconds": round(seconds, 3)}


def _model_to_sample(job: Job) -> ModelMixin:
    snapshot = job.settings.get("snapshot")
    folder = job.input("model") / ("" if snapshot is None else f"snapshot-{snapshot}")
    model, _ = load_denoiser(folder / "model")
    return model.to(device()).eval()


def draw_images(
    model: ModelMixin, settings: Any, num_images: int, num_steps: int, progress: Any = None, decode: Any = None,
    **told: Any,
) -> np.ndarray:  # fmt: skip
    """[num_images, C, H, W] uint8; image i has the stream (sample.seed, i), whatever the batch."""
    from noisewise.sampling.sampler import sample_images

    sampling, guidance = settings["sample"], guidance_of(settings)
    return sample_images(
        model,
        scheduler_of(settings),
        num_images,
        num_inference_steps=num_steps,
        seed=sampling["seed"],
        batch_size=sampling["batch_size"],
        sample_shape=tuple(settings["shape"]),
        class_labels=class_labels(num_images, settings["num_classes"]),
        guidance_scale=guidance.scales,
        plan=guidance.plan,
        eta=sampling["eta"],
        device=device(),
        progress=progress,
        decode=decode,
        **told,
    ).numpy()


def class_labels(num_images: int, num_classes: int | None) -> Any:
    """[num_images] int64, every class in turn; None where there are none."""
    import torch

    return torch.arange(num_images) % num_classes if num_classes else None


def _save_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def png_grid(images: np.ndarray, num_classes: int | None = None) -> bytes:
    """The first images [N, C, H, W] uint8 as a grid; of few classes in turn, each class in a column of its own."""
    from noisewise.sampling.grids import sample_grid

    columns = num_classes if num_classes is not None and num_classes <= MOST_COLUMNS else 8
    buffer = io.BytesIO()
    sample_grid(images[: columns * (NUM_IN_GRID // columns)], columns).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# ---- features and distances


def extractor_of(settings: Any) -> FeatureExtractor:
    from noisewise.evaluation.efficientnet import EfficientNetLite0
    from noisewise.evaluation.inception import Inception

    evaluate = settings["evaluate"]
    if evaluate["features"] == "inception":
        return Inception(Path(evaluate["inception_path"]), device=device())
    return EfficientNetLite0(evaluate["tap"], device=device())


def reference(job: Job) -> Result:
    """Features of held-out images, and the floor: as many training images against them."""
    from noisewise.evaluation.features import Features
    from noisewise.evaluation.metrics import frechet_name

    settings = job.settings
    data, n = job.dataset(), settings["num_images"]
    extractor = extractor_of(settings)
    halves = [chosen(part, n, settings["seed"]) for part in (data.test, data.train)]
    real, floor = (Features.of(extractor, half) for half in halves)
    _save_features(job.workspace, real)
    write_atomic(job.workspace / GRID, png_grid(halves[0].pixels))
    return {**scores(floor, real), "metric": frechet_name(extractor.name), "n": n}


def chosen(images: Images, num_images: int, seed: int) -> Images:
    """Some images of a split, the same for everyone who names the same seed."""
    return images.subset(order_of(len(images), seed)[:num_images])


def order_of(num_images: int, seed: int) -> Any:
    """[num_images] int64, the order in which a split's images are chosen."""
    import torch

    return torch.randperm(num_images, generator=stream(seed, "reference"))


def evaluate(job: Job) -> Result:
    """Distances of one row's images from the held-out ones."""
    from noisewise.evaluation.features import Features

    images = np.load(job.input("sample") / IMAGES, allow_pickle=False)
    sampled = job.step.inputs["sample"]
    features = Features.of(
        extractor_of(job.settings),
        images,
        model=sampled.inputs["model"].id,
        sampler=str(sampled.settings["scheduler"]),
        num_inference_steps=job.result_of("sample")["num_inference_steps"],
        seed=sampled.settings["sample"]["seed"],
        guidance_scale=sampled.settings.get(GUIDANCE, {}).get("scale"),
        ema=_is_averaged(sampled.inputs["model"]),
    )
    _save_features(job.workspace, features)  # studies compare arms image by image
    return scores(features, load_features(job.input("reference")))


def _is_averaged(model: StepSpec) -> bool | None:
    """Whether a network's weights are moving averages; None where it was not trained here."""
    trainings = [step for step in closure([model]) if step.action == "train"]
    return all(step.settings["train"].ema_halflife_images > 0 for step in trainings) if trainings else None


def scores(sampled: Any, real: Any) -> Result:
    """Fréchet distance and KID with their provenance, as JSON."""
    from noisewise.evaluation.metrics import frechet_score, kid_score
    from noisewise.evaluation.statistics import Statistics

    frechet = frechet_score(Statistics.of(sampled), Statistics.of(real))
    return {"frechet": frechet.to_dict(), "kid": kid_score(sampled, real).to_dict()}


def _save_features(folder: Path, features: Any) -> None:
    _save_array(folder / "features.npy", features.values)
    write_json(folder / "features.json", features.provenance.to_dict())


def load_features(folder: Path) -> Any:
    from noisewise.evaluation.features import Features
    from noisewise.evaluation.provenance import Provenance

    values = np.load(folder / "features.npy", allow_pickle=False)
    return Features(values, Provenance.from_dict(read_json(folder / "features.json", "reference")))


# ---- losses and times


def loss(job: Job) -> Result:
    """Held-out loss of one network per group of the plan and per bin of t, on the draws that every network sees."""
    from noisewise.evaluation.losses import loss_per_timestep
    from noisewise.workflow.steps import load_model, objective_of

    settings = job.settings
    num_images = settings["evaluate"]["num_loss_images"]
    losses = loss_per_timestep(
        load_model(job.input("model")),
        objective_of(job),
        job.learned().test,
        plan=Plan.from_dict(settings["plan"]),
        num_images=num_images,
        num_images_per_bin=max(1, num_images // 8),
        seed=settings["seed"],
        device=device(),
    )
    return {
        "mean": losses.mean,
        "groups": [None if group is None else group.mean for group in losses.groups],
        "standard_errors": [None if group is None else group.standard_error for group in losses.groups],
        "t": [part.t_centre for part in losses.bins],
        "bins": [part.mean for part in losses.bins],
    }


def ideal_loss(job: Job) -> Result:
    """Loss of the training images' optimal denoiser on draws from those images: no network can do better on them."""
    from noisewise.optimal.denoiser import OptimalDenoiser
    from noisewise.optimal.ideal_loss import ideal_loss as loss_of

    settings = job.settings
    schedule = NoiseSchedule.from_dict(settings["schedule"])
    grid = schedule.grid()
    chosen = np.unique(np.linspace(0, len(grid) - 1, settings["num_levels"]).round().astype(int))
    coordinates = [grid[i].item() for i in chosen]
    denoiser = OptimalDenoiser(job.learned().train, schedule, device=device())
    losses = loss_of(denoiser, coordinates, settings["num_draws"], seed=settings["seed"])
    return {"t": coordinates, "loss": [float(value) for value in losses], "num_draws": settings["num_draws"]}


def timing(job: Job) -> Result:
    """Seconds per image of every row: rows take turns, so that a busy moment hits all; the median of the rounds."""
    from noisewise.sampling.deepcache import DeepCache

    settings = job.settings
    num_images = min(settings["timing"]["num_timing_images"], settings["sample"]["num_images"])
    rows = [role[len("model[") : -1] for role in job.step.inputs if role.startswith("model[")]
    total, done = len(rows) * (TIMING_ROUNDS + 1), 0

    def call(row: str) -> Callable[[], None]:
        model = load_denoiser(job.input(f"model[{row}]") / "model")[0].to(device()).eval()
        sampled = job.result_of(f"sample[{row}]")
        num_steps = sampled["num_inference_steps"]
        if "whole_calls" in sampled:
            model = DeepCache(model, sampled["whole_calls"])
        made = making(job.step.inputs[f"sample[{row}]"], job.runner)

        def run() -> None:
            nonlocal done
            draw_images(model, settings, num_images, num_steps, **made)
            done += 1
            job.update(done, total, row)

        return run

    measured = interleaved_latency({row: call(row) for row in rows}, repeats=TIMING_ROUNDS)
    return {
        "seconds_per_image": {row: latency.median / num_images for row, latency in measured.items()},
        "rounds": {row: [seconds / num_images for seconds in latency.seconds] for row, latency in measured.items()},
        "num_images": num_images,
    }
