"""The verbs. Help and wrong input are answered before anything heavy is imported."""

import errno
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from tercet import __version__

STAGES = {
    "data": "make the records: the embedded world, or imports of your own files",
    "pretrain": "train a small language model from plain text, or continue one",
    "sft": "step 1: fine-tune on demonstrations",
    "rl-init": "a second SFT with pretraining text mixed in, where PPO starts",
    "sample": "draw K replies a prompt from one or several policies",
    "label": "rank the replies: people on a page, or simulated labelers",
    "rm": "step 2: train the reward model on rankings",
    "select": "choose the supervised model's epoch by reward",
    "ppo": "step 3: PPO against the reward model",
    "ppo-ptx": "the same with pretraining gradients mixed in",
    "eval": "win rates of all arms with intervals, and the alignment tax",
}

LABEL = {
    "serve": "the page where people write and rank, with a link for each to start",
    "import": "add prompts, candidate sets or gold items to a store",
    "invite": "a link for one more labeler",
    "status": "how far the projects and the labelers are",
    "export": "demonstrations, rankings and agreement, as the stages read them",
    "backup": "copy the store while the server runs",
    "verify": "check every answer against the audit trail",
}

HELP = f"""\
tercet {__version__}: RLHF in its three classic steps, demonstrations, ranked replies, PPO.

usage: tercet demo [--option value ...]          the whole loop on the embedded world, in minutes
       tercet run RECIPE [--option value ...]    all stages of a recipe, skipping what is done
       tercet STAGE RECIPE [--option value ...]  one stage of a recipe
       tercet label serve SOURCE                 people label: a page, a store, invite links

stages, in their order:
{"".join(f"  {name:<9} {text}{chr(10)}" for name, text in STAGES.items())}
labeling by people, `tercet label SUB SOURCE`; SOURCE is a run's folder, a .jsonl or a store:
{"".join(f"  {name:<9} {text}{chr(10)}" for name, text in LABEL.items())}
  tercet STAGE RECIPE --help   all options of a stage, with the recipe's values
  tercet --version             the version

Several GPUs take the same line: torchrun --nproc-per-node 8 -m tercet ppo RECIPE
Ctrl-C is safe: the same command goes on where it stopped.
Exit codes: 0 done, 2 wrong input, 1 failure, 130 interrupted.
"""

VERB_HELP = """\
usage: tercet {verb} {recipe}[--option value ...]

{text}.
{more}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0, 1, 2 or 130."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        command = " ".join(["tercet", *argv])
        return _say(f"interrupted; to go on from the last checkpoint: {command}", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" ({error.filename})" if error.filename else ""
        return _say(f"the disk is full{place}; free some space and run the same command again", 1)
    except (ValueError, RuntimeError) as error:
        # Imported only now: pydantic costs as much time as all of --help.
        from tercet.records import InputError, RunFailed

        if not isinstance(error, InputError | RunFailed):
            raise
        return _say(" ".join(str(error).split()), 2 if isinstance(error, InputError) else 1)


def _say(message: str, code: int) -> int:
    print(f"tercet: {message}", file=sys.stderr)
    return code


def _dispatch(argv: list[str]) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if argv else 2
    if verb == "--version":
        print(f"tercet {__version__}")
        return 0
    if verb not in (*STAGES, "run", "demo"):
        near = get_close_matches(verb, [*STAGES, "run", "demo"], n=1)
        hint = f"did you mean '{near[0]}'?" if near else "tercet --help lists the verbs"
        return _say(f"unknown verb '{verb}'; {hint}", 2)
    if verb == "label" and rest[:1] and rest[0] in LABEL:
        from tercet.label import commands

        return commands.run(rest[0], rest[1:])
    if rest[:1] in (["-h"], ["--help"]):
        print(_verb_help(verb), end="")
        return 0
    if verb == "demo":
        recipe, options = packaged_recipe("demo.toml"), rest
    else:
        if not rest or rest[0].startswith("-"):
            return _say(f"'{verb}' needs a recipe first: tercet {verb} recipes/demo.toml", 2)
        recipe, options = Path(rest[0]), rest[1:]
    if not recipe.is_file():
        if verb == "label" and (near := get_close_matches(rest[0], LABEL, n=1)):
            return _say(f"label has no '{rest[0]}'; did you mean 'label {near[0]}'?", 2)
        return _say(f"{recipe}: no such recipe{_near_file(recipe)}", 2)

    from tercet import pipeline

    if verb in STAGES:
        pipeline.run_stage(verb, recipe, options)
    else:
        pipeline.run_recipe(recipe, options)
    return 0


def _verb_help(verb: str) -> str:
    recipe = "" if verb == "demo" else "RECIPE "
    text = STAGES.get(verb, "All stages of a recipe in their order, skipping what is done")
    more = f"`tercet {verb} RECIPE --help` lists all options with the recipe's values.\n"
    if verb == "demo":
        text, more = "The whole loop on the embedded world: run with the packaged demo.toml", ""
    if verb == "label":
        more += "\nPeople label with `tercet label SUB SOURCE`, each with its own --help:\n"
        more += "".join(f"  {name:<9} {words}\n" for name, words in LABEL.items())
    text = text[0].upper() + text[1:]
    return VERB_HELP.format(verb=verb, recipe=recipe, text=text, more=more)


def _near_file(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path"


def packaged_recipe(name: str) -> Path:
    """A recipe shipped with tercet: inside an installed wheel, or in the source tree's recipes/."""
    installed = Path(__file__).parent / "recipes" / name
    return installed if installed.is_file() else Path(__file__).parents[2] / "recipes" / name
