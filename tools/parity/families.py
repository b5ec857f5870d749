"""Which project's numbers a file holds, told by the names in it and not by its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mavil.structs import UserError
from tools.parity import (
    audio_mae,
    cav_mae_finetuning,
    cav_mae_pretraining,
    mae,
    mae_ast,
    mae_conversion,
    mavil,
    msm_mae,
    preprocessing,
)
from tools.parity.checks import Checks
from tools.parity.fixture import Fixture, Key


@dataclass(frozen=True)
class Family:
    """Files of one format: what all of them have, and who checks them."""

    name: str
    has: tuple[Key, ...]
    check: Callable[[Checks], None]


def _state(name: str) -> Key:
    return ("state_dict", name)


FAMILIES = (
    Family("CAV-MAE, pre-training", (_state("modality_a"), ("pretrain",)), cav_mae_pretraining.check),
    Family("CAV-MAE, fine-tuning", (_state("modality_a"), ("logits", "multimodal")), cav_mae_finetuning.check),
    Family("CAV-MAE, front ends", (("fbank_padded_unnormalised",),), preprocessing.check_cav_mae),
    Family("MAViL", (_state("patch_embed_v.proj.weight"), ("features", "audio")), mavil.check),
    Family("MAViL, front ends", (("position_tables",), ("audio", "clip_stats")), preprocessing.check_mavil),
    Family("MAE, conversion", (("mae_state_dict",),), mae_conversion.check),
    Family("Audio-MAE, pre-training", (("inputs", "fbank"), ("pretrain",)), audio_mae.check_pretraining),
    Family("Audio-MAE, fine-tuning", (("inputs", "fbank"), ("logits",)), audio_mae.check_finetuning),
    Family("Audio-MAE, front end", (("lr_schedules",), ("logmel",)), preprocessing.check_audio_mae),
    Family("MSM-MAE", (("x",), ("ids_restore",), ("layers",)), msm_mae.check),
    Family("MAE-AST", (("retained_idx",), ("masked_idx",)), mae_ast.check),
    Family("image MAE", (("inputs", "image"), ("pretrain",)), mae.check_pretraining),
)


def family_of(fixture: Fixture) -> Family:
    """The family of a file.

    Raises:
        UserError: none that is known.
    """
    for family in FAMILIES:
        if all(fixture.has(*key) for key in family.has):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    shown = ", ".join(list(map(str, fixture.content))[:6])
    raise UserError(f"{fixture.path}: of no known family (it has {shown}); known are {known}")
