"""Reloading ten experts against `safetensors.load_file` of the same files, the first forward pass included.

    python benchmarks/expert_loading.py [--experts 10] [--channels 160 256 384] [--rounds 5] [--threads 2] [--clock cpu]

Both sides start from files and end with a prediction. noisewise: `ExpertDenoiser.from_pretrained`, then a call. Peer:
`load_file` of every expert's file into networks that are built already (not timed), then the same call by hand. "One
expert": a call of the one that samplers begin with. "Every expert": a call of each. The two take turns in one process,
files in the page cache. Garbage is collected before each turn: a collection looks at everything the imports hold (0.2
s) and would fall to whoever allocates when it is due, whoever left the garbage. On a busy machine `--clock cpu
--threads 1` counts the process's own time, which is the wall's where nothing waits for a disk. Prints a markdown table.
Goal: at most 1.3.
"""

from __future__ import annotations

import argparse
import copy
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.models.cost import count_parameters


def network(channels: list[int]) -> UNet2DModel:
    torch.manual_seed(0)
    levels = len(channels)
    return UNet2DModel(
        sample_size=16,
        block_out_channels=tuple(channels),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * (levels - 1)),
        up_block_types=(*["AttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
    ).eval()


def write(folder: Path, num_experts: int, channels: list[int]) -> tuple[float, list[UNet2DModel]]:
    """Write the experts; millions of parameters each, and empty networks of their shape."""
    plan = Plan.equal_width(NoiseSchedule.named("linear"), num_groups=num_experts)
    experts = [network(channels)]
    experts += [copy.deepcopy(experts[0]) for _ in range(num_experts - 1)]
    size = count_parameters(experts[0]) / 1e6
    ExpertDenoiser(experts, plan).save_pretrained(folder)
    empty = experts[0].to("meta")
    return size, [copy.deepcopy(empty) for _ in range(num_experts)]


@torch.no_grad()
def by_noisewise(folder: Path, timesteps: list[int], x: torch.Tensor) -> list[torch.Tensor]:
    model = ExpertDenoiser.from_pretrained(folder)
    return [model(x, t).sample for t in timesteps]


@torch.no_grad()
def by_hand(folder: Path, timesteps: list[int], x: torch.Tensor, built: list[UNet2DModel]) -> list[torch.Tensor]:
    for i, model in enumerate(built):
        state = load_file(folder / f"expert_{i}" / "diffusion_pytorch_model.safetensors")
        model.load_state_dict(state, assign=True)
    return [built[len(built) * t // 1000](x, t).sample for t in timesteps]


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    gc.collect()
    start = clock()
    function()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--channels", type=int, nargs="+", default=[160, 256, 384], help="of each resolution")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    folder, x = Path(tempfile.mkdtemp()), torch.zeros(1, 3, 16, 16)
    try:
        size, built = write(folder, args.experts, args.channels)
        print("| first call of | noisewise, s | load_file, s | time ratio | spread |")
        print("|---|---|---|---|---|")
        middle = [(1000 * i + 500) // args.experts for i in range(args.experts)]
        for name, timesteps in (("one expert", [999]), ("every expert", middle)):
            sides = {
                "ours": lambda t=timesteps: by_noisewise(folder, t, x),
                "peer": lambda t=timesteps: by_hand(folder, t, x, built),
            }
            pairs = zip(sides["ours"](), sides["peer"](), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "the two must predict the same"
            spent: dict[str, list[float]] = {"ours": [], "peer": []}
            for turn in range(args.rounds):
                for side in sorted(sides, reverse=turn % 2 == 1):
                    spent[side].append(seconds(sides[side], clock))
            ratios = [ours / peer for ours, peer in zip(spent["ours"], spent["peer"], strict=True)]
            low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            ours, peer = (statistics.median(spent[side]) for side in ("ours", "peer"))
            print(f"| {name} | {ours:.2f} | {peer:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f} |", flush=True)
        print(
            f"\n{args.experts} experts of {size:.0f}M parameters; spreads are quartiles; {args.threads} threads, "
            f"{args.clock} clock"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
