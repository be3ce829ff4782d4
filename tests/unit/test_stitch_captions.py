"""A sweep of switch points between two text-to-image pipelines: losses and samples are told captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clip_folder import save_photos
from text_zoo import denoiser, saved, stable_diffusion

from noisewise.cli import main
from noisewise.errors import SettingError
from noisewise.workflow.stitching.layout import Sweep, lay_out
from noisewise.workflow.store import Store

FEW = ["sample.num_images=4", "sample.num_inference_steps=2", "sample.guidance_scale=3", "evaluate.num_loss_images=8"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stitched")
    return {
        "small": saved(stable_diffusion(unet=denoiser(block_out_channels=(8, 8))), root / "small"),
        "large": saved(stable_diffusion(), root / "large"),
        "photos": save_photos(root / "photos"),
        "runs": root / "runs",
    }


def data(places: dict[str, Path], **more: str) -> dict[str, object]:
    return {"kind": "folder", "folder": str(places["photos"]), "test_fraction": 0.5, **more}


def sweep(places: dict[str, Path], *changes: str, **more: str) -> Sweep:
    raw = {"data": data(places, **more)}
    return lay_out(
        places["small"], places["large"], raw, [*FEW, *changes], store=Store(places["runs"]), num_switch_points=1
    )


def test_a_sweep_is_told_captions(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for change in FEW for word in ("--set", change)]
    given = json.dumps(data(places, caption_column="text"))
    folders = [str(places["small"]), str(places["large"])]
    common = ["--data", given, "--num-switch-points", "1", "--runs", str(places["runs"]), "--progress", "lines"]
    assert main(["stitch", *folders, *common, *settings]) == 0
    found = json.loads((places["runs"] / "stitch" / "stitch.json").read_text())
    assert len(found["points"]) == 3
    assert "large alone" in capsys.readouterr().out


def test_other_captions_are_measured_anew(places: dict[str, Path], tmp_path: Path) -> None:
    other = save_photos(tmp_path / "photos")  # the same pixels
    metadata = other / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("red", "crimson"))
    before = sweep(places, caption_column="text")
    after = sweep({**places, "photos": other}, caption_column="text")
    assert before.reference.id == after.reference.id
    assert {step.id for step in before.losses}.isdisjoint(step.id for step in after.losses)
    assert {point.step.id for point in before.points}.isdisjoint(point.step.id for point in after.points)


def test_what_a_sweep_cannot_tell_or_score_is_refused(places: dict[str, Path]) -> None:
    with pytest.raises(SettingError, match=r"data\.caption_column: missing; the network in .*large is told a text"):
        sweep(places)
    with pytest.raises(SettingError, match=r"evaluate\.text_image_encoder: given, and a sweep has no such score"):
        sweep(places, "evaluate.text_image_encoder=clip", caption_column="text")
