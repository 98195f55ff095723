"""Check 22: "no" and "not answered" are two answers, from the page to the export."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page

from tercet import cli
from tercet.label import tables
from tests.browser.harness import ranking_set
from tests.browser.live import Live

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("live")) as live:
        yield live


def choose(page: Page, flag: str, value: str) -> None:
    """Clicks the label, as the radio button itself is not drawn."""
    page.locator(f"label:has([data-flag={flag}][data-value={value}]):visible").click()


def chosen(page: Page) -> dict[str, str]:
    """Flag -> "true", "false" or "null", of the form that is shown."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-flag]:checked")]
             .filter((input) => input.closest(".asking"))
             .map((input) => [input.dataset.flag, input.dataset.value]))"""
    )


def test_no_and_not_answered_reach_the_export_apart(
    live: Live, new_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    sets = [ranking_set("flagged", 3)]
    # The constraint's question is asked, that about closed domains is not.
    project = live.add("Flags", sets=sets, tags={"prompt-flagged": ["constraint"]})
    task = live.task(new_context(), live.account("ann"), project)
    page, letters = task.page, task.letters()
    choose(page, "fails_task", "true")
    choose(page, "inappropriate", "false")
    choose(page, "satisfies_constraint", "true")
    choose(page, "satisfies_constraint", "null")
    page.locator("summary").first.click()
    choose(page, "ambiguous", "false")
    assert page.locator("[data-flag=hallucination]").count() == 0
    task.wait_saved()
    page.reload()
    task.wait("rate")
    assert {flag for flag, value in chosen(page).items() if value == "true"} == {"fails_task"}
    assert {flag for flag, value in chosen(page).items() if value == "false"} == {"inappropriate"}
    task.rank("123")
    task.submit()
    task.wait_saved()

    out = tmp_path / "export"
    command = ["label", "export", str(live.where), "--project", "Flags", "--out", str(out)]
    assert cli.main(command) == 0
    (ranking,) = map(json.loads, (out / "rankings.jsonl").read_text().splitlines())
    (details,) = map(json.loads, (out / "answers.jsonl").read_text().splitlines())
    candidate = {row.id: row.external_id for row in live.rows(tables.candidate)}
    flags = {reply["id"]: reply["flags"] for reply in ranking["replies"]}
    first = flags[candidate[letters["A"]]]
    assert first["fails_task"] is True
    assert first["inappropriate"] is False
    assert first["satisfies_constraint"] is None
    assert first["hallucination"] is None
    others = [value for letter in "BC" for value in flags[candidate[letters[letter]]].values()]
    assert set(others) == {None}
    assert details["prompt_flags"]["ambiguous"] is False
    assert details["prompt_flags"]["sensitive"] is None


def test_a_key_says_yes_with_shift_no_and_takes_it_back(
    live: Live, new_context: Callable[..., BrowserContext]
) -> None:
    project = live.add("Flag keys", sets=[ranking_set("keys", 2)], rate=True)
    task = live.task(new_context(), live.account("bob"), project)
    told = []
    for key in ("q", "Shift+Q", "Shift+Q", "q", "q"):
        task.press(key)
        told.append(chosen(task.page)["fails_task"])
    assert told == ["true", "false", "null", "true", "null"]
