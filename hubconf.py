"""For ``torch.hub.load("OWNER/REPOSITORY", "mavil", "PATH_OR_HUB_ID")``: the model of a run, an export or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mavil.embedder.embedder import Embedder

dependencies = ["torch", "timm", "torchaudio", "av", "pydantic", "yaml", "safetensors", "huggingface_hub"]
"""What torch.hub looks for before it runs anything here; requirements.txt has the versions."""


def mavil(model: str | Path, **options: Any) -> Embedder:
    """The encoders of ``model``, ready to embed files and tensors; arguments as of ``mavil.load``.

    ``model`` is a run folder, an exported folder, a public checkpoint or an id on the Hub. It cannot be called ``source``:
    that word is torch.hub's own.
    """
    from mavil import load

    return load(model, **options)
