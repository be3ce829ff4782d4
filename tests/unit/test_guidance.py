"""Guidance is what its formula says, for every sampler, group by group; an image still depends on its seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from noisewise import ExpertDenoiser, NoiseSchedule, Plan, prune_to_budget
from noisewise.errors import SettingError
from noisewise.models.labels import Classes, classes_of, null_class_of
from noisewise.models.loading import load_denoiser
from noisewise.models.networks import describe
from noisewise.sampling.guidance import Guidance, guided
from noisewise.sampling.kinds import KINDS, family
from noisewise.sampling.sampler import sample_images, trajectory
from noisewise.sampling.schedulers import build_scheduler

SCHEDULE = NoiseSchedule.named("linear", 1000)
SCHEDULES = {"vp": SCHEDULE, "edm": NoiseSchedule.edm(), "flow": NoiseSchedule.flow()}
PLAN = Plan.from_bounds(SCHEDULE, [400])
LABELS = torch.tensor([0, 2, 1])


def conditional(seed: int = 0, null: bool = True, **settings: Any) -> UNet2DModel:
    """Three classes, and with ``null`` a fourth embedding for none."""
    torch.manual_seed(seed)
    classes = {"num_class_embeds": 4, "_null_class": 3} if null else {"num_class_embeds": 3}
    settings = {"out_channels": 1, **classes, **settings}
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **settings,
    )
    if model.class_embedding is not None:
        torch.nn.init.normal_(model.class_embedding.weight, std=3.0)  # classes that make a difference
    return model.eval()


def images(model: Any, scale: Any = 1.0, kind: str = "ddim", **options: Any) -> torch.Tensor:
    options = {"class_labels": LABELS, "num_inference_steps": 6, **options}
    scheduler = build_scheduler(kind, SCHEDULES[family(kind)])  # type: ignore[arg-type]
    return sample_images(model, scheduler, len(LABELS), guidance_scale=scale, **options)


def final(model: Any, scale: Any, **options: Any) -> torch.Tensor:
    """The same as floats."""
    scheduler, labels = build_scheduler("ddim", SCHEDULE), options.pop("class_labels", LABELS)
    steps = trajectory(
        model, scheduler, range(3), num_inference_steps=6, class_labels=labels, guidance_scale=scale, **options
    )
    return [step.x for step in steps][-1]


def test_the_formula() -> None:
    model, x, t = conditional(), torch.randn(3, 1, 8, 8), torch.tensor(300)
    none = torch.full_like(LABELS, 3)
    with torch.no_grad():
        told, untold = model(x, t, LABELS).sample, model(x, t, none).sample
        assert not torch.allclose(told, untold, atol=1e-3)
        torch.testing.assert_close(guided(model, x, t, LABELS, none, 2.5), untold + 2.5 * (told - untold))
        assert torch.equal(guided(model, x, t, LABELS, none, 1.0), told)
        assert torch.equal(guided(model, x, t, LABELS, none, 0.0), untold)


def test_a_learned_variance_is_that_of_the_condition() -> None:
    model, x, t = conditional(out_channels=2), torch.randn(3, 1, 8, 8), torch.tensor(300)
    none = torch.full_like(LABELS, 3)
    with torch.no_grad():
        told, untold = model(x, t, LABELS).sample, model(x, t, none).sample
        found = guided(model, x, t, LABELS, none, 3.0)
    torch.testing.assert_close(found[:, :1], untold[:, :1] + 3 * (told - untold)[:, :1])
    torch.testing.assert_close(found[:, 1:], told[:, 1:])


def test_scale_1_is_no_guidance_and_0_no_labels() -> None:
    model = conditional()
    assert torch.equal(final(model, 1.0), final(model, [1.0]))
    assert torch.equal(final(model, 0.0), final(model, 1.0, class_labels=torch.full_like(LABELS, 3)))
    assert not torch.allclose(final(model, 2.0), final(model, 1.0), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_guides_and_an_image_does_not_depend_on_its_batch(kind: str) -> None:
    model = conditional()
    steps = {"num_inference_steps": 12 if kind in ("pndm", "ddpm") else 6}
    together = images(model, 2.0, kind, **steps)
    apart = images(model, 2.0, kind, batch_size=2, **steps)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert not torch.equal(together, images(model, 1.0, kind, **steps))


def test_each_group_has_its_scale_by_the_plan_s_own_boundary() -> None:
    data, noise = conditional(0), conditional(1)
    router = ExpertDenoiser([data, noise], PLAN)
    seen: list[tuple[int, float, int]] = []
    for group, expert in enumerate(router.experts):
        expert.register_forward_pre_hook(
            lambda _, args, kwargs, group=group: seen.append((group, float(kwargs["timestep"]), len(kwargs["sample"]))),
            with_kwargs=True,
        )
    found = final(router, [1.0, 3.0])
    assert [rows for group, _, rows in seen if group == 0] == [3] * 3  # scale 1: one call for each image
    assert [rows for group, _, rows in seen if group == 1] == [6] * 3
    assert all(group == PLAN.group_of(t) for group, t, _ in seen)

    guidance = Guidance.of([1.0, 3.0], PLAN)
    assert sum(guidance.calls_at(t) for _, t, _ in seen) == 9
    assert [guidance.at(torch.tensor(t)) for t in (399, 400)] == [1.0, 3.0]
    torch.testing.assert_close(
        final(ExpertDenoiser([data, data], PLAN), [1.0, 3.0]), final(data, [1.0, 3.0], plan=PLAN)
    )
    assert not torch.allclose(found, final(router, 3.0), atol=1e-2)


def test_calls_are_counted_by_scale() -> None:
    assert [Guidance.of(scale).calls_at(0) for scale in (0, 1, 1.5, 4)] == [1, 1, 2, 2]
    assert Guidance.of([1.0, 1.0], PLAN).is_off


def test_pruned_and_saved_networks_keep_their_null_class(tmp_path: Path) -> None:
    model = conditional()
    small, _ = prune_to_budget(model, describe(model).example_inputs(model), 0.7, "magnitude")
    router = ExpertDenoiser([small, model], PLAN)
    router.save_pretrained(tmp_path / "router")
    small.save_pretrained(tmp_path / "small")
    reloaded = [load_denoiser(tmp_path / name)[0] for name in ("router", "small")]
    for network in (model, small, router, *reloaded):
        assert classes_of(network) == Classes(3, 3)
    assert classes_of(conditional(null=False)) == Classes(3, None)
    assert classes_of(conditional(num_class_embeds=None, null=False)) is None
    torch.testing.assert_close(final(reloaded[0], [2.0, 3.0]), final(router, [2.0, 3.0]))


def test_guidance_needs_a_network_that_was_trained_without_labels() -> None:
    with pytest.raises(SettingError, match=r"guidance_scale: 2 given; the network has no null class.*dropout"):
        images(conditional(null=False), 2.0)
    with pytest.raises(SettingError, match="guidance_scale: 2 given; the network takes no class labels"):
        images(conditional(num_class_embeds=None, null=False), 2.0, class_labels=None)
    with pytest.raises(SettingError, match="guidance needs class_labels"):
        images(conditional(), 2.0, class_labels=None)
    with pytest.raises(SettingError, match="conditioning"):
        null_class_of(conditional(null=False), "here")


def test_scales_that_fit_no_groups_are_refused() -> None:
    router = ExpertDenoiser([conditional(), conditional()], PLAN)
    with pytest.raises(SettingError, match=r"guidance_scale: 3 values given, the plan has 2 groups"):
        images(router, [1.0, 2.0, 3.0])
    with pytest.raises(SettingError, match=r"2 values given, one per group, and the model has no groups"):
        images(conditional(), [1.0, 2.0])
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="is not 0 or more"):
            images(router, wrong)


def test_labels_beyond_the_network_s_are_refused() -> None:
    with pytest.raises(SettingError, match="class_labels: 4 given; the network's num_class_embeds allow 0 to 2, and 3"):
        images(conditional(), class_labels=torch.tensor([0, 4, 1]))
    with pytest.raises(SettingError, match=r"class_labels: 3 given; the network's num_class_embeds allow 0 to 2$"):
        images(conditional(null=False), class_labels=torch.tensor([0, 3, 1]))
