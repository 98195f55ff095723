"""The one rule from text to ids: encode(prompt) + encode(reply) + (EOS iff the reply stopped)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Literal

from tercet.records import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
UNKNOWN = "<unk>"

# Words with their leading space, single digits, runs of punctuation, single white space: every
# character belongs to exactly one piece, so the pieces concatenate back to the text.
WORD_PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the end-of-sequence token.

    Raises:
        InputError: the tokenizer has none, so replies could never end.
    """
    token = tokenizer.eos_token_id
    if token is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise InputError(f"{name}: has no EOS token; set eos_token in tokenizer_config.json")
    assert isinstance(token, int)
    return token


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a prompt, after a BOS only if the tokenizer itself adds one.

    Raises:
        InputError: there is not one token to continue from.
    """
    ids = _bos(tokenizer) + _encode(tokenizer, [text])[0]
    if not ids:
        raise InputError("an empty prompt gives this tokenizer nothing to continue; give it a text")
    return ids


def encode_reply(tokenizer: PreTrainedTokenizerBase, text: str, stopped: bool) -> list[int]:
    """Ids of a reply, with EOS iff it ended by itself. Encoded apart from its prompt.

    Raises:
        InputError: an empty reply that did not stop has no tokens at all.
    """
    ids = _encode(tokenizer, [text])[0] + ([eos_id(tokenizer)] if stopped else [])
    if not ids:
        raise InputError("an empty reply that did not stop has no tokens; drop it")
    return ids


def windows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], length: int
) -> list[list[int]]:
    """Pretraining windows of exactly `length` tokens: each document (BOS, if any, and text) ends
    with EOS, and the stream is cut. A rest shorter than `length` is left out, unless it is all.

    Raises:
        InputError: the texts hold fewer than two tokens, so there is nothing to predict.
    """
    stream: list[int] = []
    result: list[list[int]] = []
    bos, eos = _bos(tokenizer), eos_id(tokenizer)
    for batch in _batches(texts, 256):
        for ids in _encode(tokenizer, batch):
            stream += [*bos, *ids, eos]
        full = len(stream) - len(stream) % length
        result += [stream[start : start + length] for start in range(0, full, length)]
        del stream[:full]
    if not result and len(stream) > 1:
        result = [stream]
    if not result:
        raise InputError("the pretraining text is empty; give at least one document")
    return result


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # verbose=False: the length warning is for truncating users, here the stages check lengths.
    ids = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids  # pyright: ignore[reportReturnType]


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] or []: asked of the tokenizer with a text, because `bos_token_id` alone does not say
    whether it is added, and with bos = eos an empty text cannot tell the two apart."""
    bos = tokenizer.bos_token_id
    if not isinstance(bos, int):
        return []
    first = tokenizer("a")["input_ids"][0]  # pyright: ignore[reportIndexIssue]
    return [bos] if first == bos else []


def train_tokenizer(
    texts: Iterable[str], kind: Literal["bpe", "word"] = "bpe", vocab_size: int = 4096
) -> PreTrainedTokenizerFast:
    """A new tokenizer whose decoding gives back exactly the text it encoded.

    "bpe" is byte-level BPE and covers any text; "word" has one id a word (with its leading space),
    for closed vocabularies such as the embedded world's: a word it never saw becomes "<unk>".
    No padding token is made; EOS is "<|endoftext|>".
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bpe":
        if vocab_size < 257:
            raise InputError(f"vocab_size {vocab_size}: byte-level BPE needs at least 257")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PIECES), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size, special_tokens=[EOS, UNKNOWN], show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        unk_token=None if kind == "bpe" else UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
