"""Does an image show what its caption says? CLIP's cosine of the two, as everyone prints it (0 to 100).

    score = 100 max(cos(image features, text features), 0), averaged over the images

CLIPScore (Hessel et al. 2021, arXiv:2104.08718, Eq. 1) with 100 in place of the paper's w = 2.5, as torchmetrics and
most tables of text-to-image models have it; 2.5 / 100 of it is the paper's. Captions are taken as they are, without
the paper's "A photo depicts". The encoder is the user's: numbers of two encoders cannot be compared, so that its name
and checksum stand beside every score.

Shapes: N = images, n = a batch of them, K = different captions, D = features.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from noisewise.errors import SettingError
from noisewise.files import read_json, sha256_file
from noisewise.models.folders import check_weights
from noisewise.models.text import VOCABULARIES, has_words, quiet_loading, transformers_for

SETTING = "evaluate.text_image_encoder"
SCALE = 100.0
BATCH = 64  # images or captions at once


@dataclass(frozen=True)
class TextScore:
    """The mean over images with captions, and what decides whether it can be compared with another."""

    value: float  # 0 to 100, higher is better
    standard_error: float | None  # over the images, for these captions; None of a single image
    num_images: int
    encoder: str  # name of its folder
    encoder_sha256: str  # of its weights
    resize: str  # what its processor does to images
    metric: str = "clip_score"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TextImageEncoder:
    """A ``CLIPModel`` of transformers with its tokenizer and image processor, read from one folder.

    Args:
        folder: what ``CLIPModel.save_pretrained`` and ``CLIPProcessor.save_pretrained`` wrote, or a download from the
            Hub; weights as safetensors. No code of the folder's own is run.
        device: where it computes.
    """

    def __init__(self, folder: str | Path, *, device: torch.device | str = "cpu") -> None:
        folder = Path(folder)
        _check_folder(folder)
        transformers = transformers_for(SETTING)
        # transformers resizes by torchvision where it is installed, else by PIL; always PIL: equal numbers everywhere
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        self.model = _loaded(transformers.CLIPModel, folder).to(device).eval()
        self.tokenizer = _read(transformers.CLIPTokenizer, folder, "tokenizer")
        self.processor = _read(processor, folder, "image processor")
        self.device = torch.device(device)
        self.name = folder.resolve().name
        self.sha256 = _checksum(folder)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings)

    @property
    def resize(self) -> str:
        """What the processor does to an image, e.g. "shortest_edge 224 bicubic, centre 224x224"."""
        from PIL import Image

        parts = []
        if self.processor.do_resize:
            size = " ".join(f"{key} {pixels}" for key, pixels in dict(self.processor.size).items() if pixels)
            parts.append(f"{size} {Image.Resampling(self.processor.resample).name.lower()}")
        if self.processor.do_center_crop:
            parts.append(f"centre {self.processor.crop_size['height']}x{self.processor.crop_size['width']}")
        return ", ".join(parts) or "none"

    @torch.no_grad()
    def of_images(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Features of length 1, [N, D] float32, of uint8 images [N, 1 or 3, H, W]."""
        pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else images
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise TypeError(f"images must be uint8 [N, 1 or 3, H, W], not {pixels.dtype} {list(pixels.shape)}")
        parts = []
        for start in range(0, len(pixels), BATCH):
            some = [np.repeat(image, 3 // len(image), axis=0) for image in pixels[start : start + BATCH]]  # [3, H, W]
            found = self.processor(some, return_tensors="pt", input_data_format="channels_first")
            parts.append(self._unit(self.model.get_image_features(pixel_values=found["pixel_values"].to(self.device))))
        return torch.cat(parts)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of length 1, [N, D] float32, of captions; what is beyond the encoder's length is cut off."""
        long = sum(len(ids) > self.max_tokens for ids in self.tokenizer(list(texts), verbose=False)["input_ids"])
        if long:
            warnings.warn(
                f"{SETTING}: {long} of {len(texts)} captions exceed its {self.max_tokens} tokens and are cut off",
                stacklevel=3,
            )
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt",
            )  # fmt: skip
            parts.append(self._unit(self.model.get_text_features(**tokens.to(self.device))))
        return torch.cat(parts)

    @staticmethod
    def _unit(found: Any) -> torch.Tensor:
        """[n, D] of length 1; transformers returns the features bare or, from version 5 on, within an output."""
        features = found if isinstance(found, torch.Tensor) else found.pooler_output
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def text_scores(encoder: TextImageEncoder, images: np.ndarray | torch.Tensor, captions: Sequence[str]) -> np.ndarray:
    """[N] float64: each image's score against its own caption.

    Args:
        images: [N, 1 or 3, H, W] uint8; grey is repeated.
        captions: [N]; equal ones are encoded once.
    """
    if len(captions) != len(images):
        raise SettingError(f"captions: {len(captions)} given for {len(images)} images; each image needs its own")
    if not len(images):
        raise SettingError("evaluate: there are no images to score")
    different = list(dict.fromkeys(captions))  # [K]
    place = {caption: i for i, caption in enumerate(different)}
    told = encoder.of_texts(different)[torch.tensor([place[caption] for caption in captions])]  # [N, D]
    cosines = (encoder.of_images(images) * told).sum(-1).double().numpy()  # [N]
    if not np.isfinite(cosines).all():
        raise SettingError(f"{SETTING}: {encoder.name} gives features that are not finite; its weights may be damaged")
    return SCALE * cosines.clip(min=0)


def text_score(encoder: TextImageEncoder, images: np.ndarray | torch.Tensor, captions: Sequence[str]) -> TextScore:
    """The mean of `text_scores` with its standard error and where it comes from."""
    scores = text_scores(encoder, images, captions)  # [N]
    n = len(scores)
    error = float(scores.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return TextScore(float(scores.mean()), error, n, encoder.name, encoder.sha256, encoder.resize)


# ---- folders


def _check_folder(folder: Path) -> None:
    """A CLIP model's folder by its config.json and files; everything else is refused before anything is loaded."""
    needed = "give the folder of a transformers CLIPModel with its tokenizer and image processor"
    if not (folder / "config.json").is_file():
        what = "does not exist" if not folder.exists() else "has no config.json"
        raise SettingError(f"{SETTING}: {folder} {what}; {needed}")
    config = read_json(folder / "config.json", SETTING)
    kind = config.get("model_type") or config.get("_class_name") if isinstance(config, dict) else None
    if kind != "clip":
        raise SettingError(f"{SETTING}: {folder} is no CLIP model (its model_type is {kind or 'not said'}); {needed}")
    try:
        check_weights(folder)
    except SettingError as error:
        raise SettingError(f"{SETTING}: {str(error).removeprefix('model: ')}") from None
    if not has_words(folder):
        raise SettingError(f"{SETTING}: {folder} has no tokenizer ({' or '.join(VOCABULARIES)}); {needed}")


def _loaded(kind: Any, folder: Path) -> Any:
    """The model, with every tensor from the folder: transformers would make up those that are missing."""
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    with quiet_loading():
        model, report = _read(kind, folder, "model", **options)
    for name in ("missing_keys", "mismatched_keys"):
        if report[name]:
            what = f"{name.replace('_', ' ')}, first {min(str(key) for key in report[name])}"
            raise SettingError(f"{SETTING}: the weights in {folder} do not fit its config.json: {what}")
    return model


def _read(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """A component by its class's ``from_pretrained``, from local files."""
    try:
        return kind.from_pretrained(folder, **{"local_files_only": True, **options})
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"{SETTING}: the {what} in {folder} cannot be loaded ({reason})") from error


def folder_checksum(folder: Path) -> str:
    """SHA-256 of everything in the encoder's folder that its scores depend on; a folder that is none is refused."""
    _check_folder(folder)
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".txt", ".safetensors"))
    return hashlib.sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode()).hexdigest()


def _checksum(folder: Path) -> str:
    """SHA-256 of the weights' file; of several, that of their checksums in the order of their names."""
    digests = [sha256_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
