"""Whole commands in a process of their own, and what they leave in the store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=600, **options)


def weights(runs: Path) -> dict[str, str]:
    """Checksum of every network in the store, by step's folder."""
    found = {}
    for record in (runs / "store").glob("*/artefact.json"):
        files = json.loads(record.read_text())["files"]
        found |= {f"{record.parent.name}/{name}": file["sha256"] for name, file in files.items() if "model/" in name}
    return found
