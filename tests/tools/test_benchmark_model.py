"""The model benchmark: that all peers compute the same, and that its figures are what they are called; never how fast it is."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mavil.commands.assemble import view_plan
from mavil.config import Recipe
from mavil.models.tokens import PatchEmbed
from mavil.recipe import change_recipe, dump_recipe
from mavil.structs import UserError
from mavil.tasks.pretrain import Pretraining
from tests.support.recipes import tiny_recipe
from tools.benchmarks import model as models
from tools.benchmarks.model import Contest, build_contests, run_contests, run_isolated
from tools.benchmarks.model_process import measure_model
from tools.benchmarks.passes import WARM_UP_STEPS, ModelCase, ModelReading
from tools.benchmarks.plain_loop import build_task, random_inputs
from tools.benchmarks.plain_model import (
    COMPLETE,
    OURS,
    PLAIN,
    PUBLIC,
    complete_changes,
    plain_attention,
    written_plainly,
)
from tools.benchmarks.public_process import CODES

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"
CPU = torch.device("cpu")
ALONE: dict[str, Any] = {"video": None, "fusion": None, "task": {"kind": "pretrain", "contrast": None}}
WINDOWED = ("audio.decoder.attention=windowed", "audio.decoder.window=[2,2]", "audio.decoder.depth=2")
KEYLESS = ("audio.encoder.key_bias=false", "audio.token_order=mel_first", "audio.cls_token=false")


def settled(recipe: Recipe) -> Pretraining:
    """A task whose windowed blocks, if any, draw nothing: they have a dropout that is always on in training."""
    torch.manual_seed(0)
    task = build_task(recipe, CPU)
    assert isinstance(task, Pretraining)
    task.model.eval()
    return task


@pytest.mark.parametrize(
    "recipe",
    [
        change_recipe(tiny_recipe(), "task.contrast.intra_weight=0.5"),
        change_recipe(tiny_recipe(**ALONE), *WINDOWED),
        change_recipe(tiny_recipe(**ALONE), *KEYLESS),
    ],
    ids=["audio_and_video", "windowed", "keyless"],
)
def test_the_plain_model_computes_the_same(recipe: Recipe) -> None:
    task, inputs = settled(recipe), random_inputs(recipe, 3, CPU)
    embedded: list[int] = []
    for part in task.model.modules():
        if isinstance(part, PatchEmbed):
            part.register_forward_hook(lambda _, __, tokens: embedded.append(tokens.shape[1]))

    def computed() -> tuple[float, dict[str, torch.Tensor], int]:
        embedded.clear()
        total = task.loss(inputs, 0).total
        total.backward()
        gradients = {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
        task.model.zero_grad(set_to_none=True)
        return total.item(), gradients, max(embedded)

    ours, fused = computed(), F.scaled_dot_product_attention
    with written_plainly(task.model):  # type: ignore[arg-type]
        assert F.scaled_dot_product_attention is plain_attention
        plain = computed()
    assert F.scaled_dot_product_attention is fused
    assert computed()[0] == ours[0]
    assert plain[0] == pytest.approx(ours[0], rel=1e-6)
    assert plain[1].keys() == ours[1].keys()
    for name, gradient in ours[1].items():
        assert torch.allclose(plain[1][name], gradient, rtol=1e-3, atol=1e-6), name
    num_tokens = max(grid.num_tokens for grid in task.grids.values())
    assert ours[2] < num_tokens
    assert plain[2] == num_tokens


@pytest.mark.parametrize("mask", [None, "flags", "bias"])
def test_plain_attention_is_torchs(mask: str | None) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    masks = {"flags": torch.rand(5, 5).fill_diagonal_(1) > 0.5, "bias": torch.randn(2, 1, 5, 5)}
    for scale in (None, 1.0):
        arguments = {"attn_mask": masks.get(mask or ""), "scale": scale}
        expected = F.scaled_dot_product_attention(query, key, value, **arguments)  # type: ignore[arg-type]
        assert torch.allclose(plain_attention(query, key, value, **arguments), expected, atol=1e-6)  # type: ignore[arg-type]


def test_the_complete_peer_hides_one_token() -> None:
    recipe = change_recipe(tiny_recipe(), "audio.masking={kind: structured}")
    plan = view_plan(change_recipe(recipe, *complete_changes(recipe)))
    assert plan is not None
    assert {m: plan.num_visible(m) for m in plan.grids} == {m: g.num_tokens - 1 for m, g in plan.grids.items()}


def test_a_measurement_counts_passes_and_memory() -> None:
    path, threads = write(Path("tiny.yaml"), tiny_recipe(**ALONE)), torch.get_num_threads()
    reading = measure_model(ModelCase(str(path), [], batch=2, steps=3, device="cpu"))
    assert len(reading.losses) == WARM_UP_STEPS + 3
    assert len(set(reading.losses)) == len(reading.losses), "the same masks again"
    assert len(reading.seconds) == len(reading.cpu_seconds) == len(reading.product_rates) == 3
    assert 0 < reading.imports_bytes <= reading.model_bytes <= reading.peak_bytes
    assert (reading.device, reading.precision, reading.threads) == ("cpu", "fp32", threads)


def write(path: Path, recipe: Recipe) -> Path:
    path.write_text(dump_recipe(recipe))
    return path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tools.benchmarks.passes._PRODUCT_SIDE", {"cpu": 64})


def reading_of(seconds: list[float], rate: float = 1e9, **more: Any) -> ModelReading:
    memory = {"imports_bytes": 100, "model_bytes": 200, "peak_bytes": 300}
    return ModelReading(
        seconds, seconds, [rate] * len(seconds), **{**memory, "device": "cpu", "precision": "fp32", **more}
    )


def test_peers_are_multiples_of_ours() -> None:
    path = SCRIPT.parents[1] / "configs" / "pretrain" / "msm_mae.yaml"
    contest = Contest(path, [], {OURS: ModelCase(str(path), [], 8), PLAIN: ModelCase(str(path), [], 8, PLAIN)})
    contest.readings = {
        OURS: [reading_of([1.0, 9.0, 2.0], 2e11), reading_of([2.0, 3.0], 2e11)],
        PLAIN: [reading_of([4.0], peak_bytes=900)],
    }
    found = contest.summary()
    ours, plain = found["peers"][OURS], found["peers"][PLAIN]
    assert (ours["seconds"], ours["lowest_seconds"], ours["clips_per_second"]) == (2.0, 1.0, 4.0)
    assert (plain["times_seconds"], plain["times_peak_bytes"]) == (2.0, 3.0)
    assert (plain["working_bytes"], plain["times_working_bytes"]) == (800, 4.0)
    assert ours["share_of_product"] == pytest.approx(found["operations"] / 2.0 / 2e11)


def test_a_public_code_is_a_peer_of_the_unchanged_recipe_that_computes_the_same() -> None:
    def cases(changes: list[str], **more: Any) -> dict[str, ModelCase]:
        contests = build_contests([models.RECIPES[0].with_name("msm_mae.yaml")], changes, [OURS], **more)
        return contests[0].cases

    public = cases([], public=Path("codes"))[PUBLIC]
    assert (public.public, public.batch, public.changes) == ("codes", 8, [])
    assert cases([], public=Path("codes"), batch=2)[PUBLIC].batch == 2
    assert set(cases(["audio.num_steps=96", "audio.seconds=0.96"], public=Path("codes"))) == {OURS}
    assert set(cases([])) == {OURS}
    assert set(CODES) <= {path.stem for path in models.RECIPES[0].parent.glob("*.yaml")}


PUBLIC_MODEL = """
import numpy
from torch import nn
from torch._six import container_abcs, inf
class Model(nn.Module):
    def __init__(self, img_size, use_cls_token):
        super().__init__()
        assert use_cls_token
        self.layer = nn.Linear(img_size[1], numpy.float(1) and 1)
    def forward(self, clips, mask_ratio):
        print("what a program says")
        return self.layer(clips).square().mean() * mask_ratio, None, None
mae_vit_base_patch16x16_dec384d4b = Model
"""


def test_a_public_code_runs_from_its_folder_and_what_is_missing_is_said() -> None:
    package = Path("codes/msm-mae/msm_mae")
    package.mkdir(parents=True)
    package.joinpath("models_mae.py").write_text(PUBLIC_MODEL)
    case = ModelCase("msm_mae.yaml", [], batch=3, peer=PUBLIC, steps=2, threads=1, device="cpu", public="codes")
    reading = run_isolated(case)
    assert len(reading.losses) == WARM_UP_STEPS + 2
    assert len(reading.seconds) == 2
    assert (reading.device, reading.precision, reading.threads) == ("cpu", "fp32", 1)
    assert 0 < reading.imports_bytes <= reading.model_bytes <= reading.peak_bytes
    package.joinpath("models_mae.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(UserError, match=r"msm_mae, public code: .*No module named 'a_package_that_is_not_there'"):
        run_isolated(case)
    with pytest.raises(UserError, match=r"nowhere has no folder msm-mae: docs/audio_family\.md says"):
        run_isolated(replace(case, public="nowhere"))


def test_what_is_not_possible_is_left_out_of_later_rounds() -> None:
    calls: list[str] = []

    def run(case: ModelCase) -> ModelReading:
        calls.append(case.peer)
        if case.peer == PLAIN:
            raise UserError("no room")
        return reading_of([1.0])

    path = write(Path("tiny.yaml"), tiny_recipe(**ALONE))
    (contest,) = build_contests([path], ["seed=3"], [OURS, PLAIN], batch=2)
    assert len(list(run_contests([contest], 2, run))) == 3
    assert calls == [OURS, PLAIN, OURS]
    assert contest.summary()["problems"] == {PLAIN: "no room"}
    contest.readings.clear()
    with pytest.raises(UserError, match="nothing was measured"):
        contest.summary()


def benchmark(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script changes the first entry
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "model", *arguments])
    monkeypatch.setenv("COLUMNS", "140")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(caught.value.code or 0)


def test_the_command_measures_every_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(Path("tiny.yaml"), tiny_recipe(**ALONE))
    monkeypatch.setattr(models, "run_isolated", measure_model)  # a process takes seconds to start
    arguments = (str(path), "audio.encoder.depth=1", "--batch", "2", "--steps", "2", "--device", "cpu")
    assert benchmark(monkeypatch, *arguments, "--json", "found.json") == 0
    told = capsys.readouterr()
    shown = told.out
    assert told.err.splitlines() == [f"round 1 of 1: tiny, {peer}" for peer in (OURS, PLAIN, COMPLETE)]
    assert all(f"│ {peer} " in shown for peer in (OURS, PLAIN, COMPLETE))
    assert "tiny, 2 clips" in shown
    assert PUBLIC not in shown
    (found,) = json.loads(Path("found.json").read_text())["models"]
    assert found["changes"] == ["audio.encoder.depth=1"]
    losses = {peer: readings[0]["losses"] for peer, readings in found["rounds"].items()}
    assert losses[PLAIN] == pytest.approx(losses[OURS], rel=1e-5)
    assert losses[COMPLETE] != losses[OURS]
    assert found["operations"] > 0


def test_mistakes_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(monkeypatch, "--only", "nobody") == 2
    assert "--only nobody is not known: plain, all tokens or none" in capsys.readouterr().err
    assert benchmark(monkeypatch, "missing.yaml") == 2
    assert "missing.yaml" in capsys.readouterr().err
    finetuning = tiny_recipe(video=None, fusion=None, task={"kind": "classify", "modalities": ["audio"]})
    path = write(Path("finetune.yaml"), finetuning)
    with pytest.raises(UserError, match="its task is classify"):
        measure_model(ModelCase(str(path), [], batch=2, device="cpu"))


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_losses() -> None:
    path = write(Path("tiny.yaml"), tiny_recipe(**ALONE))
    case = ModelCase(str(path), [], batch=2, steps=1, threads=1, device="cpu")
    assert run_isolated(case).losses == pytest.approx(measure_model(case).losses, rel=1e-6)
    with pytest.raises(UserError, match="tiny, ours"):
        run_isolated(ModelCase(str(path), ["audio.mask_ratio=2"], batch=2))
