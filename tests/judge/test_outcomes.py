import pytest

from tercet.judge.outcomes import outcomes, win_report


def test_all_three_conventions_of_a_win_rate() -> None:
    values = [1.0] * 45 + [0.5] * 20 + [0.0] * 35
    report = win_report(values, [str(i) for i in range(100)])
    assert (report["win_rate"], report["strict"], report["decided"]) == (0.55, 0.45, 0.5625)
    assert (report["wins"], report["ties"], report["losses"], report["n"]) == (45, 20, 35, 100)
    assert 0.45 < report["low"] < 0.55 < report["high"] < 0.65


def test_an_arm_against_itself_ties_everywhere() -> None:
    assert outcomes([1.0, -2.0], [1.0, -2.0]) == [0.5, 0.5]


def test_two_directions_sum_to_one() -> None:
    a, b = [1.0, 2.0, 3.0, 0.1 + 0.2], [2.0, 2.0, 1.0, 0.3]
    assert outcomes(a, b) == [0.0, 0.5, 1.0, 0.5]
    assert [x + y for x, y in zip(outcomes(a, b), outcomes(b, a), strict=True)] == [1.0] * 4


def test_several_verdicts_of_one_prompt_are_one_cluster() -> None:
    values = [1.0, 1.0, 0.0, 0.0]
    together = win_report(values, ["p", "p", "q", "q"])
    assert (together["low"], together["high"]) == (0.0, 1.0)
    assert together["n"] == 4
    apart = win_report(values * 20, [str(i) for i in range(80)])
    assert apart["high"] - apart["low"] == pytest.approx(0.22, abs=0.03)


def test_untied_judgements_get_wilsons_interval_too() -> None:
    found = win_report([1.0] * 10, [f"p{i}" for i in range(10)], resamples=100)
    assert (found["low"], found["high"]) == (1.0, 1.0)
    assert found["wilson_low"] == pytest.approx(0.7225, abs=1e-4)
    assert found["wilson_high"] == pytest.approx(1.0)
    assert "wilson_low" not in win_report([1.0, 0.5], ["a", "b"], resamples=100)
    assert "wilson_low" not in win_report([1.0, 0.0], ["a", "a"], resamples=100)
