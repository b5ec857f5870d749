"""Compare our models with numbers of the originals: ``python tools/check_parity.py --help``. The work is in ``tools/parity``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there, for ``tools`` to be found from anywhere.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tools.parity.command import main

    main()
