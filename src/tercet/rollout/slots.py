"""What a decode step knows of the replies in the making, all of it on the device.

Row i of every tensor is slot i. A step reads and writes these alone, so a CUDA graph can replay it
any number of times before the host looks. An idle slot (`live` False) is computed and ignored.

Shape suffixes: S slots, R rows of a step (the first R slots), N new tokens at most, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tercet.rollout.sampling import uniforms


class Slots:
    """Device state of S slots for replies of at most N new tokens; with `compiled`, fused."""

    def __init__(
        self,
        slots: int,
        new_tokens: int,
        vocabulary: int,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.size, self.new_tokens = slots, new_tokens
        self.stops: frozenset[int] = frozenset()
        self._uniforms, self._advance = _compiled() if compiled else (uniforms, advance)
        whole = torch.zeros(5, slots, dtype=torch.int64, device=device)
        self.whole = whole
        self.token, self.position, self.stream, self.count, self.limit = whole
        """next token to feed, where it stands, name of the noise, tokens sampled, their limit"""
        self.live = torch.zeros(slots, dtype=torch.bool, device=device)
        # One column more than a reply can fill: idle slots write there.
        self.tokens = torch.zeros(slots, new_tokens + 1, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(slots, new_tokens + 1, dtype=torch.float32, device=device)
        self.is_stop = torch.zeros(vocabulary, dtype=torch.bool, device=device)

    def start(self, stop_ids: Sequence[int]) -> None:
        """All slots idle, whatever was left in them; these ids end a reply from now on.

        Ids outside the vocabulary never come.
        """
        self.live.zero_()
        self.stops = frozenset(stop_ids)
        known = [i for i in self.stops if 0 <= i < len(self.is_stop)]
        self.is_stop.zero_()
        self.is_stop[torch.tensor(known, dtype=torch.int64, device=self.is_stop.device)] = True

    def noise(self, rows: int) -> Tensor:
        """(R,) uniform numbers of the next tokens."""
        return self._uniforms(self.stream[:rows], self.position[:rows])

    def advance(self, new_R: Tensor, logprob_R: Tensor) -> None:
        """`advance` on the first R slots."""
        rows = len(new_R)
        self._advance(
            self.whole[:, :rows],
            self.live[:rows],
            self.tokens[:rows],
            self.logprobs[:rows],
            self.is_stop,
            new_R,
            logprob_R,
        )

    def idle(self) -> Callable[[], object]:
        """Make every slot idle; call the result to have them live again as they were."""
        live = self.live.clone()
        self.live.zero_()
        return lambda: self.live.copy_(live)

    def place(self, slots: list[int], states: list[tuple[int, int, int, int]]) -> None:
        """New replies in `slots`: (last prompt token, its position, stream, limit) of each."""
        rows = [(token, at, stream, 0, limit) for token, at, stream, limit in states]
        index = torch.tensor(slots, device=self.live.device)
        self.whole[:, index] = torch.tensor(rows, device=self.live.device).T
        self.live[index] = True

    def move(self, sources: list[int], targets: list[int]) -> None:
        """The replies of `sources` go on in `targets`."""
        source, target = (torch.tensor(x, device=self.live.device) for x in (sources, targets))
        for values in (self.live, self.tokens, self.logprobs):
            values[target] = values[source]
        self.whole[:, target] = self.whole[:, source]
        self.live[source] = False

    def dead(self, rows: int) -> list[int]:
        """Slots among the first `rows` that are idle. The host waits for the device here."""
        return (~self.live[:rows]).nonzero()[:, 0].tolist()

    def take(self, slots: list[int]) -> Taken:
        """What finished slots hold, copied out before they are used again."""
        index = torch.tensor(slots, device=self.live.device)
        return Taken(self.count[index], self.tokens[index], self.logprobs[index])


class Taken:
    """Tokens and log-probs on their way to the host."""

    def __init__(self, *parts: Tensor) -> None:
        self._parts = [part.to("cpu", non_blocking=True) for part in parts]
        self._arrived: torch.cuda.Event | None = None
        if parts[0].is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens, log-probs) of each reply; waits for what was asked for, not for later steps."""
        if self._arrived is not None:
            self._arrived.synchronize()
        counts, tokens, logprobs = (part.numpy() for part in self._parts)
        return [
            (row[:count], values[:count])
            for count, row, values in zip(counts, tokens, logprobs, strict=True)
        ]


def advance(
    whole_5R: Tensor,
    live_R: Tensor,
    tokens_RN: Tensor,
    logprobs_RN: Tensor,
    is_stop_V: Tensor,
    new_R: Tensor,
    logprob_R: Tensor,
) -> None:
    """Append a sampled token to every live row, in place; a row that ends goes idle.

    A reply ends with a stop token, which it keeps, or at its limit. An idle row stays as it is.
    """
    token_R, position_R, _, count_R, limit_R = whole_5R
    place_R = torch.where(live_R, count_R, tokens_RN.shape[1] - 1)[:, None]
    tokens_RN.scatter_(1, place_R, new_R[:, None])
    logprobs_RN.scatter_(1, place_R, logprob_R[:, None].to(logprobs_RN.dtype))
    token_R.copy_(torch.where(live_R, new_R, token_R))
    position_R += live_R
    count_R += live_R
    live_R &= ~(is_stop_V[new_R] | (count_R >= limit_R))


@cache
def _compiled() -> tuple[Any, Any]:
    return torch.compile(uniforms, dynamic=True), torch.compile(advance, dynamic=True)
