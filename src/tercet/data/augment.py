"""More examples from the same demonstrations; replies are never touched.

The paper's own form is few-shot recombination (InstructGPT A.1): an instruction with K queries and
responses becomes K examples, each showing the others. The rest is off by default.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tercet.records import Demonstration, InputError


@dataclass(frozen=True)
class FewShot:
    """An instruction with K query/response pairs, as a labeler writes it."""

    id: str
    instruction: str
    pairs: tuple[tuple[str, str], ...]
    user_id: str | None = None
    source: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What to make; everything is seeded and leaves the validation split alone."""

    seed: int = 0
    """same seed, same examples, byte for byte"""
    shot_sets: int = 1
    """examples a pair of a few-shot instruction gives, with different sets of shots"""
    max_shots: int = 0
    """at most this many shots, chosen at random (0: all the others)"""
    shuffle_shots: bool = False
    """show the shots in random order"""
    shot_dropout: float = 0.0
    """chance of leaving out each shot"""
    query_form: str = "{query}\n{response}"
    """one shot; the part before {response} also opens the query to answer"""
    separator: str = "\n\n"
    """between instruction, shots and query"""
    templates: tuple[str, ...] = ()
    """other forms of the prompt, e.g. "Please answer: {prompt}"; each adds a copy"""
    jitter: int = 0
    """copies with changed white space and letter case, in the prompt only"""

    def __post_init__(self) -> None:
        if not 0 <= self.shot_dropout < 1:
            raise ValueError(f"shot_dropout is {self.shot_dropout}; give a chance from 0 to 0.99")
        if self.shot_sets < 1 or self.max_shots < 0 or self.jitter < 0:
            raise ValueError("shot_sets must be at least 1, max_shots and jitter at least 0")
        if not re.search(r"\{query\}.*\{response\}$", self.query_form, re.DOTALL):
            raise ValueError(f"query_form is {self.query_form!r}; write {{query}} ... {{response}}")
        for template in self.templates:
            if "{prompt}" not in template:
                raise ValueError(f"template {template!r} must contain {{prompt}}")


def recombine(groups: Sequence[FewShot], config: AugmentConfig) -> list[Demonstration]:
    """K pairs give K examples (times `shot_sets`), each with the other K - 1 as shots.

    A shot whose response equals the target's is left out, so that the answer is never shown.
    Instructions of other splits than "train" give each pair once, without shots.

    Raises:
        InputError: an instruction without pairs.
    """
    result: dict[tuple[str, str, str], Demonstration] = {}
    for group in groups:
        if not group.pairs:
            raise InputError(f"instruction '{group.id}' has no pairs; give at least one")
        trained = group.split in (None, "train")
        for number, (query, response) in enumerate(group.pairs):
            for copy in range(config.shot_sets if trained else 1):
                rng = random.Random(f"{config.seed}/{group.id}/{number}/{copy}")
                shots = _shots(group, number, config, rng) if trained else []
                prompt = _few_shot_prompt(group.instruction, shots, query, config)
                example = Demonstration(
                    id=f"{group.id}/{number}/{copy}",
                    prompt_id=group.id,
                    prompt=prompt,
                    response=response,
                    user_id=group.user_id,
                    source=group.source,
                    split=group.split,
                )
                # Small groups give the same set of shots twice: once is enough.
                result.setdefault((group.id, prompt, response), example)
    return list(result.values())


def _shots(
    group: FewShot, number: int, config: AugmentConfig, rng: random.Random
) -> list[tuple[str, str]]:
    target = group.pairs[number][1].strip()
    others = [pair for i, pair in enumerate(group.pairs) if i != number]
    others = [pair for pair in others if pair[1].strip() != target]
    if config.max_shots and config.max_shots < len(others):
        chosen = set(rng.sample(range(len(others)), config.max_shots))
        others = [pair for i, pair in enumerate(others) if i in chosen]
    others = [pair for pair in others if rng.random() >= config.shot_dropout]
    if config.shuffle_shots:
        rng.shuffle(others)
    return others


def _few_shot_prompt(
    instruction: str, shots: Sequence[tuple[str, str]], query: str, config: AugmentConfig
) -> str:
    before, after = config.query_form.removesuffix("{response}").split("{query}", 1)
    shown = [f"{before}{asked}{after}{answer}" for asked, answer in shots]
    return config.separator.join([instruction, *shown, f"{before}{query}{after}"])


def augment(demonstrations: Sequence[Demonstration], config: AugmentConfig) -> list[Demonstration]:
    """The demonstrations and, after each one of the training split, its copies with other prompt
    templates and jitter. Copies keep prompt id, user, split and the exact response.

    len(result) - len(demonstrations) is the number of copies, for the report.
    """
    result = []
    for one in demonstrations:
        result.append(one)
        if one.split not in (None, "train"):
            continue
        # split/join, not str.format: prompts may hold braces of their own
        forms = [one.prompt.join(template.split("{prompt}")) for template in config.templates]
        for number in range(config.jitter):
            rng = random.Random(f"{config.seed}/{one.id}/{number}")
            forms.append(_jitter(one.prompt, rng))
        result += [
            one.model_copy(update={"id": f"{one.id}/augmented-{number}", "prompt": form})
            for number, form in enumerate(forms)
            if form != one.prompt
        ]
    return result


def _jitter(prompt: str, rng: random.Random) -> str:
    """Doubles some spaces, or changes the case of the first letter; line ends stay."""
    text = "".join(c * 2 if c == " " and rng.random() < 0.1 else c for c in prompt)
    first = re.search(r"[^\W\d_]", text)
    if first and rng.random() < 0.5:
        place = first.start()
        text = text[:place] + text[place].swapcase() + text[place + 1 :]
    return text
