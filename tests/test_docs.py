"""The documents speak of functions, tests and options that exist, and show records that parse."""

import ast
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tercet.records import CandidateSet, Demonstration, Prompt, Ranking

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS, DOCS = ROOT / "src" / "tercet", ROOT / "tests", ROOT / "docs"
ALGORITHM = (DOCS / "algorithm.md").read_text(encoding="utf-8")
FORMATS = (DOCS / "formats.md").read_text(encoding="utf-8")
STAGES = {"rl_init": "sft", "ppo_ptx": "ppo", "eval": "evaluate"}
RECORDS = {"prompt": Prompt, "demonstration": Demonstration}
RECORDS |= {"candidates": CandidateSet, "ranking": Ranking}


@cache
def names(file: Path) -> set[str]:
    """Functions, classes, "Class.member" and constants of a source file; empty for no file."""
    if not file.is_file():
        return set()
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        found |= _defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for inner in node.body for name in _defined(inner)}
    return found


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return {target.id for target in targets if isinstance(target, ast.Name)}


def rows(text: str, first: str) -> dict[str, str]:
    """Table rows whose first cell matches `first`, as cell -> the last such line."""
    lines = re.finditer(rf"^\| `?(?P<cell>{first})`? \|.*$", text, re.MULTILINE)
    return {line["cell"]: line[0] for line in lines}


def invariants_in_tests() -> set[str]:
    """Numbers that test names (..._I29) and docstrings (I29:) carry."""
    found: set[str] = set()
    for file in TESTS.rglob("test_*.py"):
        if file == Path(__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = f"{node.name} {ast.get_docstring(node) or ''}"
                found |= set(re.findall(r"(?<![A-Za-z0-9])I[1-9][0-9]?(?![A-Za-z0-9])", said))
    return found


def options_script() -> Any:
    spec = importlib.util.spec_from_file_location("docs_options", DOCS / "options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while it is being made.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_recipe_options_are_those_of_the_code() -> None:
    written = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert written == options_script().page(), "run: python docs/options.py > docs/recipes.md"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.name)
def test_every_function_named_exists(page: Path) -> None:
    for module, name in re.findall(r"`([a-z_/]+):([A-Za-z_.]+)`", page.read_text("utf-8")):
        assert name in names(PACKAGE / f"{module}.py"), f"{page.name}: {module}:{name}"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.name)
def test_every_test_named_exists(page: Path) -> None:
    for file, name in re.findall(r"`([a-z_/]+\.py)::(\w+)`", page.read_text("utf-8")):
        assert name in names(TESTS / file), f"{page.name}: {file}::{name}"


@pytest.mark.parametrize("page", ["algorithm.md", "formats.md"])
def test_every_option_named_exists(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    tables = "pretrain|sft|rl_init|sample|label|rm|select|ppo|ppo_ptx|eval"
    for table, option in re.findall(rf"`({tables})\.([a-z_]+)`", text):
        file = PACKAGE / "stages" / f"{STAGES.get(table, table)}.py"
        assert f"Config.{option}" in names(file), f"{page}: {table}.{option}"


def test_every_link_leads_somewhere() -> None:
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_invariant_has_a_row() -> None:
    assert list(rows(ALGORITHM, r"I\d+")) == [f"I{n}" for n in range(1, 53)]


def test_an_invariant_with_a_test_is_not_called_uncovered() -> None:
    listed = rows(ALGORITHM, r"I\d+")
    missing = {name for name in invariants_in_tests() if "::test_" not in listed[name]}
    assert not missing, f"docs/algorithm.md: name the tests of {sorted(missing)}"


def test_example_records_parse() -> None:
    seen = set()
    for line in FORMATS.splitlines():
        if line.startswith('{"schema":"tercet.'):
            kind = json.loads(line)["schema"].removeprefix("tercet.").removesuffix("/1")
            RECORDS[kind].model_validate_json(line)
            seen.add(kind)
    assert seen == set(RECORDS)


def test_every_metric_of_a_rollout_batch_is_explained() -> None:
    import torch

    from tercet.objectives import policy_loss, value_loss
    from tercet.rollout.experience import Replies, judge_batch
    from tercet.rollout.monitor import summarise

    group = Replies(
        prompt="a", ids=[1], replies=[[2, 3], [4]], stopped=[True, False], texts=["b c", "d"],
        scores=[1.0, 0.0], logp_generated=[[-1.0, -1.0], [-1.0]], logp_old=[[-1.0, -1.0], [-1.0]],
        logp_ref=[[-1.0, -1.0], [-1.0]], values=[[0.0, 0.0], [0.0]], entropy=[[1.0, 1.0], [1.0]],
    )  # fmt: skip
    batch = judge_batch(
        [group], beta=0.1, kl_kind="k1", missing_eos="subtract", missing_eos_penalty=1.0,
        score_clip=None, whiten_rewards=False, whiten_advantages=True, gamma=1.0, lam=0.95,
        algorithm="ppo", device=torch.device("cpu"),
    )  # fmt: skip
    old, mask = batch.logp_old_BT, batch.mask_BT
    policy = policy_loss(old, old, batch.advantages_BT, mask)[1]
    assert "clip_fraction" in value_loss(old, old, batch.returns_BT, mask)[1]
    explained = set(rows(FORMATS, r"[a-z][a-z0-9_/]*"))
    assert set(summarise(batch, 0.1)) | set(policy) <= explained


def test_no_page_names_a_machine() -> None:
    for page in [*DOCS.rglob("*.md"), ROOT / "CHANGELOG.md"]:
        found = re.search(r"(?<![\w.])/(work|tmp|home|root)/", page.read_text(encoding="utf-8"))
        assert found is None, f"{page.name}: {found}"
