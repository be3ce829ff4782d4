"""Recipes: what is read, what is refused and how, and that a resolved recipe says the same again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from noisewise.errors import SettingError
from noisewise.workflow.recipe import check_recipe, load_recipe
from noisewise.workflow.template import template
from noisewise.workflow.yaml_file import parse_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"kind": "sklearn-digits"},
    "model": {"kind": "unet2d", "block_out_channels": [8, 16]},
    "base": {"num_images": 1000},
    "finetune": {"num_images": 100},
    "sample": {"num_images": 10},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def small(folder: Path, **changes: Any) -> Path:
    return write(folder, yaml.safe_dump({**SMALL, **changes}))


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.name)
def test_recipes_that_ship_are_valid_and_survive_being_resolved(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_template_is_a_valid_recipe_that_names_every_setting(tmp_path: Path) -> None:
    text = template()
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.data.kind == "sklearn-digits"
    for name in ("min_cost:", "ema_halflife_images:", "num_inference_steps:", "importance:", "# betas:"):
        assert f"  {name}" in text
    for name in (
        "kind: folder",
        "test_folder:",
        "kind: evolution",
        "mutation:",
        "from: FOLDER",
        "kind: kl",
        "kl_weight:",
    ):
        assert f" {name}" in text
    assert not [line for line in text.splitlines() if line.endswith("-")]  # no word in two


def test_null_that_means_something_survives(tmp_path: Path) -> None:
    recipe = load_recipe(small(tmp_path), ["base.clip_norm=null"])
    assert recipe.base.clip_norm is None
    assert load_recipe(write(tmp_path, recipe.to_yaml())).base.clip_norm is None


def test_overrides_reach_any_depth_and_the_last_wins(tmp_path: Path) -> None:
    changes = ["plan.num_groups=8", "plan.num_groups=5", "prune.proposer.rounds=2", "compare=[tdc, uniform]"]
    recipe = load_recipe(small(tmp_path), ["prune.proposer.kind=evolution", *changes, "base.learning_rate=1e-3"])
    assert (recipe.plan.num_groups, recipe.prune.proposer.rounds) == (5, 2)
    assert recipe.base.learning_rate == 0.001
    assert recipe.rows == ("uniform", "tdc")


def test_another_way_to_cut_leaves_out_what_belongs_to_the_recipes_own(tmp_path: Path) -> None:
    path = small(tmp_path, plan={"method": "given", "bounds": [200, 800], "min_cost": 0.7})
    other = load_recipe(path, ["plan.alpha=0.8"], "optimal-denoiser").plan
    assert (other.method, other.bounds, other.min_cost, other.alpha) == ("optimal-denoiser", None, 0.7, 0.8)
    assert load_recipe(path, (), "given") == load_recipe(path)
    assert load_recipe(small(tmp_path), (), "intervals").plan.groups == 3
    with pytest.raises(SettingError, match="alpha belongs to method `optimal-denoiser`"):
        load_recipe(path, ["plan.alpha=0.8"], "intervals")


def test_yaml_numbers_and_words_mean_what_they_look_like() -> None:
    assert parse_yaml("{a: 1e-3, b: no, c: true, d: 1_000, e: 2.0e+5}", "test") == {
        "a": 1e-3, "b": "no", "c": True, "d": 1000, "e": 2e5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("plan.num_grups=3", "plan.num_grups: unknown setting; did you mean plan.num_groups?"),
        ("sampel.seed=3", "sampel: unknown setting; did you mean sample?"),
        ("data.test_frac=0.1", "data.test_frac: unknown setting; did you mean data.test_fraction?"),
        ("prune.proposer={kind: evolution, mutaton: 1}", "did you mean prune.proposer.mutation?"),
        ("plan.big_model_at=nose", "plan.big_model_at: 'nose' given; allowed: noise, data; did you mean noise?"),
        ("data.kind=digits", "data.kind: 'digits' is unknown; allowed: sklearn-digits, idx, folder, parquet"),
        ("data={}", "data.kind: missing; allowed: sklearn-digits, idx, folder, parquet"),
        ("data={kind: folder}", "data.folder: missing"),
        ("base.num_images=-1", "base.num_images: -1 given; it should be greater than or equal to 0"),
        ("base.num_images=0", "base.num_images: 0 given; a new network must be trained"),
        ("base.learning_rate=fast", "base.learning_rate: 'fast' given; it should be a valid number"),
        ("base={}", "base.num_images: missing; Training images seen by the base"),
        ("plan=3", "plan: 3 given; it should be a mapping of settings"),
        ("compare=[tdcc]", "compare[0]: 'tdcc' given; allowed: base, "),
        ("name=a/b", "name: 'a/b' given; Name of the run"),
        ("model.from=x", "unknown setting; allowed: from; --set 'model={from: ...}' replaces the whole section"),
        ("num_groups=3", "num_groups: unknown setting; did you mean plan.num_groups?"),
        ("plan.learning_rate=3", "did you mean base.learning_rate or finetune.learning_rate?"),
        ("data.folder=x", "data.folder: belongs to data.kind idx or folder; sklearn-digits given"),
        ("prune.proposer={kind: random, base_url: x}", "base_url: belongs to prune.proposer.kind llm; random given"),
        ("compare=base", "compare: 'base' given; it should be a list, e.g. [base]"),
        ("schedule={kind: given}", "schedule: betas belong to kind `given`"),
        ("schedule={kind: linear, beta_max: 3}", "beta_max belongs to kind `vp`; kind `linear` would ignore it"),
        ("plan={method: given, path: p.json, num_groups: 3}", "method `given` would ignore num_groups"),
        ("compare=[distilled]", "compare: distilled needs finetune.distill_weight"),
        ("base.distill_weight=0.5", "base: distill_weight: 0.5 given; stage 1 has no teacher, finetune has"),
        ("schedule={kind: vp, sigma_max: 3}", "sigma_max belongs to kind `edm`; kind `vp` would ignore it"),
        ("schedule={kind: edm, sigma_min: 90}", "sigma_min: 90.0 given; it must be below sigma_max"),
        ("plan={alpha: 0.8}", "plan: alpha belongs to method `optimal-denoiser`; method `snr` would ignore it"),
        ("plan={method: given}", "plan: method `given` needs either path, a saved plan, or bounds"),
        ("plan={method: given, bounds: [1], num_groups: 3}", "method `given` would ignore num_groups"),
        ("plan={method: intervals, num_draws: 8}", "num_draws belongs to interval_cost `gradient`; `timestep` would"),
        ("plan={method: optimal-denoiser, num_groups: 4, alpha: 0.8}", "dynamic-programming would ignore it"),
        ("plan={method: optimal-denoiser, num_groups: 4, cut: threshold}", "threshold makes 3 groups, num_groups is 4"),
        ("finetune=null", "finetune: missing; tdc needs a stage 2"),
        ("method=multi-decoder", "multi_decoder.decoders: missing; row multi-decoder needs a width for every group"),
        ("multi_decoder={start: base, decoders: [1]}", "decoders: start `base` would ignore them"),
        ("multi_decoder={decoders: [big]}", "multi_decoder.decoders[0]: 'big' given; it should be a valid number"),
        ("compare=[separate-tailored]", "multi_decoder.decoders: missing; row separate-tailored needs"),
        ("model={kind: paper, name: ddpm}", "model.name: 'ddpm' given; allowed: multistage-vp-cifar10"),
        ("name.x=1", "--set name.x=1: name is a single value, it has no x"),
        ("foo", "--set foo: give it as a.b=value"),
        ("base.num_images=[", "--set base.num_images, line 1, column 2: not YAML"),
    ],
)
def test_mistakes_get_one_line_with_the_dotted_name(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        load_recipe(small(tmp_path), [override])
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2", "line 1"),
        ("a: 1\na: 2\n", "a is given twice"),
        ("- 1", "is a mapping of settings (`name: ...`), this is a list"),
        ("", "this is empty"),
        ("\x00", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        load_recipe(write(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recipe_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such recipe; `noisewise init`"):
        load_recipe(tmp_path / "absent.yaml")


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(SettingError, match=r"\(and 1 more mistake\)"):
        check_recipe({**SMALL, "seed": -1, "plan": {"num_groups": 0}})


def test_without_a_stage_2_the_rivals_are_those_that_need_none() -> None:
    raw = {name: value for name, value in SMALL.items() if name != "finetune"}
    recipe = check_recipe({**raw, "method": "multi-decoder", "multi_decoder": {"decoders": [1, 1, 1, 1]}})
    assert recipe.rows == ("base", "base-fewer-steps", "separate", "multi-decoder")
    assert recipe.finetune is None
    with pytest.raises(SettingError, match="finetune: missing; uniform needs a stage 2"):
        check_recipe({**recipe.to_dict(), "compare": ["uniform"]})


def test_existing_models_have_no_part_in_networks_from_scratch() -> None:
    settings = {**SMALL, "model": {"from": "x"}, "base": {"num_images": 0}, "compare": ["separate"]}
    with pytest.raises(SettingError, match=r"compare: separate trains from scratch, `model\.from` has no part in it"):
        check_recipe(settings)


def test_the_command_line_knows_the_recipes_samplers_and_methods() -> None:
    from typing import get_args

    from noisewise.cli import recipes
    from noisewise.workflow.plan_settings import PlanSettings
    from noisewise.workflow.settings import SampleSettings

    assert get_args(recipes.Sampler) == get_args(SampleSettings.model_fields["scheduler"].annotation)
    assert {*get_args(recipes.PlanMethod), "given"} == {*get_args(PlanSettings.model_fields["method"].annotation)}
