"""The policies of an evaluation and their replies under one stop rule.

Every arm's reply ends at EOS or where `stop_text` begins, whichever comes first. Both count as
finished, for every arm alike: a rule for base models only would make the others look unfinished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from tercet.data.split import stable_key
from tercet.data.tokens import encode_prompt, eos_id
from tercet.judge import Judge
from tercet.model.load import check_context, load_policy, load_tokenizer
from tercet.model.shard import Ranks
from tercet.records import Finish, InputError
from tercet.rollout.engine import Rollout, generate

BASELINE = "baseline"
PROMPTED = "gpt-prompted"
BEST_OF = "bon"

EndedBy = Literal["eos", "stop_text", "length"]


@dataclass(frozen=True)
class Arm:
    """One policy to compare: `family` is the name without its `@size`."""

    name: str
    model: str
    temperature: float = 1.0
    samples: int = 1

    @property
    def family(self) -> str:
        return self.name.partition("@")[0]

    @property
    def prompted(self) -> bool:
        return self.family == PROMPTED


@dataclass(frozen=True)
class Reply:
    """A reply as it is judged: cut by the stop rule, special tokens removed."""

    text: str
    ended_by: EndedBy
    tokens: int

    @property
    def finish(self) -> Finish:
        return "length" if self.ended_by == "length" else "stop"


@dataclass(frozen=True)
class Sampling:
    """What all arms share."""

    max_new_tokens: int
    stop_text: str
    seed: int
    slots: int = 128


@dataclass(frozen=True)
class Policy:
    """A loaded model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: Any

    @staticmethod
    def load(path: str, ranks: Ranks) -> "Policy":
        return Policy(load_policy(path, device=ranks.device), load_tokenizer(path))


@dataclass(frozen=True)
class Request:
    """Replies wanted to one prompt; `role` and `prompt_id` decide the noise."""

    role: str
    prompt_id: str
    text: str
    samples: int = 1

    @property
    def key(self) -> int:
        return stable_key(f"{self.role} {self.prompt_id}")


def parse_arms(arms: Sequence[str], temperatures: Sequence[str], default: float) -> list[Arm]:
    """ "name=model" texts as arms, in order.

    Without "=model", `gpt-prompted` takes gpt's model and `bon:N` (best of N by the reward model)
    takes sft's; "@size" after a name tells apart several sizes of an arm ("ppo@1.3b=...").
    temperatures: "name=0.7" for single arms, `default` for the others.

    Raises:
        InputError: a name twice or missing, or no model.
    """
    models: dict[str, str] = {}
    for text in arms:
        name, _, model = text.partition("=")
        if not name or name in models:
            raise InputError(f"arms: '{text}' has no name of its own; write \"name=model folder\"")
        models[name] = model
    heat = read_temperatures(temperatures, [*models, BASELINE])
    result = []
    for name, model in models.items():
        family, at, size = name.partition("@")
        lender = {PROMPTED: "gpt"}.get(family, "sft" if family.startswith(f"{BEST_OF}:") else "")
        model = model or models.get(lender + at + size, "")
        if not model:
            raise InputError(f"arms: '{name}' needs a model folder; write \"{name}=folder\"")
        result.append(Arm(name, model, heat.get(name, default), _best_of(family)))
    return result


def baseline_arm(name: str, chosen: Sequence[Arm], temperatures: Sequence[str]) -> Arm:
    """The baseline as a role of its own: the model of arm `name`, but its own noise.

    Raises:
        InputError: no such arm, or one that is more than a model: its prefix, or its choice among
            samples, would be lost.
    """
    names = [arm.name for arm in chosen]
    if name not in names:
        raise InputError(
            f"baseline: no arm is called '{name}'; choose from {', '.join(names)}, "
            "or give baseline_replies"
        )
    twin = chosen[names.index(name)]
    if twin.prompted or twin.samples > 1:
        raise InputError(
            f"baseline: '{name}' is not a model by itself; choose another arm, or give its replies "
            "of an earlier evaluation, renamed to arm 'baseline', as baseline_replies"
        )
    heat = read_temperatures(temperatures, [*names, BASELINE])
    return Arm(BASELINE, twin.model, heat.get(BASELINE, twin.temperature))


def read_temperatures(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """ "gpt=0.7" texts as a dict.

    Raises:
        InputError: not of this form, or no such arm.
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if found[name] < 0:
            raise InputError(f'temperatures: \'{text}\' is not "arm=temperature" as in "gpt=0.7"')
        if name not in names:
            raise InputError(
                f"temperatures: no arm is called '{name}'; there are {', '.join(names)}"
            )
    return found


def sample(
    policy: Policy,
    requests: Sequence[Request],
    settings: Sampling,
    temperature: float,
    ranks: Ranks,
    on_finish: Callable[[Rollout], None] | None = None,
) -> list[list[Reply]]:
    """Replies to all requests, on every rank; each draws its share. Temperature 0 is greedy."""
    mine = ranks.share(requests)
    encoded = [encode_prompt(policy.tokenizer, request.text) for request in mine]
    longest = max(map(len, encoded), default=0)
    check_context(policy.model, longest + settings.max_new_tokens)
    rollouts = generate(
        policy.model,
        encoded,
        samples=[request.samples for request in mine],
        max_new_tokens=settings.max_new_tokens,
        stop_ids=_stop_ids(policy.tokenizer, settings.stop_text),
        temperature=temperature or 1.0,
        greedy=temperature == 0,
        seed=settings.seed,
        keys=[request.key for request in mine],
        slots=settings.slots,
        on_finish=on_finish,
    )
    replies: list[list[Reply]] = [[] for _ in mine]
    for rollout in rollouts:
        replies[rollout.prompt].append(read_reply(rollout, policy.tokenizer, settings.stop_text))
    return ranks.gather(replies)


def read_reply(rollout: Rollout, tokenizer: Any, stop_text: str) -> Reply:
    """Text of a rollout up to `stop_text`, and what ended it."""
    eos = eos_id(tokenizer)
    stopped = bool(rollout.tokens) and rollout.tokens[-1] == eos
    ids = rollout.tokens[:-1] if stopped else rollout.tokens
    text = tokenizer.decode(ids, skip_special_tokens=True)
    kept, found, _ = text.partition(stop_text) if stop_text else (text, "", "")
    if found:
        return Reply(kept.rstrip(), "stop_text", len(ids))
    return Reply(text, "eos" if stopped else "length", len(rollout.tokens))


def best_of(
    rows: Sequence[Sequence[Reply]], texts: Sequence[str], scorer: Judge | None
) -> list[Reply]:
    """Of each prompt's samples the one that the reward model likes best; the first of equals."""
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    assert scorer is not None
    flat = [(text, reply) for text, row in zip(texts, rows, strict=True) for reply in row]
    scores = iter(
        scorer.score(
            [text for text, _ in flat],
            [reply.text for _, reply in flat],
            [reply.finish for _, reply in flat],
        )
    )
    return [max(row, key=lambda _: next(scores)) for row in rows]


def _stop_ids(tokenizer: Any, stop_text: str) -> list[int]:
    """EOS, and the stop text when it is a token by itself: sampling need not go on behind it."""
    ids = [eos_id(tokenizer)]
    if stop_text:
        pieces = tokenizer(stop_text, add_special_tokens=False)["input_ids"]
        if len(pieces) == 1 and tokenizer.decode(pieces) == stop_text:
            ids += pieces
    return ids


def _best_of(family: str) -> int:
    kind, colon, n = family.partition(":")
    if kind != BEST_OF or not colon:
        return 1
    if not n.isdigit() or int(n) < 1:
        raise InputError(f"arms: '{family}' needs a number of samples, e.g. \"bon:16\"")
    return int(n)
