"""The table of verbs: complete, and imported verb by verb."""

import typer.main

from mavil.cli import VERBS, _Commands, app


def test_every_verb_is_a_command_of_its_name() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {verb: command.name for verb, command in commands.items()} == {verb: verb for verb in VERBS}
    assert all(command.get_short_help_str() for command in commands.values())


def test_a_verb_is_imported_when_it_is_asked_for() -> None:
    commands = _Commands()
    assert list(commands) == list(VERBS)
    assert not commands._loaded
    assert commands.get("shards") is not None
    assert set(commands._loaded) == {"shards"}
