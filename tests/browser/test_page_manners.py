"""What the page gets right between the answers: focus, held keys, dialogs, long texts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from tercet.records import Prompt
from tests.browser.conftest import Watch
from tests.browser.harness import sets_of
from tests.browser.live import Live
from tests.browser.pages import Task

pytestmark = pytest.mark.browser

NewContext = Callable[..., BrowserContext]


def ranking(live: Live, context: BrowserContext) -> Task:
    project = live.add("Rank", sets=sets_of(2, 3), rate=False)
    return live.task(context, live.account("ann"), project)


def settled(task: Task) -> None:
    """Nothing is under way any more: the server may end."""
    task.wait_saved()
    task.page.wait_for_load_state("networkidle")


def test_undo_goes_back_to_the_reply_whose_rank_it_takes(
    tmp_path: Path, new_context: NewContext
) -> None:
    with Live(tmp_path) as live:
        task = ranking(live, new_context())
        task.press("2", "z", "1")  # a slip, taken back, done again
        assert task.ui()["slots"] == ["A", "", ""]
        settled(task)


def test_a_key_held_down_ranks_one_reply(tmp_path: Path, new_context: NewContext) -> None:
    with Live(tmp_path) as live:
        task = ranking(live, new_context())
        for _ in range(3):
            task.page.keyboard.down("1")  # the second and third are repeats
        assert task.ui()["slots"] == ["A", "", ""]
        settled(task)


def test_a_key_of_ones_own_may_have_shift(tmp_path: Path, new_context: NewContext) -> None:
    with Live(tmp_path) as live:
        task = ranking(live, new_context())
        task.press("1", "?")
        task.page.get_by_role("button", name="Change the key for: Undo").click()
        task.press("Shift+X", "Escape")
        task.page.wait_for_selector("#help", state="detached")
        task.press("Shift+X")
        assert task.ui()["slots"] == ["", "", ""]
        settled(task)


def test_the_choice_between_two_tabs_stays_until_it_is_made(
    tmp_path: Path, new_context: NewContext, watch: Watch
) -> None:
    watch.allow("Failed to load resource")  # the 412
    with Live(tmp_path) as live:
        context = new_context()
        first = ranking(live, context)
        project = first.page.locator("#task").get_attribute("data-project")
        other = context.new_page()
        other.goto(f"{live.url}/history")
        second = Task(other, project)
        first.press("1")
        first.wait_saved()
        second.press("3")
        other.wait_for_selector("#conflict[open]")
        second.press("Escape", "Escape", "Escape")
        other.locator("#use-theirs").click()
        second.wait_saved()
        assert second.ui()["slots"] == first.ui()["slots"]
        expect(other.locator("article:focus")).to_have_count(1)


def test_a_long_text_in_wide_characters_is_saved(tmp_path: Path, new_context: NewContext) -> None:
    with Live(tmp_path) as live:
        project = live.add("Write", "demonstration", prompts=[Prompt(id="p", text="Why?")])
        task = live.task(new_context(), live.account("ann"), project)
        task.write("漢" * 21_800)  # as a request more than the 64 KB that may outlive a page
        task.wait_saved()
        assert live.assignment(task.assignment).draft["payload"]["text"] == "漢" * 21_800
