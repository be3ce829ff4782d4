"""How good images are and what they cost: features -> statistics -> metric, each pure; losses; MACs and seconds."""

from __future__ import annotations

from noisewise.evaluation.cost import image_cost, interleaved_latency, latency, steps_at_cost, training_macs
from noisewise.evaluation.efficientnet import EfficientNetLite0
from noisewise.evaluation.features import FeatureExtractor, Features, nearest_neighbours, share_of_near_copies
from noisewise.evaluation.inception import Inception
from noisewise.evaluation.losses import TimestepLosses, loss_per_timestep
from noisewise.evaluation.metrics import frechet_distance, frechet_score, kid, kid_interval, kid_score
from noisewise.evaluation.provenance import Provenance, Score, compare
from noisewise.evaluation.statistics import Statistics
from noisewise.evaluation.text_score import TextImageEncoder, TextScore, text_score, text_scores

__all__ = [
    "EfficientNetLite0",
    "FeatureExtractor",
    "Features",
    "Inception",
    "Provenance",
    "Score",
    "Statistics",
    "TextImageEncoder",
    "TextScore",
    "TimestepLosses",
    "compare",
    "frechet_distance",
    "frechet_score",
    "image_cost",
    "interleaved_latency",
    "kid",
    "kid_interval",
    "kid_score",
    "latency",
    "loss_per_timestep",
    "nearest_neighbours",
    "share_of_near_copies",
    "steps_at_cost",
    "text_score",
    "text_scores",
    "training_macs",
]
