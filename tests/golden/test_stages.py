"""Published stages of multi-stage training (arXiv:2312.09181): their noise levels and their shares of EDM's draws."""

from __future__ import annotations

import pytest

from noisewise.objectives import Objective
from noisewise.schedule import NoiseSchedule


@pytest.mark.parametrize(("time", "sigma"), [(0.442, 2.5103), (0.6308, 7.4046)])
def test_vp_noise_levels(time: float, sigma: float) -> None:
    schedule = NoiseSchedule.vp()
    t = 1000 * time - 1
    assert schedule.noise(t) / schedule.signal(t) == pytest.approx(sigma, abs=5e-5)
    edm = NoiseSchedule.edm()
    assert edm.coordinate_at_snr(schedule.snr_db(t)) == pytest.approx(sigma, abs=5e-5)


def test_shares_of_edms_draws() -> None:
    objective = Objective(NoiseSchedule.edm(), noise_distribution="lognormal", p_mean=-1.2, p_std=1.2)
    stages = [(0.002, 2.5103), (2.5103, 7.6577), (7.6577, 80.0)]
    shares = [objective.share(stage) for stage in stages]
    assert [round(100 * share, 1) for share in shares[:2]] == [96.1, 3.5]
    assert round(100 * shares[2], 2) == 0.35
    assert sum(shares) == pytest.approx(1, abs=1e-12)
