"""Do a sweep's steps, gather quality against cost, and save the pipeline of one switch point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisewise.errors import SettingError
from noisewise.files import disk_errors, write_atomic, write_json
from noisewise.models.sources import save_in_place_of
from noisewise.models.stitch import End, stitch
from noisewise.workflow import provenance
from noisewise.workflow.executor import Runner, default_threads, run_serial
from noisewise.workflow.measure import GRID
from noisewise.workflow.progress import Sink
from noisewise.workflow.run import STORE, lasting, results_before
from noisewise.workflow.single import check_new, whole_folder
from noisewise.workflow.stitching.layout import Point, Sweep
from noisewise.workflow.stitching.pair import Pair, check_switch_point
from noisewise.workflow.store import Store, run_lock, utc_now

FORMAT = 1
RESULTS = "stitch.json"


def folder_of_sweep(runs: Path, name: str) -> Path:
    """Where a sweep's results go; the steps lie in the runs' store."""
    if name == STORE or not name or any(c in name for c in "/\\") or name.startswith("."):
        raise SettingError(f"--name {name}: cannot be a folder's name beside the runs; use letters, digits and dashes")
    if runs.exists() and not runs.is_dir():
        raise SettingError(f"--runs {runs}: is a file; the folder of all runs is needed")
    return runs / name


def run_sweep(sweep: Sweep, store: Store, folder: Path, sink: Sink) -> tuple[dict[str, Any], bool]:
    """Do what is missing and write `stitch.json`; the results, and whether they are new."""
    with run_lock(folder), disk_errors(folder):
        run_serial(sweep.steps, Runner(store, sink, sweep.settings.data, default_threads(1)))
        results = collect(sweep, store)
        before = results_before(folder / RESULTS)
        if before is not None and lasting(before) == lasting(results):
            return before, False
        (folder / "samples").mkdir(exist_ok=True)
        for name, step in [("real", sweep.reference), *((_file(point), point.step) for point in sweep.points)]:
            store.check(step)
            write_atomic(folder / "samples" / f"{name}.png", (store.folder(step) / GRID).read_bytes())
        write_json(folder / RESULTS, results)
        return results, True


def collect(sweep: Sweep, store: Store) -> dict[str, Any]:
    """`stitch.json`: every switch point with its cost and quality, from the large network alone to the small one."""
    reference = store.record(sweep.reference).result
    small, large = (store.record(step).result for step in sweep.losses)
    points = [_point(sweep, store, point, small, large) for point in sweep.points]
    return {
        "format": FORMAT,
        "created": utc_now(),
        "small": str(sweep.folders[0]),
        "large": str(sweep.folders[1]),
        "small_at": sweep.small_at,
        "coordinate": sweep.schedule.coordinate,
        "settings": sweep.settings.model_dump(mode="json", by_alias=True, exclude_none=True),
        "macs_per_call": {"small": sweep.macs[0], "large": sweep.macs[1]},
        **({} if sweep.pair.autoencoder is None else {"decode_macs": sweep.decode_macs}),
        "num_calls": sweep.num_calls,
        "metric": {"name": reference["metric"], "floor": reference["frechet"]["value"], "n": reference["n"]},
        "points": mark_best(points),
        "losses": {"bounds": small["bounds"], "small": small["ranges"], "large": large["ranges"]},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "command": provenance.command(),
    }


def _point(
    sweep: Sweep, store: Store, point: Point, small: Mapping[str, Any], large: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    found = store.record(point.step).result
    base = sweep.num_calls * sweep.macs[1]
    return {
        "t": point.t,
        "small_calls": point.small_calls,
        "macs_per_image": found["macs_per_image"],
        "cost": found["macs_per_image"] / base,
        "frechet": found["frechet"]["value"],
        "kid": {key: found["kid"][key] for key in ("value", "low", "high")},
        "loss": _loss(sweep, point, small, large),
        "resident_parameters": found["resident_parameters"],
        "seconds_per_image": found["seconds"] / sweep.settings.sample.num_images,
        "samples": f"samples/{_file(point)}.png",
        "provenance": {key: found["frechet"][key] for key in ("samples", "reference", "flags")},
    }


def _loss(sweep: Sweep, point: Point, small: Mapping[str, Any], large: Mapping[str, Any]) -> float:
    """Held-out noise error over all noise levels alike: each range's by the network that serves it."""
    total = 0.0
    for i, (start, _) in enumerate(small["bounds"]):
        if point.t is None:
            by_small = point.small_calls > 0
        else:
            by_small = start >= point.t if sweep.small_at == "noise" else start < point.t
        chosen = (small if by_small else large)["ranges"][i]
        total += chosen["share"] * chosen["mean"]
    return total


def mark_best(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points with ``best``: whether no other one is cheaper at no worse a distance, or as cheap and better."""

    def beaten(point: Mapping[str, Any]) -> bool:
        cost, distance = point["macs_per_image"], point["frechet"]
        return any(
            other["macs_per_image"] <= cost
            and other["frechet"] <= distance
            and (other["macs_per_image"] < cost or other["frechet"] < distance)
            for other in points
        )

    return [{**point, "best": not beaten(point)} for point in points]


def _file(point: Point) -> str:
    if point.t is None:
        return "small-alone" if point.small_calls else "large-alone"
    return f"t-{point.t:g}"


def save_stitched(pair: Pair, out: Path, at: float, small_at: End = "noise", card: str | None = None) -> None:
    """Write two networks as one pipeline with experts that change at ``at``; ``card`` becomes its README.md."""
    from noisewise.models.loading import save_pipeline

    check_new(out, "--save")
    check_switch_point(pair.objective, at)
    model = stitch(pair.small, pair.large, pair.objective.schedule, at, small_at)
    with whole_folder(out) as folder:
        if pair.whole is None:
            save_pipeline(model, pair.scheduler, folder)
        else:
            save_in_place_of(model, pair.whole, folder)
        if card is not None:
            write_atomic(folder / "README.md", card)
