"""Draws of noise levels: where they fall, how likely, and that restricting them to ranges keeps their shape."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisewise.errors import SettingError
from noisewise.noise_distribution import NoiseDistribution, Timesteps
from noisewise.schedule import NoiseSchedule
from noisewise.streams import stream

EDM, FLOW, VP = NoiseSchedule.edm(), NoiseSchedule.flow(), NoiseSchedule.vp()
HOSTS = {
    "discrete": NoiseDistribution(VP, "uniform", discrete=True),
    "continuous": NoiseDistribution(VP, "uniform"),
    "interpolated": NoiseDistribution(NoiseSchedule.named("linear", 100), "uniform"),
    "edm": NoiseDistribution(EDM, "lognormal", -1.2, 1.2),
    "edm-uniform": NoiseDistribution(EDM, "uniform"),
    "flow": NoiseDistribution(FLOW, "uniform"),
    "flow-shifted": NoiseDistribution(NoiseSchedule.flow(shift=3.0), "uniform"),
    "flow-logit": NoiseDistribution(NoiseSchedule.flow(shift=3.0), "logit-normal", 0.3, 0.8),
}


def cuts(host: NoiseDistribution) -> list[Timesteps]:
    """Three ranges that cover the span, of unequal shares."""
    start, stop = host.schedule.span
    inner = {"vp": [0.3, 0.6], "edm": [0.7, 6.0], "flow": [0.2, 0.7]}[host.schedule.kind]
    inner = [stop * share for share in inner] if host.schedule.kind == "vp" else inner
    edges = [start, *([int(t) for t in inner] if host.discrete else inner), stop]
    return list(pairwise(edges))


@pytest.fixture(params=HOSTS, ids=str)
def host(request: pytest.FixtureRequest) -> NoiseDistribution:
    return HOSTS[request.param]


def test_shares_add_up_and_are_those_of_the_draws(host: NoiseDistribution) -> None:
    ranges = cuts(host)
    t = host.draw(20_000, stream("shares")).double()
    shares = [host.share(timesteps) for timesteps in ranges]
    assert sum(shares) == pytest.approx(1, abs=1e-12) == host.share(None)
    starts = torch.tensor([start for start, _ in ranges[1:]], dtype=torch.float64)
    counted = torch.bincount(torch.bucketize(t, starts, right=True), minlength=3) / len(t)
    np.testing.assert_allclose(counted, shares, atol=4 * 0.5 / math.sqrt(len(t)))


def test_a_restricted_draw_has_the_shape_of_the_whole(host: NoiseDistribution) -> None:
    """Its distribution function is the whole one's, cut and stretched: uniform after both."""
    for start, stop in cuts(host):
        t = host.draw(4000, stream("shape", start), (start, stop))
        assert t.dtype == (torch.int64 if host.discrete else torch.float64)
        if host.discrete:
            counts = torch.bincount(t - int(start), minlength=int(stop - start))
            assert len(counts) == stop - start
            assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4
            continue
        inside = t[(t > host.schedule.span[0]) & (t < stop)].tolist()  # all but a few beyond the span
        u = np.array([host.share((start, value)) for value in inside if value > start]) / host.share((start, stop))
        assert len(u) > 0.99 * len(t)
        assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3


def test_edms_draws_are_log_normal_and_not_truncated() -> None:
    host = HOSTS["edm"]
    sigma = host.draw(200_000, stream("log-normal"))
    assert scipy.stats.kstest((sigma.log().numpy() + 1.2) / 1.2, "norm").pvalue > 1e-3
    assert (sigma < 0.002).sum() > 0  # both ends reach beyond the sampler's range
    wide = NoiseDistribution(EDM, "lognormal", 4.0, 1.0)
    assert (wide.draw(1000, stream("wide"), (50.0, 80.0)) > 80).any()
    assert (wide.draw(1000, stream("wide"), (40.0, 50.0)) < 50).all()


@pytest.mark.parametrize("timesteps", [(2.5, 7.0), (0.05, 0.5)])
def test_an_inner_range_is_a_truncated_normal_in_log_sigma(timesteps: Timesteps) -> None:
    z = (HOSTS["edm"].draw(5000, stream("cut"), timesteps).log().numpy() + 1.2) / 1.2
    low, high = ((math.log(sigma) + 1.2) / 1.2 for sigma in timesteps)
    assert scipy.stats.kstest(z, scipy.stats.truncnorm(low, high).cdf).pvalue > 1e-3


@pytest.mark.parametrize("timesteps", [(60.0, 70.0), (0.004, 0.005)])
def test_far_tails_are_resolved(timesteps: Timesteps) -> None:
    """17 standard deviations out: the distribution function itself is 1 to float64."""
    host = NoiseDistribution(EDM, "lognormal", -0.8, 0.29)
    assert 0 < host.share(timesteps) < 1e-40
    sigma = host.draw(2000, stream("tail"), timesteps)
    assert (sigma >= timesteps[0]).all()
    assert (sigma < timesteps[1]).all()
    assert len(sigma.unique()) > 1990
    nearer = timesteps[0] if timesteps[0] > 1 else timesteps[1]
    assert (sigma.mean() - nearer).abs() < (sigma.mean() - sum(timesteps) + nearer).abs()


@given(name=st.sampled_from(sorted(HOSTS)), ends=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)))
@settings(max_examples=150)
def test_draws_and_strata_stay_in_their_range(name: str, ends: tuple[float, float]) -> None:
    host = HOSTS[name]
    low, high = host.schedule.span
    start, stop = (float(host.within(np.array(share), (low, high))) for share in sorted(ends))
    if host.discrete:
        start, stop = int(start), int(stop) + 1
    if stop - start < 1e-9:
        return
    strata = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    for t in (host.draw(50, stream("range"), (start, stop)), host.stratified(strata, (start, stop))):
        assert (t >= start).all()
        assert (t < stop).all() or host.within(np.array(1.0), (start, stop)) == stop == t.max()
    among, weights = host.draw_among(50, stream("among"), [(start, stop)])
    assert ((among >= start) & (among < stop)).all()
    torch.testing.assert_close(weights, torch.full((50,), host.share((start, stop))))


@pytest.mark.parametrize("name", ["edm", "edm-uniform", "flow-shifted", "flow-logit"])
def test_rounding_leads_to_no_other_range(name: str) -> None:
    """Of a range a few bits wide: the way to the distribution's own numbers and back is not exact to the bit."""
    for start in (0.3, 0.5317, 0.77):
        stop = start + 4 * math.ulp(start)
        host = HOSTS[name]
        if host.share((start, stop)) > 0:
            t = host.draw(200, stream("bits"), (start, stop))
            assert ((t >= start) & (t < stop)).all()
    assert host.share((0.3, 0.3 + 1e-12)) > 0


def test_the_outermost_ranges_of_vp_reach_where_time_does() -> None:
    for name, lowest in (("continuous", -0.99), ("interpolated", 0.0)):
        host = HOSTS[name]
        T = host.schedule.num_train_timesteps
        first, last = host.draw(3000, stream("ends"), (0, 2)), host.draw(3000, stream("ends"), (T - 3, T))
        assert lowest <= first.min() < lowest + 0.01
        assert 1.99 < first.max() < 2
        assert T - 3 <= last.min() < T - 2.99
        assert T - 1.01 < last.max() <= T - 1
        strata = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
        assert host.stratified(strata, (0, 2)).min() == lowest
        assert host.schedule.snr_db(torch.cat([first, last])).isfinite().all()


def test_flow_times_are_shifted_as_the_schedule_is() -> None:
    """Draws fall evenly between the points of the grid, which crowd towards noise."""
    host = HOSTS["flow-shifted"]
    edges = np.append(0.0, host.schedule.grid()[99::100])  # [11], ten cells of equal share
    np.testing.assert_allclose([host.share(cell) for cell in pairwise(edges)], 0.1)
    logit = HOSTS["flow-logit"].draw(5000, stream("logit"))
    u = (logit / (3 - 2 * logit)).numpy()
    assert scipy.stats.kstest(np.log(u / (1 - u)), scipy.stats.norm(0.3, 0.8).cdf).pvalue > 1e-3


def test_ranges_are_chosen_alike_and_weighted_by_their_share(host: NoiseDistribution) -> None:
    ranges = cuts(host)
    t, weights = host.draw_among(9000, stream("balance"), ranges)
    for start, stop in ranges:
        is_last = stop == host.schedule.span[1]
        inside = (t >= (-math.inf if start == host.schedule.span[0] else start)) & ((t < stop) | is_last)
        assert inside.double().mean().item() == pytest.approx(1 / 3, abs=0.02)
        expected = torch.full_like(weights[inside], 3 * host.share((start, stop)))
        torch.testing.assert_close(weights[inside], expected)


def test_bins_are_equal_in_their_measure() -> None:
    assert HOSTS["discrete"].edges((10, 21), 4) == [10, 13, 16, 18, 21]
    assert HOSTS["discrete"].edges((10, 13), 20) == [10, 11, 12, 13]
    assert all(type(edge) is int for edge in HOSTS["discrete"].edges(None, 7))
    assert HOSTS["continuous"].edges((10, 12), 4) == [10, 10.5, 11, 11.5, 12]
    assert HOSTS["flow-logit"].edges(None, 4) == [0, 0.25, 0.5, 0.75, 1]
    edges = HOSTS["edm"].edges((0.002, 80.0), 5)
    assert (edges[0], edges[-1], len(edges)) == (0.002, 80.0, 6)
    assert np.diff(np.log(edges)) == pytest.approx(math.log(40_000) / 5)


def test_levels_are_points_of_the_grid_within_a_range() -> None:
    assert HOSTS["discrete"].levels((10, 20), 4) == [10, 14, 18]
    assert HOSTS["continuous"].levels((10, 20), 4) == [10.0, 14.0, 18.0]
    assert HOSTS["continuous"].levels((998, 1000), 1) == [998.0, 999.0]
    for name in ("edm", "flow-shifted"):
        host, (start, stop) = HOSTS[name], HOSTS[name].schedule.span
        grid = host.schedule.grid()
        assert host.levels(None, 1) == grid.tolist()
        middle = float(grid[500])
        assert host.levels((start, middle), 100) == grid[:500:100].tolist()
        assert host.levels((middle, stop), 100) == grid[500::100].tolist()
        assert all(type(t) is float for t in host.levels(None, 50))  # their names are those of random streams
    assert HOSTS["edm"].levels((1.0, 1.001), 3) == [pytest.approx(math.sqrt(1.001))]


def test_centres() -> None:
    assert HOSTS["discrete"].centre((10, 20)) == 14.5
    assert HOSTS["continuous"].centre((10, 20)) == 15
    assert HOSTS["edm"].centre((0.1, 10.0)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "timesteps", "message"),
    [
        ("discrete", (5, 5), r"\[5, 5\) is not a range of timesteps within \[0, 1000\)"),
        ("discrete", (1.5, 3), "not bounded by whole numbers"),
        ("continuous", (-0.5, 3), "not a range of timesteps within"),
        ("edm", (0.001, 1.0), r"not a range of sigma within \[0.002, 80.0\)"),
        ("edm", (1.0, 90.0), "not a range of sigma"),
        ("edm", (2.0, math.nan), "not a range of sigma"),
        ("flow", (0.5, 1.5), "not a range of flow-time"),
        ("continuous", (999, 1000), r"\[999, 1000\) has no share of the uniform distribution"),
    ],
)
def test_impossible_ranges_are_refused(name: str, timesteps: Timesteps, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HOSTS[name].draw(3, stream("a"), timesteps)
    with pytest.raises(SettingError, match="there are none to draw from"):
        HOSTS[name].draw_among(3, stream("a"), [])
