import json

import pytest

from tercet.config import build
from tercet.records import Demonstration, InputError, Prompt, Ranking, read_records
from tercet.stages.data import Config, main
from tests.toy import stage


def rows(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def files(tmp_path):
    """Demonstrations of 30 users, rankings on some of their prompts, documents."""
    demonstrations = [
        {"id": f"d{i}", "prompt": f"question {i}?", "response": f"answer {i}", "user_id": f"u{i}"}
        for i in range(30)
    ]
    demonstrations[0]["split"] = "test"
    demonstrations[1]["split"] = "train"
    rows(tmp_path / "demos.jsonl", *demonstrations)
    pairs = [
        {"id": str(i), "prompt": f"question {i}?", "chosen": "yes", "rejected": "no"}
        for i in range(0, 40, 2)
    ]
    pairs[5] |= {"split": "valid"}  # question 10
    rows(tmp_path / "pairs.jsonl", *pairs)
    rows(tmp_path / "text.jsonl", *({"title": f"t{i}", "text": f"text {i}"} for i in range(60)))
    return tmp_path


def config(files, **changes):
    table = {
        "root": files,
        "demonstrations": [{"path": "demos.jsonl", "reply": " {reply}"}],
        "rankings": [{"path": "pairs.jsonl", "reply": " {reply}"}],
        "pretrain": [{"path": "text.jsonl"}],
    }
    return build(Config, table | changes, "[data]")


def read(run):
    return (
        read_records(run.path / "demonstrations.jsonl", Demonstration),
        read_records(run.path / "rankings.jsonl", Ranking),
        read_records(run.path / "prompts.jsonl", Prompt),
    )


def test_a_prompt_held_out_anywhere_is_held_out_everywhere(files, tmp_path):
    demonstrations, rankings, prompts = read(stage(main, config(files), tmp_path / "run"))
    test = {d.prompt_id for d in demonstrations if d.split == "test"}
    valid = {d.prompt_id for d in demonstrations if d.split == "valid"}
    judged = {r.prompt_id for r in rankings if r.prompt == "question 10?"}
    assert len(test) == 1
    assert judged < valid  # the file of rankings said so
    for ranking in rankings:
        expected = "test" if ranking.prompt_id in test else "train"
        assert ranking.split == ("valid" if ranking.prompt_id in valid else expected)
    by_id = {p.id: p.split for p in prompts}
    assert len(by_id) == len(prompts) == 35  # 30 asked, and 5 more only ranked
    assert all(by_id[p] == "test" for p in test)
    assert all(by_id[p] == "valid" for p in valid)
    assert {"ppo", "valid", "test"} == set(by_id.values())


def test_a_user_held_out_with_one_prompt_is_held_out_with_all(files, tmp_path):
    more = [{"prompt": f"another question {i}?", "user_id": f"u{i}"} for i in range(30)]
    rows(files / "more.jsonl", *more)
    options = config(files, prompts=[{"path": "more.jsonl"}])
    demonstrations, _, prompts = read(stage(main, options, tmp_path / "run"))
    people = {d.user_id for d in demonstrations if d.split == "valid" and d.user_id}
    assert people
    assert all(p.split != "ppo" for p in prompts if p.user_id in people)


def test_a_file_of_prompts_holds_out_what_it_marks(files, tmp_path):
    more = [
        {"prompt": "question 20?", "split": "test"},
        {"prompt": "question 22?", "split": "valid"},
    ]
    rows(files / "more.jsonl", *more)
    options = config(files, prompts=[{"path": "more.jsonl"}])
    demonstrations, rankings, prompts = read(stage(main, options, tmp_path / "run"))
    split = {p.text: p.split for p in prompts}
    assert (split["question 20?"], split["question 22?"]) == ("test", "valid")
    assert "question 20?" not in {d.prompt for d in demonstrations}
    assert {d.split for d in demonstrations if d.prompt == "question 22?"} == {"valid"}
    assert {r.split for r in rankings if r.prompt == "question 20?"} == {"test"}
    assert {r.split for r in rankings if r.prompt == "question 22?"} == {"valid"}


def test_documents_are_held_out_whole(files, tmp_path):
    run = stage(main, config(files), tmp_path / "run")
    parts = [
        {json.loads(line)["text"] for line in (run.path / name).read_text().splitlines()}
        for name in ("pretrain.jsonl", "held_out.jsonl")
    ]
    assert not parts[0] & parts[1]
    assert len(parts[0]) + len(parts[1]) == 60
    assert (run.done()["pretraining_documents"], run.done()["held_out_documents"]) == tuple(
        map(len, parts)
    )


def test_replies_take_the_form_of_their_source(files, tmp_path):
    demonstrations, rankings, _ = read(stage(main, config(files), tmp_path / "run"))
    assert all(d.response.startswith(" answer") for d in demonstrations)
    assert {reply.text for r in rankings for reply in r.replies} == {" yes", " no"}


def test_best_replies_serve_as_demonstrations(files, tmp_path):
    options = config(files, demonstrations=[{"path": "pairs.jsonl", "best_replies": True}])
    demonstrations, _, _ = read(stage(main, options, tmp_path / "run"))
    assert {d.response for d in demonstrations} == {"yes"}


def test_limits_and_lengths_leave_rows_out(files, tmp_path):
    options = config(
        files, demonstrations=[{"path": "demos.jsonl", "max_chars": 19, "limit": 7}], max_texts=3,
        held_out_texts=2,
    )  # fmt: skip
    run = stage(main, options, tmp_path / "run")
    assert sum(run.done()["demonstrations"].values()) == 7  # "question 0?answer 0" has 19
    assert (run.done()["pretraining_documents"], run.done()["held_out_documents"]) == (3, 2)


def test_contexts_lie_below_the_root_too(files, tmp_path):
    rows(files / "contexts.jsonl", {"context_id": "c", "text": "Once."})
    rows(files / "asked.jsonl", {"prompt": "When?", "response": "Once", "context_id": "c"})
    sources = [
        {"path": "asked.jsonl", "contexts": "contexts.jsonl"},
        {"path": "demos.jsonl"},
    ]
    demonstrations, _, _ = read(
        stage(main, config(files, demonstrations=sources), tmp_path / "run")
    )
    assert "Once.\n\nWhen?" in {d.prompt for d in demonstrations}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("demos.jsonl", '{"prompt": "x?", "response": " "}', r"demos\.jsonl:31: a reply is empty"),
        ("demos.jsonl", '{"prompt": "", "response": "a"}', r"demos\.jsonl:31: the prompt is empty"),
        ("demos.jsonl", '{"question": "x?"}', r"demos\.jsonl:31: field '\w+' is missing"),
        ("pairs.jsonl", '{"prompt": "x?", "a": "y"}', r"pairs\.jsonl:21: no ranking"),
        (
            "pairs.jsonl",
            '{"prompt": "x?", "replies": [{"text": "a", "rank": 1}]}',
            r"pairs\.jsonl:21: 'replies' .* at least 2 replies",
        ),
        (
            "pairs.jsonl",
            '{"prompt": "x?", "replies": [{"text": "a", "rank": 1}, {"text": "b", "rank": "two"}]}',
            r"pairs\.jsonl:21: reply 1: 'rank' is 'two'",
        ),
        ("text.jsonl", "not json", r"text\.jsonl:61: not JSON"),
    ],
)
def test_a_bad_row_is_named(files, tmp_path, file, line, message):
    with (files / file).open("a") as target:
        target.write(line + "\n")
    with pytest.raises(InputError, match=message):
        stage(main, config(files), tmp_path / "run")
    assert not (tmp_path / "run" / "demonstrations.jsonl").exists()


def test_one_document_cannot_be_held_out(files, tmp_path):
    rows(files / "text.jsonl", {"title": "t", "text": "only"})
    with pytest.raises(InputError, match="more documents"):
        stage(main, config(files), tmp_path / "run")


def test_without_a_marked_test_prompt_some_users_are_drawn(files, tmp_path):
    demonstrations = [
        {"id": f"d{i}", "user_id": f"u{i // 2}", "prompt": f"what {i}?", "response": "that"}
        for i in range(200)
    ]
    rows(files / "many.jsonl", *demonstrations)
    options = config(files, demonstrations=[{"path": "many.jsonl"}], rankings=[])
    kept, _, prompts = read(stage(main, options, tmp_path / "run"))
    by_user = {d.user_id: {e.split for e in kept if e.user_id == d.user_id} for d in kept}
    assert {split for splits in by_user.values() for split in splits} == {"train", "valid", "test"}
    assert all(len(splits) == 1 for splits in by_user.values())
    drawn = {d.prompt_id for d in kept if d.split == "test"}
    assert 5 <= len(drawn) <= 40
    assert drawn == {p.id for p in prompts if p.split == "test"}
