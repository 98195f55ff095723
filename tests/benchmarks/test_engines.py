"""Rows of many engines in one file: none is lost, and none that is missing goes unsaid."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engines
from benchmarks.engines import Benchmark, Claim, Engine, Row
from benchmarks.measure import public_command, timed

LIMITS = {"device": "toy", "matmul_flops": 1e12, "matmul_size": 8, "matmul_dtype": "float32"}
LIMITS |= {"copy_bytes": 1e12}


def toy(**engines_: Any) -> Benchmark:
    return Benchmark(
        name="toy",
        about="",
        engines=engines_,
        columns=[("speed", "speed", "{:.1f}")],
        complete=lambda row, machine: row | {"speed": row["tokens"] / row["median_seconds"]},
        claims=lambda rows: [Claim("speed", 2, rows.get("w/fast", {}).get("speed"))],
    )


def silent(_: Namespace) -> Any:
    yield from ()


def ran(rows: dict[str, list[Row]], codes: dict[str, int]) -> Any:
    """What stands in for a process: writes rows and a log, returns an exit code."""

    def wait(command: list[str], environment: dict[str, str], log: Any, _: Namespace) -> int:
        name = command[command.index("--child") + 1]
        out = Path(command[command.index("--rows") + 1])
        out.write_text("".join(json.dumps(row) + "\n" for row in rows.get(name, [])))
        log.write("Traceback (most recent call last):\n  File x\nRuntimeError: no luck\n")
        return codes.get(name, 0)

    return wait


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a toy benchmark; gives exit code and the file's content."""

    def run(argv: list[str], rows: dict[str, list[Row]], codes: dict[str, int]) -> Any:
        out = tmp_path / "toy.json"
        argv = ["--device", "cpu", "--out", str(out), *argv]
        monkeypatch.setattr("sys.argv", ["benchmarks/toy.py", *argv])
        monkeypatch.setattr(engines, "wait", ran({"machine": [LIMITS]} | rows, codes))
        benchmark = toy(fast=Engine(silent), slow=Engine(silent))
        return engines.main(benchmark, argv), json.loads(out.read_text())

    return run


def row(seconds: float) -> Row:
    return {"workload": "w", "tokens": 4, "median_seconds": seconds}


def test_an_engine_that_fails_keeps_its_rows_and_leaves_the_others(run, capsys):
    code, kept = run([], {"fast": [row(1)], "slow": [row(2)]}, {"slow": 1})
    assert code == 0
    assert kept["rows"]["w/fast"]["speed"] == 4
    assert kept["rows"]["w/slow"]["speed"] == 2
    assert kept["rows"]["/slow"]["status"] == "failed"
    assert kept["rows"]["/slow"]["why"] == "exit code 1: RuntimeError: no luck"
    (about,) = kept["runs"].values()
    assert about["claims"] == [
        {"text": "speed", "target": 2, "value": 4.0, "at_most": False, "met": True}
    ]
    assert about["machine"] == LIMITS
    assert "! slow FAILED: exit code 1: RuntimeError: no luck" in capsys.readouterr().out


def test_nothing_done_is_a_failure(run):
    code, _ = run(["--engines", "slow"], {}, {"slow": 1})
    assert code == 1


def test_a_later_run_replaces_only_its_rows(run, monkeypatch):
    began = iter(["2030-01-01", "2030-01-02"])
    monkeypatch.setattr(
        engines, "facts", lambda argv, commit: {"started": next(began), "commit": commit}
    )
    run([], {"fast": [row(1)], "slow": [row(2)]}, {})
    _, kept = run(["--engines", "fast"], {"fast": [row(0.5)]}, {})
    assert kept["rows"]["w/fast"]["run"] == "2030-01-02"
    assert kept["rows"]["w/slow"]["run"] == "2030-01-01"
    assert list(kept["runs"]) == ["2030-01-01", "2030-01-02"]
    monkeypatch.setattr(engines, "facts", lambda argv, commit: {"started": "2030-01-03"})
    _, kept = run([], {"fast": [row(1)], "slow": [row(2)]}, {})
    assert list(kept["runs"]) == ["2030-01-03"]


def test_an_absent_package_is_said(tmp_path):
    benchmark = toy(peer=Engine(silent, needs="no_such_package"))
    out = tmp_path / "rows"
    options = engines.parse(benchmark, ["--small", "--child", "peer", "--rows", str(out)])
    assert engines.child(benchmark, options) == 0
    assert json.loads(out.read_text()) == {
        "status": "absent",
        "why": "the package no_such_package is not installed here",
    }


def test_an_unknown_engine_is_refused(capsys):
    with pytest.raises(SystemExit):
        engines.parse(toy(fast=Engine(silent)), ["--engines", "fast,quick"])
    assert "no engine quick; of fast" in capsys.readouterr().err


def test_a_full_run_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(engines.torch.cuda, "is_available", lambda: False)
    assert engines.main(toy(fast=Engine(silent)), []) == 2
    assert "--small" in capsys.readouterr().err


def test_claims():
    assert Claim("x", 3, 3).met is True
    assert Claim("x", 3, 4, at_most=True).met is False
    assert Claim("x", 3, None).met is None
    assert Claim("x", 3, 2).line().startswith("      MISSED  x: 2")


def test_the_command_is_kept_without_folders():
    words = ["/a/b/rollout.py", "--small", "--path", "vllm=/x", "--out=/y", "--repeats", "2"]
    assert public_command(words) == [
        "python",
        "-m",
        "benchmarks.rollout",
        "--small",
        "--repeats",
        "2",
    ]


def test_slow_engines_are_timed_less_often(monkeypatch):
    now = iter([0.0, 30.0, 40.0, 70.0])
    monkeypatch.setattr("benchmarks.measure.clock", lambda: next(now))
    assert timed(lambda _: None, repeats=3, budget=60.0) == [30.0, 30.0]
