"""``mavil export RUN OUT``: the encoders of a run as a folder that others can load, with a card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, get_args

import typer

from mavil.commands.export_facts import exported_run
from mavil.commands.export_formats import Format, check_formats, write_formats
from mavil.export.card import card_of, usage
from mavil.export.folder import CONFIG, WEIGHTS, check_place, write_export
from mavil.export.origins import licence_of
from mavil.export.parts import Exported
from mavil.structs import UserError

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def export(
    run: Annotated[Path, typer.Argument(help="run folder of pre-training or fine-tuning")],
    out: Annotated[Path, typer.Argument(help="folder to make: model.safetensors, config.json, README.md")],
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
    licence: Annotated[
        str | None,
        typer.Option(help="of the weights, as the Hub writes it, e.g. apache-2.0; default: by what they began with"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace an export that is there, with everything in it")
    ] = False,
    timm: Annotated[
        bool, typer.Option("--timm", help="also the audio encoder as a vision transformer of timm")
    ] = False,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="also the code that AutoModel loads the folder with")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="also ONNX, from the waveform or the frames on")] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="also programs of torch.export, likewise")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="also libraries of AOTInductor for this machine; needs a C++ compiler")
    ] = False,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="also upload the folder to the Hub")] = None,
    private: Annotated[bool, typer.Option("--private", help="with --push: only its owner sees it")] = False,
) -> None:
    """Write the encoders of a run, without decoders and heads, as safetensors with a config and a model card."""
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(f"--licence {licence!r}: write it as the Hub does, e.g. apache-2.0, cc-by-4.0, other")
    if private and push is None:
        raise UserError("--private goes with --push: nothing is uploaded without it")
    if push is not None:
        from mavil.export.hub import check_repository  # huggingface_hub takes half a second, and few push

        check_repository(push)
    check_place(out, force)
    wanted = zip(get_args(Format), (timm, transformers, onnx, torch_export, compiled), strict=True)
    formats = [name for name, is_wanted in wanted if is_wanted]
    exported = exported_run(run, checkpoint, licence)
    check_formats(exported.recipe, formats)
    write_export(out, exported, card_of(exported, push or out.resolve().name), replaces=force)
    _say(*lines_of(exported, out), *write_formats(out, formats))
    if push is not None:
        from mavil.export.hub import push_folder

        _say(f"uploaded: {push_folder(out, push, private)}")
    _say("", usage(push or str(out), exported.recipe.modalities))


def _say(*lines: str) -> None:
    for line in lines:
        typer.echo(line)


def lines_of(exported: Exported, out: Path) -> list[str]:
    """What a person reads about an export: parts, checkpoint, licence."""
    about = exported.about
    kind = "averaged weights" if about.get("averaged") else "weights"
    lines = [f"{out}: {kind} of {about.get('run')} at step {about.get('step')} ({WEIGHTS}, {CONFIG}, README.md)"]
    for part, tensors in exported.parts.items():
        lines.append(f"  {part}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers")
    found = licence_of(about.get("starts"), about.get("licence"))
    lines.append(f"  licence: {found.name or 'not named; name yours with --licence'}")
    lines += [f"    {reason}" for reason in found.reasons]
    return lines
