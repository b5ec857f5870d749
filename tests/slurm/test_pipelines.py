"""What a pipeline or an ablation asks SLURM for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mavil.pipelines.reading import PlanError
from slurm.pipelines import holds_several, load_stages
from tests.slurm.conftest import Desk

ABLATION = """
recipe: tiny.yaml
out: there
seeds: [0, 1]
resources: {partition: main, tasks_per_node: 2}
variants:
  late: {changes: {task.weights: "{early}"}}
  early: {changes: {steps: 2, seconds: 0}}
measure: {probes: [label], within: [speaker]}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("name: a\n")


def test_resources_of_a_stage_come_over_those_of_all_as_a_profile_has_them() -> None:
    Path("p.yaml").write_text(
        "{resources: {nodes: 4, time: 60}, stages: {x: {recipe: a.yaml}, y: {recipe: a.yaml, resources: {nodes: 1}}}}"
    )
    assert [stage.resources for stage in load_stages(Path("p.yaml"))] == [
        {"nodes": 4, "time": "60"},
        {"nodes": 1, "time": "60"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "stages: {x: {recipe: a.yaml, resources: {node: 1}}}",
        "{resources: {node: 1}, stages: {x: {recipe: a.yaml}}}",
        "{resources: {node: 1}, recipe: a.yaml, variants: {x: {}}}",
    ],
)
def test_a_resource_no_profile_has_is_refused(text: str) -> None:
    Path("p.yaml").write_text(text)
    with pytest.raises(PlanError, match=r"p\.yaml: stage x: resources: no setting 'node': did you mean nodes\?"):
        load_stages(Path("p.yaml"))


def test_a_recipe_holds_one_run() -> None:
    assert not holds_several(Path("a.yaml"))
    Path("b.yaml").write_text("{recipe: a.yaml, grid: {seed: [0]}}")
    assert holds_several(Path("b.yaml"))


def test_an_ablation_is_an_array_for_each_variant_and_a_table_after_any_end(lonely_desk: Desk) -> None:
    (lonely_desk.folder / "ablation.yaml").write_text(ABLATION)
    answer = lonely_desk.submit("ablation.yaml", "--dry-run")
    assert answer.code == 0, answer.err
    early, late, table = answer.out.split("### ")[1:]
    assert re.search(r"#SBATCH --array=0-1%\d+", early)
    assert "--dependency" not in early
    assert "tiny.yaml steps=2 seconds=0 name=ablation-early-seed_1 seed=1 --out there/early/seed_1 --resume" in early
    # Seed 1 of "late" begins from seed 1 of "early", whatever has become of seed 0.
    assert "aftercorr:<early>" in late
    assert "task.weights=there/early/seed_1 name=ablation-late-seed_1 seed=1" in late
    assert "afterany:<early>:<late>" in table
    assert "#SBATCH --ntasks-per-node=1" in table
    assert "-m mavil ablate ablation.yaml --table --out there --seeds 0,1\n" in table


def test_one_seed_is_no_array_and_waits_for_the_whole_run(lonely_desk: Desk) -> None:
    (lonely_desk.folder / "ablation.yaml").write_text(ABLATION.replace("[0, 1]", "[3]"))
    answer = lonely_desk.submit("ablation.yaml", "--dry-run")
    assert "--array" not in answer.out
    assert "afterok:<early>" in answer.out


def test_debug_runs_an_ablation_here_and_local_says_what_does(lonely_desk: Desk) -> None:
    (lonely_desk.folder / "ablation.yaml").write_text(ABLATION.replace('"{early}"', '"{early}", seconds: 0, steps: 1'))
    options = ("--tasks-per-node", 1, "--executor")
    done = lonely_desk.submit("ablation.yaml", *options, "debug")
    assert done.code == 0, done.err
    assert "ran ablate ablation.yaml --table --out there --seeds 0,1" in done.out
    assert [lonely_desk.steps(f"there/{run}") for run in ("early/seed_1", "late/seed_0")] == [[1, 2], [1]]
    refused = lonely_desk.submit("ablation.yaml", "--resume", *options, "local")
    assert "start them with mavil pipeline or mavil ablate" in refused.err


@pytest.mark.slow
def test_on_a_real_slurm_a_seed_waits_for_its_own_and_the_table_for_all(desk: Desk) -> None:
    """Seed 0 of "early" is a mistake: its follower never starts, seed 1 goes its way, and the table is made all the same."""
    variants = "{early: {changes: {steps: 2, bad_seed: 0}}, late: {changes: {steps: 3, weights: '{early}'}}}"
    text = (
        f"{{recipe: tiny.yaml, out: ablation, seeds: [0, 1], resources: {{tasks_per_node: 1}}, variants: {variants}}}"
    )
    (desk.folder / "ablation.yaml").write_text(text)
    jobs = desk.submit("ablation.yaml", "--time", 5).jobs
    assert len(jobs) == 5
    early, late, table = (jobs[i].partition("_")[0] for i in (0, 2, 4))
    states = desk.wait(*jobs)
    assert states == {
        f"{early}_0": "FAILED",
        f"{early}_1": "COMPLETED",
        f"{late}_0": "CANCELLED",
        f"{late}_1": "COMPLETED",
        table: "COMPLETED",
    }
    assert desk.steps("ablation/late/seed_1") == [1, 2, 3]
    assert "ran ablate ablation.yaml --table --out ablation --seeds 0,1" in desk.logs()
