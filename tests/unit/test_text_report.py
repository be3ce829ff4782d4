"""What page and card say of a run whose networks are told captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_fixture import made_up_results, write_run

from noisewise.report import load_results, model_card, write_report

CAPTIONS: dict[str, Any] = {
    "source": "models/stable-diffusion", "num_captions": 40_123, "num_cut_off": 12, "length": 77, "dtype": "float16",
    "bytes": 4_745_427_456, "macs": 6.7e9, "fingerprint": "0f" * 8,
}  # fmt: skip


def run(folder: Path, scale: float | list[float] = 5.0, **captions: Any) -> Path:
    results = made_up_results()
    results["recipe"]["sample"] = {"guidance_scale": scale}
    return write_run(folder, {**results, "captions": {**CAPTIONS, **captions}})


def test_the_page_says_what_networks_were_told(tmp_path: Path) -> None:
    html = write_report(run(tmp_path / "run")).read_text()

    assert html.count('<section id="captions">') == 1
    assert 'href="#captions"' in html
    section = html.partition('<section id="captions">')[2].partition("</section>")[0]
    for said in ("models/stable-diffusion", "40,123", "77 tokens", "12", "4745.4 MB"):
        assert said in section
    plain = write_run(tmp_path / "plain", made_up_results())
    assert "captions" not in write_report(plain).read_text()


def test_holes_in_the_part_do_no_harm(tmp_path: Path) -> None:
    html = write_report(run(tmp_path / "run", num_captions=None, length=None, bytes=None, macs=None)).read_text()

    assert '<section id="captions">' in html


@pytest.mark.parametrize(
    ("scale", "call", "command"),
    [
        (5.0, '("a caption", guidance_scale=5, num_inference_steps=50)', None),
        ([1.0, 5.0], '("a caption", guidance_scale=5, num_inference_steps=50)', "--guidance-scale 1 5"),
    ],
)
def test_the_card_says_how_to_make_images(tmp_path: Path, scale: Any, call: str, command: str | None) -> None:
    card = model_card(load_results(run(tmp_path / "run", scale)))

    assert "- text-to-image\n" in card
    assert call in card
    assert ("noisewise sample" in card) == (command is not None)
    assert command is None or f'--prompts "a caption" {command}' in card
