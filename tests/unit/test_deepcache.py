"""DeepCache: whole calls are the model's own, shallow ones what a hand-made forward gives, costs counted and met."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from noisewise import NoiseSchedule, count_macs
from noisewise.errors import SettingError
from noisewise.models.networks import describe
from noisewise.sampling.deepcache import DeepCache, cost_of, costs, whole_calls
from noisewise.sampling.sampler import sample_images
from noisewise.sampling.schedulers import build_scheduler


def network(**settings: Any) -> Any:
    torch.manual_seed(0)
    return UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8, 16),
            "layers_per_block": 2,
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
            **settings,
        }
    ).eval()


def by_hand(
    model: Any, now: torch.Tensor, t: int, before: torch.Tensor, t_before: int, num_blocks: int
) -> torch.Tensor:
    """The forward at ``t`` with everything below the last blocks taken from ``t_before``."""

    def embedding(t: int) -> torch.Tensor:
        return model.time_embedding(model.time_proj(torch.tensor([t]).expand(len(now))))

    kept = []

    def remember(module: Any, inputs: Any) -> None:
        kept.append(inputs[0])

    last = model.up_blocks[-1]
    handle = last.resnets[-num_blocks].register_forward_pre_hook(remember)
    model(before, t_before)
    handle.remove()
    h = model.conv_in(now)
    skips = [h]
    for resnet, attention in zip(model.down_blocks[0].resnets, model.down_blocks[0].attentions, strict=True):
        h = attention(resnet(h, embedding(t)))
        skips.append(h)
    skips = skips[:num_blocks]
    hidden = kept[0][:, : kept[0].shape[1] - skips[-1].shape[1]]
    for i in range(len(last.resnets) - num_blocks, len(last.resnets)):
        hidden = last.resnets[i](torch.cat([hidden, skips.pop()], 1), embedding(t))
        hidden = last.attentions[i](hidden)
    return model.conv_out(model.conv_act(model.conv_norm_out(hidden)))


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_calls_are_the_models_own_or_those_made_by_hand(num_blocks: int) -> None:
    model = network()
    one, other = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(one, 900).sample, by_hand(model, other, 880, one, 900, num_blocks)
        cached = DeepCache(model, {900.0}, num_blocks)
        assert torch.equal(cached(one, 900).sample, expected[0])
        assert torch.allclose(cached(other, torch.tensor(880)).sample, expected[1], atol=1e-6)
        assert torch.allclose(cached(other, 880).sample, expected[1], atol=1e-6)  # the memory is that of the whole call
        assert not torch.allclose(model(other, 880).sample, expected[1], atol=1e-3)
        cached.forget()
        assert torch.equal(cached(other, 880).sample, model(other, 880).sample)
        assert torch.equal(cached(other[:2], 860).sample, model(other[:2], 860).sample)  # another batch


def test_labels_reach_shallow_calls() -> None:
    model = network(num_class_embeds=3)
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        cached = DeepCache(model, {900.0})
        cached(x, 900, class_labels=labels)
        found = [cached(x, 880, class_labels=other).sample for other in (labels, labels.flip(0))]
    assert not torch.allclose(*found)


def test_shallow_calls_cost_what_their_modules_do_and_the_budget_is_met() -> None:
    model = network()
    inputs = describe(model).example_inputs(model)
    whole, shallow = costs(model, inputs)
    assert whole == count_macs(model, inputs)
    assert 0 < shallow < costs(model, inputs, 2)[1] < costs(model, inputs, 3)[1] < whole
    timesteps = [float(t) for t in range(980, -1, -20)]
    for share in (0.5, 0.75, 0.9, 1.0):
        chosen = whole_calls(timesteps, whole, shallow, share * 50 * whole)
        assert chosen[0] == 980
        met = cost_of(timesteps, chosen, whole, shallow)
        assert met <= share * 50 * whole < met + (whole - shallow) + 1
        gaps = {
            (b - a)
            for a, b in zip(
                [timesteps.index(t) for t in chosen], [timesteps.index(t) for t in chosen][1:], strict=False
            )
        }
        assert not gaps or max(gaps) - min(gaps) <= 1
    with pytest.raises(SettingError, match="deepcache needs at least"):
        whole_calls(timesteps, whole, shallow, shallow * 50)


def test_sampling_whole_everywhere_is_plain_sampling_and_images_do_not_depend_on_the_batch() -> None:
    model, schedule = network(), NoiseSchedule.named("linear", 1000)
    scheduler = build_scheduler("ddim", schedule, "epsilon", "fixed")
    scheduler.set_timesteps(6)
    timesteps = [float(t) for t in scheduler.timesteps]

    def images(model: Any, batch_size: int = 4) -> torch.Tensor:
        return sample_images(
            model, scheduler, 4, num_inference_steps=6, batch_size=batch_size, sample_shape=(1, 8, 8), device="cpu"
        )

    plain = images(model)
    assert torch.equal(images(DeepCache(model, timesteps)), plain)
    some = images(DeepCache(network(), timesteps[::2]))
    assert not torch.equal(some, plain)
    assert (images(DeepCache(network(), timesteps[::2]), 2).int() - some.int()).abs().max() <= 1


def test_networks_it_is_not_written_for_are_refused() -> None:
    with pytest.raises(SettingError, match="the network's ends have 1 to 3"):
        DeepCache(network(), (), 4)
    with pytest.raises(SettingError, match="the base is a Linear"):
        DeepCache(torch.nn.Linear(1, 1))
