"""Peak device memory for 1, 4 and 10 experts in each mode, the time of a switch, and what offloading costs a sample.

    python benchmarks/gpu/expert_memory.py [--channels 256 512 768] [--size 32] [--batch 16] [--steps 50]

Modes: resident (all experts on the device), offload (only the one at work), prefetch (and the one that works next). The
sample is a stock DDIMPipeline's. A switch is the time that a step takes longer in which the expert changes than the
median of the others. On a CPU, for a try at tiny size, peaks are the bytes of weights copied. Prints a markdown table.
Goal: prefetch at most 1.03 of resident.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from noisewise import ExpertDenoiser, NoiseSchedule, Plan
from noisewise.models.cost import count_parameters

MODES = ("resident", "offload", "prefetch")


def router(num_experts: int, channels: list[int], size: int) -> ExpertDenoiser:
    torch.manual_seed(0)
    one = UNet2DModel(
        sample_size=size,
        block_out_channels=tuple(channels),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * (len(channels) - 1)),
        up_block_types=(*["AttnUpBlock2D"] * (len(channels) - 1), "UpBlock2D"),
    )
    plan = Plan.equal_width(NoiseSchedule.named("linear"), num_groups=num_experts)
    return ExpertDenoiser([copy.deepcopy(one) for _ in range(num_experts)], plan).eval()


class Clock:
    """Seconds of every call of the network, and whether the expert changed in it."""

    def __init__(self, model: ExpertDenoiser, device: str) -> None:
        self.model, self.device = model, device
        self.calls: list[tuple[float, bool]] = []
        self.group = -1
        model.register_forward_pre_hook(self.begin, with_kwargs=True)
        model.register_forward_hook(self.end)

    def begin(self, _: object, arguments: tuple[object, ...], keywords: dict[str, object]) -> None:
        t = arguments[1] if len(arguments) > 1 else keywords["timestep"]
        group = self.model.plan.group_of(float(t))  # type: ignore[arg-type]
        self.changes, self.group = group != self.group, group
        self.start = now(self.device)

    def end(self, *_: object) -> None:
        self.calls.append((now(self.device) - self.start, self.changes))


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def sample(pipe: DDIMPipeline, batch: int, steps: int) -> None:
    pipe(batch, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="np")


def measure(model: ExpertDenoiser, mode: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """(peak MiB on the device, seconds of a sample, milliseconds that a switch adds)."""
    cuda = args.device == "cuda"
    if mode == "resident":
        model.to(args.device)
    else:
        model.to("cpu")
        model.enable_expert_offload(args.device, prefetch=mode == "prefetch")
    pipe = DDIMPipeline(model, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    sample(pipe, args.batch, args.steps)  # page-locks, and chooses kernels
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    spent = []
    for _ in range(args.rounds):
        start = now(args.device)
        sample(pipe, args.batch, args.steps)
        spent.append(now(args.device) - start)
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        weights = 4 * count_parameters(model) if model._offload is None else model._offload.resident()
        peak = weights / 2**20
    clock = Clock(model, args.device)  # waits for the device at every call, so that it comes after the timing
    sample(pipe, args.batch, args.steps)
    usual = [seconds for seconds, changes in clock.calls if not changes]
    switches = [seconds for seconds, changes in clock.calls[1:] if changes]
    added = statistics.median(switches) - statistics.median(usual) if switches and usual else 0.0
    model.disable_expert_offload()
    return peak, statistics.median(spent), 1e3 * added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[256, 512, 768])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print("| experts | mode | peak on the device, MiB | s per sample | of resident | a switch adds, ms |")
    print("|--:|:--|--:|--:|--:|--:|")
    for num_experts in args.experts:
        resident = 0.0
        for mode in MODES:
            model = router(num_experts, args.channels, args.size)
            peak, spent, switch = measure(model, mode, args)
            resident = resident or spent
            print(
                f"| {num_experts} | {mode} | {peak:.0f} | {spent:.3f} | {spent / resident:.3f} | {switch:.2f} |",
                flush=True,
            )
            del model
            if args.device == "cuda":
                torch.cuda.empty_cache()
    size = count_parameters(router(1, args.channels, args.size)) / 1e6
    where = "weights alone, on a CPU" if args.device == "cpu" else torch.cuda.get_device_name(0)
    print(f"\n{size:.1f}M parameters an expert, batch {args.batch}, {args.steps} steps of DDIM; {where}")


if __name__ == "__main__":
    main()
