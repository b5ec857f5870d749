"""Files of an evaluation folder: always whole, whoever reads them and whenever the power fails."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mavil.atomic_files import write_text


def write_json(path: Path, value: Any) -> None:
    """Replace a file by this JSON, whole at any moment; not-a-number becomes ``null``, which every reader of JSON takes."""
    write_text(path, json.dumps(_plain(value), indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object written before; ``None`` where there is none or it is damaged, which means: make it again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def digest(*parts: object) -> str:
    """Sixteen hexadecimal digits that change with any of the parts (their JSON text)."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value
