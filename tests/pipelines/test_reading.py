"""The room that a submission host imports, and how values are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mavil.pipelines.reading import as_typed

ROOT = Path(__file__).parents[2]


def test_nothing_heavy_is_imported() -> None:
    """A login node has yaml, and perhaps no torch."""
    rooms = sorted(path.stem for path in (ROOT / "mavil" / "pipelines").glob("*.py"))
    imports = "; ".join(f"import mavil.pipelines.{room}" for room in rooms if room != "__init__")
    program = f"import sys; {imports}; print(sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(eval(done.stdout))
    assert "yaml" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "typer", "rich", "timm"}


def test_values_are_written_as_one_would_type_them() -> None:
    values = {None: "null", True: "true", 1.5: "1.5", "1e-4": "1e-4"}
    assert {value: as_typed(value) for value in values} == values
    assert as_typed([1, 2]) == "[1, 2]"
