"""Measure how fast data come and steps go: ``python tools/benchmark.py --help``. The work is in ``tools/benchmarks``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there, for ``tools`` to be found from anywhere.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tools.benchmarks.command import main

    main()
