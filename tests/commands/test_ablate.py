"""``mavil ablate`` from outside: every variant and seed, the table, what is repeated, what is missing. Children are stand-ins."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.commands import ablate
from mavil.config import Recipe
from mavil.pipelines.ablation import Measure
from tests.commands.conftest import Outcome

Mavil = Callable[..., Outcome]

CHILD = """
import json, os, sys
from pathlib import Path
verb, *rest = sys.argv[1:]
settings = dict(word.split("=", 1) for word in rest if "=" in word)
run = Path(rest[rest.index("--out") + 1] if verb == "train" else rest[0])
with open("order", "a") as file:
    file.write(f"{verb} {run}\\n")
if (run / f"bad {verb}").exists():
    sys.exit("mavil: there is something wrong")
if verb == "train":
    (run / "settings").write_text(json.dumps(settings))
else:
    settings = json.loads((run / "settings").read_text())
    seed = int(settings["seed"])
    score = 10.0 * seed + (2 + seed if "task.weights" in settings else 0)
    (run / "measured").write_text(json.dumps({"probe/label/audio": score, "cost/clips": 8.0}))
"""
FILE = """
name: chain
recipe: a.yaml
out: there
seeds: [0, 1]
changes: {data.train: shards}
variants:
  late: {changes: {task.weights: "{base}"}}
  base: {}
baseline: base
measure: {probes: [label]}
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where ``python -m mavil`` is a stand-in, and runs are finished and measured when that says so."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "mavil").mkdir()
    (tmp_path / "mavil/__init__.py").touch()
    (tmp_path / "mavil/__main__.py").write_text(CHILD)
    (tmp_path / "a.yaml").write_text("{audio: {}, video: {}}")
    (tmp_path / "f.yaml").write_text(FILE)

    def is_finished(run: Path, recipe: Recipe) -> bool:
        assert run.name == f"seed_{recipe.seed}"
        return (run / "settings").exists()

    def stored_measurement(run: Path, wanted: Measure) -> dict[str, float] | None:
        assert wanted.probes == ("label",)
        return json.loads((run / "measured").read_text()) if (run / "measured").exists() else None

    monkeypatch.setattr(ablate, "is_finished", is_finished)
    monkeypatch.setattr(ablate, "stored_measurement", stored_measurement)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def order() -> list[str]:
    """What was started, by verb and the run's folder."""
    lines = Path("order").read_text().splitlines() if Path("order").exists() else []
    Path("order").unlink(missing_ok=True)
    return [line.replace("there/", "").replace("seed_", "") for line in lines]


EVERYTHING = [f"{verb} {run}" for verb in ("train", "measure") for run in ("base/0", "base/1", "late/0", "late/1")]


def test_every_variant_and_seed_is_trained_measured_and_in_the_table(desk: Path, mavil: Mavil) -> None:
    outcome = mavil("ablate", "f.yaml")
    assert outcome.code == 0, outcome.out + outcome.err
    assert order() == EVERYTHING
    settings = json.loads((desk / "there/late/seed_1/settings").read_text())
    assert settings["task.weights"] == "there/base/seed_1"
    stored = json.loads((desk / "there/table.json").read_text())
    assert [row["variant"] for row in stored["rows"]] == ["late", "base"]
    late = stored["rows"][0]["measures"]["probe/label/audio"]
    assert (late["mean"], late["by_seed"], late["n"]) == (7.5, {"0": 2.0, "1": 13.0}, 2)
    assert (late["difference"], late["difference_standard_error"]) == (2.5, pytest.approx(0.5))
    assert "| late | 2/2 | 7.500 ± 7.778 (+2.500 ± 0.500) |" in (desk / "there/table.md").read_text()
    assert "7.500 ± 7.778 (+2.500 ± 0.500)" in outcome.out


def test_a_second_time_only_what_lacks_is_done(desk: Path, mavil: Mavil) -> None:
    assert mavil("ablate", "f.yaml", "--seeds", "0").code == 0
    assert order() == [line for line in EVERYTHING if line.endswith("0")]
    assert mavil("ablate", "f.yaml").code == 0
    assert order() == [line for line in EVERYTHING if line.endswith("1")]
    (desk / "there/late/seed_0/measured").unlink()
    assert mavil("ablate", "f.yaml", "--table").code == 0
    assert order() == ["measure late/0"]


def test_a_failed_run_is_in_the_table_as_such(desk: Path, mavil: Mavil) -> None:
    for bad in ("base/seed_1/bad train", "late/seed_0/bad measure"):
        (desk / "there" / bad).parent.mkdir(parents=True)
        (desk / "there" / bad).touch()
    outcome = mavil("ablate", "f.yaml")
    assert outcome.code == 4
    assert order() == ["train base/0", "train base/1", "train late/0", "measure base/0", "measure late/0"]
    text = (desk / "there/table.md").read_text()
    assert "- base: seed 1: failed (exit code 1: mavil: there is something wrong)" in text
    assert (
        "seed 0: trained, but its measurement failed (exit code 1: mavil: there is something wrong), seed 1: not"
        in text
    )
    assert "| late | 0/2 | – |" in text
    assert "| base | 1/2 | 0.000 |" in text
    assert "seed 1: failed" in outcome.out


def test_only_some_variants_and_the_table_of_what_there_is(desk: Path, mavil: Mavil) -> None:
    outcome = mavil("ablate", "f.yaml", "--only", "base", "--jobs", 2)
    assert outcome.code == 0, outcome.out
    assert sorted(order()) == sorted(line for line in EVERYTHING if "base" in line)
    assert "late: seed 0: not finished, seed 1: not finished" in outcome.out
    # A job for the table alone must not call it a failure either, nor train.
    assert (mavil("ablate", "f.yaml", "--table").code, order()) == (0, [])


def test_a_dry_run_tells_the_commands_and_runs_none(desk: Path, mavil: Mavil) -> None:
    before = sorted(desk.rglob("*"))
    outcome = mavil("ablate", "f.yaml", "--dry-run")
    assert outcome.code == 0
    assert re.search(
        r"# late seed=1: to do; after base seed=1\n.*task.weights=there/base/seed_1 .*seed=1 --out", outcome.out
    )
    assert "-m mavil measure there/late/seed_1 --retrieval --probes label\n" in outcome.out
    assert sorted(desk.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("variants: {x: {}, y: {changes: {task.contras: null}}}", (), "task.contras is not a setting; did you mean"),
        ("variants: {x: {}, y: {changes: {k: '{z}'}}}", (), "depends on the unknown variant 'z'"),
        ("variants: {base: {}}", ("--only", "base", "--table"), "--table trains nothing: leave --only out"),
        ("variants: {base: {}}", ("--only", "bass"), "no variant 'bass': did you mean base?"),
        ("variants: {base: {}}", ("--seeds", "0;1"), "--seeds '0;1': whole numbers with commas"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    desk: Path, mavil: Mavil, text: str, options: tuple[str, ...], message: str
) -> None:
    (desk / "f.yaml").write_text(f"{{recipe: a.yaml, {text}}}")
    outcome = mavil("ablate", "f.yaml", *options)
    assert (outcome.code, outcome.out, order()) == (2, "", [])
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
