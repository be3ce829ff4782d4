"""Legal widths and the channels that stay."""

from __future__ import annotations

import pytest
import torch

from noisewise.errors import SettingError
from noisewise.models.networks.wiring import Axis, Wiring
from noisewise.pruning.widths import alignments, auto_alignment, kept_channels, kept_values, legal_widths


def axis(width: int, unit: int = 1, kind: str = "inner") -> Axis:
    return Axis(f"axis{width}", width, unit, kind, "a test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "unit", "alignment", "expected"),
    [
        (32, 4, 1, (4, 8, 12, 16, 20, 24, 28, 32)),
        (32, 4, 16, (16, 32)),
        (24, 3, 2, (6, 12, 18, 24)),
        (24, 3, 16, (24,)),  # no multiple of both fits: the axis stays whole
        (20, 5, 8, (20,)),
        (36, 4, 8, (8, 16, 24, 32, 36)),  # the full width is legal though it is not aligned
    ],
)
def test_legal_widths_are_whole_units_and_aligned_or_full(
    width: int, unit: int, alignment: int, expected: tuple[int, ...]
) -> None:
    assert legal_widths(axis(width, unit), alignment) == expected


def test_least_width_is_a_share_of_the_axis_rounded_up() -> None:
    assert legal_widths(axis(32, 4), 1, min_width=0.3) == (12, 16, 20, 24, 28, 32)
    assert legal_widths(axis(32, 4), 1, min_width=0.25) == (8, 12, 16, 20, 24, 28, 32)
    assert legal_widths(axis(32, 32), 1, min_width=0.9) == (32,)


@pytest.mark.parametrize(
    ("width", "unit", "expected"),
    [(256, 8, 16), (64, 2, 16), (63, 1, 8), (32, 1, 8), (32, 4, 8), (16, 1, 4), (4, 1, 1), (24, 3, 2), (32, 16, 1)],
)
def test_auto_alignment_leaves_four_levels_where_any_does(width: int, unit: int, expected: int) -> None:
    assert auto_alignment(axis(width, unit)) == expected
    assert expected == 1 or len(legal_widths(axis(width, unit), expected)) >= 4


def test_auto_alignment_is_halved_network_wide() -> None:
    axes = {a.name: a for a in (axis(128), axis(32), axis(8, kind="fixed"))}
    wiring = Wiring(axes, ())
    assert alignments(wiring, "auto") == {"axis128": 16, "axis32": 8}
    assert alignments(wiring, "auto", halvings=2) == {"axis128": 4, "axis32": 2}
    assert alignments(wiring, "auto", halvings=4) == {"axis128": 1, "axis32": 1}
    assert alignments(wiring, 6) == {"axis128": 6, "axis32": 6}
    for wrong in (0, 2.0, "most", True):
        with pytest.raises(SettingError, match=r"prune\.alignment"):
            alignments(wiring, wrong)  # type: ignore[arg-type]


def test_the_most_important_units_stay_whole_and_in_order() -> None:
    scores = torch.tensor([0.0, 9.0, 1.0, 1.0, 5.0, 5.0, 0.0, 1.0])
    kept = kept_channels(axis(8, 2), scores, 4)
    assert kept.tolist() == [0, 1, 4, 5]
    assert kept_values(axis(8, 2), scores, (2, 4, 8)) == [10.0, 19.0, 22.0]


def test_equal_scores_keep_the_first_units() -> None:
    assert kept_channels(axis(6, 2), torch.ones(6), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("scores", [torch.ones(7), torch.tensor([1.0, float("nan")] * 4), -torch.ones(8)])
def test_scores_that_are_none_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(SettingError, match=r"prune\.importance.*axis8"):
        kept_channels(axis(8, 2), scores, 4)
