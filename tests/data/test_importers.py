import gzip
import json
import lzma
from pathlib import Path

import pytest

from tercet.data import importers
from tercet.data.importers import ImportConfig, best_replies
from tercet.records import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"

PAIR = {
    "id": "hh/0",
    "source": "hh",
    "split": "train",
    "prompt": "\n\nHuman: Hi {there}\n\nAssistant:",
    "chosen": " Hello.",
    "rejected": " Go away.",
}
VOTES = {
    "id": "v/0",
    "source": "pandalm",
    "split": "test",
    "prompt": "Hi",
    "a": "one",
    "b": "two",
    "models": ["m1", "m2"],
    "votes": ["a", "b", "a"],
    "label": "a",
}
RANKED = {
    "id": "e2e/0",
    "source": "e2e-quality",
    "split": "train",
    "prompt": "name[Blue Spice]",
    "annotator": "w0",
    "criterion": "quality",
    "replies": [
        {"text": "w", "rank": 1, "score": 100.0, "model": "m"},
        {"text": "x", "rank": 3, "model": "m"},
        {"text": "y", "rank": 3},
        {"text": "z", "rank": 7},
    ],
}
DEMO = {"id": "s/0", "source": "seed", "split": "train", "prompt": "2+2?", "response": "4"}


@pytest.fixture
def rows(tmp_path):
    """Writes rows to a file as the shared data has them."""

    def write(*rows, name="in.jsonl.gz"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def ranks(ranking):
    return [reply.rank for reply in ranking.replies]


def test_demonstrations(rows):
    path = rows(DEMO)
    config = ImportConfig(template="Question: {prompt}\n\nAnswer:", reply=" {reply}")
    (record,) = importers.demonstrations(path, config)
    assert record.prompt == "Question: 2+2?\n\nAnswer:"
    assert record.response == " 4"
    assert (record.id, record.source, record.split) == ("s/0", "seed", "train")


def test_a_pair_is_a_ranking_of_two_byte_for_byte(rows):
    (record,) = importers.rankings(rows(PAIR), ImportConfig())
    assert record.prompt + record.replies[0].text == PAIR["prompt"] + PAIR["chosen"]
    assert ranks(record) == [1, 2]
    assert (record.judge, record.split) == ("person", "train")


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        (["a", "b", "a"], [1, 2]),
        (["b", "b", "tie"], [2, 1]),
        (["a", "b", "tie"], [1, 1]),
        (["a", "a", "b", "tie", "tie"], [1, 1]),  # two of five are no majority
        (["tie", "tie", "a"], [1, 1]),
        (["a", "b"], [1, 1]),
    ],
)
def test_votes_by_majority(rows, votes, expected):
    (record,) = importers.rankings(rows({**VOTES, "votes": votes}), ImportConfig())
    assert ranks(record) == expected
    assert [reply.policy for reply in record.replies] == ["m1", "m2"]


def test_each_vote_is_a_ranking_of_its_own(rows):
    path = rows({**VOTES, "votes": ["a", "b", "tie"]})
    records = importers.rankings(path, ImportConfig(votes="each"))
    assert [ranks(r) for r in records] == [[1, 2], [2, 1], [1, 1]]
    assert len({r.id for r in records}) == len({r.labeler for r in records}) == 3


def test_rank_gaps_are_closed(rows):
    (record,) = importers.rankings(rows(RANKED), ImportConfig(judge="llm"))
    assert ranks(record) == [1, 2, 2, 3]
    assert (record.labeler, record.criterion, record.judge) == ("w0", "quality", "llm")
    assert [reply.policy for reply in record.replies] == ["m", "m", None, None]


def test_ranks_need_not_start_at_one(rows):
    replies = [{"text": "x", "rank": 5}, {"text": "y", "rank": 2}]
    (record,) = importers.rankings(rows({**RANKED, "replies": replies}), ImportConfig())
    assert ranks(record) == [2, 1]


def test_one_prompt_has_one_id_in_every_file_and_form(rows):
    one = importers.rankings(rows({**VOTES, "prompt": "Hi"}), ImportConfig())
    two = importers.demonstrations(
        rows({**DEMO, "prompt": "Hi"}), ImportConfig(template="Q {prompt}")
    )
    assert one[0].prompt_id == two[0].prompt_id
    assert importers.demonstrations(rows(DEMO), ImportConfig())[0].prompt_id != one[0].prompt_id


def test_sources_criteria_and_splits_choose_rows(rows):
    path = rows(
        {**RANKED, "id": "1"},
        {**RANKED, "id": "2", "criterion": "naturalness"},
        {**RANKED, "id": "3", "source": "e2e-naturalness"},
        {**RANKED, "id": "4", "split": "test"},
    )

    def chosen(**options):
        return [r.id for r in importers.rankings(path, ImportConfig(**options))]

    assert chosen() == ["1", "2", "3", "4"]
    assert chosen(sources=("e2e-quality",)) == ["1", "2", "4"]
    assert chosen(sources=("e2e-*",), without=("*-quality",)) == ["3"]
    assert chosen(criteria=("quality",), splits=("train",)) == ["1", "3"]


def test_filters_that_leave_nothing_say_what_there_is(rows):
    with pytest.raises(InputError, match="no row passes the filters; the file has source: seed;"):
        importers.demonstrations(rows(DEMO), ImportConfig(sources=("sead",)))


def test_a_context_is_set_before_its_prompt(rows):
    asked = {**RANKED, "context_id": "story/1"}
    contexts = rows({"context_id": "story/1", "text": "Once {prompt}."}, name="contexts.jsonl")
    config = ImportConfig(contexts=contexts)
    (record,) = importers.rankings(rows(asked), config)
    assert record.prompt == "Once {prompt}.\n\nname[Blue Spice]"
    config = ImportConfig(contexts=contexts, template="Read: {context} Now: {prompt}")
    (record,) = importers.rankings(rows(asked), config)
    assert record.prompt == "Read: Once {prompt}. Now: name[Blue Spice]"


def test_a_missing_context_is_named(rows):
    with pytest.raises(
        InputError, match=r"in\.jsonl\.gz:1: asks about context 'story/1'; set contex"
    ):
        importers.rankings(rows({**RANKED, "context_id": "story/1"}), ImportConfig())


def test_empty_replies_are_refused_dropped_or_kept(rows):
    path = rows(PAIR, {**PAIR, "id": "hh/1", "rejected": " "})
    with pytest.raises(InputError, match=r':2: a reply is empty; .*empty = "drop"'):
        importers.rankings(path, ImportConfig())
    assert len(importers.rankings(path, ImportConfig(empty="drop"))) == 1
    assert len(importers.rankings(path, ImportConfig(empty="keep"))) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**PAIR, "prompt": " "}, "the prompt is empty"),
        ({k: v for k, v in PAIR.items() if k != "prompt"}, "field 'prompt' is missing"),
        ({k: v for k, v in PAIR.items() if k != "rejected"}, "field 'rejected' is missing"),
        ({**PAIR, "chosen": 3}, "field 'chosen' is 3; make it a text"),
        ({**VOTES, "votes": ["a", "c"]}, "'votes' is ['a', 'c']"),
        ({**VOTES, "votes": []}, "'votes' is []"),
        ({**VOTES, "models": ["m"]}, "'models' is ['m']"),
        ({**RANKED, "replies": RANKED["replies"][:1]}, "at least 2 replies"),
        ({**RANKED, "replies": "none"}, "at least 2 replies"),
        ({**RANKED, "replies": ["x", "y"]}, "reply 0 is 'x'"),
        (
            {**RANKED, "replies": [{"text": "x", "rank": 1}, {"text": "y"}]},
            "reply 1: 'rank' is None",
        ),
        ({**RANKED, "replies": [{"text": "x", "rank": 1.5}] * 2}, "reply 0: 'rank' is 1.5"),
        ({**RANKED, "replies": [{"rank": 1}] * 2}, "reply 0: field 'text' is missing (has: rank)"),
        (DEMO, "no ranking (has: id, source, split, prompt, response); needs 'chosen'"),
        ([1], "not a JSON object"),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(rows, row, said):
    path = rows(PAIR, row)
    with pytest.raises(InputError) as caught:
        importers.rankings(path, ImportConfig())
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(PAIR) + "\n{")
    with pytest.raises(InputError, match=r"in\.jsonl:2: not JSON"):
        importers.rankings(path, ImportConfig())


def test_an_empty_file_is_named(rows):
    with pytest.raises(InputError, match="holds no rows"):
        importers.demonstrations(rows(), ImportConfig())


def test_a_template_needs_its_place():
    with pytest.raises(ValueError, match=r"template is 'Q:'; it must contain \{prompt\}"):
        ImportConfig(template="Q:")


def test_prompts_are_listed_once(rows):
    path = rows(VOTES, {**VOTES, "id": "v/1"}, {**VOTES, "prompt": "Bye"})
    assert [p.text for p in importers.prompts(path, ImportConfig())] == ["Hi", "Bye"]


def test_first_ranked_replies_serve_as_demonstrations(rows):
    def replies(*pairs):
        return [{"text": text, "rank": rank} for text, rank in pairs]

    path = rows(
        {**RANKED, "id": "1", "replies": replies(("x", 1), ("y", 1), ("z", 2))},
        {**RANKED, "id": "2", "replies": replies(("x", 1), ("z", 4))},  # x again
        {**RANKED, "id": "3", "replies": replies(("v", 1), ("w", 1))},  # prefers nothing
    )
    found = best_replies(importers.rankings(path, ImportConfig()))
    assert [d.response for d in found] == ["x", "y"]
    assert {(d.prompt, d.labeler, d.split) for d in found} == {("name[Blue Spice]", "w0", "train")}


def test_parts_of_a_title_are_one_document(rows):
    def part(title, text, **fields):
        return {"id": text, "source": "books", "title": title, "text": text, **fields}

    path = rows(part("A", "a0"), part("A", "a1"), part("B", "b0"), {"id": "x", "text": "alone"})
    found = list(importers.texts(path, ImportConfig()))
    assert [t.text for t in found] == ["a0\n\na1", "b0", "alone"]
    assert found[0].id == "books/A"


def test_held_out_titles_are_apart_and_complete(rows):
    path = rows(*({"source": "s", "title": f"t{i}", "text": f"{i}"} for i in range(200)))
    parts = {
        split: [t.text for t in importers.texts(path, ImportConfig(splits=(split,)))]
        for split in ("train", "valid")
    }
    assert sorted(parts["train"] + parts["valid"], key=int) == [str(i) for i in range(200)]
    assert 5 < len(parts["valid"]) < 40  # 20 expected


def test_the_first_texts_can_be_read_alone(rows):
    path = rows({"text": "a"}, {"text": "b"}, {"text": "c"})
    assert importers.read_texts(path, 2) == ["a", "b"]
    assert importers.read_texts(path) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["t.txt", "t.txt.xz"])
def test_plain_text_is_cut_at_blank_lines_and_loses_nothing(tmp_path, name):
    text = "".join(f"Line {i} é.\n" + (" \n" if i % 7 == 0 else "") for i in range(3000))
    data = text.encode()
    (tmp_path / name).write_bytes(lzma.compress(data) if name.endswith("xz") else data)
    found = list(importers.texts(tmp_path / name, ImportConfig()))
    assert "".join(t.text for t in found) == text
    assert len(found) == 1 + len(text) // 8100
    assert all(t.text.endswith("\n \n") for t in found[:-1])


def test_a_damaged_xz_file_is_named(tmp_path):
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(b"abc" * 100)[:-9])
    with pytest.raises(InputError, match="damaged or incomplete xz file"):
        list(importers.texts(tmp_path / "t.txt.xz", ImportConfig()))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")
def test_real_files_import():
    hh = importers.rankings(SHARED / "pairs_hh_harmless.jsonl.gz", ImportConfig(empty="drop"))
    assert len(hh) == 1842  # 1,846 pairs, 4 with an empty reply
    votes = importers.rankings(SHARED / "votes_cragc.jsonl.gz", ImportConfig(votes="each"))
    assert len(votes) == 5 * 1162
    config = ImportConfig(contexts=SHARED / "contexts_squality.jsonl.gz")
    ranked = importers.rankings(SHARED / "rankings_human_open.jsonl.gz", config)
    assert len(ranked) == 468
    assert {len(r.replies) for r in ranked} >= {2, 3, 6, 9}
