"""Files of other tools, made by hand after their public documentation."""

import json

import pytest

from tercet.data import foreign, importers
from tercet.data.importers import ImportConfig
from tercet.records import InputError

USER = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
DIALOGUE = "\n\nHuman: What colour is the sky?\n\nAssistant:"

RECORD = {
    "id": "r7",
    "fields": {"prompt": "Sky?", "response-1": "Green.", "response-2": "Blue.", "response-3": "?"},
    "metadata": {"source": "survey"},
    "suggestions": {},
    "responses": {
        "ranking": [
            {"value": ["response-2", "response-1", "response-3"], "user_id": "u1"},
            {"value": ["response-2", "response-3", "response-1"], "user_id": "u2"},
        ],
        "better": [{"value": "The sky is blue.", "user_id": "u1"}],
    },
    "vectors": {},
}

ITEMS = [
    {"id": "llm_1", "title": "LLM 1", "body": "Wars."},
    {"id": "llm_2", "title": "LLM 2", "body": "Fire."},
    {"id": "llm_3", "title": "LLM 3", "body": "Both."},
]


def task(type_, value, to_name="results", data=None, **annotation):
    """A Label Studio task with one annotation of one result."""
    return {
        "id": 4,
        "data": data or {"prompt": "Why did the library end?", "items": ITEMS},
        "annotations": [
            {
                "id": 11,
                "completed_by": 3,
                "was_cancelled": False,
                "result": [
                    {"from_name": "rank", "to_name": to_name, "type": type_, "value": value}
                ],
                **annotation,
            }
        ],
    }


@pytest.fixture
def lines(tmp_path):
    def write(*rows):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def array(tmp_path):
    def write(*rows):
        path = tmp_path / "export.json"
        path.write_text(json.dumps(rows, indent=1))
        return path

    return write


def rank_of(ranking):
    return {reply.text: reply.rank for reply in ranking.replies}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
        {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        {"prompt": USER["content"], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        {"prompt": USER["content"], "chosen": [BLUE], "rejected": [GREEN]},
    ],
    ids=["explicit", "implicit", "prompt-repeated", "prompt-as-text"],
)
def test_trl_conversations_become_a_transcript_and_two_replies(lines, row):
    (record,) = importers.rankings(lines(row), ImportConfig())
    assert record.prompt == DIALOGUE
    assert rank_of(record) == {" It is blue.": 1, " It is green.": 2}


def test_trl_texts_without_a_prompt_are_cut_before_the_word_that_differs(lines):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    (record,) = importers.rankings(lines(row), ImportConfig())
    assert record.prompt == "The sky is"
    assert rank_of(record) == {" blue.": 1, " black.": 2}


def test_hh_transcripts_are_cut_after_the_last_shared_assistant_turn(lines):
    shared = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:"
    row = {"chosen": shared + " Good bye.", "rejected": shared + " Good grief."}
    (record,) = importers.rankings(lines(row), ImportConfig())
    assert record.prompt == shared
    assert rank_of(record) == {" Good bye.": 1, " Good grief.": 2}


def test_one_prompt_of_two_implicit_pairs_has_one_id(lines):
    shared = "\n\nHuman: Hi\n\nAssistant:"
    rows = [{"chosen": shared + a, "rejected": shared + b} for a, b in ((" a", " b"), (" c", " d"))]
    first, second = importers.rankings(lines(*rows), ImportConfig())
    assert first.prompt_id == second.prompt_id
    assert first.id != second.id


def test_equal_last_turns_stay_replies(lines):
    row = {"chosen": [USER, BLUE], "rejected": [USER, BLUE]}
    (record,) = importers.rankings(lines(row), ImportConfig())
    assert [reply.text for reply in record.replies] == [" It is blue."] * 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "Yes.", "rejected": "No."}, "begin with no common words"),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "do not both answer one prompt"),
        ({"chosen": [USER, BLUE], "rejected": [USER, USER]}, "do not both answer one prompt"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "a 'role' and a 'conte"),
    ],
)
def test_a_pair_that_cannot_be_cut_is_named(lines, row, said):
    path = lines(row)
    with pytest.raises(InputError) as caught:
        importers.rankings(path, ImportConfig())
    assert str(caught.value).startswith(f"{path}:1: ")
    assert said in str(caught.value)


def test_an_argilla_record_gives_a_ranking_for_each_user(array):
    one, two = importers.rankings(array(RECORD), ImportConfig())
    assert rank_of(one) == {"Blue.": 1, "Green.": 2, "?": 3}
    assert rank_of(two) == {"Blue.": 1, "?": 2, "Green.": 3}
    assert (one.prompt, one.labeler, two.labeler) == ("Sky?", "u1", "u2")
    assert [reply.policy for reply in one.replies] == ["response-2", "response-1", "response-3"]
    assert one.source == "survey"
    assert one.id != two.id


def test_argilla_ranks_with_ties_and_drafts_of_version_1(lines):
    values = [
        {"value": "response-1", "rank": 2},
        {"value": "response-2", "rank": 1},
        {"value": "response-3", "rank": 2},
    ]
    responses = [
        {"user_id": "u1", "status": "submitted", "values": {"ranking": {"value": values}}},
        {"user_id": "u2", "status": "draft", "values": {"ranking": {"value": values[:1]}}},
    ]
    (record,) = importers.rankings(lines({**RECORD, "responses": responses}), ImportConfig())
    assert rank_of(record) == {"Green.": 2, "Blue.": 1, "?": 2}


def test_flattened_argilla_records(lines):
    row = {
        "id": "r7",
        "prompt": "Sky?",
        "a": "Green.",
        "b": "Blue.",
        "rank.responses": [["b", "a"], ["a", "b"]],
        "rank.responses.users": ["u1", "u2"],
        "rank.responses.status": ["submitted", "discarded"],
    }
    (record,) = importers.rankings(lines(row), ImportConfig())
    assert rank_of(record) == {"Blue.": 1, "Green.": 2}
    assert record.labeler == "u1"


def test_an_argilla_text_answer_is_a_demonstration(array):
    (record,) = importers.demonstrations(array(RECORD), ImportConfig())
    assert (record.prompt, record.response, record.labeler) == ("Sky?", "The sky is blue.", "u1")


def test_several_argilla_questions_need_a_name(array):
    responses = {**RECORD["responses"], "tone": RECORD["responses"]["ranking"]}
    path = array({**RECORD, "responses": responses})
    with pytest.raises(InputError, match="several questions could be meant: ranking, tone; set q"):
        importers.rankings(path, ImportConfig())
    assert len(importers.rankings(path, ImportConfig(question="tone"))) == 2


def test_another_prompt_field_is_named_or_asked_for(array):
    fields = {"instruction": "Sky?", "a": "x", "b": "y"}
    responses = {"r": [{"value": ["a", "b"], "user_id": "u"}]}
    path = array({"id": "1", "fields": fields, "responses": responses})
    with pytest.raises(
        InputError, match=r"no field 'prompt' \(has: instruction, a, b\); set prompt"
    ):
        importers.rankings(path, ImportConfig())
    (record,) = importers.rankings(path, ImportConfig(prompt_field="instruction"))
    assert record.prompt == "Sky?"


def test_label_studio_ranker(array):
    path = array(task("ranker", {"ranker": ["llm_3", "llm_1", "llm_2"]}))
    (record,) = importers.rankings(path, ImportConfig())
    assert rank_of(record) == {"Both.": 1, "Wars.": 2, "Fire.": 3}
    assert (record.id, record.labeler) == ("4/11", "annotator-3")


def test_label_studio_buckets_are_ties_in_the_order_given(array):
    path = array(
        task("ranker", {"ranker": {"good": ["llm_2"], "bad": ["llm_1", "llm_3"], "_": []}})
    )
    with pytest.raises(InputError, match="'good' has no place in an order; set buckets"):
        importers.rankings(path, ImportConfig())
    (record,) = importers.rankings(path, ImportConfig(buckets=("good", "bad")))
    assert rank_of(record) == {"Fire.": 1, "Wars.": 2, "Both.": 2}


def test_label_studio_pairwise_by_the_names_it_compares(array):
    data = {"prompt": "Sky?", "answer1": "Green.", "answer2": "Blue."}
    for to_name in ("answer1,answer2", ["answer1", "answer2"], "txt-1,txt-2"):
        path = array(task("pairwise", {"selected": "right"}, to_name, data))
        (record,) = importers.rankings(path, ImportConfig())
        assert rank_of(record) == {"Green.": 2, "Blue.": 1}


def test_label_studio_text_areas_are_demonstrations(array):
    data = {"prompt": "Sky?"}
    path = array(task("textarea", {"text": ["Blue."]}, "prompt", data))
    (record,) = importers.demonstrations(path, ImportConfig())
    assert (record.prompt, record.response) == ("Sky?", "Blue.")
    assert importers.prompts(path, ImportConfig())[0].id == record.prompt_id


def test_cancelled_and_unanswered_label_studio_annotations_give_nothing(array):
    done = task("ranker", {"ranker": ["llm_1", "llm_2", "llm_3"]})
    cancelled = task("ranker", {"ranker": []}, was_cancelled=True)
    empty = task("ranker", {}, result=[])
    assert len(importers.rankings(array(cancelled, done, empty), ImportConfig())) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (task("ranker", {"ranker": ["llm_1", "llm_2"]}), "reply 'llm_3' is not ranked"),
        (
            task("ranker", {"ranker": []}, data={"prompt": "?", "a": ITEMS, "b": ITEMS}),
            "2 fields of the task are lists of items",
        ),
        (
            task("pairwise", {"selected": "left"}, "x,y", {"prompt": "?", "one": "1"}),
            "a pairwise answer selects 'left' of 'x,y', and the task has prompt, one",
        ),
    ],
)
def test_a_label_studio_answer_without_an_order_is_named(array, row, said):
    path = array(task("ranker", {"ranker": ["llm_1", "llm_2", "llm_3"]}), row)
    with pytest.raises(InputError) as caught:
        importers.rankings(path, ImportConfig())
    assert str(caught.value).startswith(f"{path}: entry 2: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "not a list of objects"), ("[1]", "entry 1: not a JSON object"), ("[", "not JSON")],
)
def test_a_json_file_that_is_no_list_of_rows_is_named(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=said):
        importers.rankings(tmp_path / "x.json", ImportConfig())


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": 1, "chosen": [{"role": "assistant"}], "rejected": [{}]},
        {"data": {"prompt": "p"}, "annotations": [1]},
        {"data": {"prompt": "p"}, "annotations": [{"result": 1}]},
        {"fields": {"prompt": "p"}, "responses": 1},
        {"fields": {"prompt": "p"}, "responses": [{"values": 1}]},
        {"prompt": "p", "rank.responses": None, "rank.responses.users": ["u"]},
    ],
)
def test_a_row_of_the_wrong_build_is_named_and_not_a_traceback(row):
    with pytest.raises(InputError, match=r"file:7: is not built as .* write it"):
        list(foreign.rows(row, "file:7", "rankings", foreign.Choice()))
