"""Mean and covariance of features: the second of three pure parts, and what is worth keeping of a reference set."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noisewise.errors import SettingError
from noisewise.evaluation.features import Features
from noisewise.evaluation.provenance import Provenance
from noisewise.files import write_atomic


@dataclass(frozen=True, eq=False)
class Statistics:
    """Gaussian summary of features."""

    mean: np.ndarray  # [D] float64
    covariance: np.ndarray  # [D, D] float64, of the sample (divided by n - 1)
    n: int | None  # number of images; None: unknown
    provenance: Provenance

    @classmethod
    def of(cls, features: Features) -> Statistics:
        values = features.values.astype(np.float64)  # [N, D]
        if len(values) < 2:
            raise SettingError(f"evaluate: a covariance needs at least 2 images, not {len(values)}")
        if not np.isfinite(values).all():
            raise SettingError("evaluate: some features are not finite; are the images?")
        covariance = np.atleast_2d(np.cov(values, rowvar=False))
        return cls(values.mean(0), covariance, len(values), features.provenance)

    @property
    def num_features(self) -> int:
        return len(self.mean)

    def save(self, path: Path) -> None:
        """Write ``.npz`` with pytorch-fid's names (mu, sigma), n and the provenance as JSON; atomic."""
        buffer = io.BytesIO()
        about = json.dumps(self.provenance.to_dict())
        n = -1 if self.n is None else self.n
        np.savez(buffer, mu=self.mean, sigma=self.covariance, n=np.int64(n), provenance=np.array(about))
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote, or a pytorch-fid style file, whose provenance is then unknown."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name in ("mu", "sigma", "n", "provenance")}
        except FileNotFoundError:
            raise SettingError(f"evaluate.reference: {path} does not exist") from None
        except (OSError, ValueError, AttributeError, zipfile.BadZipFile, EOFError):
            raise SettingError(f"evaluate.reference: {path} is not a whole .npz of arrays (mu, sigma)") from None
        if not {"mu", "sigma"} <= arrays.keys():
            raise SettingError(f"evaluate.reference: {path} lacks the arrays mu and sigma")
        mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise SettingError(f"evaluate.reference: {path}: mu {mean.shape} and sigma {covariance.shape} do not fit")
        n = int(arrays["n"]) if "n" in arrays and arrays["n"] > 0 else None
        about = json.loads(str(arrays["provenance"])) if "provenance" in arrays else {}
        return cls(mean, covariance, n, Provenance.from_dict(about))
