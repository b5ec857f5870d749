"""The encoders as ONNX files: raw waveform or frames in, embedding out."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mavil.export.graphs import BATCH, INPUTS, OUTPUT, build_graph, example_input, facts, shape_of, trace
from mavil.export.parts import Exported
from mavil.export.subfolders import new_folder
from mavil.structs import Modality, UserError

OPSET = 18
"""Of the files: the first with everything they need, which run times since the end of 2022 know."""
LARGEST_DIFFERENCE = 1e-4
"""Between onnxruntime's embeddings and torch's; a file that differs more is not written."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_packages() -> None:
    """What writing ONNX needs.

    Raises:
        UserError: a package is not installed.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"ONNX needs the package {package}: pip install 'mavil[onnx]', or leave --onnx out")


def write_onnx(target: Path, exported: Exported, weights_sha256: str) -> list[str]:
    """Write a folder with ``audio.onnx`` and ``video.onnx``, as many as there are modalities; return lines about them.

    What :func:`mavil.export.graphs.facts` says stands in each file's metadata. Beyond 2 GB the weights lie beside the file.

    Raises:
        UserError: a package is missing, onnxruntime computes something else, the folder is there already or cannot be written,
            or a window is too short for a graph.
    """
    check_packages()
    lines = []
    with new_folder(target) as folder:
        for modality in exported.recipe.modalities:
            graph, example = build_graph(exported, modality), example_input(exported.recipe, modality)
            told = {name: _as_text(value) for name, value in facts(exported, modality, weights_sha256).items()}
            convert(graph, example, modality, folder / f"{modality}.onnx", told)
            difference = _difference(folder / f"{modality}.onnx", graph, example, modality)
            lines.append(
                f"{target / modality}.onnx: opset {OPSET}, {INPUTS[modality]} {shape_of(exported.recipe, modality)}, onnxruntime "
                f"within {difference:.0e} of torch"
            )
    return lines


def convert(graph: nn.Module, example: Tensor, modality: Modality, path: Path, told: dict[str, str]) -> None:
    """Write one graph of one input and one output; ``told`` becomes the file's metadata."""
    program = trace(graph, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        found = torch.onnx.export(
            program,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUTS[modality]],
            output_names=[OUTPUT],
            dynamic_shapes=({0: BATCH},),
            verbose=False,
        )
    assert found is not None
    found.model.metadata_props.update(told)
    found.save(path)


@torch.no_grad()
def _difference(path: Path, graph: nn.Module, example: Tensor, modality: Modality) -> float:
    """The largest between onnxruntime and torch, on a batch of another size than the one that was traced."""
    import onnxruntime

    batch = torch.cat([example, example.flip(1)])[:3]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (values,) = session.run([OUTPUT], {INPUTS[modality]: batch.numpy()})
    difference = float((torch.from_numpy(values) - graph(batch)).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"{path.name}: onnxruntime {onnxruntime.__version__} is {difference:g} away from torch, allowed are "
            f"{LARGEST_DIFFERENCE:g}: nothing was written; try other versions of onnxruntime and onnxscript"
        )
    return difference


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
