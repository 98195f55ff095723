"""Check 23, through the command line: what was labeled in a browser comes back byte for byte, and
the audit trail notices what was changed behind the server's back."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from tercet import cli
from tercet.records import Prompt
from tests.browser.harness import sets_of
from tests.browser.live import Live
from tests.browser.pages import Task

pytestmark = pytest.mark.browser

FILES = ("demonstrations.jsonl", "rankings.jsonl", "evaluations.jsonl", "answers.jsonl")
NOTE = 'Zwölf \u2013 \U0001f600 \u202eright\u202c to left,\ttab "quoted" \\ <b>'


def tercet(*arguments: object) -> int:
    return cli.main(["label", *map(str, arguments)])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture
def labeled(live: Live, new_context: Callable[..., BrowserContext]) -> Live:
    """A store with answers of every kind, given in a browser; made once."""
    if live.answers():
        return live
    ann = live.account("ann")
    prompts = [Prompt(id="p0", text="Why?")]
    projects = (
        live.add("Rank", sets=sets_of(2, 4)),
        live.add("Write", "demonstration", prompts=prompts, ask_prompt_flags=False),
        live.add("Compare", "evaluate", sets=sets_of(1, 2), criterion="helpful", rate=False),
    )
    context = new_context()
    task = Task(live.page(context, ann, "/join"), projects[0])
    task.press("5", "q", "Shift+W")
    task.page.locator("textarea[name^=note-]").fill(NOTE)
    task.page.locator("#task").focus()
    task.rank("1223")
    task.submit()
    task.rank("4321")
    task.submit()
    task = Task(task.page, projects[1])
    task.write(f"Because.\n\n{NOTE}")
    task.submit()
    task = Task(task.page, projects[2])
    task.press("4")
    task.submit()
    task.wait_saved()
    assert len(live.answers()) == 4
    return live


def test_export_import_export_gives_the_same_bytes(labeled: Live, tmp_path: Path) -> None:
    one, two, fresh = tmp_path / "one", tmp_path / "two", tmp_path / "fresh.sqlite"
    assert tercet("export", labeled.where, "--out", one) == 0
    there = [name for name in FILES if (one / name).exists()]
    assert there == list(FILES)
    assert tercet("import", fresh, *(one / name for name in FILES)) == 0
    assert tercet("export", fresh, "--out", two) == 0
    for name in FILES:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    assert NOTE.split()[0] in (one / "answers.jsonl").read_text()
    assert tercet("verify", fresh) == 0


def test_verify_is_content_with_the_store(
    labeled: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tercet("verify", labeled.where) == 0
    assert capsys.readouterr().out.startswith("sound ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE annotation SET payload = replace(payload, '\"note\"', '\"note2\"')", "annotation"),
        ("UPDATE event SET body = replace(body, 'revision', 'Revision') WHERE kind = 'submit'",
         "event"),
        ("DELETE FROM event WHERE kind = 'submit' AND seq = "
         "(SELECT min(seq) FROM event WHERE kind = 'submit')", "event"),
        ("DELETE FROM submission_key", None),
        ("UPDATE item SET done = done - 1 WHERE done > 0", "item"),
    ],
    ids=["answer", "event", "deleted event", "keys only", "counter"],
)  # fmt: skip
def test_a_tampered_row_is_detected(
    labeled: Live,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    said: str | None,
) -> None:
    copy = tmp_path / "copy.sqlite"
    assert tercet("backup", labeled.where, "--out", copy) == 0
    with sqlite3.connect(copy) as connection:
        assert connection.execute(change).rowcount > 0
    connection.close()
    capsys.readouterr()
    code = tercet("verify", copy)
    out = capsys.readouterr().out
    if said is None:  # keys only answer repeated requests; no label is changed by their loss
        assert code == 0
    else:
        assert code == 1
        assert said in out
