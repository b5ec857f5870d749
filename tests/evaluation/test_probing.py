import math

import pytest
import torch
from torch import Tensor

from mavil.evaluation.probing import (
    cue_column,
    cue_kind,
    cue_table,
    loudness,
    probe_labels,
    probe_value,
    probeable_fields,
)
from mavil.structs import UserError

WIDTH, TRAIN, TEST = 12, 240, 120


def planted(seed: int = 0) -> tuple[Tensor, list[str], list[float]]:
    """Embeddings whose first axes carry one of three speakers, and whose fourth carries a loudness."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(TRAIN + TEST, WIDTH, generator=generator)
    speaker = torch.randint(3, (TRAIN + TEST,), generator=generator)
    embeddings[torch.arange(TRAIN + TEST), speaker] += 5
    loud = 0.01 * embeddings[:, 3] + 7 + 0.002 * torch.randn(TRAIN + TEST, generator=generator)
    return embeddings, [f"speaker {i}" for i in speaker.tolist()], loud.tolist()


def test_a_planted_label_is_found() -> None:
    embeddings, speakers, _ = planted()
    result = probe_labels(embeddings[:TRAIN], speakers[:TRAIN], embeddings[TRAIN:], speakers[TRAIN:])
    assert result.score > 0.95
    assert result.num_classes == 3
    assert result.chance == max(speakers[TRAIN:].count(s) for s in set(speakers)) / TEST


def test_shuffled_labels_give_chance() -> None:
    embeddings = torch.randn(TRAIN + TEST, WIDTH)
    labels = [str(i % 3) for i in range(TRAIN + TEST)]
    result = probe_labels(embeddings[:TRAIN], labels[:TRAIN], embeddings[TRAIN:], labels[TRAIN:])
    assert abs(result.score - 1 / 3) < 0.1  # 120 test clips: a deviation of 0.043 is expected


def test_a_planted_value_is_found_and_a_shuffled_one_is_not() -> None:
    embeddings, _, loud = planted()
    result = probe_value(embeddings[:TRAIN], loud[:TRAIN], embeddings[TRAIN:], loud[TRAIN:])
    # Signal to noise is 5 to 1 in amplitude: R² can reach 1 - 1/26.
    assert 0.9 < result.score < 0.98
    assert result.spearman is not None
    assert result.spearman > 0.9
    assert result.chance == 0
    mixed = [loud[i] for i in torch.randperm(TRAIN, generator=torch.Generator().manual_seed(1)).tolist()]
    assert probe_value(embeddings[:TRAIN], mixed, embeddings[TRAIN:], loud[TRAIN:]).score < 0.1


def test_cue_table_has_a_row_per_cue_and_a_probe_per_modality() -> None:
    audio, speakers, loud = planted()
    video = torch.randn(TRAIN + TEST, WIDTH, generator=torch.Generator().manual_seed(9))
    cues: dict[str, list[str] | list[float]] = {"speaker": speakers, "loudness": loud}
    table = cue_table(
        {"audio": audio[:TRAIN], "video": video[:TRAIN]},
        {name: values[:TRAIN] for name, values in cues.items()},
        {"audio": audio[TRAIN:], "video": video[TRAIN:]},
        {name: values[TRAIN:] for name, values in cues.items()},
    )
    assert [(row.cue, row.kind) for row in table] == [("speaker", "labels"), ("loudness", "value")]
    speaker, loudness_row = table
    assert speaker.probes["audio"].score > 0.95
    assert speaker.probes["video"].score < 0.5
    assert max(speaker.shuffled.values()) < 0.55  # three tight clusters: five shuffles still scatter by 0.1
    assert loudness_row.probes["audio"].score > 0.9
    assert max(loudness_row.probes["video"].score, *loudness_row.shuffled.values()) < 0.1


def test_how_a_cue_is_probed() -> None:
    assert cue_kind(["a", "b", "a"]) == "labels"
    assert cue_kind([str(digit) for digit in range(10)]) == "labels"
    assert cue_kind([f"{i / 7:.3f}" for i in range(100)]) == "value"
    assert cue_kind([i / 7 for i in range(10)]) == "value"
    assert cue_kind(["same"] * 5) is None
    assert cue_kind([f"clip {i}" for i in range(100)]) is None


def test_cues_from_metadata() -> None:
    metadata = [{"speaker": "ab"[i % 2], "path": f"{i}.mp4", "fold": "1"} for i in range(60)]
    metadata[7]["note"] = "hum"
    assert probeable_fields(metadata) == ["speaker"]
    assert cue_column(metadata, "speaker")[:3] == ["a", "b", "a"]
    with pytest.raises(UserError, match="no metadata field 'spaeker'; it has speaker, path, fold"):
        cue_column(metadata, "spaeker")
    with pytest.raises(ValueError, match="cue 'path' cannot be probed"):
        cue_table({}, {"path": cue_column(metadata, "path")}, {}, {"path": []})


def test_loudness_is_the_level_of_the_clip_without_its_padding() -> None:
    waveforms = torch.zeros(3, 1000)
    waveforms[0, :500] = 0.1
    waveforms[1] = 1.0
    levels = loudness(waveforms, torch.tensor([500, 1000, 1000]))
    assert levels == pytest.approx([-20, 0, -120], abs=1e-5)


def test_what_is_refused() -> None:
    embeddings = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="needs two classes"):
        probe_labels(embeddings, ["a"] * 4, embeddings, ["a"] * 4)
    with pytest.raises(ValueError, match="for 3 values"):
        probe_value(embeddings, [1.0, 2.0, 3.0], embeddings, [1.0] * 4)
    with pytest.raises(ValueError, match="not all the same"):
        probe_value(embeddings, [1.0, 2.0, 3.0, 4.0], embeddings, [1.0] * 4)
    with pytest.raises(UserError, match="not finite"):
        probe_value(embeddings + math.inf, [1.0, 2.0, 3.0, 4.0], embeddings, [1.0, 2.0, 3.0, 4.0])
