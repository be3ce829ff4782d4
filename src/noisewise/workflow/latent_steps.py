"""What the steps of latent recipes do: take or train an autoencoder, encode, measure reconstructions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisewise.files import write_atomic
from noisewise.workflow import measure
from noisewise.workflow.machine import device, process_rank

if TYPE_CHECKING:
    import torch

    from noisewise.data.images import Images
    from noisewise.models.autoencoder import Autoencoder
    from noisewise.workflow.executor import Job

AUTOENCODER = "autoencoder"  # folder of a step's autoencoder
NUM_IN_GRID = 32  # images, and as many reconstructions
Result = dict[str, Any]


def _save(job: Job, autoencoder: Autoencoder) -> Result:
    from noisewise.workflow.steps import without_places

    folder = job.workspace / AUTOENCODER
    if folder.exists():
        shutil.rmtree(folder)  # of an attempt that was stopped here
    without_places(autoencoder.model).to("cpu").save_pretrained(folder)
    return {
        "kind": type(autoencoder.model).__name__,
        "fingerprint": autoencoder.fingerprint,
        "scaling_factor": autoencoder.scaling_factor,
        "parameters": sum(parameter.numel() for parameter in autoencoder.model.parameters()),
    }


def load(folder: Path) -> Autoencoder:
    """The autoencoder that a step made, on the device where work is done."""
    from noisewise.models.autoencoder import load_autoencoder

    autoencoder = load_autoencoder(folder)
    autoencoder.model.to(device())
    return autoencoder


def take(job: Job) -> Result:
    """An existing autoencoder as it is."""
    from noisewise.models.autoencoder import load_autoencoder

    settings = job.settings
    return _save(job, load_autoencoder(Path(settings["from"]), settings.get("scaling_factor")))


def train(job: Job) -> Result:
    """A new autoencoder, trained on the training images."""
    from noisewise.models.autoencoder import Autoencoder
    from noisewise.training.autoencoder import train_autoencoder
    from noisewise.workflow.latents import build_autoencoder

    settings = job.settings
    autoencoder = build_autoencoder(settings["config"], (settings["seed"], "autoencoder"))
    total = settings["train"].num_images
    result = train_autoencoder(
        autoencoder.model,
        job.dataset().train,
        settings["train"],
        latent_shape=tuple(settings["latent_shape"]),
        kl_weight=settings["kl_weight"],
        seed=settings["seed"],
        workspace=job.workspace,
        horizontal_flip=settings["horizontal_flip"],
        log=lambda step: job.update(
            step.images_seen, total, f"loss {step.loss:.4f}, {step.images_per_second:,.0f} images/s"
        ),
    )
    if process_rank() > 0:
        return {}  # the first process has the same weights and keeps them
    return {
        **_save(job, Autoencoder(autoencoder.model)),
        "num_images": result.num_images,
        "training_seconds": round(result.seconds, 3),
        "resumed_at": result.resumed_at,
        "bin_edges": list(result.bin_edges),
    }


def encode(job: Job) -> Result:
    """The latents of both splits, once."""
    from noisewise.data.latent_files import write_latents

    settings = job.settings
    autoencoder = load(job.input("autoencoder") / AUTOENCODER)
    about = write_latents(
        job.workspace,
        job.dataset(),
        autoencoder.encode,
        autoencoder=job.result_of("autoencoder")["fingerprint"],
        dtype=settings["dtype"],
        batch_size=settings["batch"],
        mirrored=settings["mirrored"],
        device=device(),
        progress=lambda done, total: job.update(done, total),
    )
    return {key: about[key] for key in ("dtype", "mean", "std")} | {
        "shape": about["splits"]["train"]["shape"],
        "bytes": sum(split["size"] for split in about["splits"].values()),
    }


def decoder(folder: Path, batch_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Latents to images by the autoencoder in a folder, some at a time."""
    autoencoder = load(folder)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.cat([autoencoder.decode(part) for part in latents.split(batch_size)])

    return decode


def reconstruction(job: Job) -> Result:
    """Images through the autoencoder and back: error of held-out ones, and distances of both splits' from real ones.

    ``frechet`` compares the held-out images' reconstructions with those images, as is usual; ``floor`` the training
    images' reconstructions with the held-out images, which is what samples could come to at best.
    """
    from noisewise.evaluation.features import Features

    settings = job.settings
    data, n = job.dataset(), settings["num_images"]
    autoencoder = load(job.input("autoencoder") / AUTOENCODER)
    extractor = measure.extractor_of(settings)
    real = measure.load_features(job.input("reference"))
    found: Result = {"n": n}
    for turn, (key, part) in enumerate((("frechet", data.test), ("floor", data.train))):
        originals = measure.chosen(part, n, settings["seed"])
        again = _through(autoencoder, originals, settings["batch"])
        job.update(turn + 1, 2)
        found[key] = measure.scores(Features.of(extractor, again), real)["frechet"]["value"]
        if part is data.test:
            error = float(np.square(again.astype(np.float64) - originals.pixels).mean())  # in 8-bit levels
            found |= {"mse": error, "psnr": 10 * float(np.log10(255**2 / max(error, 1e-12)))}
            pairs = np.concatenate([originals.pixels[:NUM_IN_GRID], again[:NUM_IN_GRID]])
            write_atomic(job.workspace / measure.GRID, measure.png_grid(_in_pairs(pairs)))
    return found


def _through(autoencoder: Autoencoder, images: Images, batch_size: int) -> np.ndarray:
    """Images [N, C, H, W] uint8 encoded to the posterior's mean and decoded."""
    from noisewise.sampling.sampler import to_uint8

    parts = []
    for start in range(0, len(images), batch_size):
        pixels, _ = images.batch(slice(start, start + batch_size), device())
        parts.append(to_uint8(autoencoder.decode(autoencoder.encode(pixels)[0])).numpy())
    return np.concatenate(parts)


def _in_pairs(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Rows of originals, each above its row of reconstructions, for a grid of 8 columns."""
    originals, again = np.split(images, 2)
    rows = range(0, len(originals), columns)
    return np.concatenate([part[row : row + columns] for row in rows for part in (originals, again)])
