"""report.json: the numbers of an evaluation, the same bytes for the same numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tercet.records import InputError, write_atomically

SCHEMA = "tercet.report/1"


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write report.json with 6 decimals, so that a sum's last bits do not change the file."""
    text = json.dumps(_rounded({"schema": SCHEMA, **report}), indent=2, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def read_report(path: Path) -> dict[str, Any]:
    """What `write_report` wrote.

    Raises:
        InputError: no such file, or not a report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no report to read ({error}); run `tercet eval`") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a {SCHEMA} file; give the report.json of `tercet eval`")
    return report


def add_seconds(path: Path, seconds: Mapping[str, float]) -> None:
    """Merge how long each verb took into `stages.<verb>.seconds`."""
    report = read_report(path)
    stages = report.setdefault("stages", {})
    for verb, value in seconds.items():
        stages.setdefault(verb, {})["seconds"] = value
    write_report(path, report)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {str(key): _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
