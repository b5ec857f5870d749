"""``mavil export``: what else is written beside an export, in the formats of other projects."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from mavil.config import Recipe
from mavil.export.folder import read_config, read_export
from mavil.structs import UserError

Format = Literal["timm", "transformers", "onnx", "torch_export", "compiled"]
"""``timm``, ``onnx``, ``torch_export`` and ``compiled`` are folders of that name in the export; ``transformers`` is a file."""


def check_formats(recipe: Recipe, formats: Sequence[Format]) -> None:
    """Whether all of them can be written, before anything is.

    Raises:
        UserError: a model that a format cannot be, or something that is not installed.
    """
    if "timm" in formats:
        from mavil.export.timm_weights import check_recipe

        check_recipe(recipe)
    if "transformers" in formats and importlib.util.find_spec("transformers") is None:
        raise UserError("--transformers needs the package: pip install 'mavil[transformers]', or leave it out")
    if "onnx" in formats:
        from mavil.export.onnx_graphs import check_packages

        check_packages()
    if "compiled" in formats:
        from mavil.export.graphs import check_compiler

        check_compiler()


def write_formats(export: Path, formats: Sequence[Format]) -> list[str]:
    """Write them into a finished export, and return lines about them.

    Raises:
        UserError: as :func:`check_formats`, one of them is there already, or it cannot be written.
    """
    lines: list[str] = []
    exported, sha256 = read_export(export), read_config(export)["weights_sha256"]
    check_formats(exported.recipe, formats)
    for name in (name for name in get_args(Format) if name in formats):
        target = export / name
        if name == "timm":
            from mavil.export.timm_weights import write_timm

            lines += write_timm(target, exported)
        elif name == "transformers":
            from mavil.export.transformers_model import write_code

            lines.append(write_code(export))
        elif name == "onnx":
            from mavil.export.onnx_graphs import write_onnx

            lines += write_onnx(target, exported, sha256)
        elif name == "torch_export":
            from mavil.export.graphs import write_torch_export

            lines += write_torch_export(target, exported, sha256)
        else:
            from mavil.export.graphs import write_compiled

            lines += write_compiled(target, exported, sha256)
    return lines
