"""sample: K replies to each prompt, from one or several policies, for labelers to rank."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tercet.data.split import stable_key
from tercet.data.tokens import encode_prompt
from tercet.model.load import check_context, fingerprint, load_policy, load_tokenizer
from tercet.model.shard import Ranks
from tercet.model.train import precision_context
from tercet.records import (
    Candidate,
    CandidateSet,
    InputError,
    Prompt,
    about,
    prompt_text,
    read_records,
    write_records,
)
from tercet.rollout.engine import Engine
from tercet.rundir import RunDir, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    policies: tuple[str, ...]
    """Model folders to sample from, "name=path" or just a path; each gives as many replies."""
    prompts: Path
    """tercet.prompt/1 records."""
    split: str | None = None
    """Use only prompts of this split."""
    max_prompts: int | None = None
    """Use only the first so many prompts."""
    k: str = "4-9"
    """Replies to a prompt: a number, or "low-high" for a uniform draw (InstructGPT: 4-9)."""
    temperatures: tuple[float, ...] = (1.0,)
    """Each reply takes one of these in turn."""
    max_new_tokens: int = 64
    resample: int = 8
    """Rounds in which duplicate and empty replies are drawn again before K is lowered."""
    slots: int = 128
    """Replies decoded at a time on one rank."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 computes in bfloat16 with float32 weights; auto is bf16 on a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = k_range(self.k)
        if not 2 <= low <= high:
            raise ValueError(f"k = {self.k!r}: at least 2 replies are needed for a ranking")
        if any(t <= 0 for t in self.temperatures):
            raise ValueError("temperatures must be above 0")


@dataclass
class Slot:
    """One reply to be: which prompt, and how it is drawn."""

    prompt: int
    policy: int
    temperature: float
    text: str | None = None
    finish: str = "stop"
    seed: int = 0


def k_range(k: str) -> tuple[int, int]:
    """ "5" -> (5, 5); "4-9" -> (4, 9)."""
    low, _, high = k.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ValueError(f'k = {k!r} is neither a number nor "low-high"') from None


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Draw K replies a prompt, resample duplicates, write `candidates.jsonl` with provenance."""
    prompts = [
        p
        for p in read_records(config.prompts, Prompt)
        if config.split is None or p.split == config.split
    ][: config.max_prompts]
    if not prompts:
        raise InputError(f"{config.prompts}: no prompt with split {config.split!r}")
    named = [name_and_path(text) for text in config.policies]
    policies = [load_policy(path, device=ranks.device) for _, path in named]
    tokenizers = [load_tokenizer(path) for _, path in named]
    mine = ranks.share(prompts)
    slots = plan(mine, config, len(policies))
    encoded = [[encode(t, p, config.prompts) for p in mine] for t in tokenizers]
    for model, ids in zip(policies, encoded, strict=True):
        check_context(model, max((len(i) for i in ids), default=0) + config.max_new_tokens)

    with progress(len(slots) * ranks.size, "sample", "sample", show=ranks.main) as bar:
        for attempt in range(config.resample + 1):
            missing = unsatisfied(slots)
            if not missing:
                break
            for policy in range(len(policies)):
                engine = Engine(policies[policy])
                for temperature in sorted(set(config.temperatures)):
                    part = [
                        s for s in missing if (s.policy, s.temperature) == (policy, temperature)
                    ]
                    seed = config.seed + 7919 * attempt + 104_729 * policy
                    seed += int(1000 * temperature)
                    step = ranks.size if attempt == 0 else 0
                    draw(
                        part, engine, tokenizers[policy], encoded[policy], mine, seed,
                        config, lambda step=step: bar.advance(step),
                    )  # fmt: skip
                engine.release()  # the next policy's replies take the memory

    keep = unique(slots)
    sets = ranks.gather([candidate_set(p, keep.get(i, []), named) for i, p in enumerate(mine)])
    whole = [s for s in sets if s is not None]
    if not whole:
        raise InputError(
            f"{config.prompts}: no prompt got two different replies, so there is nothing to rank; "
            "raise max_new_tokens or temperatures, or train the policies longer"
        )
    if ranks.main:
        write_records(run.path / "candidates.jsonl", whole)
        run.finish(
            {
                "prompts": len(prompts),
                "candidate_sets": len(whole),
                "discarded_prompts": len(prompts) - len(whole),
                "replies": sum(len(s.candidates) for s in whole),
                "asked_replies": sum(draw_k(p, config) for p in prompts),
                "unfinished": sum(c.finish == "length" for s in whole for c in s.candidates),
                "policies": {
                    name: fingerprint(t) for (name, _), t in zip(named, tokenizers, strict=True)
                },
            }
        )


def encode(tokenizer: Any, prompt: Prompt, source: Path) -> list[int]:
    """Ids of a prompt; `source` names the file in errors."""
    with about(f"{source}: prompt {prompt.id!r}"):
        return encode_prompt(tokenizer, prompt_text(prompt))


def name_and_path(text: str) -> tuple[str, Path]:
    """ "sft=runs/a/sft/model" -> ("sft", path); a bare path is named by its stage folder."""
    name, equals, path = text.partition("=")
    if equals:
        return name, Path(path)
    return Path(text).parent.name or text, Path(text)


def draw_k(prompt: Prompt, config: Config) -> int:
    """K of a prompt: uniform in the range, fixed by seed and prompt id."""
    low, high = k_range(config.k)
    return random.Random(f"{config.seed} k {prompt.id}").randint(low, high)


def plan(prompts: list[Prompt], config: Config, policies: int) -> list[Slot]:
    """Policy and temperature of each reply: all in turn, from a random start for each prompt."""
    slots = []
    for i, prompt in enumerate(prompts):
        start = random.Random(f"{config.seed} start {prompt.id}").randrange(1_000_000)
        for k in range(start, start + draw_k(prompt, config)):
            temperature = config.temperatures[(k // policies) % len(config.temperatures)]
            slots.append(Slot(i, k % policies, temperature))
    return slots


def draw(
    slots: list[Slot], engine: Engine, tokenizer: Any, encoded: list[list[int]],
    prompts: list[Prompt], seed: int, config: Config, on_finish: Callable[[], None],
) -> None:  # fmt: skip
    """Fill `slots`, all of one policy and temperature, with new replies."""
    if not slots:
        return
    wanted: dict[int, list[Slot]] = {}
    for slot in slots:
        wanted.setdefault(slot.prompt, []).append(slot)
    order = list(wanted)
    with precision_context(engine.device, config.precision):
        rollouts = engine.generate(
            [encoded[i] for i in order],
            samples=[len(wanted[i]) for i in order],
            max_new_tokens=config.max_new_tokens,
            stop_ids=[tokenizer.eos_token_id],
            temperature=slots[0].temperature,
            seed=seed,
            keys=[stable_key(prompts[i].id) for i in order],
            slots=config.slots,
            on_finish=lambda _: on_finish(),
        )
    for rollout in rollouts:
        slot = wanted[order[rollout.prompt]][rollout.sample]
        ids = rollout.tokens[:-1] if rollout.stopped else rollout.tokens
        slot.text = tokenizer.decode(ids, skip_special_tokens=True)
        slot.finish = "stop" if rollout.stopped else "length"
        slot.seed = seed


def unsatisfied(slots: list[Slot]) -> list[Slot]:
    """Slots whose reply is missing, empty, or equal (after strip) to another of its prompt."""
    seen: set[tuple[int, str]] = set()
    bad = []
    for slot in slots:
        text = (slot.text or "").strip()
        if not text or (slot.prompt, text) in seen:
            bad.append(slot)
        seen.add((slot.prompt, text))
    return bad


def unique(slots: list[Slot]) -> dict[int, list[Slot]]:
    """The distinct, non-empty replies of each prompt."""
    bad = {id(slot) for slot in unsatisfied(slots)}
    kept: dict[int, list[Slot]] = {}
    for slot in slots:
        if id(slot) not in bad:
            kept.setdefault(slot.prompt, []).append(slot)
    return kept


def candidate_set(
    prompt: Prompt, slots: list[Slot], named: list[tuple[str, Path]]
) -> CandidateSet | None:
    """The record, None when fewer than two different replies are left."""
    if len(slots) < 2:
        return None
    candidates = [
        Candidate(
            id=f"{prompt.id}/{k}",
            text=slot.text or "",
            policy=named[slot.policy][0],
            temperature=slot.temperature,
            seed=slot.seed,
            finish=slot.finish,  # type: ignore[arg-type]
        )
        for k, slot in enumerate(slots)
    ]
    return CandidateSet(
        id=f"set/{prompt.id}",
        prompt_id=prompt.id,
        prompt=prompt_text(prompt),
        candidates=tuple(candidates),
    )
