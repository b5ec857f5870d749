"""Figures with axes: what is drawn where, in which unit, on which scale."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mavil.report import figures
from mavil.report.attention import AttentionMap
from mavil.report.figures import attention_figure, error_of, heads_figure, limits_of, places_of, reconstruction_figure
from mavil.report.mel_scale import centre_frequencies
from mavil.report.reconstruct import Reconstruction
from mavil.structs import TokenGrid

GRID = TokenGrid.of((32, 16), (8, 8), 1)
CENTRES = centre_frequencies(16, "kaldi_hann")


def clip_of(error: float = 2.0) -> Reconstruction:
    """Level -8 to 0, masked in its second half, and wrong there by ``error``."""
    original = torch.linspace(-8, 0, 32 * 16).reshape(32, 16)
    is_masked = torch.zeros(32, 16, dtype=torch.bool)
    is_masked[16:] = True
    return Reconstruction(original, original + error * is_masked, is_masked)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the PNGs, which are made all the same."""
    kept: list[Figure] = []
    plain = figures._png

    def png(figure: Figure) -> bytes:
        kept.append(figure)
        return plain(figure)

    monkeypatch.setattr(figures, "_png", png)
    return kept


def images(figure: Figure) -> list[Any]:
    """Pictures of spectrograms, not those of colour bars."""
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_a_reconstruction_has_four_panels_on_two_scales(drawn: list[Figure]) -> None:
    clip, limits = clip_of(), limits_of([clip_of(), clip_of(4.0)])
    png = reconstruction_figure("a clip", clip, CENTRES, limits)
    assert Image.open(io.BytesIO(png)).format == "PNG"
    original, seen, completed, error = images(drawn[0])
    decibels = 10 / math.log(10)
    assert np.allclose(original.get_array().T, decibels * clip.original)
    assert np.allclose(completed.get_array().T, decibels * clip.completed)
    assert (np.ma.getmaskarray(seen.get_array().T) == clip.is_masked.numpy()).all()
    assert (np.ma.getmaskarray(error.get_array().T) != clip.is_masked.numpy()).all()
    assert np.allclose(error.get_array().T.compressed(), 2 * decibels)
    assert {picture.get_clim() for picture in (original, seen, completed)} == {limits.level}
    assert error.get_clim() == (0.0, limits.error)
    assert limits.error == pytest.approx(4 * decibels)
    assert original.get_extent() == [0.0, pytest.approx(0.32), 0.0, 16.0]
    assert original.origin == "lower"


def test_errors_are_decibels_where_masked() -> None:
    assert error_of(clip_of(math.log(10)))[20, 3].item() == pytest.approx(10.0, abs=1e-4)
    assert not error_of(clip_of())[:16].any()


def test_attention_is_in_multiples_of_an_even_spread(drawn: list[Figure]) -> None:
    clip, limits = clip_of(), limits_of([clip_of()])
    even = AttentionMap("CLS", None, torch.full((3, 8), 1 / 9), torch.full((3,), 1 / 9))
    peaked = AttentionMap("a patch", 5, torch.eye(8)[[2, 2, 7]], torch.zeros(3))
    attention_figure("a clip", clip.original[:30], [even, peaked], GRID, CENTRES, limits)
    spectrogram, of_cls, of_patch = images(drawn[0])
    assert spectrogram.get_array().shape == (16, 30)
    assert np.allclose(of_cls.get_array(), 8 / 9)
    cells = of_patch.get_array().T[::8, ::8]
    assert cells.reshape(-1).tolist() == pytest.approx([0, 0, 16 / 3, 0, 0, 0, 0, 8 / 3])
    assert of_cls.get_clim() == of_patch.get_clim()
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert "CLS: mean over 3 heads; CLS itself gets 11 %" in titles
    (frame, _) = of_patch.axes.patches
    assert (frame.get_x(), frame.get_y()) == (pytest.approx(0.16), 8)
    assert not of_cls.axes.patches


def test_every_head_has_a_panel_on_one_scale(drawn: list[Figure]) -> None:
    one = AttentionMap("a patch", 0, torch.rand(5, 8).softmax(dim=1), torch.zeros(5))
    heads_figure("a clip", one, GRID, 32, CENTRES)
    pictures = images(drawn[0])
    assert len(pictures) == 5
    assert len({picture.get_clim() for picture in pictures}) == 1
    assert np.allclose(pictures[3].get_array().T[::8, ::8].ravel(), 8 * one.heads[3])


@pytest.mark.parametrize("axes", [None, (1, 0)])
def test_places_of_a_token_are_those_of_patchify(axes: tuple[int, int] | None) -> None:
    grid = TokenGrid.of((14, 8), (4, 3), 1, stride=(3, 2))
    grid = grid if axes is None else grid.reordered(axes)
    for token in range(grid.num_tokens):
        steps, bins = places_of(token, grid)
        found = figures.spread(torch.nn.functional.one_hot(torch.tensor(token), grid.num_tokens).float(), grid) > 0
        rows, columns = found.nonzero().T
        assert (rows.min(), rows.max() + 1) == (steps.start, steps.stop)
        assert (columns.min(), columns.max() + 1) == (bins.start, bins.stop)
