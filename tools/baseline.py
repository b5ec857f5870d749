"""Plain opponents of a recipe on the same clips, and the splits of the real clips: ``python tools/baseline.py --help``.

The work is in ``tools/baselines``.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there, for ``tools`` to be found from anywhere.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tools.baselines.command import main

    main()
