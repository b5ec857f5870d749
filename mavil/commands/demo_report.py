"""The demo's page: what was trained, what it can do, and clips to look at and listen to."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

import mavil
from mavil.commands.assemble import CONFIG_FILE, curve_of, load_masked
from mavil.commands.demo_checks import Check
from mavil.commands.demo_clips import ClipSets
from mavil.commands.embedding import Embedded, embed_shards
from mavil.commands.inputs import evaluation_inputs
from mavil.commands.predicting import audio_filled, predict, video_filled
from mavil.config import Recipe
from mavil.data.media import DecodeError, FrameWindow, decode_audio, decode_frames, encode_clip
from mavil.data.stream.clips import ClipStream
from mavil.data.stream.shard_set import open_shards
from mavil.evaluation.nearest import nearest
from mavil.evaluation.probing import CueResult
from mavil.evaluation.retrieval import compute_standings
from mavil.recipe import change_recipe
from mavil.report import page
from mavil.report.charts import Charts, loss_charts
from mavil.report.examples import Hit, Media, ReconstructionExample, RetrievalExample
from mavil.report.pictures import frames_png
from mavil.report.reconstruct import Reconstruction, reconstruction_example
from mavil.report.tables import Comparison, Table, comparison_table, cue_block, retrieval_table
from mavil.structs import SAMPLE_RATE

NUM_RECONSTRUCTIONS = 3
NUM_QUERIES = 3
NUM_HITS = 5
SHOWN_FPS = 8.0
SHOWN_SIDE = 128
LONGEST_SECONDS = 10.0
CPU = torch.device("cpu")


def write_report(out: Path, clips: ClipSets, results: Any, checks: list[Check], usage: str) -> Path:
    """Write ``OUT/report.html`` from the runs below ``out``.

    ``results`` is :class:`mavil.commands.demo.Results`, ``usage`` the lines that load the exported model.
    """
    sections = [
        page.Section(
            "Finding the picture for a sound, and the sound for a picture",
            "Each clip of the gallery was held out of training. Embeddings are the encoders' pooled outputs, compared by "
            "cosine; a query's only right answer is its own clip.",
            [_retrieval(results.retrieval), *_retrieval_examples(out, clips)],
        ),
        *_finetuning(results.finetunes),
        page.Section(
            "What stage 1 fills in",
            "The model saw only the patches that are not grey and predicted the others. It predicts each patch relative to "
            "its own mean and contrast, which are taken from the original here. The sounds of both spectrograms were made "
            "with the Griffin-Lim algorithm, which invents the phases; the recording itself is beside the original.",
            _reconstructions(out / "stage1", clips),
        ),
        *_cues(results.cues),
        page.Section("Losses over the steps", "", [_curves(out)]),
        page.Section(
            "Use the model",
            "The encoders of stage 2 are beside this page, in the folder export, with a card. They give the embedding of any "
            "sound or film:",
            [page.Listing("three lines of Python", usage, is_open=True)],
        ),
    ]
    report = page.Report(
        title="MAViL, from clips to retrieval",
        intro=[
            f"{_size(clips)}: pre-training by masked reconstruction and masked contrast (stage 1), self-training on the "
            "frozen stage-1 model's tokens (stage 2), then fine-tuning and retrieval.",
            *results.notes,
        ],
        checks=[page.Check(c.name, f"{c.value:.1f} %", f"{c.threshold:.1f} %", c.passed) for c in checks],
        sections=sections,
        environment=f"mavil {mavil.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        listings=[
            page.Listing(f"settings of {stage}", (out / stage / CONFIG_FILE).read_text())
            for stage in ("stage1", "stage2")
        ],
    )
    page.write_page(out / "report.html", report)
    return out / "report.html"


def _size(clips: ClipSets) -> str:
    numbers = clips.describe()
    kind = "synthetic clips" if clips.is_synthetic else "clips"
    return f"{numbers['train']} {kind} to train on, {numbers['gallery']} to search in"


def _retrieval(retrieval: dict[str, dict[str, Any]]) -> Table:
    rows = {f"{stage}, {gallery}": ways for stage, found in retrieval.items() for gallery, ways in found.items()}
    return retrieval_table(rows, "Retrieval after each stage")


def _finetuning(finetunes: dict[str, dict[str, Any]]) -> list[page.Section]:
    if not finetunes:
        return []
    rows = [
        Comparison(f"on {which}", r["metric"], r["pretrained"], r["random"], r["chance"])
        for which, r in finetunes.items()
    ]
    text = (
        "The same classifier, the same few steps; only the start differs: the encoders of stage 2, or random weights."
    )
    return [page.Section("Fine-tuning", text, [comparison_table(rows, "Accuracy on the held-out clips")])]


def _cues(cues: list[CueResult]) -> list[page.Section]:
    if not cues:
        return []
    text = (
        "Which properties of a clip can be read off its embeddings: what both modalities know can carry the retrieval, "
        "what only one knows cannot."
    )
    return [
        page.Section("Which cues the model uses", text, [cue_block(cues, "Linear probes of the stage-2 embeddings")])
    ]


def _curves(out: Path) -> Charts:
    runs = {stage: curve_of(out / stage) for stage in ("stage1", "stage2")}
    return Charts(loss_charts(runs), note="Unweighted terms; each point is the mean since the one before.")


def _reconstructions(run: Path, clips: ClipSets) -> list[ReconstructionExample]:
    model, recipe = load_masked(run)
    recipe = change_recipe(recipe, f"data.evaluation={clips.evaluation}", f"trainer.device_batch={NUM_RECONSTRUCTIONS}")
    inputs = next(iter(evaluation_inputs(recipe, "evaluation", None, CPU)))
    media, predicted = read_media(clips.evaluation, inputs.keys), predict(model, recipe, inputs)
    return [
        _reconstruction(
            recipe,
            key,
            audio_filled(model, recipe, inputs, predicted, row),
            video_filled(model, recipe, inputs, predicted, row),
            media[key],
        )
        for row, key in enumerate(inputs.keys)
    ]


def _reconstruction(
    recipe: Recipe, key: str, audio: Reconstruction | None, video: Reconstruction | None, media: bytes
) -> ReconstructionExample:
    waveform = decode_audio(media, recipe.audio.seconds) if audio and recipe.audio else torch.zeros(SAMPLE_RATE)
    return reconstruction_example(key, audio, video, len(waveform), waveform if audio else None)


def _retrieval_examples(out: Path, clips: ClipSets) -> list[RetrievalExample]:
    model, recipe = load_masked(out / "stage2")
    gallery = embed_shards(model, recipe, clips.evaluation, CPU).complete()
    # Evenly spread over the gallery, whatever their result: nothing is picked for looking good.
    queries = torch.linspace(0, len(gallery.keys) - 1, min(NUM_QUERIES, len(gallery.keys))).long()
    found = {
        "audio": nearest(gallery.audio[queries], gallery.video, NUM_HITS)[1],
        "video": nearest(gallery.video[queries], gallery.audio, NUM_HITS)[1],
    }
    wanted = {gallery.keys[i] for i in [*queries.tolist(), *torch.cat(list(found.values())).flatten().tolist()]}
    media = read_media(clips.evaluation, sorted(wanted))
    players = {key: _players(data) for key, data in media.items()}
    return [
        _retrieval_example(gallery, players, query, hits, way)
        for way in ("audio", "video")
        for query, hits in zip(queries.tolist(), found[way].tolist(), strict=True)
    ]


def _retrieval_example(
    gallery: Embedded, players: dict[str, dict[str, Media]], query: int, hits: list[int], way: str
) -> RetrievalExample:
    sides = (gallery.audio, gallery.video) if way == "audio" else (gallery.video, gallery.audio)
    rank = compute_standings(*sides).ranks[query].item()
    other = "video" if way == "audio" else "audio"
    order = list(hits)
    ranks = [float(position) for position in range(1, len(hits) + 1)]
    if query not in order:
        order.append(query)
        ranks.append(rank)
    return RetrievalExample(
        title=f"{'sound to picture' if way == 'audio' else 'picture to sound'}: {gallery.keys[query]}",
        query=players[gallery.keys[query]][way],
        hits=[
            Hit(players[gallery.keys[i]][other], round(r), is_answer=i == query, caption=gallery.keys[i])
            for i, r in zip(order, ranks, strict=True)
        ],
        answer_rank=rank,
        gallery_size=len(gallery.keys),
    )


def _players(media: bytes) -> dict[str, Media]:
    """A clip as a sound and as a silent moving picture, both in formats that every browser plays."""
    waveform = decode_audio(media, LONGEST_SECONDS)
    seconds = min(LONGEST_SECONDS, len(waveform) / SAMPLE_RATE)
    window = FrameWindow(max(1, round(seconds * SHOWN_FPS)), SHOWN_FPS, SHOWN_SIDE)
    frames = decode_frames(media, window)
    poster = frames_png(frames[-1:], columns=1)  # many clips begin with an empty picture
    return {
        "audio": Media(encode_clip(None, 0, waveform), "sound of the clip"),
        "video": Media(encode_clip(frames, SHOWN_FPS, None), "moving picture of the clip", poster),
    }


def read_media(shards: Path, keys: list[str]) -> dict[str, bytes]:
    """The media files of some clips of a folder of shards.

    Raises:
        DecodeError: a clip is not there.
    """
    stream = ClipStream(open_shards(shards), seed=0, training=False, shuffle_buffer=1)
    found = {raw.key: raw.media for raw in stream.read() if raw.key in set(keys) and raw.media is not None}
    missing = sorted(set(keys) - set(found))
    if missing:
        raise DecodeError("empty", f"{shards} holds no clip {missing[0]}")
    return found
