"""What a study's own steps do: the metric's own noise, nearest neighbours, resampled distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from noisewise.errors import SettingError
from noisewise.evaluation.features import Features, nearest_neighbours
from noisewise.streams import seed_of
from noisewise.workflow import measure
from noisewise.workflow.study import statistics

if TYPE_CHECKING:
    from noisewise.data.images import Images
    from noisewise.workflow.executor import Job

POOL = 8  # real images that the floor looks at, in numbers of images a side
TRAIN_CHUNK = 5_000  # training images held as floats at once
NEAR = 0.01  # held-out images that count as near copies, by definition
DISTANCES = "distances.npy"
RESAMPLED = "resampled.npy"
FEATURES = "features.npy"
Result = dict[str, Any]


def floor(job: Job) -> Result:
    """The metric on real images alone: Fréchet distances between random disjoint halves of them."""
    settings = job.settings
    data, n = job.dataset(), settings["num_images"]
    rng = np.random.default_rng(seed_of(settings["seed"], "floor"))
    pixels = _real_pixels((data.test, data.train), POOL * n // 2, rng)
    features = Features.of(measure.extractor_of(settings), pixels).values
    half, values = min(n, len(features) // 2), []
    for i, (one, other) in enumerate(statistics.random_halves(len(features), half, settings["num_splits"], rng)):
        values.append(_distance(features[one], features[other]))
        job.update(i + 1, settings["num_splits"])
    return {"values": values, "n": half, "mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}


def _real_pixels(splits: tuple[Images, ...], most: int, rng: np.random.Generator) -> np.ndarray:
    """[N, C, H, W] uint8, at most ``most`` images of each split."""
    chosen = [np.sort(rng.permutation(len(split))[:most]) for split in splits]
    return np.concatenate([np.asarray(split.pixels[rows]) for split, rows in zip(splits, chosen, strict=True)])


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    from noisewise.evaluation.metrics import frechet_distance

    return frechet_distance(
        one.mean(0), np.cov(one.astype(np.float64), rowvar=False),
        other.mean(0), np.cov(other.astype(np.float64), rowvar=False),
    )  # fmt: skip


def neighbours(job: Job) -> Result:
    """Distance of pixels to those of the nearest training image: of held-out images, or of samples beside them.

    A model that memorises has samples nearer to the training set than held-out images are.
    """
    settings = job.settings
    data, n = job.dataset(), settings["num_images"]
    if "sample" in job.step.inputs:
        images = np.load(job.input("sample") / measure.IMAGES, mmap_mode="r", allow_pickle=False)[:n]
    else:
        images = measure.chosen(data.test, n, settings["seed"]).pixels
    distances = _to_training(np.asarray(images).reshape(len(images), -1), data.train)
    np.save(job.workspace / DISTANCES, distances, allow_pickle=False)
    found: Result = {"median": float(np.median(distances)), "num_images": len(distances)}
    if "real" in job.step.inputs:
        held_out = np.load(job.input("real") / DISTANCES, allow_pickle=False)
        found["held_out_median"] = float(np.median(held_out))
        found["near_copies"] = float((distances <= np.quantile(held_out, NEAR)).mean())
    return found


def _to_training(images: np.ndarray, train: Images) -> np.ndarray:
    """[N] distance of each image [N, pixels] to its nearest training image: root mean square, in 8-bit levels."""
    nearest = np.full(len(images), np.inf)
    for start in range(0, len(train), TRAIN_CHUNK):
        part = np.asarray(train.pixels[start : start + TRAIN_CHUNK])
        nearest = np.minimum(nearest, nearest_neighbours(images, part.reshape(len(part), -1))[0])
    return nearest / np.sqrt(images.shape[1])


def resample(job: Job) -> Result:
    """Distances of all arms of one seed on resampled images, for intervals on their differences."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    arms = [role for role in job.step.inputs if role != "reference"]
    real = _features(job, "reference")
    samples = [_features(job, role) for role in arms]
    total = job.settings["num_resamples"] or statistics.num_resamples_for(real.shape[1])
    rng = np.random.default_rng(seed_of(job.settings["seed"], "resample"))
    # small matrices gain nothing from threads, and two processes' worth of them get in each other's way
    with threadpool_limits(1 if real.shape[1] <= statistics.MANY_FEATURES else None):
        distances = statistics.resampled_distances(real, samples, total, rng, lambda done: job.update(done, total))
    np.save(job.workspace / RESAMPLED, distances, allow_pickle=False)
    return {"arms": arms, "num_resamples": total}


def _features(job: Job, role: str) -> np.ndarray:
    path = job.input(role) / FEATURES
    if not path.is_file():
        raise SettingError(f"{path}: missing, an older version made this step; delete {path.parent} to redo it")
    return np.load(path, allow_pickle=False)
