"""pretrain: a small causal language model from plain text, or more text for an existing one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tercet.data.importers import read_texts
from tercet.data.tokens import train_tokenizer, windows
from tercet.model.checkpoint import Checkpoints, seed_all
from tercet.model.compile import compile_layers
from tercet.model.load import (
    check_context,
    checkpoint_activations,
    load_policy,
    load_tokenizer,
    new_policy,
    save_model,
)
from tercet.model.optim import StepGuard, adam, cosine
from tercet.model.shard import Ranks
from tercet.model.train import (
    batch_indices,
    fitted_budget,
    held_out_nll,
    nll_step,
    read_windows,
    window_documents,
)
from tercet.model.tree import Document
from tercet.records import InputError, about
from tercet.rundir import RunDir, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    text: Path
    """Training text: .jsonl(.gz) with a "text" field on each line, or .txt(.xz)."""
    held_out: Path | None = None
    """Text for the held-out loss, in the same forms."""
    base: Path | None = None
    """Continue from this model folder (its tokenizer is kept) instead of starting from `model`."""
    model: dict[str, int | float | str | bool] = field(
        default_factory=lambda: {
            "model_type": "llama",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        }
    )
    """transformers configuration of a new model; the vocabulary size follows the tokenizer."""
    tokenizer: Literal["bpe", "word"] = "bpe"
    """Kind of tokenizer to train: byte-level BPE, or whole words for tiny vocabularies."""
    vocabulary: int = 4096
    """Entries of a new tokenizer at most."""
    max_texts: int | None = None
    """Use only the first so many texts."""
    context: int = 128
    """Tokens in one training window; every token of a window but its first is a target."""
    batch: int = 8
    """Windows in one optimizer step, over all ranks."""
    epochs: float = 1.0
    """Passes over the windows; a fraction is allowed."""
    lr: float = 6e-3
    """Peak learning rate; cosine to 10%."""
    warmup: int = 30
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's betas."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Bound on the global gradient norm."""
    token_budget: int = 16384
    """Tokens in one forward pass of one rank, at most: a GPU fits it to the first batches."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 computes in bfloat16 with float32 weights; auto is bf16 on a GPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the layers: auto on a GPU for models worth it; on, off."""
    checkpoint_activations: bool = False
    """Recompute each layer in the backward pass: slower, far less memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.context < 2 or self.batch < 1 or self.epochs <= 0:
            raise ValueError("context must be at least 2, batch at least 1, epochs above 0")


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Read text, train or take a tokenizer, cut windows, train, keep both in `model/`."""
    seed_all(config.seed, ranks.rank)
    texts = read_texts(config.text, config.max_texts)
    if config.base is not None:
        tokenizer = load_tokenizer(config.base)
        model = load_policy(config.base, device=ranks.device)
    else:
        trained: Any = ranks.broadcast(
            train_tokenizer(texts, kind=config.tokenizer, vocab_size=config.vocabulary)
            if ranks.main
            else None
        )
        tokenizer = trained
        settings = {"max_position_embeddings": max(2048, config.context)} | config.model
        model: Any = new_policy(settings, tokenizer, seed=config.seed)
        model.to(device=ranks.device)
    check_context(model, config.context)
    with about(str(config.text)):
        documents = window_documents(windows(tokenizer, texts, config.context))
    held_out = read_windows(config.held_out, tokenizer, config.context)
    steps = int(len(documents) * config.epochs) // config.batch
    if steps < 1:
        raise InputError(
            f"{config.text}: {len(documents)} windows of {config.context} tokens are less than one "
            f"batch of {config.batch}; give more text, a shorter context or a smaller batch"
        )

    def taken(step: int) -> list[Document]:
        places = batch_indices(len(documents), config.batch, step, config.seed)
        return [documents[i] for i in places]

    first = map(taken, range(min(steps, 4)))
    budget = fitted_budget(first, config.token_budget, max(map(len, documents)), ranks)
    config = replace(config, token_budget=budget)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    compile_layers(model, config.compile)
    optimizer = adam(
        model.parameters(), config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    guard = StepGuard()
    measure = partial(held_out_nll, token_budget=config.token_budget, precision=config.precision)
    before = measure(model, held_out, ranks) if held_out else None

    model.train()
    with (
        Checkpoints(run.checkpoints, ranks, run.fingerprint, steps) as checkpoints,
        progress(steps, "pretrain", "step", show=ranks.main) as bar,
    ):
        start = 0
        if state := checkpoints.load():
            start = state["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            guard.skipped, guard.in_a_row = state["guard"]
        run.rewind(start - 1)
        bar.resume(start)
        for step in range(start, steps):
            numbers = nll_step(
                model,
                optimizer,
                guard,
                taken(step),
                ranks,
                lr=config.lr * cosine(step, steps, warmup=config.warmup),
                clip=config.clip,
                token_budget=config.token_budget,
                precision=config.precision,
            )
            if step % 10 == 0 or step == steps - 1:
                run.log(step, numbers)
            bar.advance(1, loss=numbers["loss"])
            checkpoints.offer(
                step + 1,
                lambda: {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "guard": (guard.skipped, guard.in_a_row),
                },
            )

    summary: dict[str, object] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "steps": steps,
        "training_tokens": steps * config.batch * config.context,
        "skipped_steps": guard.skipped,
    }
    if held_out:
        summary["held_out_nll_before"] = before
        summary["held_out_nll"] = measure(model, held_out, ranks)
    if ranks.main:
        save_model(model, tokenizer, run.model)
        run.finish(summary)
