"""One arm of a study against others, of the same study or another: the mean of the seeds' differences.

    python benchmarks/compare_arms.py STUDY:ARM STUDY:ARM [STUDY:ARM ...] [--number test_loss]

STUDY is a study's folder, e.g. runs/studies/tdc-table1/digits, ARM a name in the column `arm` of its `cells.csv`, the
number any column. Prints a line for each further arm: the first less that one, over the seeds that both have,
with Student's 95 % interval. It knows of seeds alone; a study's own interval looks at images too and may be wider.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from noisewise.workflow.study.statistics import paired_difference


def by_seed(place: str, number: str) -> dict[str, float]:
    """An arm's number by its seed."""
    folder, colon, arm = place.rpartition(":")
    if not colon:
        raise SystemExit(f"{place}: no arm is named; give STUDY:ARM")
    table = Path(folder) / "cells.csv"
    if not table.is_file():
        raise SystemExit(f"{place}: {table} is missing; finish the study first")
    with table.open(newline="") as file:
        cells = list(csv.DictReader(file))
    if number not in cells[0]:
        raise SystemExit(f"--number: {number} given; {table} has {', '.join(cells[0])}")
    found = {cell["seed"]: cell[number] for cell in cells if cell["arm"] == arm}
    if not found:
        raise SystemExit(f"{place}: no such arm; {folder} has {', '.join(dict.fromkeys(c['arm'] for c in cells))}")
    try:
        return {seed: float(text) for seed, text in found.items()}
    except ValueError:
        raise SystemExit(f"--number: {number} of {place} is no number ({', '.join(found.values())})") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", metavar="STUDY:ARM")
    parser.add_argument("others", metavar="STUDY:ARM", nargs="+")
    parser.add_argument("--number", default="frechet", help="column of cells.csv (default: frechet)")
    options = parser.parse_args()
    own = by_seed(options.arm, options.number)
    for place in options.others:
        other = by_seed(place, options.number)
        seeds = sorted(own.keys() & other.keys(), key=int)
        if len(seeds) < 2:
            raise SystemExit(f"{place}: {len(seeds)} of its seeds are also of {options.arm}; at least 2 are needed")
        found = paired_difference([own[seed] - other[seed] for seed in seeds])
        print(f"less {place}: {found.value:.4g} [{found.low:.4g}, {found.high:.4g}], {len(seeds)} seeds")


if __name__ == "__main__":
    main()
