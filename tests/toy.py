"""A toy language with its files and random models, small enough that a stage takes a second.

Sentences are runs of the words below; a prompt asks for two of them, a good reply repeats them.
"""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tercet.data.tokens import train_tokenizer
from tercet.model.load import load_scalar, new_policy, save_model, scalar_head
from tercet.model.shard import Ranks
from tercet.records import Demonstration, Prompt, RankedReply, Ranking, write_records
from tercet.rundir import RunDir

WORDS = ["red", "blue", "green", "pink", "black", "white"]
WORDS += ["brown", "gray", "gold", "teal", "plum", "rust"]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Toy:
    """Paths of everything; read-only, shared by the whole test session."""

    root: Path
    tokenizer: Any
    text: Path
    held_out: Path
    demonstrations: Path
    rankings: Path
    prompts: Path
    policy: Path
    reward: Path


def sentence(source: random.Random, low: int = 2, high: int = 6) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(low, high))) + "."


def prompt_of(source: random.Random) -> str:
    return f"say {source.choice(WORDS)} {source.choice(WORDS)}:"


def make(root: Path) -> Toy:
    source = random.Random(0)
    texts = [f"say {sentence(source)} {prompt_of(source)}" for _ in range(60)]
    tokenizer = train_tokenizer(texts, kind="word", vocab_size=60)
    for name, part in (("text", texts[:48]), ("held_out", texts[48:])):
        lines = [json.dumps({"text": text}) + "\n" for text in part]
        (root / f"{name}.jsonl").write_text("".join(lines))
    prompts = [
        Prompt(id=f"p{i}", text=prompt_of(source), split="ppo" if i < 32 else "valid")
        for i in range(40)
    ]
    write_records(root / "prompts.jsonl", prompts)
    demonstrations = [
        Demonstration(
            id=f"d{i}",
            prompt_id=f"d{i}",
            prompt=prompt_of(source),
            response=" " + sentence(source),
            split="train" if i < 24 else "valid",
        )
        for i in range(30)
    ]
    write_records(root / "demonstrations.jsonl", demonstrations)
    write_records(root / "rankings.jsonl", [ranking(i, source) for i in range(30)])
    policy = new_policy(LLAMA, tokenizer, seed=1)
    save_model(policy, tokenizer, root / "policy")
    reward = load_scalar(root / "policy", init="normal", seed=2)
    with torch.no_grad():
        scalar_head(reward).bias.fill_(0.25)
    save_model(reward, tokenizer, root / "reward")
    return Toy(
        root,
        tokenizer,
        *(root / f"{n}.jsonl" for n in ("text", "held_out", "demonstrations", "rankings")),
        root / "prompts.jsonl",
        root / "policy",
        root / "reward",
    )


def ranking(i: int, source: random.Random) -> Ranking:
    """Longer replies are better; K is 2 to 4, with ties; the last six are held out."""
    texts = list({" " + sentence(source) for _ in range(source.randint(2, 4))} | {" red."})
    return Ranking(
        id=f"r{i}",
        prompt_id=f"q{i}",
        prompt=prompt_of(source),
        replies=tuple(
            RankedReply(id=str(k), text=text, rank=8 - len(text.split()))
            for k, text in enumerate(sorted(texts))
        ),
        judge="person",
        labeler=f"l{i % 7}",
        split="train" if i < 24 else "valid",
    )


def stage(main: Callable[..., None], config: Any, path: Path, ranks: Ranks | None = None) -> RunDir:
    """Run a stage as the pipeline does, in a folder of its own; returns the folder."""
    ranks = ranks or Ranks()
    run = RunDir(path, ranks.main)
    run.fingerprint = "test"
    run.start(config, [], ["test"])
    main(config, run, ranks)
    ranks.barrier()
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def write_recipe(toy: Toy, folder: Path, processes: int = 1, extra: str = "") -> Path:
    """The toy language from text to policy; inputs are copies that a test may change."""
    for path in (toy.text, toy.held_out, toy.demonstrations, toy.rankings, toy.prompts):
        shutil.copy(path, folder)
    recipe = folder / "toy.toml"
    recipe.write_text(
        f"""
[run]
root = "{folder}/runs"
processes = {processes}

[pretrain]
text = "{folder}/text.jsonl"
tokenizer = "word"
vocabulary = 60
context = 8
batch = 8
warmup = 2

[pretrain.model]
model_type = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
initializer_range = 0.3

[sft]
demonstrations = "{folder}/demonstrations.jsonl"
batch = 8
epochs = 2
lr = 1e-2

[rm]
rankings = "{folder}/rankings.jsonl"
demonstrations = "{folder}/demonstrations.jsonl"
batch = 8
lr = 1e-2

[ppo]
prompts = "{folder}/prompts.jsonl"
episodes = 32
rollout_batch = 16
minibatch = 8
max_new_tokens = 6
lr = 1e-3
{extra}
"""
    )
    return recipe
