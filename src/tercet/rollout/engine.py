"""Replies sampled from a policy, in this process and on its own weights.

Live replies sit in slots of a fixed cache, each with its own length. A decode step feeds every
slot its last token and samples the next one; the host looks every few steps, hands finished slots
to the next replies of the queue, and when the queue is empty the batch shrinks. On a GPU the step
is a CUDA graph over a bf16 copy of the weights; on a CPU it is the model itself, and the host looks
after every step.

Shape suffixes: R rows (slots of a step), V vocabulary.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tercet.model.compile import When, pays
from tercet.model.load import unwrap
from tercet.records import InputError, RunFailed
from tercet.rollout.cache import (
    Layers,
    SlotCache,
    attention_layers,
    read_prompts,
    stored_length,
)
from tercet.rollout.graphs import Steps
from tercet.rollout.inference import InferenceCopy
from tercet.rollout.queue import Reply, Request, check_requests, make_requests, replies
from tercet.rollout.sampling import choose
from tercet.rollout.slots import Slots, Taken

READ_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Prompt tokens read at once, ahead of the slots that will take them."""
LOOK = {"cpu": 1, "cuda": 8}
"""Steps between two looks of the host: a slot that ended idles for half of them on average."""
SPARE = 0.9
"""Share of the free memory of a GPU that slots may take."""


@dataclass(frozen=True)
class Rollout:
    """One sampled reply: `tokens` include the stop token iff `stopped`; `logprobs` go with them."""

    prompt: int
    sample: int
    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@dataclass(frozen=True)
class Choice:
    """How a token is chosen; one CUDA graph each."""

    temperature: float
    greedy: bool
    top_k: int
    top_p: float


@dataclass
class _Storage:
    """All that lives as long as a shape of the batch: cache, slots and the steps over them."""

    cache: SlotCache
    slots: Slots
    steps: Steps
    asked: int
    """Slots that were wanted when memory decided how many there are."""


class Engine:
    """Samples from one policy again and again; storage and CUDA graphs stay between calls.

        engine = Engine(policy)
        rollouts = engine.generate(prompts, samples=4, max_new_tokens=256, stop_ids=[eos])
        optimizer.step()                  # the next call samples from the new weights
        engine.release()                  # gives the memory back; the next call takes it again

    `length` is the number of tokens, prompt and reply, that a slot is made for at once; a longer
    one makes new storage. `compile` is that of the stages: "auto" compiles layers where it pays.

    Under autocast on a GPU the policy's linear layers are copied in that type (`InferenceCopy`).
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        length: int = 0,
        compile: When = "auto",
    ) -> None:
        self.policy = policy
        self.device: torch.device = next(policy.parameters()).device
        # A slot's last token is never fed, so it has no position.
        self._longest = self._length = max(0, length - 1)
        self._new_tokens = 0
        self._compiled = self.device.type == "cuda" and pays(policy, compile)
        self._copy: InferenceCopy | None = None
        self._dtype: torch.dtype | None = None
        self._layers: Layers | None = None
        self._storage: _Storage | None = None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int | Sequence[int] = 1,
        max_new_tokens: int | Sequence[int],
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        greedy: bool = False,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        keys: Sequence[int] | None = None,
        slots: int = 256,
        on_finish: Callable[[Rollout], None] | None = None,
    ) -> list[Rollout]:
        """Samples replies until a stop token or `max_new_tokens`; ordered by (prompt, sample).

        The noise of a token depends on (seed, key of its prompt, sample, position) alone; `keys`
        are the prompts' indices unless given. So a prompt gets the same replies whatever else is
        asked for and whatever `slots` is, up to the last bits of matrix products, which vary with
        the batch. `samples` and `max_new_tokens` are one number, or one a prompt. Log-probs are
        those of the distribution sampled from: softmax(logits / temperature), after top-k and
        top-p where these are used (for evaluation only: PPO's ratio needs the unfiltered
        distribution). `on_finish` gets each rollout as it ends. `slots` replies are decoded at a
        time, fewer where a GPU's memory holds fewer.

        The model must run the "tercet" attention (`load_policy`); dropout is off while sampling.
        Raises InputError for an empty prompt, unknown token ids, an option out of range, or a
        prompt that leaves no room for its reply in the context; RunFailed for NaN logits and for a
        GPU that cannot hold one reply.
        """
        requests = make_requests(prompts, samples, max_new_tokens, keys)
        check_requests(self.policy, requests)
        _check_options(temperature, top_k, top_p, slots)
        wanted = sum(request.samples for request in requests)
        if wanted == 0:
            return []
        done: list[Rollout] = []
        with _sampling(self.policy), self._precision(), self._current():
            model = self._model()
            storage = self._prepare(model, requests, min(slots, wanted))
            kind = "cuda" if self.device.type == "cuda" else "cpu"
            layers, budget = storage.cache.layers, READ_TOKENS[kind]
            queue = replies(requests, seed, budget, partial(read_prompts, model, layers))
            choice = Choice(temperature, greedy, top_k, top_p)
            run = _Run(storage, queue, choice, min(slots, storage.slots.size))
            storage.cache.attach()
            try:
                storage.slots.start(stop_ids)
                for rollout in run.rollouts(bool(stop_ids), LOOK[kind]):
                    done.append(rollout)
                    if on_finish is not None:
                        on_finish(rollout)
            finally:
                storage.cache.detach()
        return sorted(done, key=lambda rollout: (rollout.prompt, rollout.sample))

    @property
    def bytes(self) -> int:
        """Device memory of cache, slots and copied weights; a graph's scratch is not counted."""
        held = 0 if self._copy is None else self._copy.bytes
        if self._storage is None:
            return held
        slots = self._storage.slots
        tensors = (self._storage.cache.storage, slots.tokens, slots.logprobs)
        return held + sum(x.numel() * x.itemsize for x in tensors)

    def release(self) -> None:
        """Give all memory back; what was compiled stays. The next `generate` takes it again."""
        self._storage = self._copy = self._layers = None
        self._length, self._new_tokens = self._longest, 0
        if self.device.type == "cuda":
            gc.collect()  # the copy's layers refer to each other
            torch.cuda.empty_cache()

    def _current(self) -> Any:
        """Streams, events and graphs are those of the current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _precision(self) -> Any:
        """The caller's autocast, without its cache of cast weights, which a graph must not hold."""
        kind = self.device.type
        enabled = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind)
        return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)

    def _model(self) -> Any:
        """The module to run: on a GPU a copy with its own linear weights, brought up to date."""
        dtype = unwrap(self.policy).dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        if self._dtype != dtype:
            self.release()
            self._dtype = dtype
        if self.device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
            return self.policy
        if self._copy is None:
            self._copy = InferenceCopy(self.policy, dtype, self._compiled)
        else:
            self._copy.refresh()
        return self._copy.model

    def _prepare(self, model: Any, requests: Sequence[Request], slots: int) -> _Storage:
        """Storage for `slots` replies of these lengths: the present one when it is large enough."""
        longest = max(len(request.tokens) - 1 + request.limit for request in requests)
        new_tokens = max(request.limit for request in requests)
        now = self._storage
        if now is not None and (
            now.cache.length > longest and now.slots.new_tokens >= new_tokens and now.asked >= slots
        ):
            return now
        self._length = max(self._length, longest)
        self._new_tokens = max(self._new_tokens, new_tokens)
        if now is not None:
            slots = max(slots, now.asked)
            now = self._storage = None
        asked = slots
        if self._layers is None:
            self._layers = attention_layers(model)
        vocabulary = unwrap(self.policy).config.get_text_config().vocab_size
        if self.device.type == "cuda":
            slots = _affordable(
                self._layers, slots, self._length, self._new_tokens, vocabulary, self.device
            )
        # One position more than replies need: where a slot that ended goes on writing.
        cache = SlotCache(self._layers, slots, self._length + 1, self.device)
        state = Slots(slots, self._new_tokens, vocabulary, self.device, self._compiled)

        def step(rows: int, choice: Choice, span: tuple[int, int] | None) -> None:
            position_R = state.position[:rows]
            cache.begin_step(position_R, state.live[:rows], span)
            logits_RV = _forward(model, state.token[:rows, None], position_R[:, None], cache)
            state.advance(*choose(logits_RV, state.noise(rows), **vars(choice)))

        steps = Steps(step, state.idle, slots, captured=self.device.type == "cuda")
        self._storage = _Storage(cache, state, steps, asked)
        return self._storage


def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], **options: Any
) -> list[Rollout]:
    """`Engine.generate` once; for a policy that is asked again, keep an Engine.

    generate(model, [[5, 7], [9]], samples=4, max_new_tokens=32, stop_ids=[eos])
    generate(model, prompts, max_new_tokens=32, stop_ids=[eos], greedy=True)
    """
    return Engine(model).generate(prompts, **options)


class _Run:
    """One call of `generate`: which reply is in which slot, and since which step."""

    def __init__(
        self, storage: _Storage, queue: Iterator[Reply], choice: Choice, size: int
    ) -> None:
        self.cache, self.slots, self.steps = storage.cache, storage.slots, storage.steps
        self.queue, self.choice, self.size = queue, choice, size
        self.running: dict[int, tuple[Reply, int]] = {}
        """slot -> (its reply, without what was read of the prompt; the step at which it began)"""
        self.now = 0
        self.rows = 0
        self.first = (0, 0)
        self.deadline = 0

    def rollouts(self, stops: bool, look: int) -> Iterator[Rollout]:
        """Every reply as it ends."""
        self._place(list(range(self.size)))
        self.rows = self._fitting()
        ended: tuple[list[Reply], Taken] | None = None
        while self.running:
            steps = self.deadline - self.now
            if stops or look == 1:
                steps = min(steps, look)
            assert steps > 0, "a reply passed its limit"
            low, high = self.first
            self.steps.run(steps, self.rows, self.choice, (low + self.now, high + self.now))
            self.now += steps
            if ended is not None:
                # What ended before these steps is read while they run.
                yield from self._read(*ended)
                ended = None
            finished = [slot for slot in self.slots.dead(self.rows) if slot in self.running]
            if finished:
                whose = [self.running.pop(slot)[0] for slot in finished]
                ended = whose, self.slots.take(finished)
                self._refill(finished)
        if ended is not None:
            yield from self._read(*ended)

    def _read(self, replies: list[Reply], taken: Taken) -> Iterator[Rollout]:
        for reply, (tokens, logprobs) in zip(replies, taken.read(), strict=True):
            if np.isnan(logprobs).any():
                raise RunFailed(
                    f"the model gives NaN logits after prompt {reply.prompt}: its weights have "
                    "diverged; train it again with a lower learning rate"
                )
            stopped = int(tokens[-1]) in self.slots.stops
            yield Rollout(reply.prompt, reply.sample, tokens.tolist(), logprobs.tolist(), stopped)

    def _refill(self, finished: list[int]) -> None:
        """Finished slots go to the next replies; when none are left, the batch shrinks."""
        self._place(finished)
        rows = self._fitting()
        if rows < self.rows:
            sources = [slot for slot in self.running if slot >= rows]
            targets = [slot for slot in range(rows) if slot not in self.running][: len(sources)]
            if sources:
                length = max(self._position(slot) for slot in sources)
                self.cache.move(sources, targets, length)
                self.slots.move(sources, targets)
                for source, target in zip(sources, targets, strict=True):
                    self.running[target] = self.running.pop(source)
            self.rows = rows
        self._schedule()

    def _place(self, slots: list[int]) -> None:
        """The next replies of the queue, as many as there are, into free slots.

        Pack by pack: what was read of prompts is let go as soon as it lies in slots.
        """
        free = iter(slots)
        for prompts, group in groupby(islice(self.queue, len(slots)), lambda reply: reply.read):
            part = [(slot, reply) for reply, slot in zip(group, free, strict=False)]
            taken = [slot for slot, _ in part]
            if prompts is not None:
                self.cache.fill(taken, prompts, [reply.place for _, reply in part])
            self.slots.place(taken, [reply.state for _, reply in part])
            self.running |= {slot: (replace(reply, read=None), self.now) for slot, reply in part}
            del part  # the next group is read before this name is given anew
        self._schedule()

    def _schedule(self) -> None:
        """Bounds that the host knows without asking: next limit reached, positions of the rows."""
        if not self.running:
            return
        self.deadline = min(begun + reply.limit for reply, begun in self.running.values())
        first = [len(reply.prompt_tokens) - 1 - begun for reply, begun in self.running.values()]
        self.first = min(first), max(first)

    def _position(self, slot: int) -> int:
        """Where the newest token of a slot stands; the next step feeds it."""
        reply, begun = self.running[slot]
        return len(reply.prompt_tokens) - 1 + self.now - begun

    def _fitting(self) -> int:
        """Rows of a step for the replies that run."""
        return self.steps.rows(len(self.running)) if self.running else 0


def _forward(model: Any, ids: Tensor, position: Tensor, cache: SlotCache) -> Tensor:
    """Logits (R, V) after the (R, 1) ids; the model's own forward and head."""
    out = model(
        input_ids=ids,
        position_ids=position,
        use_cache=False,
        cache_view=cache,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


def _affordable(
    layers: Layers,
    slots: int,
    length: int,
    new_tokens: int,
    vocabulary: int,
    device: torch.device,
) -> int:
    """How many of `slots` fit into what is free on the GPU, beside the prompts read ahead.

    A slot holds its keys and values, its tokens and log-probs, and a row of logits in bf16 with
    float32 partial copies.
    """
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] * SPARE
    free -= 3 * max(READ_TOKENS["cuda"], length) * layers.token_bytes
    one = stored_length(length + 1, device) * layers.token_bytes + 12 * new_tokens + 8 * vocabulary
    fitting = int(free // one)
    if fitting < 1:
        raise RunFailed(
            f"the GPU has {torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB free, and one reply "
            f"of {length} tokens takes {one / 2**30:.2f} beside what reads the prompts; take "
            "shorter prompts or a lower max_new_tokens, or free memory on this GPU"
        )
    return min(slots, fitting)


@contextmanager
def _sampling(model: PreTrainedModel) -> Iterator[None]:
    """No gradients and no dropout; the mode of every module comes back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: buffers that a model computes here must stay usable in training.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _check_options(temperature: float, top_k: int, top_p: float, slots: int) -> None:
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}: give a number above 0, or use greedy")
    if top_k < 0:
        raise InputError(f"top_k is {top_k}: give 0 (off) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: give a number above 0, at most 1 (off)")
    if slots < 1:
        raise InputError(f"slots is {slots}: give at least 1")
