"""Captions as a denoiser is told them: what a Stable Diffusion pipeline's own text encoders make of them.

Two layouts are read, both of `UNet2DConditionModel`:

- one CLIP text encoder (Stable Diffusion 1 and 2): its last hidden states, behind the final norm;
- two (SDXL): the last but one hidden states of both side by side, the second's pooled output, and the image's size.

Shapes: B = captions, L = tokens, D = width of the text, P = width of the pooled text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noisewise.errors import SettingError
from noisewise.files import read_json, sha256_file
from noisewise.models.autoencoder import autoencoder_folder, describe_autoencoder
from noisewise.models.cost import count_macs
from noisewise.models.folders import check_weights
from noisewise.models.sources import INDEX, component_of, find_source, read_index
from noisewise.streams import seed_of

ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
VOCABULARIES = ("tokenizer.json", "vocab.json")  # one of them holds a tokenizer's words
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
PLACES = ("text_encoder", "text_encoder_2", "text_encoder_3")  # in diffusers' pipelines; tokenizers are called alike
Conditions = dict[str, Any]  # by forward's arguments: tensors [B, ...], or a dictionary of them


@dataclass(frozen=True)
class _Part:
    """One text encoder with its tokenizer."""

    tokenizer: Any
    model: Any

    def tokens(self, captions: Sequence[str]) -> Any:
        """``input_ids`` and ``attention_mask``, [B, L] int64 each, padded or cut short to the tokenizer's length."""
        return self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )

    @property
    def length(self) -> int:
        return int(self.tokenizer.model_max_length)

    def __call__(self, captions: Sequence[str]) -> Any:
        tokens = self.tokens(captions).to(self.model.device)
        masked = getattr(self.model.config, "use_attention_mask", False)
        return self.model(
            tokens.input_ids, attention_mask=tokens.attention_mask if masked else None, output_hidden_states=True
        )


class TextEncoder:
    """A pipeline's text encoders, in evaluation mode, float32.

    Attributes:
        length: L, tokens of a caption; longer ones are cut short.
        width: D.
        pooled_width: P; None where there is one encoder.
        image_size: of the images the captions belong to, which SDXL's denoiser is told.
        fingerprint: 16 digits, of all settings, vocabularies and weights; empty without weights.
    """

    def __init__(self, parts: Sequence[_Part], image_size: int | None, null_is_zero: bool, fingerprint: str) -> None:
        self._parts, self._null_is_zero = tuple(parts), null_is_zero
        self.image_size, self.fingerprint = image_size, fingerprint
        self.length = parts[0].length
        self.width = sum(int(part.model.config.hidden_size) for part in parts)
        self.pooled_width = int(parts[1].model.config.projection_dim) if len(parts) > 1 else None

    @classmethod
    def from_pretrained(cls, path: str | Path, image_size: int | None = None) -> TextEncoder:
        """The text encoders in a pipeline's folder, or in that of a name on the Hub.

        Args:
            image_size: H = W in pixels, where the pipeline is not used at its own.
        """
        return cls._read(find_source(path), image_size, weights=True)

    @classmethod
    def describe(cls, path: str | Path, image_size: int | None = None) -> TextEncoder:
        """The same without weights, on the meta device: for shapes and cost."""
        return cls._read(find_source(path), image_size, weights=False)

    @classmethod
    def _read(cls, folder: Path, image_size: int | None, weights: bool) -> TextEncoder:
        index = _checked_index(folder)
        places = _places(index)
        parts = [_read_part(folder, place, index, weights) for place in places]
        lengths = [part.length for part in parts]
        if len(set(lengths)) > 1:
            raise SettingError(f"model: the tokenizers in {folder} differ in length ({lengths}); they have to agree")
        two = len(places) == 2
        if two and image_size is None:
            image_size = _own_image_size(folder, index)
        null_is_zero = two and bool(index.get("force_zeros_for_empty_prompt", True))
        return cls(parts, image_size, null_is_zero, text_fingerprint(folder) if weights else "")

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Conditions:
        """What the denoiser is told of each caption, by its arguments' names; as the stock pipeline computes it.

        Returns:
            ``encoder_hidden_states`` [B, L, D]; with two encoders ``added_cond_kwargs`` too, of ``text_embeds``
            [B, P] and ``time_ids`` [B, 6]: the image's size, where it was cut out, and its size again.
        """
        outputs = [part(captions) for part in self._parts]
        if self.pooled_width is None:
            return {"encoder_hidden_states": outputs[0].last_hidden_state}
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)  # [B, L, D]
        return self._with_size(hidden, outputs[1].text_embeds)

    def null(self, num: int = 1) -> Conditions:
        """The same of no caption, ``num`` times: that of the empty one, or zeros where the pipeline has zeros."""
        if not self._null_is_zero:
            return self.encode([""] * num)
        assert self.pooled_width is not None  # only pipelines of two encoders have zeros
        place = {"device": self.device}
        hidden = torch.zeros(num, self.length, self.width, **place)  # type: ignore[call-overload]  # [B, L, D]
        return self._with_size(hidden, torch.zeros(num, self.pooled_width, **place))  # type: ignore[call-overload]

    def _with_size(self, hidden: torch.Tensor, pooled: torch.Tensor) -> Conditions:
        size = self.image_size
        numbers = torch.tensor([size, size, 0, 0, size, size], dtype=hidden.dtype, device=hidden.device)
        time_ids = numbers.repeat(len(hidden), 1)  # [B, 6]
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}

    def macs(self) -> int:
        """Of encoding one caption."""
        return sum(
            count_macs(part.model, {"input_ids": torch.zeros(1, self.length, dtype=torch.int64)})
            for part in self._parts
        )

    def num_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption with its start and end, before any is cut short to `length`."""
        return [len(ids) for ids in self._parts[0].tokenizer(list(captions), verbose=False).input_ids]

    @property
    def device(self) -> torch.device:
        device: torch.device = self._parts[0].model.device
        return device

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the encoders, in place."""
        for part in self._parts:
            part.model.to(device)
        return self

    def check_denoiser(self, config: Any) -> None:
        """Refuse a denoiser that is told other things than this: by its configuration."""
        _check_kind(config)
        asked = config.get("encoder_hid_dim") or config.get("cross_attention_dim")
        for width in asked if isinstance(asked, list | tuple) else [asked]:
            if width != self.width:
                raise SettingError(
                    f"model.text_encoder: its text has width {self.width}, the denoiser reads one of width "
                    f"{width} (cross_attention_dim); they are not made for each other"
                )
        wants_pooled = config.get("addition_embed_type") == "text_time"
        if wants_pooled != (self.pooled_width is not None):
            raise SettingError(
                f"model.text_encoder: the denoiser is {'' if wants_pooled else 'not '}told a pooled text and "
                f"the image's size, and there {'is one text encoder' if wants_pooled else 'are two text encoders'}; "
                "they are not made for each other"
            )
        if self.pooled_width is None:
            return
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        if pooled != self.pooled_width:
            raise SettingError(
                f"model.text_encoder: its pooled text has width {self.pooled_width}, the denoiser reads one of {pooled}"
            )


def reads_text(path: Path) -> bool:
    """Whether the folder is a pipeline's with a text encoder, of whatever kind."""
    return (path / INDEX).is_file() and any(_there(read_index(path), place) for place in PLACES)


def text_fingerprint(folder: Path) -> str:
    """16 digits for all settings, vocabularies and weights of the text encoders in a pipeline's folder."""
    kept = (".json", ".txt", ".safetensors")
    places = _places(_checked_index(folder))
    homes = [folder / name for place in places for name in (place, place.replace("text_encoder", "tokenizer"))]
    files = sorted(file for home in homes for file in home.iterdir() if file.suffix in kept)
    what = [[f"{file.parent.name}/{file.name}", sha256_file(file)] for file in files]
    return f"{seed_of(json.dumps(what)):016x}"


def _places(index: dict[str, Any]) -> list[str]:
    return [place for place in PLACES if _there(index, place)]


def _there(index: dict[str, Any], name: str) -> bool:
    found = index.get(name)
    return isinstance(found, list) and found[0] is not None


def _checked_index(folder: Path) -> dict[str, Any]:
    """The pipeline's model_index.json, if its text encoders are ones that `TextEncoder` reads."""
    if not (folder / INDEX).is_file():
        raise SettingError(f"model.text_encoder: {folder} is no pipeline's folder (it has no {INDEX})")
    index = read_index(folder)
    if not _there(index, "text_encoder"):
        what = "has only a second text encoder" if _there(index, "text_encoder_2") else "has no text encoder"
        raise SettingError(f"model.text_encoder: the pipeline in {folder} {what}")
    if _there(index, "text_encoder_3"):
        raise SettingError(
            f"model.text_encoder: the {index.get('_class_name')} in {folder} has three text encoders; captions "
            "work with one (Stable Diffusion 1 and 2) or two (SDXL) of CLIP"
        )
    if index.get("requires_aesthetics_score"):
        raise SettingError(f"model.text_encoder: the pipeline in {folder} is told scores too, it is a refiner")
    for place, allowed in (("text_encoder", ENCODERS), ("text_encoder_2", ENCODERS[1:]), ("tokenizer", TOKENIZERS)):
        if _there(index, place) and index[place][1] not in allowed:
            raise SettingError(
                f"model.text_encoder: {place} in {folder} is a {index[place][1]}; captions work with "
                f"{' or '.join(allowed)}"
            )
    return index


def _check_kind(config: Any) -> None:
    """Refuse denoisers that want to be told more than text."""
    for name, allowed in (
        ("class_embed_type", (None,)),
        ("num_class_embeds", (None,)),
        ("addition_embed_type", (None, "text_time")),
        ("encoder_hid_dim_type", (None, "text_proj")),
    ):
        if config.get(name) not in allowed:
            raise SettingError(
                f"model.from: the denoiser has {name} {config[name]}, it is told more than captions; that is not "
                "supported"
            )


def _read_part(folder: Path, place: str, index: dict[str, Any], weights: bool) -> _Part:
    transformers = transformers_for("model.text_encoder")
    kind = getattr(transformers, index[place][1])
    home, words = folder / place, folder / place.replace("text_encoder", "tokenizer")
    if not (home / "config.json").is_file():
        raise SettingError(f"model.text_encoder: {home} has no config.json")
    if weights:
        check_weights(home)
    if not has_words(words):
        raise SettingError(f"model.text_encoder: {words} has no vocabulary ({' or '.join(VOCABULARIES)})")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(words, local_files_only=True)
        if not weights:
            with torch.device("meta"):
                return _Part(tokenizer, kind(kind.config_class(**read_json(home / "config.json", "model"))).eval())
        with quiet_loading():
            model, report = kind.from_pretrained(
                home, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except SettingError:
        raise
    except Exception as error:  # transformers checks few files itself, so that a damaged one may end in any error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"model.text_encoder: {home} or {words} cannot be loaded ({reason})") from error
    lost = [*report["missing_keys"], *report["mismatched_keys"]]
    if lost:
        raise SettingError(f"model.text_encoder: {home} does not fit its config.json, first {lost[0]}")
    return _Part(tokenizer, model.eval())


def has_words(folder: Path) -> bool:
    """Whether a tokenizer's vocabulary lies there; transformers would make up one without a word."""
    return any((folder / name).is_file() for name in VOCABULARIES)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without a progress bar: a text encoder loads in a moment."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def transformers_for(setting: str) -> Any:
    """The package, imported when the setting asks for it."""
    try:
        import transformers
    except ImportError:
        raise SettingError(f"{setting}: needs transformers; install it with: pip install 'noisewise[text]'") from None
    return transformers


def _own_image_size(folder: Path, index: dict[str, Any]) -> int:
    """What a pipeline makes of itself: its denoiser's size times its autoencoder's factor."""
    size = read_json(folder / component_of(folder, index) / "config.json", "model").get("sample_size")
    if not isinstance(size, int) or autoencoder_folder(folder) is None:
        raise SettingError(f"data.image_size: missing; the pipeline in {folder} does not say its images' size")
    return size * describe_autoencoder(folder).factor
