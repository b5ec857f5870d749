"""Who reads which shard, at any size, without a cluster: ``python tools/simulate_shards.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there, for ``tools`` to be found from anywhere.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tools.scaling.simulation import main

    main()
