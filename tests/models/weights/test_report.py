from __future__ import annotations

from mavil.models.weights.report import PartReport, StartReport


def test_every_name_is_in_the_log_with_its_reason() -> None:
    part = PartReport(
        "mae.pth (MAE)", ["a", "b"], {"c": "not in the file", "d": "not in the file", "e": "why"}, {"x": "why not"}
    )
    report = StartReport({"video_encoder": part}, {"mae.pth": {"head.weight": "labels"}}, ["audio_decoder"])
    assert report.lines() == [
        "video_encoder: 2 of 5 tensors from mae.pth (MAE)",
        "  as made here: c, d (not in the file)",
        "  as made here: e (why)",
        "  not taken: x (why not)",
        "audio_decoder: as made here, no file fills it",
        "mae.pth: not used: head.weight (labels)",
    ]
