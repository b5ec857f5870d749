"""The house rules that a program can check: who imports whom, how long things are, and that every setting is read."""

from __future__ import annotations

import ast
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from mavil import config, recipe

ROOT = Path(__file__).parents[1]
LEVEL_0 = {"structs", "seeds", "config", "recipe", "distributed", "atomic_files"}
ALLOWED = {
    "structs": set[str](),
    "seeds": set[str](),
    "atomic_files": {"structs"},
    "distributed": {"structs"},  # a rank that does not come is a UserError
    "config": {"structs"},
    "recipe": {"structs", "config"},
    "pipelines": set[str](),  # nor anything that is heavy: a host from which jobs are submitted has no torch
    "data": {"structs", "seeds", "distributed", "atomic_files"},
    "models": {"structs"},
    "losses": {"structs", "distributed"},
    "engine": LEVEL_0 | {"tasks.base"},
    "evaluation": LEVEL_0 | {"tasks.base"},
    # The plan's table leaves evaluation out for tasks; it is the lower level, and a task's evaluate() needs its metrics.
    "tasks": LEVEL_0 | {"models", "losses", "evaluation"},
    # Graphs begin with raw sound: the numbers of the front ends are in data.
    "export": LEVEL_0 | {"models", "evaluation", "data"},
    "report": LEVEL_0 | {"models", "evaluation"},
    "search": LEVEL_0 | {"data", "evaluation", "embedder"},
    "serve": {"structs", "search", "report"},
    "cli": {"commands"},
    "__main__": {"cli"},
}
"""What each room may import beside itself. Below ``build`` nothing sees a config object, so the rooms of level 1 and 2 that
hold modules and functions leave it out. Rooms that are not listed (commands, tools) may import anything."""
FORBIDDEN_NAMES = {"utils", "util", "misc", "common", "helpers", "helper"}
FUNCTION_LINES, FILE_LINES, FILE_LINES_HARD = 60, 300, 400
READ_WITHIN_CONFIG = {"AudioBranch.token_order"}
"""Those that only their own group looks at: the token order decides what ``AudioBranch.grid`` returns."""


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without ``mavil.``; the package itself is the empty name."""
    found = {}
    for path in sorted((ROOT / "mavil").rglob("*.py")):
        parts = path.relative_to(ROOT / "mavil").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """What of ours a file imports, without ``mavil.``; ``from mavil.data import media`` is ``data.media``."""
    return {name.removeprefix("mavil.") for name in all_imports_of(path) if name.startswith("mavil.")}


def all_imports_of(path: Path) -> set[str]:
    """Everything a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where things come from"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def allowed_for(module: str) -> set[str] | None:
    """What a module may import, its own room included; ``None`` is anything."""
    room = module.partition(".")[0]
    if module == "tasks.base":
        return {"structs"}  # or the engine would import tasks through it
    if room not in ALLOWED:
        return None
    return ALLOWED[room] | {room} | ({"config"} if module == "models.build" else set())


def forbidden_imports(module: str, imported: set[str]) -> list[str]:
    allowed = allowed_for(module)
    if allowed is None:
        return []
    # The version number is everybody's.
    names = sorted(imported - {"__version__"})
    return [name for name in names if not any(name == room or name.startswith(f"{room}.") for room in allowed)]


def test_rooms_import_only_what_the_table_allows() -> None:
    wrong = {m: f for m, path in modules().items() if m and (f := forbidden_imports(m, imports_of(path)))}
    assert not wrong


@pytest.mark.parametrize(
    ("module", "imported", "is_wrong"),
    [
        ("models.encoder", "distributed.rank", True),
        ("models.encoder", "config.Tower", True),
        ("models.build", "config.Tower", False),
        ("data.loader", "models.tokens", True),
        ("engine.trainer", "tasks.base.Task", False),
        ("engine.trainer", "tasks.pretrain.Pretraining", True),
        ("engine.trainer", "tasks", True),
        ("engine.trainer", "engine.optim.build_optimizer", False),
        ("tasks.base", "tasks.pretrain", True),
        ("tasks.pretrain", "evaluation.retrieval", False),
        ("tasks.pretrain", "engine.trainer", True),
        ("cli", "engine.trainer", True),
        ("pipelines.running", "structs.UserError", True),
        ("pipelines.running", "pipelines.jobs.Job", False),
        ("commands.train", "models.build", False),
    ],
)
def test_the_table_tells_right_from_wrong(module: str, imported: str, is_wrong: bool) -> None:
    assert bool(forbidden_imports(module, {imported})) == is_wrong


def test_the_package_itself_imports_nothing_heavy() -> None:
    """``import mavil`` is how a program asks for the version; torch takes seconds."""
    at_import_time = [node for node in tree_of(modules()[""]).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    heavy = {"torch", "mavil", "pydantic", "timm"}
    for node in at_import_time:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        assert not heavy & {name.partition(".")[0] for name in names}


def test_slurm_jobs_run_the_command_line_only() -> None:
    """Files of several runs are read here and there alike; whatever else a job needs, its own command line finds."""
    for path in (ROOT / "slurm").glob("*.py"):
        assert not [name for name in imports_of(path) if not name.startswith("pipelines.")], path


def test_pipelines_are_read_without_anything_heavy() -> None:
    for module, path in modules().items():
        if module.partition(".")[0] == "pipelines":
            found = {name.partition(".")[0] for name in all_imports_of(path)}
            assert not found - set(sys.stdlib_module_names) - {"yaml", "mavil"}, module


def test_files_are_named_after_what_they_hold() -> None:
    everything = [*modules().values(), *(ROOT / "tools").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert not [path for path in everything if FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parts}]


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_functions_fit_on_a_screen() -> None:
    too_long = {
        f"{module}.{name}": lines
        for module, path in modules().items()
        for name, lines in functions_of(path)
        if lines > FUNCTION_LINES
    }
    assert not too_long


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules().items()}
    assert not {m: lines for m, lines in lengths.items() if lines > FILE_LINES_HARD}
    for module, lines in lengths.items():
        if lines > FILE_LINES:
            warnings.warn(f"mavil.{module} has {lines} lines: split it at the next change", stacklevel=1)


def test_the_engine_never_names_a_task() -> None:
    for module, path in modules().items():
        if module.startswith("engine"):
            text = path.read_text(encoding="utf-8").lower()
            assert not [name for name in ("pretrain", "classify", "retrieve", "teacher") if name in text], module


def settings_groups(model: type[BaseModel] = config.Recipe) -> set[type[BaseModel]]:
    found = {model}
    for info in model.model_fields.values():
        for group in recipe.settings_in(info.annotation):
            found |= settings_groups(group)
    return found


def test_every_setting_is_read_somewhere() -> None:
    """A setting nobody reads is a promise nobody keeps. Names are compared, so a common one may hide behind another."""
    read: set[object] = set()
    readers = [path for module, path in modules().items() if module.partition(".")[0] not in ("config", "recipe")]
    for path in [*readers, *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                read.update(value.value for value in node.args if isinstance(value, ast.Constant))
    names = {f"{group.__name__}.{name}": name for group in settings_groups() for name in group.model_fields}
    unread = {path for path, name in names.items() if name not in read}
    assert unread == READ_WITHIN_CONFIG
