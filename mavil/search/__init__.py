"""Search in stored embeddings: the clips that fit a sound or a film, with the times at which they do.

:mod:`~mavil.search.index` opens a folder that ``mavil embed`` wrote, :mod:`~mavil.search.faiss_files` adds FAISS to it,
:mod:`~mavil.search.queries` turns a media file into embeddings, :mod:`~mavil.search.matching` merges windows into clips, and
:mod:`~mavil.search.source_media` finds the bytes of a clip again.
"""

from __future__ import annotations
