"""Stands in for ``python -m mavil`` where a test is about the job and not about training: it starts in 30 ms.

It keeps to the same rules: a line of metrics for each step, a checkpoint folder every five and when it is told to stop, exit
code 75 then, and ``--resume`` goes on from the newest. ``KEY=VALUE`` says what goes wrong.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

verb, *rest = sys.argv[1:]
settings = dict(argument.split("=", 1) for argument in rest if "=" in argument)
rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
stops: list[int] = []


def save(run: Path, step: int) -> None:
    if rank == 0 and "checkpointless" not in settings:
        (run / f"checkpoints/step_{step:08d}").mkdir(parents=True, exist_ok=True)


def train(run: Path) -> None:
    if settings.get("bad_seed") == settings.get("seed", "none"):
        sys.exit(2)
    first = max((int(path.name[5:]) for path in run.glob("checkpoints/step_*")), default=0)
    num_steps = int(settings.get("steps", "10"))
    for step in range(first + 1, num_steps + 1):
        time.sleep(float(settings.get("seconds", "0.1")))
        # Rank 1 misbehaves: what rank 0 decides by itself would be easier.
        if rank == 1 and settings.get("die_at") == str(step) and not (run / "died").exists():
            if "once" in settings:
                (run / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and settings.get("exit_at") == str(step):
            sys.exit(int(settings["exit"]))
        if stops and "deaf" not in settings:
            save(run, step - 1)
            sys.exit(75)
        if rank == 0:
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "metrics": {"loss/total": 1 / step}}) + "\n")
        if step % 5 == 0:
            save(run, step)
    save(run, num_steps)


if __name__ == "__main__":
    if "--check" in rest or verb == "inspect":
        if "wrong" in settings:
            sys.exit("mavil: the shards are not there")
        sys.exit(0)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: stops.append(number))
    if verb == "train":
        train(Path(rest[rest.index("--out") + 1]))
    else:
        print("ran", verb, *rest)
