import errno
import gzip
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.records import (
    Candidate,
    CandidateSet,
    Demonstration,
    InputError,
    Message,
    Prompt,
    RankedReply,
    Ranking,
    append_records,
    dump,
    prompt_text,
    read_records,
    write_records,
    writing,
)


def ranking(*ranks, **fields):
    replies = [RankedReply(id=str(i), text=f"reply {i}", rank=r) for i, r in enumerate(ranks)]
    given = {"id": "r1", "prompt_id": "p1", "prompt": "Where?", "judge": "person", **fields}
    return Ranking(replies=tuple(replies), **given)


def error_of(path, text, type_):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_records(path, type_)
    return str(caught.value)


def test_a_ranking_line_has_the_published_keys():
    row = json.loads(dump(ranking(1, 2, 2, labeler="ann", split="train")))
    assert row == {
        "schema": "tercet.ranking/1",
        "id": "r1",
        "prompt_id": "p1",
        "prompt": "Where?",
        "replies": [
            {"id": "0", "text": "reply 0", "rank": 1, "finish": "stop"},
            {"id": "1", "text": "reply 1", "rank": 2, "finish": "stop"},
            {"id": "2", "text": "reply 2", "rank": 2, "finish": "stop"},
        ],
        "judge": "person",
        "labeler": "ann",
        "split": "train",
    }


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_records_survive_writing_and_reading(tmp_path, name):
    records = [
        ranking(1, 1),
        ranking(2, 1, id="r2", prompt="line\nend\u2028naïve 🙂", seconds=3.5, fold=4),
    ]
    write_records(tmp_path / name, records)
    assert read_records(tmp_path / name, Ranking) == records


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_one_line(text):
    record = Demonstration(id="d", prompt_id="p", prompt=text, response=text)
    line = dump(record)
    assert "\n" not in line
    assert Demonstration.model_validate_json(line) == record


def test_other_kinds_of_records_survive(tmp_path):
    candidate = Candidate(id="a", text="", policy="sft", temperature=0.7, seed=3, finish="length")
    for record in (
        Prompt(id="p", text="Hi", tags=("chat",), user_id="u"),
        Prompt(id="p", messages=(Message(role="user", content="Hi"),)),
        CandidateSet(id="c", prompt_id="p", prompt="Hi", candidates=(candidate,)),
    ):
        write_records(tmp_path / "x.jsonl", [record])
        assert read_records(tmp_path / "x.jsonl", type(record)) == [record]


def test_an_unanswered_flag_stays_apart_from_no(tmp_path):
    reply = RankedReply(id="0", text="x", rank=1, flags={"harmful": False, "opinion": None})
    record = ranking(1, 2).model_copy(
        update={"replies": (reply, RankedReply(id="1", text="y", rank=1))}
    )
    write_records(tmp_path / "r.jsonl", [record])
    assert read_records(tmp_path / "r.jsonl", Ranking)[0].replies[0].flags == reply.flags


def test_records_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        ranking(1, 2).prompt = "other"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("{oops", ["not one JSON object", "mend or delete"]),
        ('{"id": "p"}', ["give either 'text' or 'messages'"]),
        ('{"id": "p", "text": "a", "messages": []}', ["messages"]),
        ('{"text": "a"}', ["field 'id' is missing", "add it"]),
        ('{"id": "p", "texts": "a"}', ["unknown field 'texts'", "did you mean 'text'?"]),
        ('{"id": 7, "text": "a"}', ["field 'id'", "found 7"]),
        ('{"schema": "tercet.ranking/1", "id": "p"}', ["tercet.prompt/1", "tercet.ranking/1"]),
        ('{"id": "p", "text": "\\ud800"}', ["not one JSON object"]),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(tmp_path, line, parts):
    message = error_of(tmp_path / "p.jsonl", f'{{"id": "a", "text": "b"}}\n\n{line}\n', Prompt)
    assert message.startswith(f"{tmp_path / 'p.jsonl'}:3: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("rank", ["0", "1.5", '"1"', "true", "null"])
def test_a_rank_must_be_a_whole_number_from_one(tmp_path, rank):
    text = dump(ranking(1, 2)).replace('"rank":2', f'"rank":{rank}')
    assert "replies.1.rank" in error_of(tmp_path / "r.jsonl", text, Ranking)


def test_nan_is_refused(tmp_path):
    text = dump(ranking(1, 2, seconds=1.5)).replace("1.5", "NaN")
    assert "seconds" in error_of(tmp_path / "r.jsonl", text, Ranking)


def test_a_ranking_needs_two_replies():
    with pytest.raises(ValueError, match="at least 2"):
        ranking(1)


def test_reply_ids_must_differ():
    one = RankedReply(id="same", text="x", rank=1)
    with pytest.raises(ValueError, match="'same'"):
        Ranking(id="r", prompt_id="p", prompt="?", replies=(one, one), judge="gold")


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "prompts.jsonl").touch()
    with pytest.raises(InputError, match=r"no such file; did you mean .*prompts\.jsonl\?"):
        read_records(tmp_path / "promts.jsonl", Prompt)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_records(tmp_path, Prompt)


def test_wrong_encoding_names_the_row(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"id": "a", "text": "b"}\n{"id": "c", "text": "\xe9"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:2: not UTF-8"):
        read_records(tmp_path / "p.jsonl", Prompt)


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "b"}\n')
    assert read_records(tmp_path / "p.jsonl", Prompt)[0].id == "a"


@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"not gzip"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"id": "a", "text": "b"}\n')))
    with pytest.raises(InputError, match="damaged or incomplete gzip"):
        read_records(path, Prompt)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [ranking(1, 2)])

    def broken():
        yield ranking(1, 2, id="new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, broken())
    assert [r.id for r in read_records(path, Ranking)] == ["r1"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_who_is_reading_keeps_the_old_file(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [ranking(1, 2)])
    with path.open() as reader:
        write_records(path, [ranking(1, 2, id="new")])
        assert '"id":"r1"' in reader.read()
    assert '"id":"new"' in path.read_text()


def test_compressed_files_are_the_same_byte_for_byte(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_records(tmp_path / name, [ranking(1, 2)])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_appending_keeps_what_was_there(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    append_records(path, [ranking(1, 2)])
    append_records(path, [ranking(1, 2, id="r2"), ranking(1, 2, id="r3")])
    assert [r.id for r in read_records(path, Ranking)] == ["r1", "r2", "r3"]


def test_appending_never_continues_an_unfinished_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "cut o')
    with pytest.raises(InputError, match="last line is unfinished"):
        append_records(path, [ranking(1, 2)])
    assert path.read_text() == '{"id": "cut o'


def test_messages_are_rendered_as_a_dialogue():
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Where?")]
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Where?\n\nAssistant:"
    assert prompt_text(Prompt(id="p", messages=messages)) == text
    assert prompt_text(Prompt(id="p", text="Where?")) == "Where?"
    assert prompt_text(ranking(1, 2)) == "Where?"


@pytest.mark.parametrize("folder", [False, True])
def test_a_full_disk_is_named_whatever_the_library_raises(tmp_path, monkeypatch, folder):
    path = tmp_path / "model.partial"

    def write():
        with writing(path):
            if folder:
                path.mkdir()
            (path / "half" if folder else path).write_text("half")
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError):  # there is room: it is another fault
        write()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert not path.exists()
