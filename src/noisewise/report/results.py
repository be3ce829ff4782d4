"""The numbers of a run, as `results.json` holds them, read into types.

Every part but a row's name may be missing: a run that stopped early, or a row that costs nothing to train, still has a
page. What is missing is `None` or empty here and a sentence there.

Shapes: G = groups of the plan, B = bins of timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from noisewise.errors import SettingError
from noisewise.files import read_json

FORMAT = 1


def _or_empty(empty: type) -> BeforeValidator:
    return BeforeValidator(lambda value: empty() if value is None else value)


def _as_list(value: Any) -> Any:
    """One number for every group alike counts as a list of one."""
    return [] if value is None else [value] if isinstance(value, int | float) else value


Mapped = Annotated[dict[str, Any], _or_empty(dict)]
Text = Annotated[str, _or_empty(str)]


class Part(BaseModel):
    """A piece of the file: fixed once read; names it does not know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(Part):
    """An estimate with its confidence interval; either end may be unknown."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(Part):
    """One model (or way to sample it) in the comparison."""

    id: str
    label: Text = ""
    note: str | None = None
    frechet: float | None = None
    kid: Interval | None = None
    precision: float | None = None
    recall: float | None = None
    class_distance: float | None = None
    text_score: Interval | None = None
    test_loss: float | None = None
    group_test_loss: Annotated[list[float | None], _or_empty(list)] = []  # [G]
    macs_per_image: float | None = None
    num_inference_steps: int | None = None
    active_parameters: Annotated[list[float | None], BeforeValidator(_as_list)] = []  # [G], or [1]
    resident_parameters: float | None = None
    seconds_per_image: float | None = None
    training_images: float | None = None
    training_macs: float | None = None
    paper_flops: float | None = None
    needed_images: float | None = None
    samples: str | None = None
    provenance: Mapped = {}

    @property
    def name(self) -> str:
        return self.label or self.id


class Metric(Part):
    """What the Fréchet distance is called here, and what two halves of real images score by it."""

    name: Text = ""
    floor: float | None = None
    kid_floor: Interval | None = None
    precision: float | None = None
    recall: float | None = None
    class_distance: float | None = None
    text_score: Interval | None = None
    text_encoder: Mapped = {}  # whose score it is
    n: int | None = None
    provenance: Mapped = {}


class Classes(Part):
    """Distances class by class; ``metric`` is None where some class has too few images, ``why`` says which."""

    names: list[str]  # [K]
    metric: str | None = None
    why: Text = ""
    floor: Annotated[list[Interval], _or_empty(list)] = []  # [K]
    rows: Annotated[dict[str, list[Interval]], _or_empty(dict)] = {}  # [K] each


class Data(Part):
    name: Text = ""
    num_train: int | None = None
    num_test: int | None = None
    size: int | None = None
    channels: int | None = None
    num_classes: int | None = None
    fingerprint: str | None = None


class AutoencoderPart(Part):
    """Whose latents the networks learned, and how well it gives images back."""

    kind: Text = ""
    source: str | None = None
    num_images: int | None = None  # of its training
    parameters: int | None = None
    factor: int | None = None
    shape: Annotated[list[int], _or_empty(list)] = []  # [c, h, w] of an image's latents
    scaling_factor: float | None = None
    std: float | None = None
    dtype: Text = ""
    bytes: int | None = None
    encode_macs: float | None = None
    decode_macs: float | None = None
    n: int | None = None
    mse: float | None = None
    psnr: float | None = None
    frechet: float | None = None
    floor: float | None = None
    samples: str | None = None


class CaptionsPart(Part):
    """The captions that networks were told, and what encoded them."""

    source: str | None = None
    num_captions: int | None = None  # different ones
    num_cut_off: int | None = None
    length: int | None = None  # tokens
    dtype: Text = ""
    bytes: int | None = None
    macs: float | None = None  # of one


class GroupOfPlan(Part):
    t_start: float
    t_stop: float
    cost_limit: float
    num_timesteps: int | None = None

    @property
    def is_empty(self) -> bool:
        return self.t_start == self.t_stop


class PlanPart(Part):
    """What the page says of a plan; `noisewise.Plan` itself is not needed to show it."""

    groups: Annotated[list[GroupOfPlan], _or_empty(list)] = []
    coordinate: str = "timestep"
    num_train_timesteps: int | None = None
    settings: Mapped = {}
    notes: Annotated[list[str], _or_empty(list)] = []


class Difficulty(Part):
    t: list[float]
    snr_db: list[float | None]
    cost_limit: list[float | None]
    cost: Annotated[list[float | None], _or_empty(list)] = []


class IdealLoss(Part):
    """Loss of the optimal denoiser on the images it knows by heart."""

    t: list[float]
    loss: list[float | None]


class RouteStep(Part):
    step: int
    t: float
    group: int
    cost: float | None = None


class Recovered(Part):
    """Loss right after pruning, before and after the least-squares recovery; ``applied``: whether it was kept."""

    loss_before: float
    loss_after: float
    applied: bool = True


class Timed(Part):
    """Share of the base's time that was asked for and measured, and at what batch size."""

    asked: float
    achieved: float
    batch_size: int


class Widths(Part):
    """What is left of one group's expert: channels kept and there before, per axis."""

    group: int
    budget: float | None = None
    achieved: float | None = None
    axes: Annotated[dict[str, tuple[int, int]], _or_empty(dict)] = {}
    recovery: Recovered | None = None
    time: Timed | None = None


class Candidate(Part):
    group: int
    round: int
    candidate: int = 0
    proposer: str | None = None
    loss: float | None = None
    cost: float | None = None
    accepted: bool | None = None


class CurvePoint(Part):
    images: float
    loss: float | None = None


class QualityPoint(Part):
    strategy: str
    training_images: float
    frechet: float | None = None


class Timing(Part):
    step: str
    seconds: float | None = None
    cached: bool = False


class Results(Part):
    """Everything `results.json` holds that the page shows."""

    format: int
    name: Text = "run"
    created: str | None = None
    recipe: Mapped = {}
    versions: Mapped = {}
    machine: str | None = None
    command: str | None = None
    data: Data | None = None
    metric: Metric | None = None
    classes: Classes | None = None
    autoencoder: AutoencoderPart | None = None  # where networks learned latents
    captions: CaptionsPart | None = None  # where they were told any
    rows: Annotated[list[Row], _or_empty(list)] = []
    verdict: str | None = None
    plan: PlanPart | None = None
    difficulty: Difficulty | None = None
    group_costs: Annotated[list[float | None], _or_empty(list)] = []  # [G], shares of the base's MACs
    routes: Annotated[list[RouteStep], _or_empty(list)] = []
    loss_per_timestep: Annotated[dict[str, list[float | None]], _or_empty(dict)] = {}  # "t" and row ids, [B] each
    ideal_loss: IdealLoss | None = None
    training_curves: Annotated[dict[str, list[CurvePoint]], _or_empty(dict)] = {}
    widths: Annotated[list[Widths | None], _or_empty(list)] = []
    memory_bank: Annotated[list[Candidate], _or_empty(list)] = []
    quality_against_images: Annotated[list[QualityPoint], _or_empty(list)] = []
    timing: Annotated[list[Timing], _or_empty(list)] = []
    warnings: Annotated[list[str], _or_empty(list)] = Field(default=[])

    @property
    def groups(self) -> Sequence[GroupOfPlan]:
        return self.plan.groups if self.plan else []

    @property
    def num_groups(self) -> int:
        """Groups of the plan, or as many as the rows speak of."""
        return len(self.groups) or max((len(row.group_test_loss) for row in self.rows), default=0)

    @property
    def method(self) -> str:
        """The row that the run is about."""
        return str(self.recipe.get("method", "tdc"))

    def row(self, row_id: str) -> Row | None:
        return next((row for row in self.rows if row.id == row_id), None)

    def label(self, row_id: str) -> str:
        row = self.row(row_id)
        return row.name if row else row_id


def parse_results(value: Any, origin: str = "results.json") -> Results:
    """Read what `results.json` holds; ``origin`` names it in errors."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise SettingError(f"{origin}: format {found!r} is not one this version reads (format {FORMAT})")
    try:
        return Results.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"{origin}: {place}: {first['msg']}, found {first['input']!r:.80}") from None


def load_results(run_folder: Path) -> Results:
    """Read ``run_folder/results.json``."""
    path = Path(run_folder) / "results.json"
    return parse_results(read_json(path, "report"), str(path))
