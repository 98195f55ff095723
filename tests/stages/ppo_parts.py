"""A float64 policy, value model and rollout batch for tests of one PPO update."""

import random
from pathlib import Path
from typing import Any

import torch

from tercet.model.load import load_policy, load_scalar
from tercet.model.tree import Document
from tercet.rollout.experience import (
    Experience,
    Replies,
    Sampling,
    judge_batch,
    teacher_force,
)
from tercet.stages.ppo import Config
from tests.model.architectures import VOCABULARY

CPU = torch.device("cpu")
SAMPLING = Sampling(1, 8, 1.0, (2,), 0, 8, 10_000, "float32")


def models(path: Path) -> tuple[Any, Any]:
    """(policy, value) of a gpt2 folder: gpt2 has no float32 inside."""
    policy = load_policy(path, dtype=torch.float64)
    return policy, load_scalar(path, dtype=torch.float64, init="normal", seed=3)


def config(**changes: Any) -> Config:
    nowhere = Path("nowhere")
    options: dict[str, Any] = {
        "policy": nowhere,
        "reward": nowhere,
        "prompts": nowhere,
        "episodes": 12,
        "rollout_batch": 12,
        "minibatch": 6,
        "samples": 3,
        "max_new_tokens": 8,
        "precision": "float32",
    }
    return Config(**options | changes)


def batch(policy: Any, value: Any, shared: bool = True, **changes: Any) -> Experience:
    """12 random replies to 4 prompts; `shared=False` gives each reply a prompt of its own."""
    source = random.Random(4)
    prompts = [[source.randrange(3, VOCABULARY) for _ in range(2 + i)] for i in range(4)]
    replies = [
        [[source.randrange(3, VOCABULARY) for _ in range(source.randint(1, 5))] for _ in range(3)]
        for _ in prompts
    ]
    scores = [[source.gauss(0, 1) for _ in range(3)] for _ in prompts]
    if not shared:
        prompts = [p for p in prompts for _ in range(3)]
        replies, scores = ([[x] for row in rows for x in row] for rows in (replies, scores))
    documents = [Document(p, r) for p, r in zip(prompts, replies, strict=True)]
    with torch.no_grad():
        rows = teacher_force(policy, policy, value, documents, SAMPLING, CPU)
    groups = [
        Replies("p", p, r, [True] * len(r), ["x"] * len(r), s, row[0], *row)
        for p, r, s, row in zip(prompts, replies, scores, rows, strict=True)
    ]
    options: dict[str, Any] = {
        "beta": 0.1,
        "kl_kind": "k1",
        "missing_eos": "none",
        "missing_eos_penalty": 1.0,
        "score_clip": None,
        "whiten_rewards": False,
        "whiten_advantages": True,
        "gamma": 1.0,
        "lam": 0.95,
        "algorithm": "ppo",
        "device": CPU,
    }
    torch.set_default_dtype(torch.float64)
    try:
        return judge_batch(groups, **options | changes)
    finally:
        torch.set_default_dtype(torch.float32)
