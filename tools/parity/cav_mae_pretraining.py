"""CAV-MAE's pre-training step: reconstruction from the joint sequence, contrast of each modality alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mavil.losses.contrastive import ContrastResult, symmetric_info_nce
from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.decoder import JointDecoder
from mavil.models.fusion import JointFusion
from mavil.models.masked import MaskedLearner, MaskedOutput
from mavil.models.masking import random_masking, structured_masking
from mavil.models.tokens import position_table, unpatchify
from mavil.structs import MODALITIES, MaskedView, MaskedViews, Modality
from tools.parity.building import Weights, at, stack_of, tapped, view_of, visible_only
from tools.parity.cav_mae import Tokens, check_retrieval_features, encoders_of, grids_of, patches_of
from tools.parity.checks import FEATURES, LOSS, TABLE, Checks

Views = dict[Modality, MaskedViews]


class Pretraining:
    """The network of a pre-training file with its weights, inputs and noise."""

    def __init__(self, checks: Checks) -> None:
        config: dict[str, Any] = checks.fixture.get("config")
        self.checks, self.config = checks, config
        self.grids = grids_of(config)
        self.fusion = JointFusion(stack_of(config, "unified_blocks"), alone_norms=True)
        stack = stack_of(config, "decoder_depth", "decoder_")
        values = {m: grid.patch_values for m, grid in self.grids.items()}
        positions: dict[Modality, str] = {"audio": "sincos_2d", "video": "tiled_2d"}
        none: dict[Modality, int] = {"audio": 0, "video": 0}
        encoders = encoders_of(config, trained_positions=False)
        decoder = JointDecoder(self.grids, encoders["audio"].width, stack, positions, values, none)
        self.learner = MaskedLearner(encoders, decoder, self.fusion, pooled_from="fusion_alone")
        self.decoder = decoder
        self.weights = Weights(checks)
        self.weights.fill(self.learner.parts())
        self.patches = patches_of(checks, self.grids)

    def views(self, audio_ratio: float, video_ratio: float) -> Views:
        """From the file's noise; each is predicted and compared."""
        ratios: dict[Modality, float] = {"audio": audio_ratio, "video": video_ratio}
        views: Views = {}
        for modality, grid in self.grids.items():
            noise = self.checks.fixture.tensor("inputs", f"noise_{modality[0]}")
            views[modality] = _both_uses(random_masking(noise, int(grid.num_tokens * (1 - ratios[modality]))))
        return views

    @contextmanager
    def only_block(self, number: int) -> Iterator[None]:
        """The fusion with one of its blocks."""
        blocks = self.fusion.blocks
        self.fusion.blocks = nn.ModuleList([blocks[number]])
        try:
            yield
        finally:
            self.fusion.blocks = blocks

    def contrast_inputs(self, views: Views) -> Tokens:
        """Pooled ``[B, D]`` as the original has them: of the unified blocks only the last one acts on what is compared."""
        compared = {m: MaskedViews([], own.compared) for m, own in views.items()}
        with self.only_block(len(self.fusion.blocks) - 1):
            pooled = self.learner(self.patches, compared).pooled
        return {m: values[0] for m, values in pooled.items()}

    def losses(self, key: str, *names: str, views: Views, normalises: bool = True) -> Tensor:
        """Check every loss under ``key``, with the weights stored in ``names`` there (reconstruction, contrast)."""
        output: MaskedOutput = self.learner(self.patches, views)
        weights = [self.checks.fixture.number(*names, f"{which}_loss_weight") for which in ("mae", "contrast")]
        return self._check_losses(tuple(key.split("/")), output, views, weights, normalises)

    def _check_losses(
        self, key: tuple[str, ...], output: MaskedOutput, views: Views, weights: list[float], normalises: bool
    ) -> Tensor:
        def compare(name: str, value: Tensor, exactly: bool = False) -> None:
            rule = "exact" if exactly else "relative"
            self.checks.compare((*key, name), value, LOSS, ("f64", *key, name), rule)  # type: ignore[arg-type]

        terms = {
            m: masked_mse(
                output.predictions[m][0],
                normalise_patches(self.patches[m]) if normalises else self.patches[m],
                views[m].predicted[0].is_masked,
            )
            for m in MODALITIES
        }
        pooled = self.contrast_inputs(views)
        contrast = _contrast(pooled["audio"], pooled["video"], self.config)
        mae, nce = weights[0] * (terms["audio"] + terms["video"]), weights[1] * contrast.loss
        compare("loss", mae + nce)
        compare("loss_mae", mae)
        for modality, value in terms.items():
            compare(f"loss_mae_{modality[0]}", value)
        compare("loss_c", nce)
        compare("c_acc", contrast.accuracy, exactly=True)
        return mae + nce


def check(checks: Checks) -> None:
    """Masks, latents, taps, contrast, predictions, losses, gradients, structured masks, retrieval features."""
    model = Pretraining(checks)
    number = checks.fixture.number
    views = model.views(number("pretrain", "mask_ratio_a"), number("pretrain", "mask_ratio_v"))
    with torch.no_grad():
        _check_step(model, views)
        _check_contrasts(model, views)
        encoders = {m: model.learner.encoder(m) for m in MODALITIES}
        check_retrieval_features(checks, encoders, model.fusion, model.patches, "features")
        _check_tables(model)
        if checks.fixture.has("structured"):
            checks.fixture.get("structured", "noise_a")  # the stored masks stand for it: see there
            for kind in (name for name in checks.fixture.keys("structured") if name != "noise_a"):
                _check_structured(model, views["video"], kind)
        if checks.fixture.has("pretrain_raw_pixels"):
            model.losses("pretrain_raw_pixels", "pretrain", views=views, normalises=False)
        if checks.fixture.has("pretrain_other_ratios"):
            name = "pretrain_other_ratios"
            other = model.views(number(name, "mask_ratio_a"), number(name, "mask_ratio_v"))
            for m in MODALITIES:
                checks.exact((name, f"visible_{m[0]}"), other[m].predicted[0].visible_ids.shape[1])
            model.losses(name, name, views=other)
    loss = model.losses("pretrain", "pretrain", views=views, normalises=bool(model.config["norm_pix_loss"]))
    model.weights.forget_gradients()
    loss.backward()
    checks.gradients(("pretrain", "grad_norms"), model.weights.gradient_norms(), ("pretrain", "params_without_grad"))


def _check_step(model: Pretraining, views: Views) -> None:
    """One step without its losses."""
    checks, fixture = model.checks, model.checks.fixture
    blocks = {"blocks_a": model.learner.encoder("audio").blocks, "blocks_v": model.learner.encoder("video").blocks}
    rows = {**blocks, "blocks_u": model.fusion.blocks, "decoder_blocks": model.decoder.blocks}
    with tapped(cast(Mapping[str, Any], rows)) as taps:
        output: MaskedOutput = model.learner(model.patches, views)
    for i in range(len(model.fusion.blocks)):
        # Upstream each unified block starts from the encoders' output when it is passed alone.
        with model.only_block(i), tapped({"blocks_u": [model.fusion.blocks[0]]}) as alone:
            model.learner(model.patches, {m: MaskedViews([], own.compared) for m, own in views.items()})
        taps |= {f"blocks_u.{i}.{letter}": alone[f"blocks_u.0.{letter}"] for letter in ("a", "v")}
    for name in fixture.keys("pretrain", "taps"):
        checks.compare(("pretrain", "taps", name), taps[name], FEATURES)
    for m, own in views.items():
        view, letter = own.predicted[0], m[0]
        checks.exact(("pretrain", f"mask_{letter}"), view.is_masked)
        checks.exact(("pretrain", f"ids_restore_{letter}"), view.restore_ids)
        predictions = output.predictions[m][0]
        index = fixture.tensor("pretrain", f"pred_{letter}_token_index")
        checks.compare(("pretrain", f"pred_{letter}"), at(predictions, index), FEATURES)
        checks.compare(("pretrain", f"pred_{letter}_mean"), predictions.flatten(1).mean(dim=1), FEATURES)
        index = fixture.tensor("pretrain", f"target_{letter}_raw_token_index")
        checks.exact(("pretrain", f"target_{letter}_raw"), at(model.patches[m], index))
    latent = _joint_latent(model, views)
    checks.compare(("pretrain", "latent"), at(latent, fixture.tensor("pretrain", "latent_token_index")), FEATURES)
    checks.compare(("pretrain", "latent_mean"), latent.mean(dim=1), FEATURES)
    image = unpatchify(output.predictions["video"][0], model.grids["video"])[:, :, 0]
    rows_, columns = fixture.tensor("pretrain", "pred_v_as_image_corner").shape[-2:]
    checks.compare(("pretrain", "pred_v_as_image_corner"), image[..., :rows_, :columns], FEATURES)


def _joint_latent(model: Pretraining, views: Views) -> Tensor:
    """``[B, Ka + Kv, D]`` behind the fusion's norm."""
    encoded = {
        m: model.learner.encoder(m)(visible_only(model.patches[m], own.predicted[0]), own.predicted[0].visible_ids)
        for m, own in views.items()
    }
    fused = model.fusion(encoded)
    return model.fusion.norm(torch.cat([fused.output(m) for m in MODALITIES], dim=1))


def _check_contrasts(model: Pretraining, views: Views) -> None:
    checks, fixture = model.checks, model.checks.fixture
    weight = fixture.number("pretrain", "contrast_loss_weight")
    for m, pooled in model.contrast_inputs(views).items():
        name = f"contrast_{m[0]}"
        checks.compare(("pretrain", name), pooled, FEATURES, f64=("f64", name))
    if len(model.fusion.blocks) > 1:
        checks.notes.append(
            "pretrain.contrast_* and loss_c: the last unified block alone, as upstream; ours are contrast_chained"
        )
    if fixture.has("contrast_chained"):
        chained = {m: values[0] for m, values in model.learner(model.patches, views).pooled.items()}
        for m, pooled in chained.items():
            checks.compare(("contrast_chained", f"contrast_{m[0]}"), pooled, FEATURES)
        result = _contrast(chained["audio"], chained["video"], model.config)
        checks.compare(("contrast_chained", "loss_c"), weight * result.loss, LOSS)
        checks.exact(("contrast_chained", "c_acc"), result.accuracy)
    if fixture.has("contrast_alone"):
        pair = checks.input("contrast_alone", "a"), checks.input("contrast_alone", "v")
        one, both = (_contrast(*pair, model.config, both_ways=both) for both in (False, True))
        for suffix, result in (("", one), ("_bidirectional", both)):
            checks.compare(("contrast_alone", f"nce{suffix}"), result.loss, LOSS)
            checks.exact(("contrast_alone", f"acc{suffix}"), result.accuracy)


def _check_structured(model: Pretraining, video: MaskedViews, kind: str) -> None:
    """Time, frequency and combined masks on sound, with the mask as stored: where too few tokens are free, ties decide."""
    checks, fixture = model.checks, model.checks.fixture
    key = ("structured", kind)
    stored = fixture.tensor(*key, "mask_a")
    view = view_of(stored)
    chosen = [fixture.get(*key, name) for name in ("freq_rows", "time_columns")]
    noise, kept = zip(*map(_noise_of_rows, chosen, model.grids["audio"].cells, [len(stored)] * 2), strict=True)
    by_rule = structured_masking(noise, kept).is_masked
    leaked = int((by_rule & (stored == 0)).sum())
    checks.exact((*key, "n_visible"), view.visible_ids.shape[1])
    checks.exact((*key, "leaked"), leaked, "hidden by the rule, visible in the file")
    if not leaked:
        checks.exact((*key, "mask_a"), by_rule)
    model.losses("/".join(key), "pretrain", views={"audio": _both_uses(view), "video": video})


def _noise_of_rows(chosen: list[list[int]], count: int, batch: int) -> tuple[Tensor, int]:
    """Noise that hides the chosen rows of one axis, and how many that leaves."""
    noise = torch.zeros(batch, count)
    for clip, rows in enumerate(chosen):
        noise[clip, rows] = 1.0
    return noise, count - (len(chosen[0]) if chosen else 0)


def _check_tables(model: Pretraining) -> None:
    """Fixed tables in the file are what ours would be."""
    for name in model.checks.fixture.content.get("frozen", []):
        m = MODALITIES[0] if name.endswith("_a") else MODALITIES[1]
        width = model.config["decoder_embed_dim" if name.startswith("decoder") else "embed_dim"]
        ours = position_table(model.grids[m], int(width), {"audio": "sincos_2d", "video": "tiled_2d"}[m], num_prefix=0)
        model.checks.add(name, ours, model.checks.fixture.tensor("state_dict", name), TABLE, "absolute")


def _both_uses(view: MaskedView) -> MaskedViews:
    return MaskedViews([view], [view])


def _contrast(audio: Tensor, video: Tensor, config: Mapping[str, Any], both_ways: bool = False) -> ContrastResult:
    directions = "both" if both_ways else "first_for_second"
    return symmetric_info_nce(audio, video, float(config["temperature"]), across_ranks=False, directions=directions)  # type: ignore[arg-type]
