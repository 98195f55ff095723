"""Acceptance 13: one labeler, two tabs. Nothing is overwritten without a question."""

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, expect

from tercet.label import tables
from tercet.records import Prompt
from tests.browser.conftest import Watch
from tests.browser.harness import Served
from tests.browser.pages import Task, join

pytestmark = pytest.mark.browser

REFUSED = "Failed to load resource: the server responded with a status of"


@pytest.fixture
def tabs(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> tuple[Served, Task, Task]:
    """A tab that wrote "first tab" and saved it, and an older one that wrote "second tab"."""
    watch.allow(f"{REFUSED} 412", f"{REFUSED} 409")
    served = serve([Prompt(id="p0", text="Tell a story.")])
    context = new_context()
    second = Task(join(context, served.labeler))
    first = _tab(context, served)
    assert first.assignment == second.assignment
    first.write("first tab")
    first.wait_saved()
    second.write("second tab")
    return served, first, second


def _tab(context: BrowserContext, served: Served) -> Task:
    page = context.new_page()
    page.goto(f"{served.url}/")
    return Task(page)


def draft(served: Served, task: Task) -> str:
    return served.assignment(task.assignment).draft["payload"]["text"]


def test_the_second_tab_asks_and_shows_both_texts(tabs: tuple[Served, Task, Task]) -> None:
    served, _, second = tabs
    conflict = second.page.locator("#conflict")
    expect(conflict).to_be_visible()
    expect(conflict).to_contain_text("first tab")
    expect(conflict).to_contain_text("second tab")
    assert draft(served, second) == "first tab"
    second.wait_saved("error")


def test_this_tabs_text_replaces_the_other_only_when_chosen(
    tabs: tuple[Served, Task, Task],
) -> None:
    served, first, second = tabs
    second.page.locator("#use-mine").click()
    second.wait_saved()
    assert draft(served, second) == "second tab"
    first.write("first tab again")  # and now the first tab is the older one
    expect(first.page.locator("#conflict")).to_be_visible()
    assert draft(served, second) == "second tab"


def test_the_other_tabs_text_is_taken_over_and_ours_stays_in_the_record(
    tabs: tuple[Served, Task, Task],
) -> None:
    served, _, second = tabs
    second.page.locator("#use-theirs").click()
    second.wait_saved()
    assert second.page.locator("#reply").input_value() == "first tab"
    kept = [event.body for event in served.rows(tables.event) if event.kind == "conflict"]
    assert any("second tab" in body for body in kept)
    second.write("both agree")
    second.wait_saved()
    assert draft(served, second) == "both agree"


def test_a_reload_asks_again(tabs: tuple[Served, Task, Task]) -> None:
    served, _, second = tabs
    second.page.locator("#conflict").wait_for()
    second.reload()
    expect(second.page.locator("#conflict")).to_contain_text("second tab")
    assert draft(served, second) == "first tab"


def test_an_answer_given_in_the_other_tab_is_not_replaced(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.allow(f"{REFUSED} 409")
    served = serve([Prompt(id="p0", text="Tell a story.")])
    context = new_context()
    first = Task(join(context, served.labeler))
    second = _tab(context, served)
    first.write("submitted")
    first.submit()
    first.wait_saved()
    second.write("too late")
    expect(second.page.locator(".notice.bad")).to_contain_text("submitted already")
    second.submit()
    expect(second.page.locator(".notice.bad").last).to_contain_text("kept on this device")
    (answer,) = served.answers()
    assert answer.payload["text"] == "submitted"
