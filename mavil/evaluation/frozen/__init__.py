"""Probes of frozen features: how well a small model reads classes off what an encoder gives, the encoder left as it is.

:mod:`~mavil.evaluation.frozen.labelled` holds features with their classes, :mod:`~mavil.evaluation.frozen.holding_out` takes
validation clips out of the training ones. Three kinds: :mod:`~mavil.evaluation.frozen.linear`,
:mod:`~mavil.evaluation.frozen.attentive` and :mod:`~mavil.evaluation.frozen.neighbours`.
:mod:`~mavil.evaluation.frozen.selection` chooses their settings and never sees the clips that are evaluated.

:mod:`mavil.evaluation.probing` is another thing: it asks what an embedding knows of the cues of retrieval, with scikit-learn
and a few hundred clips. Here are benchmarks of up to millions of clips, read from disk batch by batch.
"""

from __future__ import annotations
