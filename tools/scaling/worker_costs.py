"""What one worker process pays at the start and holds in memory: measured in a process of its own.

``python -m tools.scaling.worker_costs FOLDER READERS WINDOW`` prints JSON.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path

from mavil.data.loading.continuing import describe_place
from mavil.data.loading.samples import ClipDecoder
from mavil.data.loading.workers import Deliveries, WorkerPosition
from mavil.data.stream.clips import ClipStream
from mavil.data.stream.position import Team
from mavil.data.stream.shard_set import open_shards

MIB = 2**20
PLACES = 20


def memory_mib(what: str) -> float:
    """A line of /proc/self/status in MiB: ``VmRSS`` is what the process holds now, ``VmHWM`` its highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {what}")


def measure(folder: Path, readers: int, window: int) -> dict[str, float]:
    """Seconds of processor time, which other programs do not lengthen, and MiB, by what they are for.

    The last entries are of going on amid an epoch with other readers.
    """
    found: dict[str, float] = {"imports, MiB": memory_mib("VmRSS")}
    begin = time.process_time()
    shard_set = open_shards(folder)
    found["open the set, CPU s"] = time.process_time() - begin
    decoder = ClipDecoder(None, None, seed=0, training=True)
    workers = 8
    deliveries = Deliveries(
        shard_set, decoder, 8, window, None, 1, 60.0, 0, readers // workers, [WorkerPosition()] * workers
    )
    found["sent to each worker, MiB"] = len(pickle.dumps(deliveries)) / MIB
    begin = time.process_time()
    for _ in range(PLACES):
        describe_place(deliveries, deliveries.positions, 0)
    found["place that each batch carries, CPU s"] = (time.process_time() - begin) / PLACES
    begin = time.process_time()
    stream = ClipStream(shard_set, seed=0, training=True, shuffle_buffer=window, reader=1, num_readers=readers)
    found["build the stream, CPU s"] = time.process_time() - begin
    found["order of an epoch and first clip, CPU s"] = _first_clip(stream, 0)
    found["highest so far over imports, MiB"] = memory_mib("VmHWM") - found["imports, MiB"]
    half = len(shard_set.rows()) // readers // 2
    history = (Team(window, tuple((0, half) for _ in range(readers))),)
    resumed = ClipStream(
        shard_set, seed=0, training=True, shuffle_buffer=window, reader=1, num_readers=readers, history=history
    )
    found["going on with other readers, first clip, CPU s"] = _first_clip(resumed, 0)
    found["next epoch, first clip, CPU s"] = _first_clip(resumed, 1)
    found["highest at the end over imports, MiB"] = memory_mib("VmHWM") - found["imports, MiB"]
    return found


def _first_clip(stream: ClipStream, epoch: int) -> float:
    begin = time.process_time()
    next(iter(stream.read(epoch)))
    return time.process_time() - begin


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
