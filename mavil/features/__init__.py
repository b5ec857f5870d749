"""Features of clips from encoders as they are: of sound of any length, and one vector or all tokens per clip for probes.

:mod:`~mavil.features.timing` says where tokens lie in time, :mod:`~mavil.features.spectrograms` makes spectrograms piece by
piece, :mod:`~mavil.features.sound` encodes them, :mod:`~mavil.features.loading` finds the encoder. :mod:`mavil.hear` and
:mod:`mavil.s3prl` offer the same to two benchmarks. :mod:`~mavil.features.frozen` says what a probe looks at,
:mod:`~mavil.features.clips` computes it once for a set of shards, and :mod:`~mavil.features.cached` keeps it.
"""

from __future__ import annotations

from mavil.features.loading import load_features
from mavil.features.options import FeatureOptions
from mavil.features.sound import SoundFeatures

__all__ = ["FeatureOptions", "SoundFeatures", "load_features"]
