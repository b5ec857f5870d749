"""The card of an exported model: what it is, on what it was trained, what was measured, whose licence holds, how to load it.

It is written from :class:`mavil.export.parts.Exported` alone; what is not there is said to be unknown or not measured. Its
``about`` may have: ``name``, ``run``, ``checkpoint``, ``step``, ``averaged``, ``mavil_version``, ``commit``, ``data``
(``{"train": {"name", "clips"}, "evaluation": ...}``), ``starts`` (see :func:`mavil.export.origins.licence_of`), ``licence`` (the
owner's), ``evaluation`` (``{"data", "num_clips", "step", "rows": [{"shown", "metric", "value", "low", "high"}]}``),
``retrieval`` (``{"data", "galleries": {gallery: {direction: numbers}}}``), ``command``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mavil.config import ClassifyTask, Recipe
from mavil.export.folder import DIGEST_PLACE
from mavil.export.origins import UNKNOWN, licence_of
from mavil.export.parts import Exported, num_bytes
from mavil.structs import Modality

THREE_LINES = """import mavil
m = mavil.load("{place}")
{call}"""


def usage(place: str, modalities: tuple[Modality, ...]) -> str:
    """The three lines that load a model from ``place`` and embed a file."""
    call = 'm.embed_audio("sound.wav")' if "audio" in modalities else 'm.embed_video("clip.mp4")'
    return THREE_LINES.format(place=place, call=call)


def card_of(exported: Exported, place: str = "PATH_OF_THIS_FOLDER") -> str:
    """Text of ``README.md``, with the Hub's front matter.

    Args:
        exported: the model.
        place: what the lines to load it name: its folder or its id on the Hub.
    """
    about, recipe = exported.about, exported.recipe
    name = str(about.get("name") or recipe.name)
    sections = [
        f"# {name}",
        _what(recipe),
        "## Use",
        f"```python\n{usage(place, recipe.modalities)}\n```",
        "It gives one L2-normalised embedding per file; other inputs, windows and both modalities together are in "
        "docs/embeddings.md of the project.",
        "## Model",
        _model(exported),
        "## Data",
        _data(about),
        "## Training",
        _protocol(recipe, about),
        "## Results",
        _evaluation(about.get("evaluation")),
        _retrieval(about.get("retrieval")),
        "## Licence",
        _licence(about),
        "## Origin",
        _origin(exported),
    ]
    return _front_matter(recipe, about) + "\n" + "\n\n".join(sections) + "\n"


def _front_matter(recipe: Recipe, about: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData  # half a second, and only cards need it

    licence = licence_of(about.get("starts"), about.get("licence")).name
    data = ModelCardData(
        library_name="mavil",
        pipeline_tag="feature-extraction",
        tags=["mavil", *recipe.modalities, "self-supervised", "masked-autoencoder"],
        license=licence,
        license_name="see-the-licence-section" if licence == "other" else None,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def _what(recipe: Recipe) -> str:
    return (
        f"Encoders for {' and '.join(recipe.modalities)} from {stage_of(recipe)} with mavil, without decoders and without heads: "
        "they give embeddings of files, not classes."
    )


def stage_of(recipe: Recipe) -> str:
    """What a pre-training recipe is, in words: targets decide."""
    task = recipe.task
    if isinstance(task, ClassifyTask):
        return "fine-tuning"
    return (
        "pre-training (targets: raw patches)" if task.teacher is None else "pre-training (targets: a teacher's tokens)"
    )


def _model(exported: Exported) -> str:
    recipe = exported.recipe
    rows = ["| part | tensors | parameters and tables |", "|---|---|---|"]
    for part, tensors in exported.parts.items():
        rows.append(f"| {part} | {len(tensors)} | {sum(tensor.numel() for tensor in tensors.values()):,} |")
    lines = []
    if "audio" in recipe.modalities and recipe.audio is not None:
        audio = recipe.audio
        lines.append(
            f"- sound: 16 kHz, {audio.seconds:g} s, {audio.spectrogram} log-mel of {audio.num_steps} x {audio.num_mel_bins}, "
            f"mean {audio.mean:.6g}, deviation {audio.std:.6g}; encoder of width {audio.encoder.width}, "
            f"{audio.encoder.depth} blocks"
        )
    if "video" in recipe.modalities and recipe.video is not None:
        video = recipe.video
        lines.append(
            f"- picture: {video.num_frames} frames at {video.frames_per_second:g} per second, {video.size} x {video.size}; "
            f"encoder of width {video.encoder.width}, {video.encoder.depth} blocks"
        )
    return "\n".join([*lines, "", *rows])


def _data(about: Mapping[str, Any]) -> str:
    data = about.get("data") or {}
    lines = [f"- trained on: {_set(data.get('train'))}", f"- evaluated on: {_set(data.get('evaluation'))}"]
    lines += [
        f"- {start.get('name')} ({_role(start)}) was trained on: {_set(start.get('data'))}"
        for start in about.get("starts") or []
        if start.get("kind") == "run"
    ]
    return "\n".join(lines)


def _set(data: Mapping[str, Any] | None) -> str:
    if not data:
        return "not known"
    clips = data.get("clips")
    return f"{_inline(data.get('name'))}, {'number of clips not known' if clips is None else f'{clips:,} clips'}"


def _role(start: Mapping[str, Any]) -> str:
    return "its teacher" if start.get("role") == "teacher" else "it began with its weights"


def _protocol(recipe: Recipe, about: Mapping[str, Any]) -> str:
    step = about.get("step")
    lines = [
        f"- {stage_of(recipe)}",
        f"- {'step not known' if step is None else f'step {step:,}'} of {recipe.schedule.length}"
        + (", averaged weights" if about.get("averaged") else ""),
        f"- base learning rate {recipe.optimizer.base_lr:g}, weight decay {recipe.optimizer.weight_decay:g}, seed {recipe.seed}",
        "- every setting is in `config.json` under `recipe`",
    ]
    if isinstance(recipe.task, ClassifyTask):
        lines.insert(1, f"- loss {recipe.task.loss}" + (", encoders frozen" if recipe.task.frozen else ""))
    return "\n".join(lines)


def _evaluation(found: Mapping[str, Any] | None) -> str:
    if not found or not found.get("rows"):
        return "Classification and the task's own metrics: not measured."
    chances = {
        (row["shown"], row["metric"].removeprefix("chance_")): row["value"]
        for row in found["rows"]
        if row["metric"].startswith("chance_")
    }
    clips = found.get("num_clips")
    number = "number of clips not recorded" if clips is None else f"N = {clips:,} clips"
    table = ["| shown | metric | value | 95 % interval | chance |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        if row["metric"].startswith("chance_") or row["metric"] == "num_clips" or row["value"] is None:
            continue
        between = "" if row.get("low") is None else f"{row['low']:.4g} to {row['high']:.4g}"
        chance = chances.get((row["shown"], row["metric"]))
        table.append(
            f"| {row['shown']} | {row['metric']} | {row['value']:.4g} | {between} | {'' if chance is None else f'{chance:.4g}'} |"
        )
    return (
        f"`mavil evaluate` on {_inline(found.get('data'))}, {number}, {_when(found)}:\n\n"
        + "\n".join(table)
        + _seen(found)
    )


def _retrieval(found: Mapping[str, Any] | None) -> str:
    if not found or not found.get("galleries"):
        return "Retrieval between sound and picture: not measured."
    heads = ("gallery", "N", "direction", "R@1", "R@5", "R@10", "chance R@1", "median rank", "mAP by class")
    table = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for gallery, ways in found["galleries"].items():
        for way, numbers in ways.items():
            names = [f"recall_at_{k}_percent" for k in (1, 5, 10)]
            names += ["chance_at_1_percent", "median_rank", "class_map_percent"]
            cells = [_number(numbers, name) for name in names]
            size = _number(numbers, "gallery_size")
            table.append(f"| {_inline(gallery)} | {size} | {_inline(way).replace('_', ' ')} | {' | '.join(cells)} |")
    protocol = f", protocol {_inline(found['protocol'])}" if found.get("protocol") else ""
    opening = f"`mavil retrieve` on {_inline(found.get('data'))}{protocol}, {_when(found)}, percent:"
    return f"{opening}\n\n" + "\n".join(table) + _seen(found)


def _number(numbers: Mapping[str, Any], name: str) -> str:
    """A number, with its 95 % interval where there is one."""
    value, low, high = (numbers.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if not isinstance(value, (int, float)):
        return ""
    is_interval = isinstance(low, (int, float)) and isinstance(high, (int, float))
    return f"{value:.4g} ({low:.4g} to {high:.4g})" if is_interval else f"{value:.4g}"


def _seen(found: Mapping[str, Any]) -> str:
    """Whether these clips were in the training set."""
    overlap = found.get("overlap")
    if not overlap:
        return "\n\nWhether the model was trained on these clips: not compared."
    if overlap.get("not_checked"):
        return "\n\nWhether the model was trained on these clips: could not be compared."
    same, recordings = overlap.get("num_same_key") or 0, overlap.get("num_same_recording") or 0
    more = "" if overlap.get("num_same_content") is None else f", {overlap['num_same_content']} by content"
    return (
        f"\n\nOf these {overlap.get('num_evaluation', '')} clips {same} are in its training set by key{more}; {recordings} "
        "further ones are of a recording that is."
    )


def _when(found: Mapping[str, Any]) -> str:
    if found.get("step") is not None:
        return f"checkpoint of step {found['step']:,}"
    return f"checkpoint {found['checkpoint']}" if found.get("checkpoint") else "checkpoint not recorded"


def _licence(about: Mapping[str, Any]) -> str:
    starts = about.get("starts")
    licence = licence_of(starts, about.get("licence"))
    name = {None: "not named", UNKNOWN: "unknown"}.get(licence.name, licence.name)
    lines = [f"Licence of these weights: **{name}**{', as their owner says' if about.get('licence') else ''}."]
    lines += [f"- {reason}" for reason in licence.reasons]
    lines.append("- The clips it was trained on keep the licences of those who made them.")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _origin(exported: Exported) -> str:
    about = exported.about
    lines = [
        f"- SHA-256 of model.safetensors: `{DIGEST_PLACE}` ({num_bytes(exported):,} bytes of tensors)",
        f"- run {_inline(about.get('run'))}, recipe {_inline(about.get('name') or exported.recipe.name)}",
        f"- mavil {about.get('mavil_version') or 'of unknown version'}, commit {about.get('commit') or 'not known'}",
    ]
    if about.get("command"):
        lines.append(f"- made with `{_inline(about['command'])}`")
    if about.get("changed"):
        lines.append(
            "- weights or recipe were changed by hand since: what is said of training and results was before that"
        )
    return "\n".join(lines)


def _inline(value: object) -> str:
    """Text of somebody's choice within a line of Markdown: no line breaks, no markup that would end what is around it."""
    text = "not known" if value is None else " ".join(str(value).split())
    return text.replace("`", "'").replace("|", "/").replace("<", "&lt;")
