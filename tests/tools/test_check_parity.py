"""The parity tool against files that plain transformers in ``tests/parity`` wrote, in other sizes than any project's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import cav_mae_fixtures, fixtures, front_end_fixtures, mavil_fixtures, plain, sound_fixtures
from tests.tools.conftest import Tool
from tools.parity.checks import Row
from tools.parity.fixture import Fixture

WRITERS: dict[str, Callable[[], fixtures.Content]] = {
    "cav_mae_pretraining": cav_mae_fixtures.pretraining,
    "cav_mae_finetuning": cav_mae_fixtures.finetuning,
    "mavil_pretrained": functools.partial(mavil_fixtures.mavil, "pretrained"),
    "mavil_joint_head": functools.partial(mavil_fixtures.mavil, "av"),
    "mavil_separate_heads": functools.partial(mavil_fixtures.mavil, "a_v"),
    "image_mae": fixtures.image_mae,
    "audio_mae_global": functools.partial(fixtures.audio_mae_pretraining, 0),
    "audio_mae_windowed": functools.partial(fixtures.audio_mae_pretraining, 1),
    "audio_mae_finetuning": fixtures.audio_mae_finetuning,
    "msm_mae": sound_fixtures.msm_mae,
    "msm_mae_no_cls": functools.partial(sound_fixtures.msm_mae, False, "2d", True),
    "mae_ast_patch": sound_fixtures.mae_ast,
    "mae_ast_frame": functools.partial(sound_fixtures.mae_ast, "frame"),
}

FRONT_ENDS: dict[str, Callable[[], fixtures.Content]] = {
    "cav_mae": front_end_fixtures.cav_mae,
    "mavil": front_end_fixtures.mavil,
    "audio_mae": front_end_fixtures.audio_mae,
    "mae_conversion": front_end_fixtures.mae_conversion,
}


@functools.cache
def written(name: str) -> fixtures.Content:
    return {key: value for key, value in WRITERS[name]().items() if key != "in_float64"}


def content_of(name: str) -> fixtures.Content:
    return copy.deepcopy(written(name))


@pytest.fixture
def check(tool: Callable[[str], Tool], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """``check(content, "--float64")`` writes the file and runs the tool on it."""

    def run(content: Any, *options: str) -> tuple[int, str, str]:
        torch.save(content, tmp_path / "numbers.pt")
        return tool("check_parity")(str(tmp_path / "numbers.pt"), *options)

    return run


def row_of(out: str, name: str) -> str:
    rows = [line for line in out.splitlines() if line.split() and line.split()[0] == name]
    assert rows, f"no row {name} in\n{out}"
    return rows[0]


@pytest.mark.parametrize("name", WRITERS)
def test_our_models_compute_what_plain_transformers_do(name: str, check: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = check(content_of(name))
    assert (code, err) == (0, ""), out + err
    assert "all agree" in out
    assert "above the limit" not in out
    not_checked = [line for line in out.splitlines() if "not checked" in line]
    assert not_checked in ([], ["  not checked: f64 (that is for --float64)"])


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.startswith("audio_mae")])
def test_in_float64_they_agree_to_the_last_digits(name: str, check: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = check(content_of(name), "--float64")
    assert code == 0, out
    assert row_of(out, next(line.split()[0] for line in out.splitlines() if line.strip().startswith("f64.")))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cav_mae_pretraining", ("pretrain", "pred_v")),
        ("cav_mae_pretraining", ("pretrain", "taps", "blocks_u.1.a")),
        ("cav_mae_pretraining", ("contrast_chained", "contrast_v")),
        ("cav_mae_finetuning", ("logits", "missingvideoonly")),
        ("mavil_joint_head", ("features", "fusion_tokens")),
        ("mavil_joint_head", ("masked", "logits_av")),
        ("mavil_separate_heads", ("pooled_v",)),
        ("image_mae", ("features", "mean_pool_then_norm")),
        ("audio_mae_windowed", ("pretrain_2d", "pred")),
        ("audio_mae_finetuning", ("masked", "logits")),
    ],
)
def test_one_number_that_is_off_is_found_and_named(
    name: str, key: tuple[str, ...], check: Callable[..., tuple[int, str, str]]
) -> None:
    content = content_of(name)
    values = functools.reduce(lambda found, part: found[part], key[:-1], content)
    values[key[-1]].view(-1)[-1] += 1e-3 * values[key[-1]].abs().max()
    code, out, _ = check(content)
    assert code == 1
    assert "DIFFERS" in row_of(out, ".".join(key))
    assert f"1 differ: {'.'.join(key)}" in out
    assert check(content, "--tolerance", "0.01")[0] == 0


def spoil(values: Any, share: float = 1e-3) -> Any:
    """A copy with its first number off by a share of the largest one; of a dict or list its last entry's."""
    if isinstance(values, dict):
        return values | {list(values)[-1]: spoil(values[list(values)[-1]], share)}
    if isinstance(values, list):
        return [*values[:-1], spoil(values[-1], share)]
    if not isinstance(values, torch.Tensor):
        return values + max(share * abs(values), share)
    if values.dtype == torch.bool:
        return torch.cat([~values.view(-1)[:1], values.view(-1)[1:]]).view_as(values)
    off = max(share * float(values.abs().max()), share) if values.is_floating_point() else 1
    return torch.cat([values.view(-1)[:1] + off, values.view(-1)[1:]]).view_as(values)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("msm_mae", ["patches", "full", "layers", "latent", "pred", "loss", "grads"]),
        (
            "mae_ast_patch",
            [
                "bn_after.batch_norm.num_batches_tracked",
                *(f"net.{which}" for which in ("logit_m_list_recon", "logit_m_list_class", "padding_mask")),
                *("loss", "log.loss", "log.loss_recon", "log.loss_info_nce", "grads", "emb_padding"),
                *("fbank_padded", "hidden_states", "emb"),
            ],
        ),
    ],
)
def test_every_stored_output_is_looked_at(
    name: str, outputs: list[str], check: Callable[..., tuple[int, str, str]]
) -> None:
    content = content_of(name)
    for key in outputs:
        *outer, last = key.replace("batch_norm.", "batch_norm/").split(".")
        values = functools.reduce(lambda found, part: found[part], outer, content)
        last = last.replace("/", ".")
        values[last] = spoil(values[last])
    code, out, _ = check(content)
    assert code == 1
    assert f"{len(outputs)} differ: {', '.join(outputs)}\n" in out


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("msm_mae", "decoder_blocks.0.attn.q_bias"),
        ("msm_mae_no_cls", "blocks.0.attn.v_bias"),
        ("mae_ast_patch", "decoder.layers.0.self_attn.k_proj.weight"),
        ("mae_ast_frame", "encoder.layer_norm.bias"),
    ],
)
def test_weights_that_are_off_show(name: str, tensor: str, check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of(name)
    content["state_dict"][tensor] = spoil(content["state_dict"][tensor], share=0.5)
    assert check(content)[0] == 1


def test_pictures_are_compared(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("msm_mae")
    content["viz"] = tuple(map(spoil, content["viz"]))
    assert "4 differ: viz.loss, viz.picture, viz.error, viz.mask\n" in check(content)[1]


def test_a_decoder_that_drops_a_token_is_told_from_one_that_does_not(
    check: Callable[..., tuple[int, str, str]],
) -> None:
    _, out, _ = check(content_of("msm_mae_no_cls"))
    assert "the original's defect, repeated here" in row_of(out, "pred")
    assert "our decoder takes every visible token: its loss here is" in out
    content, w = content_of("msm_mae_no_cls"), content_of("msm_mae_no_cls")["state_dict"]
    x = plain.fill(plain.linear(content["latent"], w, "decoder_embed"), w["mask_token"], content["ids_restore"])
    x = plain.block(x + w["decoder_pos_embed"], w, "decoder_blocks.0", 4, 1e-6)
    content["pred"] = plain.linear(plain.norm(x, w, "decoder_norm", 1e-6), w, "decoder_pred")
    assert "1 differ: pred\n" in check(content)[1]


def test_tables_on_the_wrong_axes_are_found(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("audio_mae_global")
    assert row_of(check(content)[1], "decoder_pos_embed").endswith("transposed_2d")
    content["state_dict"]["pos_embed"] = plain.table_2d(12, 8, 16)[None]
    assert "DIFFERS" in row_of(check(content)[1], "pos_embed")
    content["state_dict"]["pos_embed"] = torch.rand(1, 97, 16)
    assert "pos_embed: no table of sines and cosines, taken as it is" in check(content)[1]


def test_layer_decay_is_compared(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("audio_mae_finetuning")
    content["lr_scale"]["blocks.0.mlp.fc1.bias"] = [0.8, 0.05]
    _, out, _ = check(content)
    assert "2 differ: lr_scale: learning_rate, lr_scale: weight_decay\n" in out
    assert "e.g. blocks.0.mlp.fc1.bias: ours 0.64, theirs 0.8" in out
    del content["lr_scale"]["head.bias"]
    assert "lr_scale: parameters" in check(content)[1].splitlines()[-1]


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends_and_start_weights_agree_too(name: str, check: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = check(FRONT_ENDS[name]())
    assert (code, err) == (0, ""), out + err
    assert "not checked" not in out


@pytest.mark.parametrize(
    ("name", "key", "row"),
    [
        ("cav_mae", ("fbank_cut",), "fbank_cut"),
        ("cav_mae", ("image",), "image"),
        ("mavil", ("audio", "channel0_only_clip_stats"), "audio.channel0_only_clip_stats"),
        ("mavil", ("video", "enlarged", "antialias"), "video.enlarged.antialias"),
        ("mavil", ("position_tables", "table_3d"), "position_tables.table_3d"),
        ("cav_mae", ("fbank_mix_swapped_unnormalised",), "fbank_mix_swapped_unnormalised"),
        ("audio_mae", ("speech", "normalised"), "speech.normalised"),
        ("audio_mae", ("logmel_mix",), "logmel_mix"),
        ("mae_conversion", ("cavmae", "state_dict", "decoder_pred_a.bias"), "cavmae.state_dict.decoder_pred_a.bias"),
        ("mae_conversion", ("mavil", "state_dict", "blocks_av.1.norm2.bias"), "mavil: copies"),
    ],
)
def test_front_ends_and_start_weights_that_are_off_are_found(
    name: str, key: tuple[str, ...], row: str, check: Callable[..., tuple[int, str, str]]
) -> None:
    content = copy.deepcopy(FRONT_ENDS[name]())
    values = functools.reduce(lambda found, part: found[part], key[:-1], content)
    values[key[-1]] = values[key[-1]].clone(memory_format=torch.contiguous_format)  # it may be a part of another one
    values[key[-1]].view(-1)[-1] += 1e-2
    code, out, _ = check(content)
    assert code == 1
    assert f"1 differ: {row}\n" in out


def test_a_loss_and_a_mask_that_are_off_are_found(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("image_mae")
    content["pretrain"]["loss_norm_pix"] *= 1.001
    content["pretrain"]["ids_restore"][0] = content["pretrain"]["ids_restore"][0].flip(0)
    content["pretrain"]["target_raw"][0, 0, 0] += 1e-6
    code, out, _ = check(content, "--tolerance", "1e-5")
    assert code == 1
    assert "3 differ: pretrain.ids_restore, pretrain.loss_norm_pix, pretrain.target_raw" in out


def test_gradients_that_are_off_or_lacking_are_found(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("audio_mae_finetuning")
    content["grad_norms"]["blocks.1.norm1.weight"] *= 1.01
    del content["grad_norms"]["cls_token"]
    code, out, _ = check(content)
    assert code == 1
    assert "2 differ: grad_norms: parameters reached, grad_norms" in out
    assert "most at blocks.1.norm1.weight" in out
    assert "e.g. cls_token" in out


def test_complete_gradients_have_to_be_the_same_ones(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("mae_ast_patch")
    del content["grads"]["encoder.layer_norm.bias"]
    assert row_of(check(content)[1], "grads:").endswith("DIFFERS  e.g. encoder.layer_norm.bias")
    # One of zero belongs to a parameter that does nothing; another one does not.
    content = content_of("mae_ast_patch")
    content["grads"]["encoder_mask_emb"][3] = 0.1
    assert row_of(check(content)[1], "grads:").endswith("DIFFERS  e.g. encoder_mask_emb")


@pytest.mark.parametrize(
    "name", ["mavil_pretrained", "cav_mae_finetuning", "audio_mae_global", "msm_mae", "mae_ast_frame"]
)
def test_the_config_decides_and_a_wrong_epsilon_shows(name: str, check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of(name)
    content["config"]["layer_norm_eps"] = 1e-2
    assert check(content)[0] == 1


def test_nan_differs(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("mavil_pretrained")
    content["features"]["audio"][0, 0, 0] = torch.nan
    code, out, _ = check(content)
    assert code == 1
    assert "DIFFERS" in row_of(out, "features.audio")
    content = content_of("msm_mae")
    content["grads"]["cls_token"][0, 0, 0] = torch.nan
    assert "DIFFERS" in row_of(check(content)[1], "grads")
    assert not Row("ours", torch.nan, torch.nan, 1.0, 1.0, "relative").passes
    assert not Row("ours", torch.nan, torch.nan, 1.0, 1.0, "absolute").passes


def test_what_is_not_checked_is_said(check: Callable[..., tuple[int, str, str]]) -> None:
    content = content_of("mavil_pretrained")
    content["surprise"] = {"a": torch.ones(1), "b": 2.0}
    content["features"]["other"] = torch.ones(1)
    code, out, _ = check(content)
    assert code == 0
    assert "not checked: features.other, surprise, f64 (that is for --float64)" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list: a file of fixtures is a dict"),
        ({"weights": 1}, "of no known family (it has weights); known are CAV-MAE, pre-training, "),
        (
            {"x": 0, "ids_restore": 0, "layers": 0, "state_dict": {}},
            "has no config: it is not of the documented format",
        ),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    content: Any, message: str, check: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = check(content)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_files_that_contradict_themselves_are_one_line(check: Callable[..., tuple[int, str, str]]) -> None:
    deeper, narrower, without = (content_of("audio_mae_global") for _ in range(3))
    deeper["config"]["depth"] = 2
    narrower["inputs"]["noise"] = narrower["inputs"]["noise"][:, :5]
    del without["pretrain"]["latent"]
    said = []
    for content in (deeper, narrower, without):
        code, out, err = check(content)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        said.append(err)
    assert "audio_encoder lacks blocks.1" in said[0]
    assert "cannot stay visible" in said[1]
    assert "has no pretrain.latent" in said[2]


def test_files_without_float64_numbers_are_not_passed_silently(check: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = check(content_of("audio_mae_global"), "--float64")
    assert code == 2
    assert "no float64 numbers to compare with" in err


def test_several_files_give_the_worst_code(tool: Callable[[str], Tool], tmp_path: Path) -> None:
    good, other, broken = (str(tmp_path / name) for name in ("good.pt", "other.pt", "broken.pt"))
    torch.save(content_of("mavil_pretrained"), good)
    content = content_of("mavil_pretrained")
    content["features"]["audio"] += 1
    torch.save(content, other)
    Path(broken).write_bytes(b"no tensors")
    assert tool("check_parity")(good, good)[0] == 0
    assert tool("check_parity")(other, good)[0] == 1
    code, out, err = tool("check_parity")(broken, good)
    assert code == 2
    assert "all agree" in out
    assert err.count("\n") == 1


def test_a_missing_file_is_one_line(tool: Callable[[str], Tool], tmp_path: Path) -> None:
    assert tool("check_parity")(str(tmp_path / "none.pt")) == (
        2,
        "",
        f"check_parity: {tmp_path / 'none.pt'}: no such file\n",
    )


def test_a_fixture_knows_what_nobody_asked_for(tmp_path: Path) -> None:
    torch.save({"config": {}, "a": {"x.y": 1, "z": 2}, "b": {"c": 3}}, tmp_path / "f.pt")
    fixture = Fixture(tmp_path / "f.pt")
    assert fixture.unasked() == ["a", "b"]
    assert fixture.number("a", "x.y") == 1
    assert fixture.has("b", "c")
    assert fixture.unasked() == ["a.z", "b"]
    fixture.get("b")
    assert fixture.unasked() == ["a.z"]
