"""DeepCache (arXiv:2312.00858): most calls of a U-Net reuse the deep features of the last whole call.

Neighbouring sampling steps have nearly the same deep features, while those near the input and output change. A whole
call remembers what enters the last residual blocks of the way up; a shallow call computes only these blocks, from that
memory and from fresh features of the input. Nothing is trained.

The shallow network is the model's own forward with fewer modules, so time steps, labels and scalings mean the same.

Shapes: B = batch, C = channels of the remembered features, S of the skip beside them, H, W = height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from noisewise.errors import SettingError


class DeepCache(nn.Module):
    """A UNet2DModel that is computed whole at some timesteps only; sampling calls it in the order of the steps.

    Args:
        whole: timesteps, as the sampler says them, at which all of it is computed; the first call always is one.
        num_blocks: residual blocks at the end of the way up that are computed in every call, and as many skips.
    """

    def __init__(self, model: Any, whole: Collection[float] = (), num_blocks: int = 1) -> None:
        super().__init__()
        check(model, num_blocks)
        self.model, self.whole = model, frozenset(whole)
        resnets = model.up_blocks[-1].resnets
        skip = model.conv_in if num_blocks == 1 else model.down_blocks[0].resnets[num_blocks - 2].conv2
        channels = resnets[-num_blocks].norm1.num_channels - skip.weight.shape[0]  # C
        self.tail = _Tail(model.up_blocks[-1], num_blocks, channels)
        self.shallow = _shallow(model, self.tail, num_blocks)
        resnets[-num_blocks].register_forward_pre_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """[B, C + S, H, W] enters the first of the last blocks in a whole call: the features, then the skip."""
        if not self.tail.is_running:
            self.tail.memory = inputs[0][:, : self.tail.channels].detach()

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    @property
    def class_embedding(self) -> Any:
        return self.model.class_embedding

    def forward(self, sample: torch.Tensor, timestep: Any, class_labels: torch.Tensor | None = None) -> Any:
        """As the model's own. A batch of another size than the last one's asks for a whole call."""
        memory = self.tail.memory
        t = float(torch.as_tensor(timestep).flatten()[0])
        stale = memory is None or len(memory) != len(sample)
        network = self.model if stale or t in self.whole else self.shallow
        return network(sample, timestep, class_labels=class_labels)

    def forget(self) -> None:
        """Before another trajectory begins."""
        self.tail.memory = None


class _Tail(nn.Module):
    """The last blocks of the way up, on remembered features instead of those that would come from below."""

    def __init__(self, block: Any, num_blocks: int, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(block.resnets[-num_blocks:])
        attentions = getattr(block, "attentions", None)
        self.attentions = None if attentions is None else nn.ModuleList(attentions[-num_blocks:])
        self.channels = channels
        self.memory: torch.Tensor | None = None
        self.is_running = False

    def forward(self, hidden: torch.Tensor, skips: Sequence[torch.Tensor], temb: torch.Tensor) -> torch.Tensor:
        """[B, ?, H, W], which only says the shape, and the skips [B, S, H, W]: the shallowest comes first."""
        shape = (len(hidden), self.channels, *hidden.shape[2:])
        hidden = hidden.new_zeros(shape) if self.memory is None else self.memory  # zeros where only MACs are counted
        self.is_running = True
        try:
            for i, resnet in enumerate(self.resnets):
                hidden = resnet(torch.cat([hidden, skips[-1 - i]], dim=1), temb)
                hidden = hidden if self.attentions is None else self.attentions[i](hidden)
        finally:
            self.is_running = False
        return hidden


class _Head(nn.Module):
    """The first blocks of the way down, without what follows."""

    def __init__(self, block: Any, num_blocks: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(block.resnets[:num_blocks])
        attentions = getattr(block, "attentions", None)
        self.attentions = None if attentions is None else nn.ModuleList(attentions[:num_blocks])

    def forward(
        self, hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # fmt: skip
        outputs: tuple[torch.Tensor, ...] = ()
        for i, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, temb)
            hidden_states = hidden_states if self.attentions is None else self.attentions[i](hidden_states)
            outputs = (*outputs, hidden_states)
        return hidden_states, outputs


def _shallow(model: Any, tail: _Tail, num_blocks: int) -> Any:
    """The model with its ends only; it shares their modules."""
    shallow = copy.copy(model)
    head = [] if num_blocks == 1 else [_Head(model.down_blocks[0], num_blocks - 1)]
    replaced = {"down_blocks": nn.ModuleList(head), "mid_block": None, "up_blocks": nn.ModuleList([tail])}
    shallow._modules = {**model._modules, **replaced}
    return shallow


def check(model: Any, num_blocks: int = 1) -> None:
    """Refuse networks whose ends are not the blocks this is written for."""
    from diffusers import UNet2DModel

    name = type(model).__name__
    if not isinstance(model, UNet2DModel):
        raise SettingError(f"compare: deepcache is for UNet2DModel, the base is a {name}")
    ends = (model.down_blocks[0], model.up_blocks[-1])
    if any(hasattr(block, "skip_conv") for block in (*model.down_blocks, *model.up_blocks)):
        raise SettingError(
            "compare: deepcache cannot take blocks with skips of the image (SkipDownBlock2D and its like)"
        )
    most = min(len(ends[1].resnets), 1 + len(ends[0].resnets))
    if not 1 <= num_blocks <= most:
        raise SettingError(f"compare: deepcache at {num_blocks} blocks; the network's ends have 1 to {most}")


def costs(model: Any, example_inputs: Mapping[str, Any], num_blocks: int = 1) -> tuple[int, int]:
    """MACs of a whole and of a shallow call."""
    from noisewise.models.cost import count_macs

    cached = DeepCache(copy.deepcopy(model), (), num_blocks)
    return count_macs(model, example_inputs), count_macs(cached.shallow, example_inputs)


def whole_calls(timesteps: Sequence[float], whole_macs: int, shallow_macs: int, most_macs: float) -> list[float]:
    """At which of the sampler's calls to compute everything: as many as ``most_macs`` allow, evenly spread.

    Args:
        timesteps: of the sampler's calls, in their order; calls at one timestep go together.
    """
    visited = list(dict.fromkeys(timesteps))
    for number in range(len(visited), 0, -1):
        chosen = [visited[i * len(visited) // number] for i in range(number)]
        if cost_of(timesteps, chosen, whole_macs, shallow_macs) <= most_macs:
            return chosen
    raise SettingError(
        f"compare: deepcache needs at least {cost_of(timesteps, visited[:1], whole_macs, shallow_macs):.3g} MACs an "
        f"image, {most_macs:.3g} are to be met"
    )


def cost_of(timesteps: Sequence[float], whole: Collection[float], whole_macs: int, shallow_macs: int) -> float:
    """MACs of an image."""
    return float(sum(whole_macs if t in whole else shallow_macs for t in timesteps))
