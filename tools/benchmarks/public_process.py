"""One process that runs a public code as it is, from a folder into which its repository was cloned.

    python -m tools.benchmarks.public_process CASE.json

docs/audio_family.md says how the folder is filled. The codes were written for older versions of torch, NumPy and Python; what
these no longer have is put back here, and nothing of their arithmetic is touched.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import types
import warnings
from collections import abc
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.benchmarks.passes import READING, ModelCase, ModelReading, measure_passes, peak_bytes

Forward = Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class PublicCode:
    """One system.

    Attributes:
        batch: clips it is measured with.
        folders: what it needs in the folder of the public codes, the first entries of Python's path.
        modules: what is imported of them.
        build: makes the model of these modules, and what gives its loss on so many made-up clips.
    """

    batch: int
    folders: tuple[str, ...]
    modules: tuple[str, ...]
    build: Callable[[list[Any], int, torch.device], tuple[nn.Module, Forward]]


def _audio_mae(decoder_mode: int) -> PublicCode:
    """Audio-MAE as its script for AudioSet runs it; decoder mode 0 is the plain one, 1 the windowed one."""

    def build(modules: list[Any], batch: int, device: torch.device) -> tuple[nn.Module, Forward]:
        if not torch.cuda.is_available():
            torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]  # it sends a zero to CUDA
        model = modules[0].mae_vit_base_patch16(
            norm_pix_loss=True, in_chans=1, audio_exp=True, img_size=(1024, 128), decoder_mode=decoder_mode
        )
        clips = torch.randn(batch, 1, 1024, 128, device=device)
        return model, lambda: model(clips, mask_ratio=0.8)[0]

    return PublicCode(4, ("AudioMAE", "timm-0.3.2"), ("models_mae",), build)


def _msm_mae(num_steps: int) -> PublicCode:
    """MSM-MAE with patches of 16 x 16 on 80 mel bins by ``num_steps``."""

    def build(modules: list[Any], batch: int, device: torch.device) -> tuple[nn.Module, Forward]:
        model = modules[0].mae_vit_base_patch16x16_dec384d4b(img_size=(80, num_steps), use_cls_token=True)
        clips = torch.randn(batch, 1, 80, num_steps, device=device)
        return model, lambda: model(clips, mask_ratio=0.75)[0]

    return PublicCode(8, ("msm-mae",), ("msm_mae.models_mae",), build)


def _mae_ast(patch: tuple[int, int], mask_type: str) -> PublicCode:
    """MAE-AST on 998 steps of 10 s, with the settings of its ``mae_ast.yaml``; ``patch`` in steps and mel bins."""

    def build(modules: list[Any], batch: int, device: torch.device) -> tuple[nn.Module, Forward]:
        module, tasks, criterions = modules
        settings = module.MAE_AST_Config(
            dropout_input=0.1,
            feature_grad_mult=0.1,
            encoder_layerdrop=0.05,
            enc_sine_pos=True,
            dec_sine_pos=True,
            **{
                f"ast_kernel_{what}_{axis}": n
                for what in ("size", "stride")
                for axis, n in zip(("time", "chan"), patch, strict=True)
            },
        )
        task = tasks.MAE_AST_Pretraining_Config(feature_type="fbank", feature_dim=128, mask_type=mask_type)
        model = module.MAE_AST(settings, task)
        criterion = criterions.MAE_AST_Criterion(None, reconstruction_weight=10.0, classification_weight=1.0)
        clips = torch.randn(batch, 998, 128, device=device)
        padding = torch.zeros(batch, 998, dtype=torch.bool, device=device)
        sample = {"id": torch.arange(batch), "net_input": {"source": clips, "padding_mask": padding}}
        return model, lambda: criterion(model, sample)[0]

    modules = tuple(
        f"mae_ast.{name}" for name in ("models.mae_ast", "tasks.mae_ast_pretraining", "criterions.mae_ast_criterion")
    )
    return PublicCode(4, ("MAE-AST-Public", "fairseq", "fairseq-needs"), modules, build)


CODES = {
    "audio_mae": _audio_mae(1),
    "audio_mae_compat": _audio_mae(1),
    "audio_mae_global": _audio_mae(0),
    "mae_ast_patch": _mae_ast((16, 16), "chunk_mask"),
    "mae_ast_frame": _mae_ast((2, 128), "random_mask"),
    "msm_mae": _msm_mae(208),
    "msm_mae_512": _msm_mae(512),
}
"""By name of the recipe of ours that computes the same: encoder, decoder, tokens, mask ratio and dropout agree."""


def measure_public(case: ModelCase) -> ModelReading:
    """Run the public code of a case in this process, in float32; on CUDA with bf16 around it.

    Raises:
        FileNotFoundError: a folder is missing.
        ImportError: a package that the code needs is missing.
    """
    name = Path(case.recipe).stem
    code, folder = CODES[name], Path(case.public or "")
    missing = [part for part in code.folders if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder} has no folder {missing[0]}: docs/audio_family.md says how it is made")
    sys.path[:0] = [str(folder.absolute() / part) for part in code.folders]
    warnings.simplefilter("ignore")
    put_back()
    device = torch.device("cpu" if case.device == "cpu" or not torch.cuda.is_available() else "cuda")
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    with redirect_stdout(sys.stderr):
        modules = [importlib.import_module(module) for module in code.modules]
    reading = ModelReading(imports_bytes=peak_bytes(device), threads=torch.get_num_threads())
    reading.precision = "bf16" if device.type == "cuda" else "fp32"
    reading.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    torch.manual_seed(0)
    with redirect_stdout(sys.stderr):
        model, forward = code.build(modules, case.batch, device)
        model.to(device).train()
        reading.model_bytes = peak_bytes(device)

        def in_precision() -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=reading.precision == "bf16"):
                return forward()

        measure_passes(reading, model, in_precision, case.steps, device)
    return reading


def put_back() -> None:
    """What the public codes use and newer versions of torch, NumPy and Python no longer have."""
    six: Any = types.ModuleType("torch._six")
    six.container_abcs, six.inf, six.string_classes = abc, float("inf"), (str, bytes)
    sys.modules.setdefault("torch._six", six)
    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]
    checked = dataclasses._get_field  # type: ignore[attr-defined]

    def unchecked(cls: type, name: str, *more: Any) -> Any:
        """Python 3.11 wants defaults to have a hash; those of fairseq's settings are settings, which have none."""
        default = getattr(cls, name, None)
        default = default.default if isinstance(default, dataclasses.Field) else default
        if dataclasses.is_dataclass(default) and type(default).__hash__ is None:
            type(default).__hash__ = object.__hash__  # type: ignore[method-assign]
        return checked(cls, name, *more)

    dataclasses._get_field = unchecked  # type: ignore[attr-defined]


def main() -> None:
    """Measure the case of the file that is named, and write the reading beside it."""
    path = Path(sys.argv[1])
    try:
        reading = measure_public(ModelCase(**json.loads(path.read_text(encoding="utf-8"))))
    except (FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    path.with_name(READING).write_text(json.dumps(dataclasses.asdict(reading)), encoding="utf-8")


if __name__ == "__main__":
    main()
