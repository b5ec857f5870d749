import re

import pytest

from mavil.report.charts import Chart, Charts, Line, loss_charts, metric_chart


def test_one_chart_per_loss_term_one_line_per_run_that_has_it() -> None:
    first = [{"step": float(s), "loss/inter": 3.0 - s, "loss/audio_patches": 1.0, "optim/lr": 0.1} for s in (1, 2)]
    second = [{"step": 1.0, "loss/inter": 0.5, "loss/audio_tokens": 2.0}, {"step": 2.0, "loss/inter": float("nan")}]
    charts = loss_charts({"stage 1": first, "stage 2": second})
    assert [(c.title, [line.name for line in c.lines]) for c in charts] == [
        ("inter", ["stage 1", "stage 2"]),
        ("audio patches", ["stage 1"]),
        ("audio tokens", ["stage 2"]),
    ]
    assert list(charts[0].lines[0].values) == [2.0, 1.0]
    assert list(charts[0].lines[1].steps) == [1.0]
    with pytest.raises(ValueError, match="none of the runs stage 1 has a finite value of 'loss/absent'"):
        metric_chart({"stage 1": first}, "loss/absent", "absent", "")


def polyline(html: str) -> list[tuple[float, float]]:
    points = re.findall(r'points="([^"]*)"', html)[0].split()
    return [(float(p.split(",")[0]), float(p.split(",")[1])) for p in points]


def test_lines_are_drawn_to_scale() -> None:
    html = Charts([Chart("inter", [Line("run", [0, 50, 100], [4.0, 2.0, 0.0])], "nats")]).html()
    (x0, y0), (x1, y1), (x2, y2) = polyline(html)
    assert x0 < x1 < x2
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.11)
    assert y0 < y1 < y2  # down the page: the loss falls
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.11)
    assert "run: 4 → 0" in html
    assert ">nats</text>" in html
    assert ">optimizer step</text>" in html


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [-1e-9, 1e-9], [1e5, 3e7]])
def test_odd_ranges_stay_inside_the_picture(values: list[float]) -> None:
    html = Charts([Chart("c", [Line("run", list(range(len(values))), values)], "u")]).html()
    assert all(0 <= x <= 280 and 0 <= y <= 175 for x, y in polyline(html))


def test_long_runs_are_averaged_not_cut() -> None:
    html = Charts([Chart("c", [Line("run", list(range(10_000)), [i % 2 for i in range(10_000)])], "u")]).html()
    points = polyline(html)
    assert 100 < len(points) <= 240
    assert len({y for _, y in points}) <= 2


def test_a_run_keeps_its_colour_in_all_charts() -> None:
    both = [Line("stage 1", [1, 2], [1, 2]), Line("stage 2", [1, 2], [1, 2])]
    html = Charts([Chart("a", both, "u"), Chart("b", both[1:], "u")]).html()
    assert re.findall(r'polyline class="(\w+)"', html) == ["line0", "line1", "line1"]
