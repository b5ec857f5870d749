"""Profiles: what is read, what is on top of what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.pipelines.reading import PlanError
from slurm.profiles import FOLDER, Container, from_options, load_profile, minutes_of, option_types


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_that_ship_can_be_read(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile.num_ranks == profile.nodes * profile.ranks_per_node > 1


def test_later_settings_win_and_mappings_are_merged(tmp_path: Path) -> None:
    name = write(tmp_path, "{partition: gpu, nodes: 8, sbatch: {mail-type: FAIL}, container: {image: a, mounts: /x}}")
    pipeline = "p.yaml", {"nodes": 2, "sbatch": {"reservation": "mine"}}
    line = "the command line", from_options({"nodes": None, "time": "5", "container_image": "b", "account": None})
    profile = load_profile(name, pipeline, line)
    assert (profile.partition, profile.nodes, profile.time) == ("gpu", 2, "5")
    assert profile.sbatch == {"mail-type": "FAIL", "reservation": "mine"}
    assert profile.container == Container(image="b", mounts="/x")


def test_a_rank_for_each_gpu_unless_told_otherwise() -> None:
    on_top = "x", {"nodes": 3, "gpus_per_node": 4}
    assert load_profile(None, on_top).num_ranks == 12
    assert load_profile(None, on_top, ("y", {"tasks_per_node": 2})).num_ranks == 6
    assert load_profile(None).num_ranks == 1


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("04:30:00", 270),
        ("12:00:00", 720),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("1-0:30", 1470),
    ],
)
def test_times_as_slurm_writes_them(time: str, minutes: int, tmp_path: Path) -> None:
    assert minutes_of(time) == minutes
    # YAML 1.1 reads 12:00:00 as a number in base 60.
    assert load_profile(write(tmp_path, f"time: {time}")).minutes == minutes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{partion: gpu}", "no setting 'partion': did you mean partition?"),
        ("{container: {img: x}}", "container has no 'img': did you mean image?"),
        ("{container: {mounts: x}}", "the container has no image"),
        ("{nodes: two}", "nodes is 'two', it must be a whole number"),
        ("{exclusive: 1}", "exclusive is 1, it must be true or false"),
        ("{modules: cuda}", "modules is 'cuda', it must be a list of texts"),
        ("{time: soon}", "time is 'soon': SLURM writes 2-00:00:00"),
        ("{time: 1, signal_seconds: 60}", "the job would be told to stop when it starts"),
        ("[1]", "expected a mapping of settings, found list"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        load_profile(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_is_answered_with_the_nearest() -> None:
    with pytest.raises(PlanError, match="no profile 'gpu_clster': did you mean gpu_cluster"):
        load_profile("gpu_clster")
    with pytest.raises(PlanError, match="no such profile"):
        load_profile("elsewhere/mine.yaml")


def test_every_single_value_is_an_option() -> None:
    options = option_types()
    assert {"partition": str, "nodes": int, "exclusive": bool, "container_image": str}.items() <= options.items()
    assert not {"sbatch", "modules", "container"} & set(options)
