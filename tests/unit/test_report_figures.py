"""Figures draw the data they are given, in colours that stay with their row."""

from __future__ import annotations

import re

import pytest

from noisewise import NoiseSchedule, Plan
from noisewise.report import figure_data, parse_results
from noisewise.report.figures import loss_figure, plan_figure
from noisewise.report.panels import bank_figure
from noisewise.report.style import STYLES, inline_svg, style_of, svg_of, variables

from report_fixture import made_up_results  # isort: skip


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_can_be_read_on_light_and_dark() -> None:
    for column in (1, 2):
        colours = {name: values[column] for name, values in variables().items()}
        for ground in ("--paper", "--band"):
            assert contrast(colours["--ink"], colours[ground]) >= 7
            assert contrast(colours["--muted"], colours[ground]) >= 4.5
        for name, colour in colours.items():
            if name.startswith("--row-"):
                assert contrast(colour, colours["--paper"]) >= 3, name


def test_rows_differ_in_more_than_colour() -> None:
    looks = [(style.marker, style.dash) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert len({style.light for style in STYLES.values()}) == len(STYLES)
    assert style_of("finetune") == style_of("tdc")
    assert style_of("mine", ("base", "mine", "yours")) != style_of("yours", ("base", "mine", "yours"))


@pytest.mark.parametrize(
    ("schedule", "label"),
    [(NoiseSchedule.named("linear", 1000), "training timestep t"), (NoiseSchedule.edm(), "noise level"),
     (NoiseSchedule.flow(), "flow time")],
    ids=["vp", "edm", "flow"],
)  # fmt: skip
def test_a_plan_is_drawn_in_its_own_coordinate(schedule: NoiseSchedule, label: str) -> None:
    plan = Plan.from_snr(schedule, num_groups=4, min_cost=0.5, big_model_at="noise")

    figure = plan_figure(plan)

    above, below = figure.axes
    assert label in below.get_xlabel()
    assert list(above.lines[0].get_ydata()) == plan.difficulty()["snr_db"]
    assert list(below.lines[0].get_ydata()) == plan.difficulty()["cost_limit"]
    assert svg_of(figure) == svg_of(plan_figure(plan))


def test_the_loss_ratio_is_to_the_base_trained_on() -> None:
    results = parse_results(made_up_results())
    data = figure_data.loss_data(results)
    ratio = loss_figure(data, results.groups).axes[1]

    tdc = next(line for line in ratio.lines if line.get_color() == STYLES["tdc"].light)
    losses = results.loss_per_timestep
    expected = [a / b for a, b in zip(losses["tdc"], losses["base-continued"], strict=True)]  # type: ignore[operator]
    assert list(tdc.get_ydata()) == pytest.approx(expected)
    assert "Base, trained on" in ratio.get_ylabel()


def test_candidates_that_were_not_accepted_are_not_the_best() -> None:
    values = made_up_results()
    values["memory_bank"] = [
        {"group": 0, "round": 0, "candidate": 0, "loss": 0.5, "accepted": True},
        {"group": 0, "round": 0, "candidate": 1, "loss": 0.1, "accepted": False},
        {"group": 0, "round": 1, "candidate": 0, "loss": 0.6, "accepted": True},
    ]
    panel = bank_figure(figure_data.bank_data(parse_results(values))).axes[0]

    best = next(line for line in panel.lines if line.get_label() == "best so far")
    assert list(best.get_ydata()) == [0.5, 0.5]


def test_steps_of_groups_are_told_from_steps_of_all_timesteps() -> None:
    assert figure_data.split_step("finetune[3]") == ("finetune", 3)
    assert figure_data.split_step("base-continued") == ("base-continued", None)


def test_inline_drawings_have_no_fixed_ink_and_no_common_ids() -> None:
    svg = svg_of(plan_figure(Plan.single(NoiseSchedule.named("linear", 100))))
    one, other = inline_svg(svg, "one", 'a "b" <c>'), inline_svg(svg, "other", "x")

    assert one.startswith("<svg viewBox=")
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in one
    assert "#1b1f25" not in one
    assert "DejaVu" not in one
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", one)) <= ids[0]
