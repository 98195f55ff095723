"""The replies to make, longest prompts first; prompts are read ahead in packs, once each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from tercet.model.load import check_context, unwrap
from tercet.records import InputError
from tercet.rollout.cache import Prompts
from tercet.rollout.sampling import stream


@dataclass(frozen=True)
class Reply:
    """A reply to make. Its prompt, but for the last token, is number `place` of `read`.

    None: the prompt is one token long.
    """

    prompt: int
    sample: int
    prompt_tokens: Sequence[int]
    stream: int
    limit: int
    read: Prompts | None
    place: int

    @property
    def state(self) -> tuple[int, int, int, int]:
        """What its slot starts with: the last prompt token, its position, stream, limit."""
        return self.prompt_tokens[-1], len(self.prompt_tokens) - 1, self.stream, self.limit


@dataclass(frozen=True)
class Request:
    """One prompt with the number of replies wanted, their limit and the key of their noise."""

    tokens: Sequence[int]
    samples: int
    limit: int
    key: int


def replies(
    requests: Sequence[Request],
    seed: int,
    budget: int,
    read: Callable[[list[Sequence[int]], int], Prompts],
) -> Iterator[Reply]:
    """Every reply to make; a pack of at most `budget` prompt tokens is read when first needed.

    Sorting by prompt keeps the lengths of one pack, and of the live slots, close together. The last
    token of a prompt is not read ahead: it is the first thing a slot decodes, so that a step has no
    special case.
    """
    wanted = [i for i, request in enumerate(requests) if request.samples]
    order = deque(sorted(wanted, key=lambda i: -len(requests[i].tokens)))
    left = sum(len(requests[i].tokens) - 1 for i in order)
    while order:
        length = pack_length(left, budget)
        pack: list[int] = []
        used = 0
        while order and (not pack or used + len(requests[order[0]].tokens) - 1 <= length):
            pack.append(order.popleft())
            used += len(requests[pack[-1]].tokens) - 1
        left -= used
        ahead = [requests[i].tokens[:-1] for i in pack if len(requests[i].tokens) > 1]
        prompts = read(ahead, length) if ahead else None
        for place, i in enumerate(pack):
            request = requests[i]
            # One-token prompts are the shortest, so they come last and disturb no place.
            source = prompts if len(request.tokens) > 1 else None
            for sample in range(request.samples):
                name = stream(seed, request.key, sample)
                yield Reply(i, sample, request.tokens, name, request.limit, source, place)


def pack_length(tokens: int, budget: int) -> int:
    """The largest of budget, a half, a quarter that `tokens` fill, else the quarter.

    Few lengths for a compiled reader, while a whole pack for a few prompts would be mostly filler;
    `pack` takes a half or a quarter of these where that holds them.
    """
    return next((size for size in (budget, budget // 2) if size <= tokens), budget // 4)


def make_requests(
    prompts: Sequence[Sequence[int]],
    samples: int | Sequence[int],
    max_new_tokens: int | Sequence[int],
    keys: Sequence[int] | None,
) -> list[Request]:
    """One request a prompt; numbers given once count for all. InputError for other lengths."""
    counts = [samples] * len(prompts) if isinstance(samples, int) else list(samples)
    limits = (
        [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    )
    names = list(range(len(prompts))) if keys is None else list(keys)
    if not len(prompts) == len(counts) == len(names) == len(limits):
        raise InputError(
            f"{len(prompts)} prompts, but {len(counts)} samples, {len(limits)} max_new_tokens and "
            f"{len(names)} keys: give one each"
        )
    return [Request(*row) for row in zip(prompts, counts, limits, names, strict=True)]


def check_requests(model: PreTrainedModel, requests: Sequence[Request]) -> None:
    """InputError for what the model cannot be asked; errors name the prompt."""
    if not requests:
        return
    vocabulary = unwrap(model).config.get_text_config().vocab_size
    for i, request in enumerate(requests):
        if request.samples < 0:
            raise InputError(f"samples is {request.samples}: give 0 or more for each prompt")
        if request.limit < 1:
            raise InputError(f"max_new_tokens is {request.limit}: give at least 1")
        if not len(request.tokens):
            raise InputError(f"prompt {i} has no tokens: drop it, or begin it with a token")
        if min(request.tokens) < 0 or max(request.tokens) >= vocabulary:
            raise InputError(
                f"prompt {i} has token ids outside 0..{vocabulary - 1}: "
                "encode it with the model's own tokenizer"
            )
    longest = max(range(len(requests)), key=lambda i: len(requests[i].tokens) + requests[i].limit)
    tokens, limit = len(requests[longest].tokens), requests[longest].limit
    try:
        check_context(model, tokens + limit)
    except InputError as error:
        raise InputError(
            f"prompt {longest} has {tokens} tokens and max_new_tokens is {limit}: {error}"
        ) from None
