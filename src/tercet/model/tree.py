"""The one batch of every forward pass: documents packed end to end, replies as branches.

Token i of a row sees token j iff j <= i, both are of one document, and j is on branch 0 (the
prompt) or on the branch of i. Positions count 0, 1, 2, ... along prompt and then reply, whatever
else is in the pack, so a prompt is computed once for all its replies and no pad id exists.

Shape suffixes: R rows, L row length, N replies, T tokens of a reply, M chosen tokens, V vocabulary,
D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tercet.model.attention import Layout
from tercet.model.bins import Rows, cpu_rows, gpu_rows
from tercet.model.head import head_logprobs
from tercet.model.transfer import together
from tercet.records import InputError

Where = Literal["all", "weighted", "replies"]


@dataclass(frozen=True)
class Document:
    """A prompt and its replies, as token ids.

    Document(prompt, [reply])                    # a demonstration: loss on the reply
    Document(window, prompt_weight=1.0)          # pretraining text: loss on every token
    Document(prompt, [a, b, c])                  # candidates of one prompt
    """

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]] = ()
    prompt_weight: float = 0.0
    reply_weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.replies))


@dataclass(frozen=True, eq=False)
class TokenTree:
    """Packed documents; every tensor is (R, L) unless said otherwise.

    Indices into the tree (`previous`, `last`) count within the flattened (R * L) tokens.
    """

    tokens: Tensor
    position: Tensor
    """0-based position of the token in its own prompt + reply"""
    document: Tensor
    """index of the document in the order given; -1 on filler"""
    branch: Tensor
    """0 on prompts, k + 1 on reply k of the document"""
    previous: Tensor
    """index of the token whose output predicts this one; -1 where nothing does"""
    weight: Tensor
    """float32 loss weight of the token as a target; 0 where `previous` is -1"""
    reply: Tensor
    """index of the reply in the order given, 0..N-1; -1 on prompts and filler"""
    offset: Tensor
    """0-based place of the token inside its prompt or reply"""
    last: Tensor
    """(N,) index of each reply's last token"""
    lengths: Tensor
    """(N,) tokens of each reply"""
    longest: int
    """max of `lengths`, 0 without replies"""
    filled: int
    """tokens that are no filler"""
    layout: Layout = field(repr=False)
    """what attention reads; owns the masks, which are built once a tree and window"""
    chosen: dict[Where, Tensor] = field(repr=False)
    """what `select` returns, found on the CPU: counting on a GPU would wait for it"""

    def to(self, device: torch.device | str) -> TokenTree:
        """The same tree on another device (itself when it is already there), in one transfer."""
        if self.tokens.device == torch.device(device):
            return self
        here = {
            f.name: value
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        moved = together([*here.values(), *self.chosen.values()], torch.device(device))
        there = dict(zip(here, moved, strict=False))
        layout = Layout(there["document"], there["branch"], there["position"], self.layout.branches)
        chosen = dict(zip(self.chosen, moved[len(here) :], strict=True))
        return replace(self, **there, layout=layout, chosen=chosen)

    @property
    def filler(self) -> float:
        """Share of the tokens that are filler."""
        return 1 - self.filled / self.tokens.numel()

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of a model loaded by `tercet.model.load`: `model(**tree.inputs)`."""
        return {
            "input_ids": self.tokens,
            "position_ids": self.position,
            "tree": self.layout,
            "use_cache": False,
        }

    def select(self, where: Where) -> Tensor:
        """(M,) flattened indices of the predicted tokens: all, with a weight, or of replies."""
        return self.chosen[where]

    @property
    def mask_BT(self) -> Tensor:
        """(N, T) bool: which places of the padded reply layout hold a token."""
        places = torch.arange(self.longest, device=self.lengths.device)
        return places < self.lengths[:, None]

    def replies(self, values_RL: Tensor, fill: float = 0.0) -> Tensor:
        """(N, T) values of the reply tokens, right-padded with `fill`."""
        mask_BT = self.mask_BT
        places = torch.arange(self.longest, device=self.last.device)
        index_BT = (self.last - self.lengths + 1)[:, None] + places
        index_BT = torch.where(mask_BT, index_BT, self.last[:, None])
        return torch.where(mask_BT, values_RL.flatten()[index_BT], fill)

    def at_last(self, values_RL: Tensor) -> Tensor:
        """(N,) values at the last token of each reply: where a reward model is read."""
        return values_RL.flatten()[self.last]

    def at_previous(self, values_RL: Tensor) -> Tensor:
        """(R, L) value at each token's predecessor: V_t, before token t is emitted; else 0."""
        gathered = values_RL.flatten()[self.previous.clamp(min=0)]
        return torch.where(self.previous >= 0, gathered, 0.0)


def pack(
    documents: Sequence[Document],
    row_length: int | None = None,
    rows: Rows | None = None,
    device: torch.device | str = "cpu",
) -> TokenTree:
    """Pack all documents into one tree; no document is split.

    Rows are filled first-fit-decreasing, deterministically. `rows="cpu"` (the default on CPU)
    makes rows of at most `row_length` tokens and 4 times the longest document, shorter if that
    leaves little filler: attention costs the square of a row there. `rows="gpu"` makes one long
    row, filled up to `row_length` or a half or a quarter of it, so that kernels meet at most three
    lengths; more rows only when the documents exceed it. A document longer than `row_length`
    stretches the rows. So one call serves both:

        pack(documents, token_budget, device=device)

    Raises InputError for an empty prompt, an empty reply, or no documents.
    """
    if not documents:
        raise InputError("nothing to pack: the list of documents is empty")
    for i, document in enumerate(documents):
        if len(document.prompt) == 0:
            raise InputError(
                f"document {i} has an empty prompt: every reply needs at least one token of "
                "context; drop the row or use a tokenizer that adds a BOS token"
            )
        for k, reply in enumerate(document.replies):
            if len(reply) == 0:
                raise InputError(f"reply {k} of document {i} is empty: drop it")
    device = torch.device(device)
    rows = rows or ("cpu" if device.type == "cpu" else "gpu")
    lengths = [len(document) for document in documents]
    bins, length = (cpu_rows if rows == "cpu" else gpu_rows)(lengths, row_length)
    return _fill(documents, bins, length).to(device)


def _fill(documents: Sequence[Document], bins: list[list[int]], length: int) -> TokenTree:
    shape = (len(bins), length)
    first_reply = np.cumsum([0, *(len(d.replies) for d in documents)])
    longest = max(len(d.prompt) + max(map(len, d.replies), default=0) for d in documents)
    tokens = np.full(shape, documents[0].prompt[0], dtype=np.int64)
    # Filler positions stay within what the model can embed.
    position = np.broadcast_to(np.arange(length) % longest, shape).copy()
    document = np.full(shape, -1, dtype=np.int64)
    branch = np.zeros(shape, dtype=np.int64)
    previous = np.full(shape, -1, dtype=np.int64)
    weight = np.zeros(shape, dtype=np.float32)
    reply = np.full(shape, -1, dtype=np.int64)
    offset = np.zeros(shape, dtype=np.int64)
    last = np.zeros(int(first_reply[-1]), dtype=np.int64)
    lengths = np.zeros(int(first_reply[-1]), dtype=np.int64)
    for r, row in enumerate(bins):
        column = 0
        for i in row:
            item, start = documents[i], column
            segments = [(item.prompt, 0, -1, item.prompt_weight)]
            for k, ids in enumerate(item.replies):
                segments.append((ids, k + 1, int(first_reply[i]) + k, item.reply_weight))
            for ids, segment_branch, index, segment_weight in segments:
                size = len(ids)
                here = slice(column, column + size)
                depth = len(item.prompt) if segment_branch else 0
                tokens[r, here] = ids
                position[r, here] = np.arange(depth, depth + size)
                document[r, here] = i
                branch[r, here] = segment_branch
                previous[r, here] = r * length + np.arange(column - 1, column + size - 1)
                # A reply continues its prompt; a prompt's first token continues nothing.
                previous[r, column] = r * length + start + depth - 1 if segment_branch else -1
                weight[r, here] = segment_weight
                reply[r, here] = index
                offset[r, here] = np.arange(size)
                if index >= 0:
                    last[index], lengths[index] = r * length + column + size - 1, size
                column += size
            weight[r, start] = 0.0
    arrays = (tokens, position, document, branch, previous, weight, reply, offset, last, lengths)
    tensors = [torch.from_numpy(array) for array in arrays]
    predicted = previous >= 0
    chosen: dict[Where, Any] = {
        "all": predicted,
        "weighted": predicted & (weight != 0),
        "replies": predicted & (reply >= 0),
    }
    return TokenTree(
        *tensors,
        longest=int(lengths.max(initial=0)),
        filled=sum(map(len, documents)),
        layout=Layout(tensors[2], tensors[3], tensors[1], int(branch.max()) + 1),
        chosen={where: torch.from_numpy(np.flatnonzero(keep)) for where, keep in chosen.items()},
    )


def logprobs(
    model: Any,
    tree: TokenTree,
    temperature: float = 1.0,
    entropy: bool = False,
    where: Where = "all",
) -> Any:
    """log p(token | its context) of each token, (R, L), float32 at least; 0 where not computed.

    `where` limits the work of the head: "all" predicted tokens, those with a loss weight, or those
    of replies. With `entropy`, returns (logprobs, entropy) where the entropy is that of the
    distribution which the token was drawn from. The head is computed in chunks of tokens and
    recomputed in the backward pass, but for what `head.Sizes` keeps of the logits in bf16.
    Temperature divides the float32 logits, after everything that the model applies to them.
    """
    # A method of the model, so that FSDP can gather the weights of embedding and head around it.
    return model.tree_logprobs(tree, temperature, entropy, where)


def tree_logprobs(
    self: Any, tree: TokenTree, temperature: float, entropy: bool, where: Where
) -> Any:
    """Body of `logprobs`; `tercet.model.load` binds it to each causal model."""
    assert temperature > 0, "temperature must be positive"
    tree.layout.prepare(self)
    hidden_RLD = self.base_model(**tree.inputs).last_hidden_state
    index_M = tree.select(where)
    hidden_MD = hidden_RLD.flatten(0, 1)[tree.previous.flatten()[index_M]]
    logp_M, entropy_M = head_logprobs(
        self, hidden_MD, tree.tokens.flatten()[index_M], temperature, entropy
    )
    empty = logp_M.new_zeros(tree.tokens.numel())
    logp_RL = empty.index_copy(0, index_M, logp_M).view_as(tree.tokens)
    if entropy_M is None:
        return logp_RL
    return logp_RL, empty.index_copy(0, index_M, entropy_M).view_as(tree.tokens)


def scalars(model: Any, tree: TokenTree) -> Tensor:
    """The scalar model's output at every token, (R, L), float32 at least.

    A reward is `tree.at_last(scalars(...))`; the values V_t of reply tokens are
    `tree.replies(tree.at_previous(scalars(...)))`.
    """
    tree.layout.prepare(model)
    values_RL = model(**tree.inputs).logits.squeeze(-1)
    return values_RL if values_RL.dtype == torch.float64 else values_RL.float()
