"""What is decided after srun, from how the ranks ended and what SLURM says."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from slurm import requeue

STOPPED = {"code": 75, "is_stopped": True}
DONE = {"code": 0, "is_stopped": False}


def failed(code: int) -> dict[str, Any]:
    return {"code": code, "is_stopped": False}


@pytest.mark.parametrize(
    ("code", "ends", "verdict"),
    [
        (0, {0: DONE}, ("done", 0)),
        (0, {0: STOPPED}, ("stopped", 75)),
        # Asked to stop and killed too late, or while starting: it was told, so it is no crash.
        (0, {0: {"code": -9, "is_stopped": True}}, ("stopped", 75)),
        (137, {0: STOPPED, 1: failed(-9)}, ("crashed", 137)),
        (1, {0: failed(1)}, ("crashed", 1)),
        (70, {1: failed(70), 0: STOPPED}, ("crashed", 70)),
        (2, {3: failed(2)}, ("refused", 2)),
        (3, {0: failed(3)}, ("refused", 3)),
        # Ranks that lose one which refused end with 1.
        (2, {1: failed(2), 0: failed(1)}, ("refused", 2)),
        # Ranks that lose one which was killed while all were coming together take it for a mistake.
        (137, {1: failed(-9), 0: failed(2)}, ("crashed", 137)),
        # Nobody could say how it ended: srun itself failed, or rank 0's task was killed.
        (1, {}, ("crashed", 1)),
        (0, {}, ("crashed", 1)),
        (143, {0: DONE}, ("crashed", 143)),
    ],
)
def test_verdicts(code: int, ends: dict[int, dict[str, Any]], verdict: tuple[str, int]) -> None:
    assert requeue.decide(code, ends) == verdict


@pytest.fixture
def decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the file as the batch script does, with a `scontrol` that says what it is told to say."""
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    scontrol = programs / "scontrol"

    def run(
        state: str = "RUNNING", preempted: str = "None", restart: int = 0, code: int = 1, refuses: bool = False
    ) -> Any:
        scontrol.write_text(
            f"#!{sys.executable}\nimport sys\nopen({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            f"if sys.argv[1] == 'show': print('JobId=7 JobState={state} Restarts={restart} PreemptTime={preempted} X=')\n"
            f"elif {refuses}: sys.exit('Access/permission denied')\n"
        )
        scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", str(programs))
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        (tmp_path / "calls").write_text("")
        options = ["--run", str(tmp_path / "run"), "--job", "7", "--code", str(code), "--max-restarts", "2"]
        answer = requeue.main(options)
        line = json.loads((tmp_path / "run/slurm/7.history.jsonl").read_text().splitlines()[-1])
        return answer, line, "requeue 7" in (tmp_path / "calls").read_text().splitlines()

    return run


def test_a_crash_is_requeued_until_nothing_is_gained(decide: Any, tmp_path: Path) -> None:
    for restart, count in ((0, 1), (1, 2)):
        code, line, requeued = decide(restart=restart)
        assert (code, line["without_progress"], requeued) == (0, count, True)
    (tmp_path / "run/checkpoints/step_00000005").mkdir(parents=True)
    # Half-written folders have other names and are no progress.
    (tmp_path / "run/checkpoints/step_00000009.writing").mkdir(parents=True)
    code, line, requeued = decide(restart=2)
    assert (line["newest"], line["without_progress"], requeued) == ("step_00000005", 0, True)
    assert [decide(restart=3 + i)[2] for i in range(2)] == [True, True]
    code, line, requeued = decide(restart=5)
    assert (code, requeued) == (1, False)
    assert line["action"] == "not requeued: 3 starts in a row without a new checkpoint"


def test_preemption_is_not_counted(decide: Any) -> None:
    for restart in range(5):
        assert decide(restart=restart, preempted="2026-11-21T17:28:34")[2]
    assert decide(restart=5)[1]["without_progress"] == 1


def test_what_slurm_already_does_is_not_done_twice(decide: Any) -> None:
    for state in ("COMPLETING", "PENDING", "CANCELLED"):
        code, line, requeued = decide(state=state)
        assert (code, requeued) == (1, False)
        assert line["action"] == f"left to SLURM, for which the job is {state}"


def test_a_cluster_that_does_not_requeue_fails_the_job_in_its_own_words(decide: Any) -> None:
    code, line, _ = decide(refuses=True)
    assert code == 1
    assert line["action"] == "could not be requeued: Access/permission denied"


def test_ends_of_earlier_starts_do_not_count(decide: Any, tmp_path: Path) -> None:
    logs = tmp_path / "run" / "slurm"
    (logs / "7_3.ended.json").write_text(json.dumps({"restart": 0, **failed(2)}))
    (logs / "7_0.ended.json").write_text(json.dumps({"restart": 1, **DONE}))
    (logs / "77_0.ended.json").write_text(json.dumps({"restart": 1, **failed(2)}))
    assert decide(restart=1, code=0)[1]["verdict"] == "done"
    assert decide(restart=0, code=2)[1]["verdict"] == "refused"
