import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.tokens import EOS, encode_prompt, encode_reply, eos_id, train_tokenizer, windows
from tercet.records import InputError

TEXTS = [
    "Where is the pool? It's next to the bar, open 7-22.\n",
    "  Two spaces, naïve 日本 🙂!\n\n\tTabs.",
]
BPE = train_tokenizer(TEXTS * 3, "bpe", 300)
WORD = train_tokenizer(TEXTS, "word", 100)


def with_special_tokens(before="", after=""):
    """A tokenizer that adds BOS and EOS by itself, as llama's and gemma's do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=ids
    )
    return tokenizer


def test_prompt_and_reply_are_encoded_apart():
    # "next" alone and after "is the" need not be the same tokens: the reply never sees the prompt.
    whole = BPE("Where is the pool?", add_special_tokens=False)["input_ids"]
    parts = encode_prompt(BPE, "Where is the") + encode_reply(BPE, " pool?", stopped=True)
    assert BPE.decode(parts[:-1]) == BPE.decode(whole)
    assert parts[-1] == eos_id(BPE)


def test_eos_only_when_the_reply_stopped():
    stopped = encode_reply(BPE, "Yes.", stopped=True)
    cut = encode_reply(BPE, "Yes.", stopped=False)
    assert stopped == [*cut, eos_id(BPE)]
    assert eos_id(BPE) not in cut


def test_bos_only_where_the_tokenizer_adds_it():
    assert encode_prompt(BPE, "Yes")[:1] == BPE("Yes")["input_ids"][:1]
    tokenizer = with_special_tokens(before="<s>", after=EOS)
    ids = encode_prompt(tokenizer, "Yes")
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1:] == BPE("Yes")["input_ids"]  # no EOS after a prompt
    assert tokenizer.bos_token_id not in encode_reply(tokenizer, "Yes", stopped=True)


def test_a_tokenizer_that_only_adds_eos_gets_no_bos():
    tokenizer = with_special_tokens(after=EOS)
    tokenizer.bos_token = EOS  # one token for both, as gpt2 has
    assert encode_prompt(tokenizer, "Yes") == BPE("Yes")["input_ids"]


def test_an_empty_prompt_needs_a_bos():
    with pytest.raises(InputError, match="empty prompt"):
        encode_prompt(BPE, "")
    tokenizer = with_special_tokens(before="<s>")
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]


def test_an_empty_reply_is_its_eos_or_nothing_to_train_on():
    assert encode_reply(BPE, "", stopped=True) == [eos_id(BPE)]
    with pytest.raises(InputError, match="no tokens"):
        encode_reply(BPE, "", stopped=False)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has no EOS token; set eos_token"):
        encode_reply(tokenizer, "Yes", stopped=True)


def test_windows_join_documents_by_eos_and_cut():
    eos = eos_id(WORD)
    one, two = (WORD(t, add_special_tokens=False)["input_ids"] for t in TEXTS)
    stream = [*one, eos, *two, eos]
    found = windows(WORD, TEXTS, 8)
    assert all(len(window) == 8 for window in found)
    assert [i for window in found for i in window] == stream[: len(stream) // 8 * 8]
    assert len(stream) % 8 > 0  # so the test sees that the rest is left out


def test_windows_over_many_documents_lose_nothing():
    texts = [f"Room {number} is open.\n" for number in range(600)]  # more than one batch
    found = windows(BPE, texts, 10)
    stream = [i for t in texts for i in [*BPE(t)["input_ids"], eos_id(BPE)]]
    assert [i for window in found for i in window] == stream[: len(stream) // 10 * 10]


def test_a_text_shorter_than_a_window_is_one_window():
    assert windows(BPE, ["Yes"], 50) == [[*BPE("Yes")["input_ids"], eos_id(BPE)]]


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_refused(texts):
    with pytest.raises(InputError, match="pretraining text is empty"):
        windows(BPE, texts, 8)


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: "<" not in t))
def test_bpe_gives_back_any_text(text):
    assert BPE.decode(encode_reply(BPE, text, stopped=True), skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_words_give_back_their_text(text):
    assert WORD.decode(encode_reply(WORD, text, stopped=True), skip_special_tokens=True) == text


def test_a_word_keeps_its_space_and_digits_stand_alone():
    pieces = WORD.convert_ids_to_tokens(WORD("the pool, 7-22.")["input_ids"])
    assert [p for p in pieces if p != "<unk>"] == [" pool", ",", " 7", "-", "2", "2", "."]


def test_an_unknown_word_is_one_token():
    ids = WORD("the zebra.")["input_ids"]
    assert ids.count(WORD.unk_token_id) == 2  # "the" without its space is unknown, too


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_training_is_repeatable_and_survives_saving(tmp_path, kind):
    from transformers import AutoTokenizer

    first, second = (train_tokenizer(TEXTS, kind, 280) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    first.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = encode_reply(first, text, stopped=True)
        assert encode_reply(loaded, text, stopped=True) == ids
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded.pad_token is None


def test_bytes_need_their_alphabet():
    with pytest.raises(InputError, match="at least 257"):
        train_tokenizer(TEXTS, "bpe", 256)
