import pytest

from tercet.data.augment import AugmentConfig, FewShot, augment, recombine
from tercet.records import Demonstration, InputError

PAIRS = (("sun", "day"), ("moon", "night"), ("lamp", "room"))


def group(pairs=PAIRS, **fields):
    return FewShot(id="g", instruction="What does it light?", pairs=pairs, **fields)


def demonstration(**fields):
    given = {"id": "d", "prompt_id": "p", "prompt": "Where is the {pool}?", "response": "Outside."}
    return Demonstration(**{**given, **fields})


def test_k_pairs_give_k_examples_with_the_others_as_shots():
    examples = recombine([group(user_id="u", split="train")], AugmentConfig())
    assert [e.response for e in examples] == ["day", "night", "room"]
    assert examples[1].prompt == "What does it light?\n\nsun\nday\n\nlamp\nroom\n\nmoon\n"
    assert {(e.prompt_id, e.user_id, e.split) for e in examples} == {("g", "u", "train")}
    assert len({e.id for e in examples}) == 3


def test_the_query_form_opens_the_answer():
    config = AugmentConfig(query_form="Q: {query}\nA: {response}", separator="\n")
    (example, _) = recombine([group(PAIRS[:2])], config)
    assert example.prompt == "What does it light?\nQ: moon\nA: night\nQ: sun\nA: "


def test_the_answer_is_never_among_its_shots():
    pairs = (*PAIRS, ("star", "night"), ("torch", " night "))
    for example in recombine([group(pairs)], AugmentConfig(shot_sets=3, shuffle_shots=True)):
        assert f"\n{example.response.strip()}" not in example.prompt


def test_validation_gets_each_pair_once_without_shots():
    examples = recombine([group(split="valid")], AugmentConfig(shot_sets=5))
    assert [e.prompt for e in examples] == [f"What does it light?\n\n{q}\n" for q, _ in PAIRS]


def test_sets_of_shots_differ_and_repeat_with_the_seed():
    pairs = tuple((f"q{i}", f"a{i}") for i in range(8))
    config = AugmentConfig(seed=1, shot_sets=4, max_shots=3, shuffle_shots=True)
    examples = recombine([group(pairs)], config)
    assert len({e.prompt for e in examples}) == len(examples) == 32
    assert all(e.prompt.count("\na") == 3 for e in examples)
    assert recombine([group(pairs)], config) == examples
    other = AugmentConfig(seed=2, shot_sets=4, max_shots=3, shuffle_shots=True)
    assert recombine([group(pairs)], other) != examples


def test_equal_sets_of_shots_count_once():
    assert len(recombine([group()], AugmentConfig(shot_sets=5))) == 3


def test_shots_can_be_left_out_at_random():
    pairs = tuple((f"q{i}", f"a{i}") for i in range(50))
    examples = recombine([group(pairs)], AugmentConfig(shot_dropout=0.5))
    shots = sum(e.prompt.count("\na") for e in examples) / len(examples)
    assert 23 < shots < 26  # 24.5 expected of 49


def test_an_instruction_without_pairs_is_refused():
    with pytest.raises(InputError, match="instruction 'g' has no pairs"):
        recombine([group(())], AugmentConfig())


def test_nothing_happens_by_default():
    assert augment([demonstration()], AugmentConfig()) == [demonstration()]


def test_templates_add_copies_that_inherit_everything_but_the_prompt():
    one = demonstration(user_id="u", split="train", source="s")
    config = AugmentConfig(templates=("Please: {prompt}", "{prompt} {prompt}"))
    original, first, second = augment([one], config)
    assert original == one
    assert first.prompt == "Please: Where is the {pool}?"
    assert second.prompt == "Where is the {pool}? Where is the {pool}?"
    for copy in (first, second):
        assert copy.model_copy(update={"id": one.id, "prompt": one.prompt}) == one
    assert len({original.id, first.id, second.id}) == 3


def test_validation_is_never_augmented():
    one = demonstration(split="valid")
    assert augment([one], AugmentConfig(templates=("Q {prompt}",), jitter=3)) == [one]


def test_jitter_changes_only_white_space_and_case_of_the_prompt():
    one = demonstration(prompt="where is it\nand when does it open " * 5)
    copies = augment([one], AugmentConfig(jitter=20))[1:]
    assert len({c.prompt for c in copies}) > 10
    for copy in copies:
        assert copy.response == one.response
        assert copy.prompt.lower().split() == one.prompt.split()
        assert copy.prompt.count("\n") == one.prompt.count("\n")
    assert augment([one], AugmentConfig(jitter=20))[1:] == copies


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shot_dropout": 1.0}, "shot_dropout is 1.0"),
        ({"shot_sets": 0}, "shot_sets must be at least 1"),
        ({"query_form": "{query}"}, "query_form"),
        ({"templates": ("no place",)}, "must contain {prompt}"),
    ],
)
def test_wrong_settings_are_refused(options, said):
    with pytest.raises(ValueError) as caught:
        AugmentConfig(**options)
    assert said in str(caught.value)
