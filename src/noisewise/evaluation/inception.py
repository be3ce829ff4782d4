"""The standard TorchScript Inception (``inception-2015-12-05.pt``) by path, for the true FID; no torchvision.

The file is a scripted network that takes uint8-ranged images [N, 3, H, W] and, with ``return_features=True``, resizes
them itself and returns 2048 features; StyleGAN2-ADA, k-diffusion and clean-fid use this file.
"""

from __future__ import annotations

from pathlib import Path

import torch

from noisewise.errors import SettingError
from noisewise.evaluation.features import as_colour
from noisewise.evaluation.metrics import INCEPTION
from noisewise.files import sha256_file

STANDARD_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class Inception:
    """A `FeatureExtractor` around a scripted file; any other file than the standard one never yields "fid"."""

    def __init__(self, path: Path, *, device: torch.device | str = "cpu") -> None:
        if not path.is_file():
            raise SettingError(f"evaluate.inception: {path} does not exist; give the file inception-2015-12-05.pt")
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingError(f"evaluate.inception: {path} is not a TorchScript file ({reason})") from None
        self.device = torch.device(device)
        self.sha256 = sha256_file(path)
        self.name = INCEPTION if self.sha256 == STANDARD_SHA256 else f"torchscript_{self.sha256[:8]}"
        self.resize = "by the network"
        with torch.no_grad():
            self.num_features = int(self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 1 or 3, H, W] uint8 to [N, D] float32."""
        features = self.network(as_colour(images.to(self.device)), return_features=True)
        if not isinstance(features, torch.Tensor) or features.ndim != 2:
            raise SettingError("evaluate.inception: the file's network does not return one vector an image")
        return features.float()
