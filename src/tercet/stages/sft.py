"""sft: supervised fine-tuning; with pretraining text mixed in, the RL initialisation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tercet.data.tokens import encode_prompt, encode_reply
from tercet.model.adapt import adapt, merge
from tercet.model.checkpoint import Checkpoints, seed_all
from tercet.model.checks import check_eos
from tercet.model.compile import compile_layers
from tercet.model.load import (
    check_context,
    checkpoint_activations,
    load_policy,
    load_tokenizer,
    residual_dropout,
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
)
from tercet.model.tree import Document
from tercet.records import Demonstration, InputError, about, prompt_text, read_records, writing
from tercet.rundir import RunDir, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path
    """Model folder to fine-tune."""
    demonstrations: Path
    """tercet.demonstration/1 records; split "train" (or none) trains, "valid" selects the epoch."""
    lr: float = 5e-5
    """Peak learning rate; cosine to 10%, no warm-up."""
    batch: int = 32
    """Examples in one optimizer step, over all ranks."""
    epochs: int = 16
    """Passes over the demonstrations; every one is kept in `epochs/`."""
    dropout: float = 0.2
    """Residual dropout, after the attention and MLP output projections."""
    loss_on_prompt: bool = False
    """Also train on the prompt's tokens."""
    pretrain_fraction: float = 0.0
    """Share of each batch that is windows of pretraining text (0.1 for the RL initialisation)."""
    pretrain_text: Path | None = None
    """Text for those windows."""
    pretrain_held_out: Path | None = None
    """Held-out text: its loss counts equally with the demonstrations' when an epoch is chosen."""
    context: int = 128
    """Tokens in one pretraining window."""
    max_prompt_tokens: int = 1000
    """Longer prompts are dropped and counted."""
    max_reply_tokens: int = 1000
    """Longer replies are cut, without EOS."""
    adapt: str = "full"
    """Which parameters train: full, last_n_layers:N, bitfit, norms, embeddings, head, lora:R,
    regex:PATTERN."""
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
        if not 0 <= self.pretrain_fraction < 1:
            raise ValueError("pretrain_fraction must be in [0, 1)")
        if self.pretrain_fraction and self.pretrain_text is None:
            raise ValueError("pretrain_fraction needs pretrain_text")
        if self.batch < 1 or self.epochs < 1 or self.context < 2:
            raise ValueError("batch and epochs must be at least 1, context at least 2")
        if self.pretrain_fraction and not 0 < self.mixed < self.batch:
            raise ValueError(
                f"pretrain_fraction {self.pretrain_fraction:g} of a batch of {self.batch} is "
                f"{self.mixed} windows: raise batch, or change pretrain_fraction"
            )

    @property
    def mixed(self) -> int:
        """Pretraining windows in each batch."""
        return round(self.batch * self.pretrain_fraction)


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Fine-tune, keep every epoch, put the one with the lowest validation loss in `model/`."""
    seed_all(config.seed, ranks.rank)
    tokenizer = load_tokenizer(config.model)
    model = load_policy(config.model, device=ranks.device)
    records = read_records(config.demonstrations, Demonstration)
    train, dropped, cut = encode(records, "train", tokenizer, config)
    valid, *_ = encode(records, "valid", tokenizer, config)
    if not train:
        raise InputError(
            f"{config.demonstrations}: no demonstration with split train is left to train on "
            f"({dropped} have prompts above max_prompt_tokens)"
        )
    if not valid:
        raise InputError(
            f"{config.demonstrations}: no demonstration has split valid, so no epoch could be "
            "chosen; mark some, or let `tercet data` split by user"
        )
    check_context(model, max(len(d.prompt) + len(d.replies[0]) for d in train + valid))
    check_eos(train, tokenizer.eos_token_id, ranks)
    mixed = config.mixed
    web = read_windows(config.pretrain_text, tokenizer, config.context) if mixed else []
    web_held_out = (
        read_windows(config.pretrain_held_out, tokenizer, config.context) if mixed else []
    )
    check_context(model, max((len(d.prompt) for d in web + web_held_out), default=0))

    model = adapt(model, config.adapt, config.seed)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    compile_layers(model, config.compile)
    optimizer = adam(
        model.parameters(), config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    guard = StepGuard()
    per_epoch = max(1, len(train) // (config.batch - mixed))
    steps = per_epoch * config.epochs
    history: list[dict[str, float]] = []
    residual_dropout(model, config.dropout)

    def taken(step: int) -> list[Document]:
        places = batch_indices(len(train), config.batch - mixed, step, config.seed)
        batch = [train[i] for i in places]
        if mixed:
            batch += [web[i] for i in batch_indices(len(web), mixed, step, config.seed + 1)]
        return batch

    longest = max(map(len, train + web))
    first = map(taken, range(min(steps, 4)))
    budget = fitted_budget(first, config.token_budget, longest, ranks)
    config = replace(config, token_budget=budget)

    model.train()
    with (
        Checkpoints(run.checkpoints, ranks, run.fingerprint, steps) as checkpoints,
        progress(steps, run.path.name, "step", show=ranks.main) as bar,
    ):
        start = 0
        if state := checkpoints.load():
            start, history = state["step"], state["history"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            guard.skipped, guard.in_a_row = state["guard"]
        elif ranks.main:
            shutil.rmtree(run.path / "epochs", ignore_errors=True)  # of an earlier, longer run
        run.rewind(start - 1)
        bar.resume(start)
        for step in range(start, steps):
            numbers = nll_step(
                model,
                optimizer,
                guard,
                taken(step),
                ranks,
                lr=config.lr * cosine(step, steps),
                clip=config.clip,
                token_budget=config.token_budget,
                precision=config.precision,
            )
            run.log(step, numbers)
            bar.advance(1, loss=numbers["loss"])
            if (step + 1) % per_epoch == 0:
                epoch = (step + 1) // per_epoch
                row = validate(model, valid, web_held_out, ranks, config)
                history.append({"epoch": float(epoch)} | row)
                run.log(step, {f"valid/{name}": number for name, number in row.items()})
                if ranks.main:
                    save_model(merge(model), tokenizer, run.path / "epochs" / f"{epoch:02d}")
            checkpoints.offer(
                step + 1,
                lambda: {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                    "guard": (guard.skipped, guard.in_a_row),
                },
            )

    best = min(history, key=lambda row: (row["selected_by"], row["epoch"]))
    if ranks.main:
        shutil.rmtree(run.model, ignore_errors=True)
        with writing(run.model):
            shutil.copytree(run.path / "epochs" / f"{int(best['epoch']):02d}", run.model)
        run.finish(
            {
                "epochs": history,
                "selected_epoch": int(best["epoch"]),
                "train": len(train),
                "valid": len(valid),
                "dropped_long_prompts": dropped,
                "cut_replies": cut,
                "skipped_steps": guard.skipped,
            }
        )


def encode(
    records: list[Demonstration], split: str, tokenizer: Any, config: Config
) -> tuple[list[Document], int, int]:
    """(documents of `split`, prompts dropped as too long, replies cut). A cut reply gets no EOS."""
    documents, dropped, cut = [], 0, 0
    for record in records:
        if (record.split or "train") != split:
            continue
        with about(f"{config.demonstrations}: demonstration {record.id!r}"):
            prompt = encode_prompt(tokenizer, prompt_text(record))
        reply = encode_reply(tokenizer, record.response, True)
        if len(prompt) > config.max_prompt_tokens:
            dropped += 1
            continue
        if len(reply) > config.max_reply_tokens:
            cut += 1
            reply = reply[: config.max_reply_tokens]
        documents.append(Document(prompt, [reply], prompt_weight=float(config.loss_on_prompt)))
    return documents, dropped, cut


def validate(
    model: Any, valid: list[Document], web: list[Document], ranks: Ranks, config: Config
) -> dict[str, float]:
    """Held-out losses, and the sum by which an epoch is chosen (InstructGPT C.3: low on both)."""
    options: dict[str, Any] = {
        "token_budget": config.token_budget,
        "precision": config.precision,
    }
    losses = {"demonstrations": held_out_nll(model, valid, ranks, **options)}
    if web:
        losses["pretraining"] = held_out_nll(model, web, ranks, **options)
    return losses | {"selected_by": sum(losses.values())}
