"""Commands that combine trained networks: stitch two into experts, merge experts into one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from noisewise.cli.recipes import RUNS, Overrides, ProgressStyle
from noisewise.errors import SettingError

if TYPE_CHECKING:
    from noisewise.workflow.stitching.pair import Pair

End = Literal["noise", "data"]


def stitch(
    small: Path,
    large: Path,
    /,
    *,
    data: str | None = None,
    small_at: End = "noise",
    num_switch_points: int = 9,
    at: float | None = None,
    save: Path | None = None,
    set_: Overrides = (),
    name: str = "stitch",
    runs: Path = RUNS,
    progress: ProgressStyle = "auto",
) -> None:
    """Two trained networks as one, without training: quality against cost by where one hands over to the other.

    With --data it sweeps the switch point and writes a table, a figure and every number; the same command resumes.
    With --save and --at it writes the pipeline that switches there (after the sweep, if there is one).

    Args:
        small: folder of the cheaper pipeline or model.
        large: folder of the dearer one, for the same images, schedule and prediction.
        data: the images as in a recipe, e.g. --data '{kind: sklearn-digits}'.
        small_at: the end of the noise range that the small network serves.
        num_switch_points: how many to try between the two networks alone, 0 or more, evenly spaced in t, flow time or
            log sigma.
        at: one more switch point, and the one that --save writes: an original training timestep, sigma or flow time.
        save: folder to write; must not exist yet, or be empty.
        set_: change a setting, e.g. --set sample.num_images=500, --set evaluate.num_loss_images=256.
        name: name of the results' folder within the folder of runs.
        runs: folder of all runs, whose store keeps the steps.
        progress: bars on a terminal and plain lines elsewhere (auto), or always the one named.
    """
    from noisewise.workflow.single import check_new
    from noisewise.workflow.yaml_file import parse_yaml

    if save is not None and at is None:
        raise SettingError("--save: name the switch point by --at, e.g. --at 500")
    if save is not None:
        check_new(save, "--save")
    if num_switch_points < 0:
        raise SettingError(f"--num-switch-points: {num_switch_points} given; 0 or more are possible")
    raw = {} if data is None else {"data": parse_yaml(data, "--data")}
    card = pair = None
    if data is not None or any(word.startswith("data") for word in set_):
        pair, card = _sweep(small, large, raw, set_, small_at, num_switch_points, at, name, runs, progress)
    elif save is None:
        raise SettingError("stitch: nothing to do; give images by --data to measure, or --save and --at to write")
    elif set_:
        raise SettingError("--set: without --data nothing is measured, so that it would be ignored")
    if save is not None and at is not None:
        from noisewise.workflow.stitching.pair import open_pair
        from noisewise.workflow.stitching.run import save_stitched

        save_stitched(pair or open_pair(small, large), save, at, small_at, card)
        print(f"{save}: {'small' if small_at == 'noise' else 'large'} from {at:g} on, the other below it")


def _sweep(
    small: Path, large: Path, raw: dict[str, object], set_: Overrides, small_at: End, num_switch_points: int,
    at: float | None, name: str, runs: Path, progress: ProgressStyle,
) -> tuple[Pair, str | None]:  # fmt: skip
    """Measure, print, plot; the two networks, and the model card for ``at``."""
    from noisewise.report.stitch import SVG, stitch_card, text_table, write_stitch
    from noisewise.workflow.predict import si
    from noisewise.workflow.progress import open_sink
    from noisewise.workflow.run import store_of
    from noisewise.workflow.stitching.layout import lay_out
    from noisewise.workflow.stitching.run import folder_of_sweep, run_sweep

    folder, store = folder_of_sweep(runs, name), store_of(runs)
    sweep = lay_out(
        small, large, raw, set_, store=store, small_at=small_at, num_switch_points=num_switch_points, at=at
    )  # fmt: skip
    if progress != "json":
        images, macs = sweep.to_do(store)
        done = sum(store.is_done(step) for step in sweep.steps)
        todo = f"to do: {images:,} images, {si(macs)}MACs" if images or macs else "nothing to do"
        print(f"{name}: {len(sweep.points)} switch points, {len(sweep.steps)} steps, {done} done; {todo}", flush=True)
    with open_sink(progress) as sink:
        results, changed = run_sweep(sweep, store, folder, sink)
    if changed or not (folder / SVG).is_file():
        write_stitch(folder, results)
    if progress != "json":
        print(text_table(results))
        print(folder / SVG)
    return sweep.pair, None if at is None else stitch_card(results, at)


def merge(run_folder: Path, /, *, out: Path | None = None, progress: ProgressStyle = "auto") -> None:
    """One network again: fold a run's unpruned experts into one of the base's size.

    It writes base + sum of weights (expert - base) as an ordinary pipeline. A small search on held-out loss finds a
    weight per group; section `merge` of the run's recipe sets its size. A recipe whose `compare` names `merged` has the
    network in its table, too.

    Args:
        run_folder: folder of a run of method tdc with unpruned experts, e.g. runs/digits.
        out: folder to write; must not exist yet, or be empty. By default merged within the run's folder.
        progress: bars on a terminal and plain lines elsewhere (auto), or always the one named.
    """
    from noisewise.workflow.merging import merge_run, merge_table
    from noisewise.workflow.progress import open_sink

    target = run_folder / "merged" if out is None else out
    with open_sink(progress) as sink:
        result = merge_run(run_folder, target, sink)
    if progress != "json":
        print(merge_table(result))
        print(target)
