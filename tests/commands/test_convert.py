from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer

from mavil.commands.assemble import load_masked, read_recipe
from mavil.commands.conversion.importing import import_model, imported
from mavil.config import ClassifyTask, PretrainTask
from mavil.engine.checkpoints.reading import load_weights
from mavil.models.classifier import JOINT, Classifier
from mavil.models.tokens import patchify, position_table
from mavil.structs import UserError
from tests.commands.conftest import Outcome
from tests.support import foreign_weights
from tests.support.foreign_weights import State

HEADS = ["audio.encoder.num_heads=2", "audio.decoder.num_heads=2"]
Mavil = Callable[..., Outcome]


def saved(folder: Path, state: State, name: str = "file.pth", **beside: Any) -> Path:
    torch.save({"model": state, **beside}, folder / name)
    return folder / name


LAYOUTS: dict[str, tuple[State, str, dict[str, Any]]] = {
    "audio_mae": (foreign_weights.audio_mae(), "audio_mae", {}),
    "windowed": (foreign_weights.audio_mae(windowed=True, num_tokens=32), "audio_mae", {}),
    "tuned": (foreign_weights.audio_mae_tuned(), "audio_mae", {}),
    "timm": (foreign_weights.audio_mae_tuned(), "timm", {}),
    "msm_mae": (foreign_weights.msm_mae(), "msm_mae", {}),
    "no_cls": (foreign_weights.msm_mae(cls=False), "msm_mae", {}),
    "m2d": (foreign_weights.m2d(), "m2d", {}),
    "mae_ast": (foreign_weights.mae_ast(), "mae_ast", {"cfg": foreign_weights.mae_ast_settings((2, 128))}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(tmp_path: Path, mavil: Mavil, layout: str) -> None:
    state, to, beside = LAYOUTS[layout]
    heads = [] if layout == "mae_ast" else HEADS
    made = mavil("convert", saved(tmp_path, state, **beside), "runs/it", *heads)
    assert made.code == 0, made.err
    written = mavil("convert", "runs/it", "back.pth", "--to", to)
    assert written.code == 0, written.err
    # Where the file has no place for them, people are told what it must be fed with.
    assert ("how its input is made" in written.out) == (to not in ("m2d", "mae_ast"))
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    tensors = back if to == "timm" else back["model"]
    assert tensors.keys() == state.keys()
    # What no forward pass of MAE-AST uses cannot come back; its tables here are random ones.
    dead = ("encoder_mask_emb", "layer_norm.", "batch_norm.num", "enc_sine", "dec_sine")
    assert all(torch.equal(tensors[n], state[n]) for n in state if to != "mae_ast" or not n.startswith(dead))
    assert mavil("convert", "back.pth", "runs/again", *heads).code == 0
    first, again = load_weights(tmp_path / "runs/it"), load_weights(tmp_path / "runs/again")
    assert {part: own.keys() for part, own in first.items()} == {part: own.keys() for part, own in again.items()}
    assert all(torch.equal(again[part][name], t) for part, own in first.items() for name, t in own.items())


def test_a_fine_tuned_model_scores_as_timms(tmp_path: Path, mavil: Mavil) -> None:
    """The released file is known to fit timm's ViT strictly; so must ours, through a run folder."""
    torch.manual_seed(0)
    vit = VisionTransformer(
        (32, 128), 16, in_chans=1, num_classes=527, global_pool="avg", embed_dim=64, depth=2, num_heads=1
    ).eval()
    made = mavil("convert", saved(tmp_path, vit.state_dict()), "run")
    assert made.code == 0, made.err
    run = tmp_path / "run"
    recipe = read_recipe(run, [])
    assert isinstance(recipe.task, ClassifyTask)
    assert recipe.task.loss == "binary_cross_entropy"
    assert (run / "classes.txt").read_text().splitlines() == [str(i) for i in range(527)]
    model = import_model(tmp_path / "file.pth").model
    assert isinstance(model, Classifier)
    for name, part in model.parts().items():
        part.load_state_dict(load_weights(run)[name])
    assert recipe.audio is not None
    spectrogram = torch.randn(2, 1, 32, 128)
    with torch.no_grad():
        scores = model({"audio": patchify(spectrogram, recipe.audio.grid())})[JOINT]
        torch.testing.assert_close(scores, vit(spectrogram), rtol=1e-5, atol=1e-5)


def test_what_the_files_tell_becomes_settings(tmp_path: Path) -> None:
    path = saved(tmp_path, foreign_weights.mae_ast(), cfg=foreign_weights.mae_ast_settings((2, 128)))
    recipe, _, _ = imported(path)
    assert recipe.audio is not None
    assert isinstance(recipe.task, PretrainTask)
    audio, task = recipe.audio, recipe.task
    assert (audio.patch, audio.num_steps, audio.spectrogram, audio.std_factor) == ((2, 128), 998, "kaldi_povey", 2.0)
    assert (audio.mean, audio.std) == (-4.25, pytest.approx((17.3219 + 1e-5) ** 0.5, rel=1e-6))
    assert (audio.masking.kind, audio.mask_ratio) == ("spans", 0.6)  # squares need several bands
    assert (audio.encoder.num_heads, audio.encoder.norm, audio.encoder.dropout) == (4, "post", 0.1)
    assert task.patch_discrimination is not None
    assert task.reconstruction.audio_weight == 10.0
    folder = tmp_path / "80x48p16x16_x"
    folder.mkdir()
    args = argparse.Namespace(norm_pix_loss=True, norm_stats=[-5.5, 5.0])
    recipe, _, _ = imported(saved(folder, foreign_weights.msm_mae(), args=args), HEADS)
    assert recipe.audio is not None
    assert isinstance(recipe.task, PretrainTask)
    audio = recipe.audio
    assert (audio.mean, audio.std, audio.std_factor, audio.spectrogram) == (-5.5, 5.0, 1.0, "slaney")
    assert (audio.num_steps, audio.num_mel_bins, audio.token_order) == (48, 80, "mel_first")
    assert not audio.encoder.key_bias
    assert recipe.task.reconstruction.normalise_patches
    esc = argparse.Namespace(dataset="esc50")
    recipe, _, remarks = imported(saved(tmp_path, foreign_weights.audio_mae(), args=esc), HEADS)
    assert recipe.audio is not None
    assert recipe.audio.mean == -6.6268077
    assert any("esc50" in line for line in remarks)


def test_computed_positions_are_named_and_shorter_inputs_keep_known_codes(tmp_path: Path) -> None:
    state = foreign_weights.audio_mae(num_tokens=32)
    path = saved(tmp_path, state)
    recipe, _, _ = imported(path, HEADS)
    assert recipe.audio is not None
    assert recipe.audio.trained_positions
    grid = recipe.audio.grid()
    state["pos_embed"] = position_table(grid, 32, "transposed_2d")
    state["decoder_pos_embed"] = position_table(grid, 16, "sincos_1d")
    recipe, parts, _ = imported(saved(tmp_path, state), [*HEADS, "audio.num_steps=32"])
    assert recipe.audio is not None
    assert (recipe.audio.positions, recipe.audio.decoder.positions) == ("transposed_2d", "sincos_1d")
    assert not recipe.audio.trained_positions
    assert torch.equal(parts["audio_encoder"]["pos_embed"], state["pos_embed"][:, :17])


def test_an_encoder_alone_has_a_random_decoder_and_says_so(tmp_path: Path) -> None:
    state = {n: t for n, t in foreign_weights.audio_mae().items() if not n.startswith(("decoder", "mask"))}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    small = [*HEADS, "audio.decoder.width=16", "audio.decoder.depth=1"]
    _, parts, remarks = imported(tmp_path / "model.safetensors", small)
    assert "audio_decoder: not in the file, random" in remarks
    assert torch.equal(parts["audio_encoder"]["norm.bias"], state["norm.bias"])
    torch.rand(1)  # whatever was drawn before
    _, again, _ = imported(tmp_path / "model.safetensors", small)
    assert torch.equal(again["audio_decoder"]["pred.weight"], parts["audio_decoder"]["pred.weight"])


def test_class_names_come_from_a_file(tmp_path: Path, mavil: Mavil) -> None:
    path = saved(tmp_path, foreign_weights.audio_mae_tuned())
    (tmp_path / "names.txt").write_text("dog\ncat\nrain\nwind\n")
    few = mavil("convert", path, "run", *HEADS, "--classes", "names.txt")
    assert (few.code, "4 different names, but the head scores 5" in few.err) == (2, True)
    (tmp_path / "names.txt").write_text("dog\ncat\nrain\nwind\nbell\n")
    assert mavil("convert", path, "run", *HEADS, "--classes", "names.txt").code == 0
    assert (tmp_path / "run" / "classes.txt").read_text() == "dog\ncat\nrain\nwind\nbell\n"
    path = saved(tmp_path, foreign_weights.audio_mae())
    assert "no head" in mavil("convert", path, "other", *HEADS, "--classes", "names.txt").err


def test_a_converted_run_is_a_run(tmp_path: Path, mavil: Mavil) -> None:
    path = saved(tmp_path, foreign_weights.msm_mae())
    assert mavil("convert", path, "run", *HEADS).code == 0
    model, recipe = load_masked(tmp_path / "run")
    assert recipe.audio is not None
    assert torch.equal(model.encoder("audio").state_dict()["norm.weight"], foreign_weights.msm_mae()["norm.weight"])
    again = mavil("convert", path, "run", *HEADS)
    assert (again.code, "not empty" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (foreign_weights.cav_mae(), [], "CAV-MAE .* only models of sound alone"),
        (foreign_weights.image_mae(), [], "image MAE"),
        (foreign_weights.audio_mae(), [], r"width 32 is no multiple of 64: add audio\.encoder\.num_heads"),
        (foreign_weights.mae_ast(), HEADS, r"neither .* tell a patch's size: add audio\.patch"),
        (foreign_weights.audio_mae(num_tokens=9), HEADS, r"positions of 9 tokens, .* add audio\.num_steps"),
        (foreign_weights.audio_mae(), [*HEADS, "audio.encoder.depth=3"], r"audio_encoder lacks blocks\.2"),
        (foreign_weights.audio_mae(), [*HEADS, "audio.num_steps=64"], "positions are known for 16"),
        ({"blocks.0.x": torch.ones(1)}, [], "no layout known"),
    ],
)
def test_what_is_no_run(tmp_path: Path, state: State, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported(saved(tmp_path, state), changes)


@pytest.mark.parametrize("change", ["audio.decoder.window=[2,4]", "audio.decoder.shift=all", "audio.decoder.norm=post"])
def test_windows_as_audio_mae_has_them(tmp_path: Path, mavil: Mavil, change: str) -> None:
    path = saved(tmp_path, foreign_weights.audio_mae(windowed=True, num_tokens=32))
    made = mavil("convert", path, "run", *HEADS, change)
    if made.code == 0:
        made = mavil("convert", "run", "out.pth", "--to", "audio_mae")
    assert made.code == 2
    assert change.partition("=")[0].rpartition(".")[2] in made.err


@pytest.mark.parametrize(
    ("state", "to", "message"),
    [
        (foreign_weights.m2d(), "msm_mae", r"bias of keys, .*key_bias=false"),
        (
            foreign_weights.m2d(),
            "audio_mae",
            r"audio\.token_order is mel_first, but a model of audio_mae needs time_first",
        ),
        (foreign_weights.audio_mae(), "m2d", r"audio\.token_order is time_first"),
        (foreign_weights.msm_mae(cls=False), "m2d", r"audio\.cls_token is False"),
        (foreign_weights.audio_mae(), "mae_ast", r"audio\.cls_token is True"),
        (foreign_weights.audio_mae(), "cav_mae", r"video\.encoder\.norm"),
        (foreign_weights.mae_ast(), "timm", r"audio\.encoder\.norm is post"),
    ],
)
def test_what_a_project_cannot_be_is_refused_with_the_setting(
    tmp_path: Path, mavil: Mavil, state: State, to: str, message: str
) -> None:
    beside: dict[str, Any] = {"cfg": foreign_weights.mae_ast_settings()} if to == "timm" else {}
    assert mavil("convert", saved(tmp_path, state, **beside), "run", *HEADS).code == 0
    refused = mavil("convert", "run", "out.pth", "--to", to)
    assert refused.code == 2
    assert re.search(message, refused.err), refused.err
    assert not list(tmp_path.glob("*out.pth*"))
