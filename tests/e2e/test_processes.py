"""A recipe under a launcher: the processes share every training, the first does the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
TINY = {
    "base.num_images": "512",
    "base.num_snapshots": "0",
    "plan.num_groups": "2",
    "finetune.num_images": "128",
    "prune.proposer": "{kind: importance, rounds: 1, candidates: 1, num_score_images: 16}",
    "prune.importance": "magnitude",
    "sample.num_images": "128",
    "sample.num_inference_steps": "2",
    "evaluate.num_loss_images": "16",
    "evaluate.num_timing_images": "2",
    "compare": "[]",
}


def test_two_processes_finish_one_run(tmp_path: Path) -> None:
    sets = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    done = subprocess.run(
        [*launcher, "noisewise", "run", str(RECIPE), "--runs", str(tmp_path), *sets],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("report.html")
    assert done.stdout.count("base: done") == 1  # the second process is silent
    (row,) = json.loads((tmp_path / "digits" / "results.json").read_text())["rows"]
    assert row["training_images"] == 512 + 2 * 128
