"""Embeddings of files, waveforms and films by any model of the project: what ``mavil.load`` gives.

:mod:`~mavil.embedder.sources` finds recipe and weights, :mod:`~mavil.embedder.network` makes of them what embeds,
:mod:`~mavil.embedder.reading` cuts clips into windows (:mod:`~mavil.embedder.windows`, :mod:`~mavil.embedder.arrays`), and
:mod:`~mavil.embedder.embedder` puts them together. :mod:`~mavil.embedder.stored` keeps embeddings on disk.
"""
