import pytest

from tercet.label.source import Source, asked, load, resolve
from tercet.records import (
    Candidate,
    CandidateSet,
    InputError,
    Prompt,
    RankedReply,
    Ranking,
    write_records,
)


def candidates(id_="c1"):
    replies = [
        Candidate(id=str(n), text=f"reply {n}", policy="p", temperature=1, seed=n, finish="stop")
        for n in range(2)
    ]
    return CandidateSet(id=id_, prompt_id="p1", prompt="Why?", candidates=tuple(replies))


@pytest.fixture
def run(tmp_path):
    """A run's folder with prompts and candidates."""
    write_records(tmp_path / "sample" / "candidates.jsonl", [candidates()])
    (tmp_path / "sample" / "config.toml").write_text("")
    write_records(tmp_path / "data" / "prompts.jsonl", [Prompt(id="p1", text="Why?", user_id="u")])
    return tmp_path


@pytest.mark.parametrize("named", [".", "sample", "sample/candidates.jsonl"])
def test_a_run_its_stage_and_the_stages_file_mean_the_same(run, named):
    assert resolve(run / named) == Source(
        run / "label" / "labels.sqlite",
        run / "sample" / "candidates.jsonl",
        run / "data" / "prompts.jsonl",
    )


def test_a_folder_of_prompts_is_for_demonstrations(run):
    source = resolve(run / "data")
    assert source.records == run / "data" / "prompts.jsonl"
    assert source.store == run / "label" / "labels.sqlite"
    assert load(source.records).kind == "demonstration"


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
def test_the_store_of_a_file_lies_beside_it(tmp_path, name):
    write_records(tmp_path / name, [candidates()])
    assert resolve(tmp_path / name) == Source(tmp_path / "mine.sqlite", tmp_path / name)


def test_a_store_is_itself(tmp_path):
    assert resolve(tmp_path / "x.sqlite") == Source(tmp_path / "x.sqlite")


def test_the_label_stages_folder_is_its_store(tmp_path):
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "labels.sqlite").touch()
    assert resolve(tmp_path / "label").store == tmp_path / "label" / "labels.sqlite"
    assert resolve(tmp_path).store == tmp_path / "label" / "labels.sqlite"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (".", "holds neither candidates.jsonl nor"),
        ("gone", "no such file or folder"),
        ("gone.jsonl", "no such file"),
        ("notes.txt", "give a run's folder, a .jsonl"),
    ],
)
def test_what_cannot_be_labeled_is_said(tmp_path, named, said):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=said):
        resolve(tmp_path / named)


def test_the_first_line_tells_what_a_file_is_for(tmp_path):
    write_records(tmp_path / "c.jsonl", [candidates()])
    assert load(tmp_path / "c.jsonl").kind == "rank"
    assert load(tmp_path / "c.jsonl", "evaluate").kind == "evaluate"
    with pytest.raises(InputError, match="--kind rank or evaluate, not demonstration"):
        load(tmp_path / "c.jsonl", "demonstration")


def test_candidates_of_the_evaluation_are_for_evaluation(tmp_path):
    write_records(tmp_path / "eval" / "candidates.jsonl", [candidates()])
    assert load(tmp_path / "eval" / "candidates.jsonl").kind == "evaluate"


def test_rankings_are_for_gold_items_only(tmp_path):
    replies = (RankedReply(id="a", text="A", rank=1), RankedReply(id="b", text="B", rank=2))
    ranking = Ranking(id="r", prompt_id="p", prompt="Why?", replies=replies, judge="person")
    write_records(tmp_path / "r.jsonl", [ranking])
    assert load(tmp_path / "r.jsonl").kind is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n", "is empty"),
        ("{", ":1: not JSON"),
        ("[1]", "schema 'none'"),
        ('{"schema": "tercet.demonstration/1"}', "schema 'tercet.demonstration/1'"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=said):
        load(tmp_path / "x.jsonl")


def test_users_and_tags_come_from_the_runs_prompts(run):
    more = Prompt(id="p2", text="How?", tags=("closed_domain",))
    write_records(run / "data" / "prompts.jsonl", [Prompt(id="p1", text="A", user_id="u"), more])
    assert asked(run / "data" / "prompts.jsonl") == (
        {"p1": "u", "p2": "p2"},
        {"p2": ("closed_domain",)},
    )
    assert asked(None) == ({}, {})
