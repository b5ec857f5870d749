"""Embeddings on disk: each clip once, resumed after an interruption, made again for other models and other clips."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mavil.evaluation.hear.embeddings import batch_clips, embed_task, file_orders, same_probe
from mavil.evaluation.hear.models import Embedder, load_embedder
from mavil.evaluation.hear.tasks import read_task
from mavil.structs import UserError
from tests.evaluation.hear import tone_model
from tests.evaluation.hear.task_folders import embedder, event_task, nobody_looks, rows_of, scene_task, tone, write_wav


def test_scenes_are_stored_once_in_a_shuffled_order(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones"))
    model = embedder()
    splits = embed_task(task, model, tmp_path / "out", nobody_looks)
    calls = len(model.model.calls)
    assert sum(model.model.calls) == 24
    for split, stored in splits.items():
        assert stored.files == file_orders(task)[split] != list(task.truth[split])
        assert sorted(stored.files) == sorted(task.truth[split])
        # The loudest pitch is the label's.
        assert [task.labels[i] for i in stored.embeddings.argmax(1)] == [task.truth[split][f][0] for f in stored.files]
    again = embed_task(task, model, tmp_path / "out", nobody_looks)
    assert len(model.model.calls) == calls
    assert splits["fold00"].digest == again["fold00"].digest
    assert not list((tmp_path / "out").glob("*partial*"))


def test_events_keep_their_timestamps(tmp_path: Path) -> None:
    task = read_task(event_task(tmp_path / "events"))
    stored = embed_task(task, embedder(), tmp_path / "out", nobody_looks)["test"]
    times = stored.timestamps_ms
    assert times is not None
    assert stored.num_rows == [79, 79]
    for name, rows in stored.per_file():
        first = task.reference("test")[name][0]
        inside = (times[rows] > first.start_ms + 50) & (times[rows] < first.end_ms - 50)
        assert set(stored.embeddings[rows][inside].argmax(1)) == {task.labels.index(first.label)}
        assert times[rows][0] == pytest.approx(50.0)


def test_an_interrupted_split_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    # Of this length each clip is a batch of its own.
    task = read_task(event_task(tmp_path / "events", clips=4, sample_duration=100.0))
    whole = rows_of(embed_task(task, embedder(), tmp_path / "whole", nobody_looks))
    out, model, calls = tmp_path / "out", tone_model.ToneModel(), 0

    def ends_after_two(audio: Tensor, model: tone_model.ToneModel) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("power cut")
        return tone_model.get_timestamp_embeddings(audio, model)

    module = SimpleNamespace(__name__="tones", get_timestamp_embeddings=ends_after_two)
    with pytest.raises(RuntimeError, match="power cut"):
        embed_task(task, Embedder(module, model, torch.device("cpu")), out, nobody_looks)
    # As a crash leaves it: half a line, and numbers that nothing speaks of.
    with open(out / "train.jsonl.partial", "a") as table:
        table.write('{"file": "train')
    with open(out / "train.npy.partial", "ab") as data:
        data.write(b"12345")
    done: list[int] = []
    resumed = embed_task(
        task, Embedder(module, model, torch.device("cpu")), out, lambda _, count, total: done.append(count)
    )
    assert done[0] == 2
    assert calls == 3 + 10
    for split, rows in rows_of(resumed).items():
        np.testing.assert_array_equal(rows, whole[split])


@pytest.mark.parametrize(("of_this_model", "size"), [(True, 140), (False, 1000)])
def test_what_was_left_is_not_believed_blindly(of_this_model: bool, size: int, tmp_path: Path) -> None:
    """After a power cut the table may be longer than the data that it speaks of; or it may be of another model."""
    task = read_task(scene_task(tmp_path / "tones", clips=4))
    whole = rows_of(embed_task(task, embedder(), tmp_path / "out", nobody_looks))
    table = json.loads((tmp_path / "out" / "fold00.json").read_text())
    lines = [{"key": table["key"] if of_this_model else "another"}, *table["files"][:2]]
    (tmp_path / "out" / "fold00.jsonl.partial").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out" / "fold00.npy.partial").write_bytes(b"\0" * size)
    (tmp_path / "out" / "fold00.json").unlink()
    again = embed_task(task, embedder(), tmp_path / "out", nobody_looks)
    np.testing.assert_array_equal(again["fold00"].embeddings, whole["fold00"])


def test_other_weights_or_other_clips_are_embedded_anew(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones", clips=4))
    out = tmp_path / "out"
    embed_task(task, embedder(), out, nobody_looks)
    one = np.array(embed_task(task, embedder(), out, nobody_looks)["fold00"].embeddings)
    two = np.array(embed_task(task, embedder(gain=2.0), out, nobody_looks)["fold00"].embeddings)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)
    truth = json.loads((task.folder / "fold00.json").read_text())
    del truth["0_0.wav"]
    (task.folder / "fold00.json").write_text(json.dumps(truth))
    fewer = embed_task(read_task(task.folder), embedder(gain=2.0), out, nobody_looks)
    assert len(fewer["fold00"].embeddings) == 3


def test_clips_of_unequal_length_are_embedded_apart(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones", clips=4))
    name = file_orders(task)["fold00"][1]
    write_wav(task.folder / "16000" / "fold00" / name, tone(4000.0, 0.5, 16000), 16000)
    model = embedder()
    splits = embed_task(task, model, tmp_path / "out", nobody_looks)
    assert model.model.calls[:3] == [1, 1, 2]
    assert splits["fold00"].embeddings[1].argmax() == 3


def test_a_clip_that_the_model_refuses_is_named(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones", clips=4))
    write_wav(task.folder / "16000" / "fold01" / "1_2.wav", tone(500.0, 0.05, 16000), 16000)
    with pytest.raises(UserError, match=r"1_2\.wav: 800 samples are shorter than one window"):
        embed_task(task, embedder(), tmp_path / "out", nobody_looks)
    model = embedder(gain=float("nan"))
    with pytest.raises(UserError, match="an embedding is not finite"):
        embed_task(task, model, tmp_path / "other", nobody_looks)


def test_batches_are_84_seconds_at_16_khz(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones", clips=4, sample_duration=4.0))
    assert [batch_clips(task, rate) for rate in (16000, 48000)] == [21, 7]
    assert batch_clips(read_task(scene_task(tmp_path / "any", clips=4, sample_duration=None)), 16000) == 1


def test_identity_follows_the_weights_and_the_probe_the_rest() -> None:
    same, other_weights, other_rest = embedder(), embedder(gain=1.001), embedder(floor=0.5)
    assert same.identity() == embedder().identity() != other_weights.identity()
    assert same.identity() == other_rest.identity()
    assert same_probe(same.probe(), embedder().probe())
    assert not same_probe(same.probe(), other_rest.probe())


def test_modules_without_the_api_are_refused() -> None:
    with pytest.raises(UserError, match=r"no_such_module: cannot be imported"):
        load_embedder("no_such_module", "", torch.device("cpu"))
    with pytest.raises(UserError, match=r"json has no load_model: it is no HEAR module"):
        load_embedder("json", "", torch.device("cpu"))
    assert load_embedder("tests.evaluation.hear.tone_model", "2", torch.device("cpu")).sample_rate_hz == 16000
