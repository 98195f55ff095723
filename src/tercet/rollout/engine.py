"""Replies sampled from a policy, in this process and on its own weights.

Live replies sit in slots of a fixed cache, each with its own length. A decode step feeds every
slot its last token and samples the next one; a finished slot takes the next reply from the queue,
and when the queue is empty the batch shrinks. Prompts are read ahead in batches, once each, up to
their last token: that one is the first thing a slot decodes, so a step has no special case.

Legend: R rows (live slots), V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tercet.model.load import check_context
from tercet.records import InputError, RunFailed
from tercet.rollout.cache import PromptReader, SlotCache
from tercet.rollout.sampling import choose, stream, uniforms

# Prompt tokens read at once, ahead of the slots that will take them.
READ_TOKENS = {"cpu": 4096, "cuda": 32768}


@dataclass(frozen=True)
class Rollout:
    """One sampled reply: `tokens` include the stop token iff `stopped`; `logprobs` go with them."""

    prompt: int
    sample: int
    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@dataclass(frozen=True)
class _Reply:
    """A reply in the making: its prompt's cache entries are row `row` of `reader` (None: none)."""

    prompt: int
    sample: int
    prompt_tokens: Sequence[int]
    stream: int
    reader: PromptReader | None
    row: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Position of the newest token, which the next step feeds to the model."""
        return len(self.prompt_tokens) - 1 + len(self.tokens)


@dataclass
class _Batch:
    """The live slots: reply i of `live` is in slot i; `state` rows are token, position, stream."""

    live: list[_Reply]
    cache: SlotCache
    state: Tensor


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int | Sequence[int] = 1,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 1.0,
    greedy: bool = False,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    slots: int = 128,
    on_finish: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """Samples replies until a stop token or `max_new_tokens`; ordered by (prompt, sample).

        generate(model, [[5, 7], [9]], samples=4, max_new_tokens=32, stop_ids=[eos])
        generate(model, prompts, max_new_tokens=32, stop_ids=[eos], greedy=True)

    The noise of a token depends on (seed, key of its prompt, sample, position) alone; `keys` are
    the prompts' indices unless given. So a prompt gets the same replies whatever else is asked for
    and whatever `slots` is, up to the last bits of matrix products, which vary with the batch.
    `samples` is one number, or one a prompt. Log-probs are those of the distribution sampled from:
    softmax(logits / temperature), after top-k and top-p where these are used (for evaluation only:
    PPO's ratio needs the unfiltered distribution). `on_finish` gets each rollout as it ends.

    The model must run the "tercet" attention (`load_policy`); dropout is off while sampling.
    Raises InputError for an empty prompt, unknown token ids, an option out of range, or a prompt
    that leaves no room for `max_new_tokens` in the context; RunFailed for NaN logits.
    """
    counts = [samples] * len(prompts) if isinstance(samples, int) else list(samples)
    keys = range(len(prompts)) if keys is None else keys
    _check_options(counts, max_new_tokens, temperature, top_k, top_p, slots)
    _check_prompts(model, prompts, counts, keys, max_new_tokens)
    if sum(counts) == 0:
        return []

    queue = _queue(model, prompts, counts, [(seed, key) for key in keys])
    stops = frozenset(stop_ids)
    done: list[Rollout] = []
    with _sampling(model):
        slots = min(slots, sum(counts))
        length = max(map(len, prompts)) - 1 + max_new_tokens
        batch = _new_batch(model, list(islice(queue, slots)), length)
        while batch.live:
            token_R, position_R, stream_R = batch.state[:, : len(batch.live)]
            positions = [reply.position for reply in batch.live]
            batch.cache.begin_step(position_R, min(positions), max(positions))
            logits_RV = _forward(model, token_R[:, None], position_R[:, None], batch.cache)
            noise_R = uniforms(stream_R, position_R)
            new_R, logprob_R = choose(logits_RV, noise_R, temperature, greedy, top_k, top_p)
            token_R.copy_(new_R)
            position_R += 1

            finished = []
            step = zip(batch.live, new_R.tolist(), logprob_R.tolist(), strict=True)
            for slot, (reply, token, logprob) in enumerate(step):
                reply.tokens.append(token)
                reply.logprobs.append(logprob)
                if token in stops or len(reply.tokens) == max_new_tokens:
                    finished.append(slot)
                    done.append(_rollout(reply, token in stops))
                    if on_finish is not None:
                        on_finish(done[-1])
            if finished:
                _refill(batch, finished, queue)
    return sorted(done, key=lambda rollout: (rollout.prompt, rollout.sample))


def _queue(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    counts: list[int],
    noise: list[tuple[int, int]],
) -> Iterator[_Reply]:
    """Every reply to make, longest prompts first; a batch of prompts is read when first needed.

    Sorting keeps the lengths of one batch, and of the live slots, close together.
    """
    order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -len(prompts[i]))
    device = next(model.parameters()).device
    while order:
        length = len(prompts[order[0]]) - 1
        size = max(1, READ_TOKENS[device.type] // max(1, length))
        batch, order = order[:size], order[size:]
        reader = _read(model, [prompts[i] for i in batch], length, device) if length else None
        for row, i in enumerate(batch):
            for sample in range(counts[i]):
                yield _Reply(i, sample, prompts[i], stream(*noise[i], sample), reader, row)


def _read(
    model: PreTrainedModel, prompts: list[Sequence[int]], length: int, device: torch.device
) -> PromptReader:
    """Runs the model over the first `length` tokens of each prompt, at most all but its last.

    Shorter prompts are filled up on the right with their own last token: attention is causal, and
    a slot overwrites the entries of the filler before it reads them.
    """
    ids = [[*prompt, *[prompt[-1]] * (length - len(prompt))][:length] for prompt in prompts]
    reader = PromptReader(_layers(model))
    position = torch.arange(length, device=device).expand(len(ids), -1)
    _forward(model, torch.tensor(ids, device=device), position, reader)
    return reader


def _forward(
    model: PreTrainedModel, ids: Tensor, position: Tensor, cache: PromptReader | SlotCache
) -> Tensor:
    """Logits (R, V) after the last of the (R, length) ids; the model's own forward and head."""
    out = model(
        input_ids=ids,
        position_ids=position,
        use_cache=False,
        cache_view=cache,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


def _new_batch(model: PreTrainedModel, replies: list[_Reply], length: int) -> _Batch:
    device = next(model.parameters()).device
    cache = SlotCache(_layers(model), len(replies), length, device)
    state = torch.zeros(3, len(replies), dtype=torch.int64, device=device)
    batch = _Batch(replies, cache, state)
    _place(batch, list(range(len(replies))), replies)
    return batch


def _refill(batch: _Batch, finished: list[int], queue: Iterator[_Reply]) -> None:
    """Gives finished slots to the next replies; when none are left, closes the gaps from behind."""
    replies = list(islice(queue, len(finished)))
    if replies:
        _place(batch, finished[: len(replies)], replies)
    gaps = finished[len(replies) :]
    rows = len(batch.live) - len(gaps)
    targets = [slot for slot in gaps if slot < rows]
    sources = sorted(set(range(rows, len(batch.live))) - set(gaps))
    if targets:
        for source, target in zip(sources, targets, strict=True):
            batch.live[target] = batch.live[source]
        batch.cache.move(sources, targets, max(batch.live[i].position for i in targets))
        batch.state[:, targets] = batch.state[:, sources]
    del batch.live[rows:]


def _place(batch: _Batch, slots: list[int], replies: list[_Reply]) -> None:
    for reader, group in groupby(zip(slots, replies, strict=True), lambda pair: pair[1].reader):
        if reader is not None:
            pairs = list(group)
            batch.cache.fill([s for s, _ in pairs], reader, [reply.row for _, reply in pairs])
    state = [(reply.prompt_tokens[-1], reply.position, reply.stream) for reply in replies]
    batch.state[:, slots] = torch.tensor(state, device=batch.state.device).T
    for slot, reply in zip(slots, replies, strict=True):
        batch.live[slot] = reply


def _rollout(reply: _Reply, stopped: bool) -> Rollout:
    if any(map(math.isnan, reply.logprobs)):
        raise RunFailed(
            f"the model gives NaN logits after prompt {reply.prompt}: its weights have diverged; "
            "train it again with a lower learning rate"
        )
    return Rollout(reply.prompt, reply.sample, reply.tokens, reply.logprobs, stopped)


def _layers(model: PreTrainedModel) -> int:
    return model.config.get_text_config().num_hidden_layers


@contextmanager
def _sampling(model: PreTrainedModel) -> Iterator[None]:
    """No gradients and no dropout; the model's mode comes back afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        # Not inference_mode: buffers that a model computes here must stay usable in training.
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


def _check_options(
    counts: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    slots: int,
) -> None:
    if min(counts, default=0) < 0:
        raise InputError(f"samples is {min(counts)}: give 0 or more for each prompt")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: give at least 1")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}: give a number above 0, or use greedy")
    if top_k < 0:
        raise InputError(f"top_k is {top_k}: give 0 (off) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: give a number above 0, at most 1 (off)")
    if slots < 1:
        raise InputError(f"slots is {slots}: give at least 1")


def _check_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    counts: list[int],
    keys: Sequence[int],
    max_new_tokens: int,
) -> None:
    if not prompts:
        return
    if not len(prompts) == len(counts) == len(keys):
        raise InputError(
            f"{len(prompts)} prompts, but {len(counts)} samples and {len(keys)} keys: give one each"
        )
    config = model.config.get_text_config()
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {i} has no tokens: drop it, or begin it with a token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise InputError(
                f"prompt {i} has token ids outside 0..{config.vocab_size - 1}: "
                "encode it with the model's own tokenizer"
            )
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    try:
        check_context(model, len(prompts[longest]) + max_new_tokens)
    except InputError as error:
        raise InputError(
            f"prompt {longest} has {len(prompts[longest])} tokens and max_new_tokens is "
            f"{max_new_tokens}: {error}"
        ) from None
