import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tercet.report.figures import (
    WinPoint,
    calibration,
    over_optimisation,
    training_curves,
    win_rates,
)

ARMS = [
    WinPoint("gpt", 0.27, 0.23, 0.31, 400, 100),
    WinPoint("sft", 0.50, 0.45, 0.55, 400, 100),
    WinPoint("ppo", 0.74, 0.70, 0.78, 400, 100),
]
RUNS = {
    "ppo": [{"step": float(i), "score": i * 0.1, "kl": 0.2 * i, "gold": None} for i in range(80)],
    "ppo-ptx": [{"step": float(i), "score": i * 0.1, "kl": 0.1 * i} for i in range(20)],
}


def words(svg: Path) -> set[str]:
    """Ids of the SVG's groups: one for each artist that was drawn."""
    return {element.get("id", "") for element in ET.parse(svg).iter()}


def test_the_same_numbers_give_the_same_svg(tmp_path: Path) -> None:
    _, first = win_rates(ARMS, tmp_path / "a", judge="simulated gold utility")
    _, second = win_rates(ARMS, tmp_path / "b", judge="simulated gold utility")
    assert first.read_bytes() == second.read_bytes()
    _, other = win_rates(ARMS, tmp_path / "c", judge="people")
    assert other.read_bytes() != first.read_bytes()


def test_png_and_svg_are_written(tmp_path: Path) -> None:
    png, svg = win_rates(ARMS, tmp_path / "new" / "figure1", judge="people")
    assert (png.name, svg.name) == ("figure1.png", "figure1.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ET.parse(svg).getroot().tag.endswith("svg")


def test_several_sizes_are_lines_over_parameters(tmp_path: Path) -> None:
    larger = [WinPoint(p.family, p.win_rate, p.low, p.high, p.n, 1000) for p in ARMS]
    _, svg = win_rates([*ARMS, *larger], tmp_path / "sizes", judge="people")
    # a bar for each of 6 points, 3 lines, the dashed line at 0.5, and ticks
    assert len([name for name in words(svg) if name.startswith("line2d")]) >= 10


def test_panels_that_no_run_logged_are_left_out(tmp_path: Path) -> None:
    _, svg = training_curves(RUNS, tmp_path / "curves")
    panels = {name for name in words(svg) if name.startswith("axes_")}
    assert panels == {"axes_1", "axes_2"}  # score and kl; gold has only nulls


def test_over_optimisation_draws_negative_kl_at_zero(tmp_path: Path) -> None:
    png, _ = over_optimisation(
        [-0.1, 1.0, 4.0], [0.0, 1.0, 2.0], [0.0, 1.0, -1.0], tmp_path / "over"
    )
    assert png.exists()
    with pytest.raises(AssertionError):
        over_optimisation([0.0], [0.0], [0.0], tmp_path / "one")


def test_calibration_is_drawn(tmp_path: Path) -> None:
    png, _ = calibration(
        [(0.6, 0.55, 10), (0.9, 0.7, 3)], tmp_path / "cal", ece=0.1, n=13, judges="x"
    )
    assert png.exists()
