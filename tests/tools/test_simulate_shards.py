"""The plan of the shards, played with the real stream: that the figures are right, and that a broken plan is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mavil.data.stream import position
from mavil.data.stream.shard_set import open_shards
from mavil.structs import UserError
from tests.tools.conftest import Tool
from tools.benchmarks.start_up import write_large_set
from tools.scaling import simulation
from tools.scaling.shard_plan import Playground, Readings, Team
from tools.scaling.simulation import Findings, costs_table, simulate

ROOT = Path(__file__).parents[2]
SMALL = Team(ranks=8, workers=2, device_batch=3, shuffle_buffer=40)
SMALLER = Team(ranks=6, workers=2, device_batch=4, shuffle_buffer=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 shards of 20 clips."""
    folder = tmp_path_factory.mktemp("shards")
    write_large_set(folder, 50, 20)
    return folder


@pytest.fixture(scope="module")
def playground(folder: Path) -> Playground:
    return Playground(open_shards(folder))


@pytest.fixture
def simulate_shards(tool: Callable[[str], Tool]) -> Tool:
    return tool("simulate_shards")


def cells(rows: list[tuple[str, str]]) -> dict[str, str]:
    return dict(rows)


def test_readings_are_what_the_real_stream_gives(playground: Playground) -> None:
    first, second = playground.play(SMALL, epochs=2)
    reader = 5
    stream = playground.deliveries(SMALL, rank=2).stream(worker=1)
    for epoch, reading in enumerate((first, second)):
        start = reading.counts[:reader].sum()
        own = reading.clips[start : start + reading.counts[reader]]
        named = []
        for raw in stream.read(epoch):
            if raw.epoch > epoch:
                break
            named.append(20 * int(raw.shard.removesuffix(".tar")) + int(raw.key.removeprefix("clip ")))
        assert own.tolist() == named
    assert first.clips.tolist() != second.clips.tolist()


def test_figures_against_slow_loops() -> None:
    rng = np.random.default_rng(0)
    team = Team(ranks=3, workers=2, device_batch=4, shuffle_buffer=1)
    sizes = np.array([7, 1, 12, 10])
    reading = Readings(team, rng.permutation(30), np.array([5, 5, 5, 5, 6, 4]), sizes)
    shard_of = np.repeat(np.arange(4), sizes)
    taken = np.split(reading.clips, np.cumsum(reading.counts)[:-1])
    assert reading.shards.tolist() == shard_of[reading.clips].tolist()
    for group in (1, 2, 6):
        wanted = {(r // group, int(shard_of[clip])) for r, clips in enumerate(taken) for clip in clips}
        assert {tuple(pair) for pair in reading.pairs(group).tolist()} == wanted
    for turn in (0, 3):
        meeting: dict[int, set[int]] = {}
        for reader, clips in enumerate(taken):
            for clip in clips[turn : turn + 4]:
                meeting.setdefault(int(shard_of[clip]), set()).add(reader // 2)
        assert sorted(reading.ranks_per_shard_at(turn)) == sorted(len(ranks) for ranks in meeting.values())


def test_steps_are_handed_over_in_turn(playground: Playground) -> None:
    """Seven steps of two workers: the first has had four turns."""
    before, places = playground.play_steps(SMALL, steps=7)
    assert before.counts.tolist() == [4 * 3, 3 * 3] * 8
    assert [place["next_worker"] for place in places] == [1] * 8
    assert {worker["consumed"] for place in places for worker in place["workers"]} == {9, 12}
    epoch = playground.play(SMALL)[0]
    start = epoch.counts[:3].sum()
    assert before.clips[12 + 9 + 12 :][:9].tolist() == epoch.clips[start : start + 9].tolist()


def test_each_clip_comes_once_also_when_ranks_go_away(playground: Playground) -> None:
    findings = Findings()
    simulate(findings, playground, SMALL, SMALLER, epochs=2, node_ranks=4)
    assert not findings.wrong
    found = cells(findings.rows)
    assert found["clips per worker"] == "62 to 63"
    assert found["clips per rank"] == "125"
    assert found["steps per epoch, the same on every rank"] == "41"
    assert found["8 to 6 ranks after step 20, that epoch: clips lost, clips twice"] == "0, 0"
    assert found["left of that epoch for each reader"] == "43 to 44"  # (1000 - 20 x 24) / 12


@pytest.mark.parametrize("harm", ["lost", "twice"])
def test_a_broken_plan_is_noticed(harm: str, playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    right = position.part_of

    def wrong(num_items: int, reader: int, num_readers: int) -> slice:
        part = right(num_items, reader, num_readers)
        if reader != 3:
            return part
        return slice(part.start + 1, part.stop) if harm == "lost" else slice(part.start - 1, part.stop)

    monkeypatch.setattr(position, "part_of", wrong)
    findings = Findings()
    simulate(findings, playground, SMALL, None, epochs=1, node_ranks=4)
    assert findings.wrong == [f"epoch 0: {int(harm == 'lost')} clips lost, {int(harm == 'twice')} more than once"]


def test_a_forgotten_history_is_noticed(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    right = position.unseen_places
    monkeypatch.setattr(position, "unseen_places", lambda n, seed, epoch, history: right(n, seed, epoch, ()))
    findings = Findings()
    simulate(findings, playground, SMALL, SMALLER, epochs=1, node_ranks=4)
    assert findings.wrong == ["8 to 6 ranks after step 20, that epoch: 0 clips lost, 480 more than once"]


def test_a_workers_costs_are_measured_in_its_own_process(folder: Path) -> None:
    rows = cells(list(costs_table(folder, SMALL).rows))
    assert float(rows["clips.npy on disk, MiB"]) == pytest.approx(1000 * 36 / 2**20, rel=0.05)
    times = {name: float(value) for name, value in rows.items() if name.endswith(", CPU s")}
    assert len(times) == 6
    assert all(0 < seconds < 5 for seconds in times.values())
    assert float(rows["imports, MiB"].replace(",", "")) > 50


def test_on_the_command_line(simulate_shards: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--ranks", "4", "--workers", "2", "--shards", "8", "--clips-per-shard", "10", "--no-costs", "--markdown"]
    code, out, _ = simulate_shards(*small, "--epochs", "1")
    assert code == 0
    assert "| epoch 0: clips lost, clips twice | 0, 0 |" in out
    assert "4 to 3 ranks after step 3" in out
    monkeypatch.setattr(
        simulation, "simulate", lambda findings, *_: findings.check_once("epoch 0", np.array([0, 2, 1]))
    )
    code, _, err = simulate_shards(*small)
    assert code == 1
    assert "1 clips lost, 1 more than once" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "8", "--resume-ranks", "5"], "does not divide the global batch of 24"),
        (["--ranks", "64", "--shards", "2"], "too few for 512 readers"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_line(arguments: list[str], message: str, simulate_shards: Tool) -> None:
    code, _, err = simulate_shards(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_teams_keep_the_global_batch() -> None:
    after = simulation._team_after(Team(512, 8, 3, 2000), 384)
    assert after == Team(384, 8, 4, 2000)
    assert simulation._team_after(Team(512, 8, 3, 2000), 0) is None
    with pytest.raises(UserError):
        simulation._team_after(Team(512, 8, 3, 2000), 1000)


def test_a_middling_cluster(tmp_path: Path) -> None:
    """32 ranks x 4 workers x 500 shards of 200 clips; the full size is below."""
    write_large_set(tmp_path, 500, 200)
    findings = Findings()
    team, after = Team(32, 4, 3, 2000), Team(24, 4, 4, 2000)
    simulate(findings, Playground(open_shards(tmp_path)), team, after, epochs=2, node_ranks=8)
    assert not findings.wrong
    assert cells(findings.rows)["clips per worker"] == "781 to 782"


@pytest.mark.slow
def test_the_document_has_the_figures_of_the_full_size(simulate_shards: Tool) -> None:
    """512 ranks x 8 workers x 10,000 shards: minutes. Times differ between machines and are not compared."""
    code, out, _ = simulate_shards("--markdown", "--no-costs")
    assert code == 0
    document = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    rows = [line for line in out.splitlines() if line.startswith("| ") and not line.startswith("| time of")]
    assert len(rows) > 12
    assert not [row for row in rows[2:] if row not in document]
