from io import StringIO
from typing import Any

from rich.console import Console

from tercet.judge.accuracy import reward_report
from tercet.report.tables import all_tables, report_markdown, sample_table, side_by_side, win_rows
from tests.judge.rankings_by_hand import ranking


def arm(rate: float) -> dict[str, Any]:
    return {
        "win_rate": rate,
        "low": rate - 0.05,
        "high": rate + 0.05,
        "n": 400,
        "gold": 1.0,
        "words": 12.0,
        "finished": 0.97,
    }


def report() -> dict[str, Any]:
    shown = [
        ranking("p", ("a b", 1), ("c", 2), labeler=name, judge="simulated") for name in ("x", "y")
    ]
    return {
        "judge": "simulated gold utility",
        "prompts": {"n": 400},
        "baseline": {"name": "sft"},
        "arms": {"gpt-prompted": arm(0.345), "ppo-ptx@1.3b": arm(0.74)},
        "tax": {"gpt-prompted": 0.0, "ppo-ptx@1.3b": 0.0211},
        "reward_model": reward_report([[1.0, 0.0]] * 2, shown, [[1.0, 0.0]] * 2),
    }


def printed(width: int = 80) -> str:
    console = Console(width=width, record=True, file=StringIO())
    for table in all_tables(report()):
        console.print(table)
    return console.export_text()


def test_one_row_an_arm_and_no_empty_column() -> None:
    header, rows = win_rows(report())
    assert header == ["arm", "win rate", "95% interval", "n", "gold", "tax"]
    assert rows[1] == ["PPO-ptx 1.3b", "0.740", "[0.690, 0.790]", "400", "1.00", "+0.021"]


def test_tables_fit_eighty_columns_uncut() -> None:
    text = printed()
    assert "…" not in text
    assert "[0.690, 0.790]" in text


def test_simulated_judges_are_named_everywhere() -> None:
    page = report_markdown(report(), [("Figure", "figure1.png")])
    for text in (printed(), page):
        assert "simulated gold utility" in text
        assert "simulated labelers" in text


def test_a_page_shows_figures_and_numbers() -> None:
    page = report_markdown(report(), [("Figure", "figure1.png")])
    assert "![Figure](figure1.png)" in page
    assert "| PPO-ptx 1.3b | 0.740 |" in page


def test_a_reply_cannot_break_out_of_its_block() -> None:
    reply = {
        "arm": "ppo",
        "text": " ```\n# no heading",
        "finish": "length",
        "scores": {"gold": 1.0},
    }
    page = side_by_side([{"prompt": "Hi", "replies": [reply]}], "Samples")
    assert "````text\n```\n# no heading\n````" in page
    assert "**PPO** (gold 1.00, cut)" in page


def test_a_sample_shows_every_arm_with_its_scores_and_cuts_long_texts() -> None:
    replies = [
        {
            "arm": "sft",
            "text": " Yes [b].",
            "finish": "stop",
            "scores": {"gold": 1.25, "reward": -2},
        },
        {"arm": "ppo", "text": "x" * 300, "finish": "length", "scores": {"gold": 0, "reward": 3}},
    ]
    console = Console(width=80, record=True, file=StringIO())
    console.print(sample_table({"prompt": "Where\nis it?", "replies": replies}, longest=40))
    text = console.export_text()
    assert "Where is it?" in text and "gold reward" in text
    assert "1.2 -2.0" in text and "Yes [b]." in text
    assert "x" * 37 + "..." in text and "x" * 38 not in text
