"""Every recipe that a person starts from opens with what it is for, how to run it, and whose number to expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mavil.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path for room in ("finetune", "pretrain", "probe") for path in (ROOT / "configs" / room).glob("*.yaml")
)
FIELDS = ("Hardware", "Time", "Expected", "Measured by this project")
COMMAND = re.compile(r"#   (?:torchrun .*-m )?mavil \S+ .*")
METRIC = re.compile(r"accuracy|mean average precision|R@1|depends on the clips")
SOURCE = re.compile(r"\[[^\]]+\]")


def problem_of(text: str) -> str | None:
    """What is wrong with the comment that a recipe opens with: purpose, commands, then the four fields in order."""
    lines = re.split(r"\n(?!#)", text)[0].splitlines()
    commands = [number for number, line in enumerate(lines) if COMMAND.fullmatch(line)]
    if not commands or commands[0] == 0 or not re.match(r"# \w", lines[0]):
        return "first what the recipe is for, then a command"
    if any(line.startswith("#  ") for line in lines[: commands[0]]):
        return "something else stands between purpose and command"
    rest = lines[max(number for number in commands if number - commands[0] < len(commands)) + 1 :]
    fields = [re.match(r"# ([A-Z][\w ]*): (\S.*)", line) for line in rest[: len(FIELDS)]]
    if tuple(found[1] if found else "" for found in fields) != FIELDS:
        return f"after the commands one line each: {', '.join(FIELDS)}"
    texts = [found[2] for found in fields if found]
    if not (METRIC.search(texts[2]) or texts[2].startswith("as ")) or not SOURCE.search(texts[2]):
        return "Expected names a metric and, in brackets, whose number it is"
    measured = re.match(r"(yes|no)\b(.*)", texts[3])
    if measured is None or (measured[1] == "yes" and not re.search(r"docs/\w+\.md", measured[2])):
        return "Measured by this project: no, or yes and where"
    return None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_a_recipe_opens_with_purpose_command_cost_and_expectation(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert problem_of(text) is None
    assert f"mavil train configs/{path.parent.name}/{path.name} " in text, "the command is of another recipe"


GOOD = """# What it is.
#   mavil train configs/a.yaml data.train=shards
# Hardware: one GPU.
# Time: not known.
# Expected: accuracy 90 [paper].
# Measured by this project: no.
name: a
"""


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("# What it is.\n", ""),
        ("#   mavil train configs/a.yaml data.train=shards\n", ""),
        ("#   mavil train configs/a.yaml", "# mavil train configs/a.yaml"),
        ("# Hardware: one GPU.\n", ""),
        ("# Time: not known.\n", "# Time:\n"),
        ("# Hardware: one GPU.\n# Time: not known.\n", "# Time: not known.\n# Hardware: one GPU.\n"),
        ("accuracy 90 [paper]", "accuracy 90"),
        ("accuracy 90 [paper]", "90 [paper]"),
        ("project: no.", "project: perhaps."),
        ("project: no.", "project: yes."),
        ("# Measured by this project: no.\n", "name: b\n# Measured by this project: no.\n"),
    ],
)
def test_what_a_header_lacks_is_found(part: str, instead: str) -> None:
    assert problem_of(GOOD) is None
    assert problem_of(GOOD.replace("no.\nname", "yes, docs/experiments.md.\nname")) is None
    assert part in GOOD
    assert problem_of(GOOD.replace(part, instead)) is not None


@pytest.mark.parametrize(
    ("start", "changes"),
    [("av_digits/stage2.yaml", []), ("pretrain/mavil_stage2.yaml", ["audio={}", "video={}"])],
)
def test_own_clips_can_begin_with_the_runs_that_the_recipe_names(start: str, changes: list[str]) -> None:
    before = load_recipe(ROOT / "configs" / start)
    recipe = load_recipe(ROOT / "configs/finetune/custom_av.yaml", changes)
    assert f"runs/{before.name} " in (ROOT / "configs/finetune/custom_av.yaml").read_text(encoding="utf-8")
    for modality in ("audio", "video"):
        ours, theirs = recipe.branch(modality), before.branch(modality)
        assert ours is not None
        assert theirs is not None
        assert (ours.encoder, ours.grid(), ours.seconds) == (theirs.encoder, theirs.grid(), theirs.seconds)
    assert recipe.fusion == before.fusion


def test_fine_tuning_of_mavil_takes_the_sizes_of_its_pre_training() -> None:
    """Their recipes write the sizes down: a base of a base is one level too many."""
    before = load_recipe(ROOT / "configs/pretrain/mavil_stage2.yaml")
    for path in (ROOT / "configs/finetune").glob("mavil_*.yaml"):
        recipe = load_recipe(path)
        for modality in ("audio", "video"):
            ours, theirs = recipe.branch(modality), before.branch(modality)
            assert ours is not None
            assert theirs is not None
            assert (ours.encoder, ours.grid(), ours.seconds) == (theirs.encoder, theirs.grid(), theirs.seconds)
        assert recipe.name == path.stem
        assert recipe.fusion is not None
        assert before.fusion is not None
        assert recipe.fusion.depth == before.fusion.depth + 1
        assert recipe.task.weights == f"runs/{before.name}"
        assert list(recipe.modalities) == {"both": ["audio", "video"]}.get(
            path.stem.split("_")[-1], [path.stem.split("_")[-1]]
        )
