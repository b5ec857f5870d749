"""Features of sound of any length, from the audio encoder of a run or of a public checkpoint: the room's front door.

:mod:`~mavil.features.timing` says where tokens lie in time, :mod:`~mavil.features.spectrograms` makes spectrograms piece by
piece, :mod:`~mavil.features.sound` encodes them, :mod:`~mavil.features.loading` finds the encoder. :mod:`mavil.hear` and
:mod:`mavil.s3prl` offer the same to two benchmarks.
"""

from __future__ import annotations

from mavil.features.loading import load_features
from mavil.features.options import FeatureOptions
from mavil.features.sound import SoundFeatures

__all__ = ["FeatureOptions", "SoundFeatures", "load_features"]
