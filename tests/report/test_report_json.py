from pathlib import Path

import pytest

from tercet.records import InputError
from tercet.report.report_json import add_seconds, read_report, write_report


def test_last_bits_do_not_change_the_file(tmp_path: Path) -> None:
    write_report(tmp_path / "a.json", {"x": 0.1 + 0.2, "y": [1, None]})
    write_report(tmp_path / "b.json", {"x": 0.3, "y": [1, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_seconds_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, {"arms": {}})
    add_seconds(path, {"sft": 4.6})
    add_seconds(path, {"ppo": 51.8})
    assert read_report(path)["stages"] == {"sft": {"seconds": 4.6}, "ppo": {"seconds": 51.8}}


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a tercet\.report/1"):
        read_report(tmp_path / "x.json")
    with pytest.raises(InputError, match="no report"):
        read_report(tmp_path / "absent.json")
