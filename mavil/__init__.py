"""MAViL in the open: masked audio-video learning, from media files to embeddings.

::

    import mavil
    model = mavil.load("runs/mine")
    embedding = model.embed_audio("sound.wav")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mavil.embedder.embedder import Embedder as Embedder
    from mavil.embedder.loading import load as load

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What takes torch is imported when it is first used: the version alone must not cost the seconds of that."""
    if name not in ("Embedder", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mavil.embedder.embedder import Embedder
    from mavil.embedder.loading import load

    globals().update(Embedder=Embedder, load=load)
    return globals()[name]
