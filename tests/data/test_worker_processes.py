"""What worker processes find around them when they are started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mavil.data.worker_processes import LONGEST_SOCKET_FOLDER

ROOT = str(Path(__file__).parents[2])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot be told to leave the working folder out")
def test_files_in_the_working_folder_are_no_modules_of_the_workers(tmp_path: Path) -> None:
    here, program = tmp_path / "here", tmp_path / "there" / "program.py"
    here.mkdir()
    program.parent.mkdir()
    for name in ("queue", "av", "signal"):
        (here / f"{name}.py").write_text("raise SystemExit('a file of somebody else')")
    program.write_text(
        f"""
import sys
sys.path.insert(0, {ROOT!r})
from mavil.data.isolation import map_isolated
from mavil.data.sources.recordings import recording_of
if __name__ == "__main__":
    found = map_isolated(recording_of, ["a/b.wav"], workers=1, seconds_per_item=60, description="", show_progress=False)
    print([outcome.value for outcome in found])
"""
    )
    done = subprocess.run([sys.executable, str(program)], cwd=here, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("['b']\n", "")


TENSORS = """
import sys, tempfile
sys.path.insert(0, {root!r})
import torch
from multiprocessing.util import get_temp_dir
from torch.utils.data import DataLoader
from mavil.data.worker_processes import worker_context
if __name__ == "__main__":
    rows = torch.arange(6.0).reshape(3, 2)
    loader = DataLoader(rows, batch_size=3, num_workers=1, multiprocessing_context=worker_context("mavil"))
    print(next(iter(loader)).tolist(), get_temp_dir().startswith({deep!r}), tempfile.gettempdir() == {deep!r})
    print(get_temp_dir())
"""


@pytest.mark.parametrize("too_long", [0, 1])
def test_a_deep_folder_for_temporary_files_is_too_long_for_no_socket(tmp_path: Path, too_long: int) -> None:
    """At the limit and just beyond it."""
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    deep = short / ("a" * (LONGEST_SOCKET_FOLDER + too_long - len(f"{short}/")))
    deep.mkdir()
    (tmp_path / "program.py").write_text(TENSORS.format(root=ROOT, deep=str(deep)))
    variables = os.environ | {"TMPDIR": str(deep)}
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    told, folder = done.stdout.splitlines() or ["", ""]
    assert told == f"[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] {not too_long} True", done.stderr
    assert not Path(folder).exists()
    shutil.rmtree(short)
