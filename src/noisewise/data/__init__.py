"""Images from a folder, IDX, parquet or scikit-learn, as uint8 with labels."""

from __future__ import annotations

from noisewise.data.images import Dataset, Images
from noisewise.data.load import load_data
from noisewise.data.settings import DataSettings, DigitsSettings, FolderSettings, IdxSettings, ParquetSettings

__all__ = [
    "DataSettings",
    "Dataset",
    "DigitsSettings",
    "FolderSettings",
    "IdxSettings",
    "Images",
    "ParquetSettings",
    "load_data",
]
