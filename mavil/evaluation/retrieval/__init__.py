"""Retrieval between modalities: from the sound of a clip to its picture and back, in a gallery of clips.

:mod:`~mavil.evaluation.retrieval.galleries` says which clips are searched, :mod:`~mavil.evaluation.retrieval.standings` where
the right answer of each query stands, :mod:`~mavil.evaluation.retrieval.class_precision` how well clips of the same class are
found, :mod:`~mavil.evaluation.retrieval.result` makes numbers of it. Search without a right answer is
:mod:`mavil.evaluation.nearest`.
"""

from mavil.evaluation.retrieval.result import RECALL_AT, RetrievalResult, both_directions, retrieval_metrics
from mavil.evaluation.retrieval.standings import Standings, compute_standings

__all__ = ["RECALL_AT", "RetrievalResult", "Standings", "both_directions", "compute_standings", "retrieval_metrics"]
