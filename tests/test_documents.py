"""The documents against the code: what they name must exist, what they list must be complete, their commands must be taken."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from mavil.cli import app
from mavil.commands.demo_checks import STANDARD_ERRORS, TIMES_CHANCE
from mavil.commands.demo_clips import NUM_GALLERY, NUM_TRAIN
from mavil.commands.errors import EXIT_CHECKS_FAILED, EXIT_CODES
from mavil.config import Recipe
from mavil.config.data import Data
from mavil.data.shards.selection import CAUSES
from mavil.data.sources.read import FORMATS
from mavil.engine.process.watchdog import EXIT_HUNG
from mavil.engine.run.folder import CHANGEABLE
from mavil.recipe import OTHER_SPELLINGS, load_recipe, setting_paths
from tools import fuzz_media, replay_step
from tools.baselines.command import app as baseline_app
from tools.benchmarks.command import app as benchmark_app
from tools.downloads.causes import CAUSES as DOWNLOAD_CAUSES
from tools.downloads.causes import PERMANENT
from tools.downloads.command import app as download_app
from tools.parity.command import check_parity
from tools.scaling.command import app as scale_app
from tools.scaling.simulation import app as simulation_app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "configs/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
RECIPES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "ablations"]
SOURCES = sorted(path for room in ("mavil", "tools") for path in (ROOT / room).rglob("*.py"))
SETTINGS = {*setting_paths(), *OTHER_SPELLINGS}
GROUPS = sorted(path for path in Recipe.model_fields if any(p.startswith(f"{path}.") for p in SETTINGS))

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?<![\w./-])((?:mavil|tools|configs|docs|tests|\.ci)/(?:[\w./-]*[\w/])?)(?:::([\w.]+))?")
SETTING = re.compile(rf"((?:{'|'.join(GROUPS)})(?:\.\w+)+)(?:=.*)?")
FOREIGN_OPTIONS = {"--help", "--runslow"}


class Text(NamedTuple):
    """A document taken apart: ``prose`` outside of code blocks, and the blocks as (language, content)."""

    prose: str
    blocks: list[tuple[str, str]]


@functools.cache
def text_of(document: Path) -> Text:
    prose, blocks = [], []
    for number, part in enumerate(document.read_text(encoding="utf-8").split("```")):
        if number % 2:
            language, _, content = part.partition("\n")
            blocks.append((language.strip(), content))
        else:
            prose.append(part)
    return Text("\n".join(prose), blocks)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of_code(document: Path) -> Iterator[str]:
    """Whole command lines: of code blocks without a language, or of the comments of a recipe."""
    if document.suffix == ".yaml":
        for line in document.read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                yield line[1:].strip()
        return
    for language, content in text_of(document).blocks:
        if language in ("", "bash", "console"):
            yield from (line.strip().removeprefix("$ ") for line in content.replace("\\\n", " ").splitlines())


def words_after_mavil(line: str) -> list[str] | None:
    """The arguments of ``mavil`` in a command line, also when torchrun starts it; ``None`` if it runs something else."""
    if re.match(r"(\S*/)?mavil\s", line):
        return shlex.split(line)[1:]
    if re.match(r"(torchrun|\S*python\S*)\s.*-m mavil\s", line):
        words = shlex.split(line)
        return words[words.index("mavil") + 1 :]
    return None


def command_alone(main: Callable[..., None]) -> Any:
    """What ``typer.run`` would make of a function."""
    alone = typer.Typer()
    alone.command()(main)
    return typer.main.get_command(alone)


TOOLS = {
    "baseline": typer.main.get_command(baseline_app),
    "download": typer.main.get_command(download_app),
    "benchmark": typer.main.get_command(benchmark_app),
    "check_parity": command_alone(check_parity),
    "fuzz_media": command_alone(fuzz_media.main),
    "replay_step": command_alone(replay_step.main),
    "scale": typer.main.get_command(scale_app),
    "simulate_shards": typer.main.get_command(simulation_app),
}


def tool_and_words(line: str) -> tuple[str, list[str]] | None:
    """The tool that a command line runs, also inside a loop of the shell, and its arguments; ``None`` if it runs none."""
    match = re.search(r"\bpython tools/(\w+)\.py\b([^;]*)", line)
    return (match[1], shlex.split(match[2])) if match else None


COMMANDS = sorted(
    {
        (named(document), line)
        for document in [*DOCUMENTS, *RECIPES]
        for line in lines_of_code(document)
        if words_after_mavil(line) is not None
    }
)


TOOL_COMMANDS = sorted(
    {(named(document), line) for document in DOCUMENTS for line in lines_of_code(document) if tool_and_words(line)}
)


def command_of(words: list[str], command: Any = None) -> tuple[Any, list[str]]:
    """The command that the first words name, of ``mavil`` or of a tool, and the words left over."""
    command = command or typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        known = sorted(command.commands)
        assert rest, f"a verb is missing, one of {known}"
        assert rest[0] in known, f"{rest[0]!r} is no verb; there are {known}"
        command = command.commands[rest.pop(0)]
    return command, rest


def all_options(command: Any) -> set[str]:
    if hasattr(command, "commands"):
        return set().union(*(all_options(inner) for inner in command.commands.values()))
    return {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("-")
    }


def check_changes(recipe: str, changes: list[str]) -> None:
    """Of a recipe that ships the changed values are read as well; of others only the names can be."""
    for change in changes:
        key, separator, _ = change.partition("=")
        assert separator, f"{change!r} changes nothing"
        assert key in SETTINGS, f"{key} is not a setting"
    if recipe.startswith("configs/"):
        load_recipe(ROOT / recipe, changes)


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_a_command_is_one_that_the_program_takes(document: str, line: str) -> None:
    words = words_after_mavil(line)
    assert words is not None
    command, rest = command_of(words)
    # It reads the words as for a run, and calls nothing: unknown options, missing arguments and wrong types raise here.
    given = command.make_context(command.name, [word for word in rest if word != "--help"]).params
    if "changes" in given:
        check_changes(str(given.get("recipe_path", "")), given["changes"] or [])


@pytest.mark.parametrize(("document", "line"), TOOL_COMMANDS)
def test_a_command_is_one_that_a_tool_takes(
    document: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()  # the reader's own
    monkeypatch.chdir(tmp_path)
    found = tool_and_words(line)
    assert found is not None
    name, words = found
    command, rest = command_of(words, TOOLS[name])
    command.make_context(command.name, [word for word in rest if word != "--help"])


def test_there_are_commands_to_check() -> None:
    """The test above would be silent if the documents were written in a way that it does not find commands in."""
    assert len(COMMANDS) > 20
    verbs = {
        tuple(words[: 2 if words[0] == "shards" else 1]) for _, line in COMMANDS if (words := words_after_mavil(line))
    }
    wanted = {
        ("shards", "make"),
        ("shards", "check"),
        ("shards", "stats"),
        ("train",),
        ("evaluate",),
        ("retrieve",),
        ("inspect",),
        ("demo",),
        ("pipeline",),
        ("ablate",),
    }
    assert verbs >= wanted
    tools = {found[0] for _, line in TOOL_COMMANDS if (found := tool_and_words(line))}
    assert tools == set(TOOLS) == {path.stem for path in (ROOT / "tools").glob("*.py")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_settings_and_options_in_a_sentence_exist(document: Path) -> None:
    options = all_options(typer.main.get_command(app)).union(FOREIGN_OPTIONS, *map(all_options, TOOLS.values()))
    for span in SPAN.findall(text_of(document).prose):
        if found := tool_and_words(span):
            command, rest = command_of(found[1], TOOLS[found[0]]) if found[1] else (TOOLS[found[0]], [])
            assert not {word for word in rest if word.startswith("-")} - all_options(command), span
        words = words_after_mavil(f"{span} ")
        if words:
            command, rest = command_of(words)
            assert not {word for word in rest if word.startswith("-")} - all_options(command), span
            for word in rest:
                if "=" in word:
                    assert word.partition("=")[0] in SETTINGS, span
        if span.startswith("--"):
            assert span.split()[0] in options, span
        if match := SETTING.fullmatch(span):
            assert match[1] in SETTINGS, span


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_make_is_asked_for_what_it_has(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    spans = [span for span in SPAN.findall(text_of(document).prose) if span.startswith("make ")]
    for line in [*spans, *(line for line in lines_of_code(document) if line.startswith("make "))]:
        for word in shlex.split(line)[1:]:
            name, separator, _ = word.partition("=")
            assert f"$({name})" in makefile if separator else name in targets, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(text_of(document).prose):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(path).prose, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.mark.parametrize("document", [*DOCUMENTS, *RECIPES], ids=named)
def test_files_and_functions_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".md":
        # YAML blocks show recipes that somebody might write.
        text = "\n".join(
            [text_of(document).prose, *(c for language, c in text_of(document).blocks if language != "yaml")]
        )
    for name, member in PATH.findall(text):
        assert (ROOT / name).exists(), name
        if member:
            assert member in names_in(ROOT / name), f"{name} has no {member}"


@functools.cache
def names_in(source: Path) -> set[str]:
    """What a module defines: functions, classes, methods as ``Class.method``."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")

    collect(ast.parse(source.read_text(encoding="utf-8")).body, "")
    return found


def test_documents_that_the_code_sends_people_to_exist() -> None:
    for source in SOURCES:
        for name in re.findall(r"\b((?:docs|configs)/[\w/]+\.(?:md|yaml))", source.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{named(source)} names {name}"


def test_every_recipe_is_in_the_table() -> None:
    table = {
        target for target in LINK.findall(text_of(ROOT / "configs" / "README.md").prose) if target.endswith(".yaml")
    }
    assert table == {path.relative_to(ROOT / "configs").as_posix() for path in RECIPES}


def rows_of(text: str) -> Iterator[list[str]]:
    """The cells of every table row."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_lengths_in_the_table_of_recipes_are_theirs() -> None:
    for row in rows_of(text_of(ROOT / "configs" / "README.md").prose):
        for name in LINK.findall(row[0]):
            length = str(load_recipe(ROOT / "configs" / name).schedule.length)
            assert length in row[4], f"{name} trains for {length}"


def test_numbers_of_the_tiny_recipes_are_theirs() -> None:
    """Writing the table's values over a recipe must change nothing."""
    table = text_of(ROOT / "docs" / "deviations.md").prose.partition("## The tiny recipes")[2]
    rows = [row for row in rows_of(table) if SPAN.match(row[0])]
    assert len(rows) > 5
    for row in rows:
        names = SPAN.findall(row[0])
        for cell, recipe in ((row[1], "pretrain/mavil_stage1.yaml"), (row[2], "tiny/stage1.yaml")):
            values = [cell] if len(names) == 1 else cell.split(", ")
            changes = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
            path = ROOT / "configs" / recipe
            assert load_recipe(path, changes) == load_recipe(path), changes


def test_what_training_md_lists_is_what_the_code_has() -> None:
    prose = text_of(ROOT / "docs" / "training.md").prose
    changeable = prose.partition("Settings must be the same")[2].partition("The number of ranks")[0]
    assert {span for span in SPAN.findall(changeable) if SETTING.fullmatch(span)} == CHANGEABLE
    codes = prose.partition("## Signals and exit codes")[2].partition("\n## ")[0]
    listed = {int(row[0]) for row in rows_of(codes) if row[0].isdigit()}
    assert listed == {0, 1, EXIT_CHECKS_FAILED, EXIT_HUNG, *EXIT_CODES.values()}


def section_of(heading: str) -> str:
    """A section of docs/data.md, without its code blocks."""
    prose = text_of(ROOT / "docs" / "data.md").prose
    level = heading.partition(" ")[0]
    assert f"\n{heading}\n" in prose, heading
    return re.split(rf"\n#{{2,{len(level)}}} ", prose.partition(f"\n{heading}\n")[2])[0]


def first_cells(section: str) -> set[str]:
    return {span for row in rows_of(section) for span in SPAN.findall(row[0])}


def test_what_data_md_lists_is_what_the_code_has() -> None:
    assert first_cells(section_of("## Sources").partition("\n### ")[0]) == {"--format", *FORMATS} - {"auto"}
    causes = first_cells(section_of("## Reports and causes").partition("| cause |")[2])
    assert causes == {*CAUSES, "empty_span"}
    make, _ = command_of(["shards", "make"])
    assert first_cells(section_of("## Options of mavil shards make")) == all_options(make) - {"--help"}
    rows = [row for row in rows_of(section_of("## Downloads")) if len(row) == 3 and row[1] in ("yes", "no")]
    tried_again = {cause: row[1] == "yes" for row in rows for cause in SPAN.findall(row[0])}
    assert tried_again == {cause: cause not in PERMANENT for cause in DOWNLOAD_CAUSES if cause != "disk_full"}


def test_every_setting_of_the_data_is_explained() -> None:
    prose = text_of(ROOT / "docs" / "data.md").prose
    wanted = {name for name in SETTINGS if name.startswith("data.")}
    assert len(wanted) > len(Data.model_fields)
    assert not {name for name in wanted if f"`{name}" not in prose and f" {name}=" not in prose}


def test_sizes_of_the_demo_are_the_codes() -> None:
    assert f"{NUM_TRAIN + NUM_GALLERY:,} synthetic clips" in (ROOT / "README.md").read_text(encoding="utf-8")
    evaluation = " ".join((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    assert f"{NUM_TRAIN:,} synthetic training clips and a gallery of {NUM_GALLERY}" in evaluation
    assert f"at least {TIMES_CHANCE} x chance" in evaluation
    assert f"more than {STANDARD_ERRORS:g} standard errors" in evaluation


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_recipes_shown_in_a_document_can_be_read(document: Path, tmp_path: Path) -> None:
    """Their first line says where they would lie, so that ``base`` can be found."""
    for language, content in text_of(document).blocks:
        if language == "yaml":
            place = (ROOT / content.splitlines()[0].removeprefix("# ")).parent
            base = re.search(r"^base: *(\S+)", content, re.MULTILINE)
            if base:
                content = content.replace(base[0], f"base: {(place / base[1]).resolve()}")
            recipe = tmp_path / "shown.yaml"
            recipe.write_text(content, encoding="utf-8")
            load_recipe(recipe)
