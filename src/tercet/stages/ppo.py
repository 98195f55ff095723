"""ppo: PPO and PPO-ptx against a reward model, per-token KL to the frozen start (InstructGPT 3.5).

Legend: B episodes of an iteration, T reply tokens, N valid tokens of a minibatch over all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from tercet.data.split import stable_key
from tercet.data.tokens import encode_prompt
from tercet.model.adapt import adapt, merge
from tercet.model.checkpoint import Checkpoints
from tercet.model.checks import check_first_ratio, check_start, reward_check
from tercet.model.compile import compile_layers
from tercet.model.frozen import Parked, halve, present
from tercet.model.load import (
    check_context,
    checkpoint_activations,
    fingerprint,
    load_policy,
    load_scalar,
    load_tokenizer,
    parameter_hash,
    save_model,
)
from tercet.model.optim import EMA, Learner, adam, linear, set_lr, warmup
from tercet.model.shard import Ranks
from tercet.model.train import batch_indices, held_out_nll, read_windows
from tercet.objectives import AdaptiveKL
from tercet.records import InputError, Prompt, RunFailed, about, prompt_text, read_records
from tercet.rollout.engine import Engine
from tercet.rollout.experience import (
    Replies,
    Sampling,
    Scorer,
    collect,
    judge_batch,
    measure,
    roll_out,
)
from tercet.rollout.monitor import alarms, summarise
from tercet.rollout.phases import Phases, Room
from tercet.rollout.show import Table, before_and_after, sample_page
from tercet.rollout.update import Learning, fitted, update
from tercet.rundir import RunDir, progress
from tercet.world import World

PRESETS: dict[str, dict[str, Any]] = {
    # InstructGPT C.3-C.5, 1.3B; what the paper does not print is as in its predecessors' code. The
    # step ppo-ptx brings ptx_coef 27.8 itself: here it would make PPO-ptx of the step ppo too.
    "instructgpt": {
        "episodes": 256_000, "rollout_batch": 512, "minibatch": 64, "inner_epochs": 1,
        "beta": 0.02, "lr": 5e-6, "value_lr": 9e-6, "warmup_iterations": 10, "ema": 0.992,
        "adam_eps": 1e-5, "ptx_ratio": 8.0, "max_prompt_tokens": 1000,
        "max_new_tokens": 1000,
    },
    # Stiennon 2020, 1.3B.
    "stiennon": {
        "warmup_iterations": 0, "ema": None, "betas": (0.9, 0.999),
        "episodes": 1_000_000, "rollout_batch": 512, "minibatch": 512, "inner_epochs": 4,
        "beta": 0.05, "lr": 1.5e-5, "value_lr": 1.5e-5, "lr_schedule": "linear",
        "temperature": 0.7, "adam_eps": 1e-5,
    },
    # Huang 2024, "The N+ implementation details".
    "nplus": {
        "warmup_iterations": 0, "ema": None, "betas": (0.9, 0.999),
        "episodes": 1_000_000, "rollout_batch": 512, "minibatch": 512, "inner_epochs": 4,
        "beta": 0.05, "lr": 3e-6, "value_lr": 3e-6, "lr_schedule": "linear", "temperature": 0.7,
        "adam_eps": 1e-5, "max_new_tokens": 53, "missing_eos": "replace",
        "missing_eos_penalty": 1.0,
    },
    # Ziegler 2019, sentiment and descriptiveness.
    "ziegler": {
        "warmup_iterations": 0, "ema": None, "betas": (0.9, 0.999),
        "episodes": 1_000_000, "rollout_batch": 512, "minibatch": 512, "inner_epochs": 4,
        "beta": 0.15, "kl_target": 6.0, "kl_horizon": 10_000.0, "lr": 1e-5, "value_lr": 1e-5,
        "lr_schedule": "linear", "whiten_rewards": True, "temperature": 0.7,
        "max_new_tokens": 24, "truncate_after": 16, "missing_eos": "replace",
        "missing_eos_penalty": 1.0, "adam_style": "tf", "adam_eps": 1e-5,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    policy: Path
    """Model folder of the RL initialisation; also the frozen KL reference."""
    reward: Path
    """Reward model folder, normalised."""
    prompts: Path
    """tercet.prompt/1 records."""
    split: str | None = None
    """Use only prompts of this split."""
    preset: Literal["", "instructgpt", "stiennon", "nplus", "ziegler"] = ""
    """Defaults from a paper; what the recipe or the command line says goes first."""
    algorithm: Literal["ppo", "rloo"] = "ppo"
    """PPO with a value model, or REINFORCE with a leave-one-out baseline (Ahmadian 2024)."""
    episodes: int = 5120
    """Replies sampled in all."""
    rollout_batch: int = 256
    """Episodes of one iteration, over all ranks."""
    minibatch: int = 64
    """Episodes of one optimizer step, over all ranks."""
    inner_epochs: int = 1
    """Passes over each rollout batch."""
    samples: int = 1
    """Replies to each prompt of an iteration; they share the prompt in every forward pass."""
    max_prompt_tokens: int = 1000
    """Longer prompts are dropped and counted before training."""
    max_new_tokens: int = 64
    temperature: float = 1.0
    """Divides the logits in sampling and in every log-prob."""
    stop_text: str = ""
    """Text of one more stop token besides EOS."""
    truncate_after: int = 0
    """Only stop tokens from this index on end a reply (Ziegler's code: 16)."""
    missing_eos: Literal["subtract", "replace", "none"] = "subtract"
    """Score of a reply without EOS: less the penalty, minus the penalty, or left alone."""
    missing_eos_penalty: float = 1.0
    score_clip: float | None = None
    """Bound on |score|, before the missing-EOS rule."""
    beta: float = 0.02
    """KL coefficient; the start of it when kl_target is set."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator in the reward; all three are logged."""
    kl_target: float | None = None
    """Adapt beta towards this sequence KL."""
    kl_horizon: float = 10_000.0
    beta_low: float = 0.0
    beta_high: float = 1e6
    kl_abort: float | None = None
    """Stop the run when the mean sequence KL passes this."""
    inner_early_stop: float | None = None
    """End the inner epochs of an iteration when mean k2(new, old) passes 1.5 times this."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE lambda."""
    clip: float = 0.2
    """Ratio clip."""
    value_clip: float | None = 0.2
    """Value clip, in units of reward."""
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    lr: float = 1e-5
    """Peak learning rate of the policy."""
    value_lr: float = 2e-5
    """Peak learning rate of the value model."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    warmup_iterations: int = 10
    """From a tenth of the peak; 0.1, 0.19, ..., 1."""
    value_warmup: int = 0
    """First iterations that train the value model only."""
    value_init: Literal["reward", "policy"] = "reward"
    """The value model starts as the reward model, or as the policy's trunk with a zero head."""
    adam_style: Literal["torch", "tf"] = "torch"
    adam_eps: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    """Bound on the global gradient norm of each optimizer."""
    ptx_coef: float = 0.0
    """Weight of the pretraining gradient; above 0 this is PPO-ptx (27.8 in the paper)."""
    ptx_text: Path | None = None
    """Pretraining text; needed when ptx_coef is above 0."""
    ptx_ratio: float = 8.0
    """Pretraining windows for each episode of a minibatch."""
    ptx_reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    """Likelihood of a token, or of a whole window."""
    context: int = 128
    """Tokens in one pretraining window."""
    held_out_text: Path | None = None
    """Text whose loss is measured before and after."""
    ema: float | None = 0.992
    """Decay of the averaged weights, which are what `model/` keeps; none keeps the last weights."""
    adapt: str = "full"
    """Which of the policy's parameters train: full, last_n_layers:N, bitfit, norms, lora:R, ..."""
    world: Path | None = None
    """world.json: also log its gold utility, which training never sees."""
    show: int = 6
    """Prompts in the sample pages."""
    slots: int = 256
    """Replies decoded at a time on one rank; fewer where a GPU's memory holds fewer."""
    token_budget: int = 16384
    """Tokens in one forward pass of one rank, at most: a GPU fits it to the first batches."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 computes in bfloat16 with float32 weights; auto is bf16 on a GPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the models' layers; auto does it on a GPU, for models that are worth it."""
    checkpoint_activations: bool = False
    """Recompute each layer in the backward pass: slower, far less memory."""
    offload: bool = False
    """Keep reference and reward model in CPU memory while they do not compute."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("rollout_batch", "minibatch", "inner_epochs", "samples", "max_new_tokens")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.episodes < self.rollout_batch:
            raise ValueError(
                f"episodes ({self.episodes}) must be at least rollout_batch ({self.rollout_batch})"
            )
        for big, small in (("rollout_batch", "minibatch"), ("minibatch", "samples")):
            if getattr(self, big) % getattr(self, small):
                raise ValueError(
                    f"{big} ({getattr(self, big)}) must be a multiple of {small} "
                    f"({getattr(self, small)})"
                )
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0")
        if self.context < 2:
            raise ValueError("context must be at least 2")
        if self.ptx_coef and self.ptx_text is None:
            raise ValueError("ptx_coef above 0 needs ptx_text")
        if self.algorithm == "rloo" and self.samples < 2:
            raise ValueError(
                "rloo needs samples of at least 2: its baseline is the prompt's other replies"
            )
        if self.algorithm == "rloo" and self.inner_epochs > 1:
            raise ValueError(
                "rloo takes one pass over its samples: set inner_epochs = 1, or use ppo"
            )
        if self.kl_target is not None and 0.2 * self.rollout_batch / self.kl_horizon >= 1:
            raise ValueError("kl_horizon must be above a fifth of rollout_batch")

    @property
    def iterations(self) -> int:
        return self.episodes // self.rollout_batch


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Roll out, score, estimate advantages, update; again and again; keep the averaged policy."""
    tokenizer = load_tokenizer(config.policy)
    policy = load_policy(config.policy, device=ranks.device)
    reference = load_policy(config.policy, device=ranks.device).requires_grad_(False).eval()
    reward_tokenizer = load_tokenizer(config.reward)
    reward = load_scalar(config.reward, device=ranks.device).requires_grad_(False).eval()
    same_tokenizer = fingerprint(tokenizer) == fingerprint(reward_tokenizer)
    reward_check(reward, reward_tokenizer, config.reward, same_tokenizer, ranks)
    value = value_model(config, ranks, same_tokenizer)
    if half(config, ranks):
        reference, reward = halve(reference), halve(reward)
    frozen = {"reference": parameter_hash(reference), "reward model": parameter_hash(reward)}

    prompts, dropped = training_prompts(config, tokenizer)
    longest_prompt = max(len(ids) for _, ids, _ in prompts)
    longest = longest_prompt + config.max_new_tokens
    # A reply that stop_text ended gets an EOS before it is scored.
    reply = config.max_new_tokens + bool(config.stop_text)
    check_context(policy, longest)
    if same_tokenizer:
        check_context(reward, longest_prompt + reply)
    ptx = read_windows(config.ptx_text if config.ptx_coef else None, tokenizer, config.context)
    held_out = read_windows(config.held_out_text, tokenizer, config.context)
    longest_window = max(map(len, ptx + held_out), default=0)
    check_context(policy, longest_window)
    policy = adapt(policy, config.adapt, config.seed)
    policy.eval()  # dropout off in rollout and update alike, or the ratio is noise
    trained = [model for model in (policy, value) if model is not None]
    for model in (*trained, reference, reward):
        compile_layers(model, config.compile)
    if config.checkpoint_activations:
        for model in trained:
            checkpoint_activations(model)
    style: dict[str, Any] = {
        "style": config.adam_style,
        "betas": config.betas,
        "eps": config.adam_eps,
    }
    ema = EMA(policy, config.ema) if config.ema is not None else None
    learners = {"policy": Learner(policy, adam(policy.parameters(), config.lr, **style), ema)}
    if value is not None:
        learners["value"] = Learner(value, adam(value.parameters(), config.value_lr, **style))
    controller = (
        AdaptiveKL(
            config.beta, config.kl_target, config.kl_horizon, config.beta_low, config.beta_high
        )
        if config.kl_target is not None
        else None
    )
    world = World.load(config.world) if config.world else None
    sampling = Sampling(
        config.samples, config.max_new_tokens, config.temperature, stop_ids(tokenizer, config),
        config.truncate_after, config.slots, config.token_budget, config.precision,
    )  # fmt: skip
    learning = Learning(**{f.name: getattr(config, f.name) for f in fields(Learning)})
    scorer = Scorer(Parked(reward) if config.offload else reward, reward_tokenizer, same_tokenizer)
    beside = Parked(reference) if config.offload else reference
    engine = Engine(policy, length=longest, compile=config.compile)
    room, phases = Room(engine), Phases(ranks.device)
    table = Table(ranks.main, gold=world is not None, ptx=bool(ptx))

    with (
        Checkpoints(run.checkpoints, ranks, run.fingerprint, config.iterations) as checkpoints,
        progress(config.iterations, run.path.name, "iteration", show=ranks.main) as bar,
    ):
        start, beta, budget = 0, config.beta, config.token_budget
        if state := checkpoints.load():
            start, beta, budget = state["step"], state["beta"], state["token_budget"]
            for name, learner in learners.items():
                learner.load_state_dict(state[name])
            if controller is not None:
                controller.beta = beta
        sampling, learning = packing(sampling, learning, budget)
        run.rewind(start - 1)
        bar.resume(start)
        history = [
            {name: x for name, x in row.items() if x is not None}
            for row in (run.metrics() if ranks.main else [])
        ]

        for iteration in range(start, config.iterations):
            # 1-5: prompts, replies, scores, log-probs and values under the policy as it is now.
            chosen = batch_indices(
                len(prompts), config.rollout_batch // config.samples, iteration, config.seed
            )
            mine = ranks.share([prompts[i] for i in chosen])
            with phases("rollout"):
                rolled = roll_out(engine, mine, sampling, config.seed + 100_003 * iteration)
            room.make()
            if iteration == 0:
                most = max(longest_prompt + config.samples * reply, longest_window)
                budget = fitted(mine, rolled, ptx, most, learning, ranks)
                sampling, learning = packing(sampling, learning, budget)
            with phases("score"):
                groups = measure(
                    policy, beside, value, scorer, tokenizer, mine, rolled, sampling, ranks
                )
            # 6: rewards and advantages.
            batch = judge_batch(
                groups,
                beta=beta,
                kl_kind=config.kl_estimator,
                missing_eos=config.missing_eos,
                missing_eos_penalty=config.missing_eos_penalty,
                score_clip=config.score_clip,
                whiten_rewards=config.whiten_rewards,
                whiten_advantages=config.whiten_advantages,
                gamma=config.gamma,
                lam=config.lam,
                algorithm=config.algorithm,
                device=ranks.device,
            )
            if iteration == 0:
                check_start(batch.mask_BT, batch.logp_old_BT, batch.logp_ref_BT,
                            batch.logp_generated_BT, half(config, ranks), ranks)  # fmt: skip
            metrics = summarise(batch, beta) | gold_numbers(world, groups)
            if config.kl_abort is not None and metrics["kl"] > config.kl_abort:
                run.log(iteration, metrics)
                run.samples(f"iteration-{iteration:04d}", sample_page(batch, config.show, []))
                raise RunFailed(
                    f"mean sequence KL {metrics['kl']:.1f} passed kl_abort {config.kl_abort} at "
                    f"iteration {iteration}; raise beta or lower lr"
                )
            # 7: minibatches.
            factor = learning_rate_factor(config, iteration)
            rates = {"policy": config.lr * factor, "value": config.value_lr * factor}
            for name, learner in learners.items():
                set_lr(learner.optimizer, rates[name])
            with phases("update"):
                metrics |= update(
                    learners["policy"], learners.get("value"), batch, ptx, iteration, learning,
                    ranks,
                )  # fmt: skip
            room.remember()
            metrics |= phases.take()
            if iteration >= config.value_warmup:
                check_first_ratio(
                    metrics["ratio_first_minibatch"], half(config, ranks), iteration,
                    iteration == config.value_warmup, ranks,
                )  # fmt: skip
            # 8: beta, log, samples.
            if controller is not None:
                beta = controller.update(metrics["kl"], config.rollout_batch)
            metrics |= {"lr": rates["policy"], "value_lr": rates["value"]}
            fired = alarms(metrics, history, half(config, ranks))
            if controller is not None and beta in (config.beta_low, config.beta_high):
                fired.append(f"beta {beta:g} is at its bound: KL {metrics['kl']:.2f} runs away")
            history.append(metrics)
            run.log(iteration, metrics | {"alarms": float(len(fired))})
            table.row(iteration, metrics, fired)
            run.samples(f"iteration-{iteration:04d}", sample_page(batch, config.show, fired))
            bar.advance(1, score=metrics["score"], kl=metrics["kl"])
            checkpoints.offer(
                iteration + 1,
                lambda beta=beta, budget=budget: {
                    "beta": beta,
                    "token_budget": budget,
                    **{name: learner.state_dict() for name, learner in learners.items()},
                },
            )

    now = {"reference": parameter_hash(reference), "reward model": parameter_hash(reward)}
    for name, digest in frozen.items():
        if now[name] != digest:
            raise RunFailed(f"the frozen {name} changed during training; nothing was saved")
    table.line("frozen models: bit-identical at the end")
    if ema is not None:
        ema.load_into(policy)
    policy = merge(policy)
    summary: dict[str, Any] = {
        "iterations": config.iterations,
        "dropped_long_prompts": dropped,
        "skipped_steps": {name: learner.guard.skipped for name, learner in learners.items()},
        "last": history[-1] if history else {},
    }
    engine.release()
    if ranks.main:
        save_model(policy, tokenizer, run.model)
        if value is not None:
            save_model(value, tokenizer, run.path / "value")
    shown = [prompts[i] for i in range(min(config.show, len(prompts)))]
    with present(beside, ranks.device) as frozen_model:
        if held_out:
            loss_of = partial(held_out_nll, token_budget=budget, precision=config.precision)
            summary |= {
                "held_out_nll_before": loss_of(frozen_model, held_out, ranks),
                "held_out_nll": loss_of(policy, held_out, ranks),
            }
        pages: list[list[Replies]] = []
        for model in (frozen_model, policy):
            engine = Engine(model, compile="off")
            pages.append(
                collect(
                    engine, frozen_model, None, scorer, tokenizer, shown, sampling, config.seed,
                    ranks,
                )
            )  # fmt: skip
            engine.release()
    run.samples("before-and-after", before_and_after(*pages))
    if ranks.main:
        run.finish(summary)


def packing(sampling: Sampling, learning: Learning, budget: int) -> tuple[Sampling, Learning]:
    """The same options with packs of `budget` tokens."""
    return replace(sampling, token_budget=budget), replace(learning, token_budget=budget)


def value_model(config: Config, ranks: Ranks, same_tokenizer: bool) -> Any | None:
    """A network of its own: a copy of the normalised reward model, or the policy's trunk."""
    if config.algorithm == "rloo":
        return None
    if config.value_init == "reward":
        if not same_tokenizer:
            raise InputError(
                f'value_init = "reward": {config.reward} has another tokenizer than '
                f'{config.policy}; use value_init = "policy" and some value_warmup'
            )
        return load_scalar(config.reward, device=ranks.device).eval()
    return load_scalar(config.policy, device=ranks.device, init="zero", seed=config.seed).eval()


def training_prompts(
    config: Config, tokenizer: Any
) -> tuple[list[tuple[str, list[int], int]], int]:
    """(text, ids, key of its sampling noise) of each prompt that is short enough; longer ones."""
    records = [
        p
        for p in read_records(config.prompts, Prompt)
        if config.split is None or p.split == config.split
    ]
    encoded = []
    for p in records:
        with about(f"{config.prompts}: prompt {p.id!r}"):
            ids = encode_prompt(tokenizer, prompt_text(p))
        encoded.append((prompt_text(p), ids, stable_key(p.id)))
    kept = [row for row in encoded if len(row[1]) <= config.max_prompt_tokens]
    needed = config.rollout_batch // config.samples
    if len(kept) < needed:
        raise InputError(
            f"{config.prompts}: {len(kept)} prompts of split {config.split!r} have at most "
            f"{config.max_prompt_tokens} tokens, and one iteration needs {needed}; give more "
            "prompts or a smaller rollout_batch"
        )
    return kept, len(encoded) - len(kept)


def stop_ids(tokenizer: Any, config: Config) -> tuple[int, ...]:
    """EOS, and the one token that `stop_text` is."""
    if not config.stop_text:
        return (tokenizer.eos_token_id,)
    ids = tokenizer.encode(config.stop_text, add_special_tokens=False)
    if len(ids) != 1:
        raise InputError(
            f"stop_text {config.stop_text!r} is {len(ids)} tokens of this tokenizer, not one"
        )
    return (tokenizer.eos_token_id, ids[0])


def half(config: Config, ranks: Ranks) -> bool:
    """True when forward passes compute in bfloat16, where tolerances are wider."""
    return config.precision == "bf16" or (
        config.precision == "auto" and ranks.device.type == "cuda"
    )


def learning_rate_factor(config: Config, iteration: int) -> float:
    """Warm-up over iterations times the schedule; the same for all minibatches of an iteration."""
    factor = warmup(iteration, config.warmup_iterations)
    return (
        factor * linear(iteration, config.iterations) if config.lr_schedule == "linear" else factor
    )


def gold_numbers(world: World | None, groups: Sequence[Replies]) -> dict[str, float]:
    """Mean gold utility of the rollouts and its standard error: on record, never trained on."""
    if world is None:
        return {}
    judged = torch.tensor(
        [
            world.gold(group.prompt, text, "stop" if stopped else "length").utility
            for group in groups
            for text, stopped in zip(group.texts, group.stopped, strict=True)
        ]
    )
    return {"gold": float(judged.mean()), "gold_se": float(judged.std() / len(judged) ** 0.5)}
