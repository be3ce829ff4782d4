"""The exact optimal denoiser of a finite data set, and what it tells before any training."""

from noisewise.optimal.denoiser import OptimalDenoiser
from noisewise.optimal.ideal_loss import ideal_loss
from noisewise.optimal.similarity import Similarity, similarities

__all__ = ["OptimalDenoiser", "Similarity", "ideal_loss", "similarities"]
