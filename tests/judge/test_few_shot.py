import json
from pathlib import Path

import pytest

from tercet.judge.few_shot import read_prefixes
from tercet.records import Demonstration, InputError, Prompt, write_records


def read(path: Path, shots: int = 2) -> list[str]:
    return read_prefixes(path, candidates=4, shots=shots, join="\n", seed=0)


def test_a_json_list_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "prefixes.json").write_text(json.dumps(["Q: a\n\nA: b\n", "x"]))
    assert read(tmp_path / "prefixes.json") == ["Q: a\n\nA: b\n", "x"]


def test_each_prompt_record_is_a_prefix(tmp_path: Path) -> None:
    write_records(tmp_path / "p.jsonl", [Prompt(id="1", text="one"), Prompt(id="2", text="two")])
    assert read(tmp_path / "p.jsonl") == ["one", "two"]


def test_prefixes_are_built_from_demonstrations(tmp_path: Path) -> None:
    shown = [
        Demonstration(id=str(i), prompt_id=str(i), prompt=f"Q{i}:", response=f" A{i}")
        for i in range(5)
    ]
    write_records(tmp_path / "d.jsonl", shown)
    prefixes = read(tmp_path / "d.jsonl")
    assert len(prefixes) == 4
    assert all(prefix.count("Q") == 2 and prefix.endswith("\n") for prefix in prefixes)
    assert len(set(prefixes)) > 1
    assert prefixes == read(tmp_path / "d.jsonl")
    with pytest.raises(InputError, match="fewer than 9 shots"):
        read(tmp_path / "d.jsonl", shots=9)


def test_no_prefix_shows_a_held_out_answer(tmp_path: Path) -> None:
    splits = [None, "train", "valid", "test", "train"]
    shown = [
        Demonstration(id=str(i), prompt_id=str(i), prompt=f"Q{i}:", response=" A", split=split)
        for i, split in enumerate(splits)
    ]
    write_records(tmp_path / "d.jsonl", shown)
    assert not any("Q2" in prefix or "Q3" in prefix for prefix in read(tmp_path / "d.jsonl", 3))
    with pytest.raises(InputError, match="3 demonstrations of split train are fewer than 4 shots"):
        read(tmp_path / "d.jsonl", shots=4)


def test_a_json_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prefixes.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="not a list of texts"):
        read(tmp_path / "prefixes.json")
