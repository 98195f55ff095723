"""Acceptance 10 and 12: two labelers at once, and one who is slower than a lease."""

from collections import Counter
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext

from tercet.label import tables
from tercet.records import Prompt
from tests.browser import robot
from tests.browser.conftest import BOTH, Watch
from tests.browser.harness import Served, sets_of
from tests.browser.pages import Task, expect_notice, join

pytestmark = pytest.mark.browser


@BOTH
def test_two_labelers_finish_200_items_twice_each_and_none_three_times(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.allow("Failed to load resource: the server responded with a status of 429")
    served = serve(
        sets_of(200, k=2),
        *("--no-rate", "--no-ask-prompt-flags"),
        *("--overlap-share", "1", "--overlap-need", "2"),
    )
    tasks = []
    for link in (served.labeler, served.invite("labeler-2")):
        context = new_context()
        robot.hurry(context)
        tasks.append(Task(join(context, link)))
    for task in tasks:
        robot.start(task.page)
    answered = [robot.finish(task.page) for task in tasks]
    for task in tasks:
        task.wait_saved()
    assert [len(found) for found in answered] == [200, 200]

    stored = served.answers()
    assert all(a.state == "done" for a in stored)
    each = Counter(a.item_id for a in stored)
    assert len(each) == 200 and set(each.values()) == {2}
    assert len({(a.item_id, a.labeler_id) for a in stored}) == 400
    items = served.rows(tables.item)
    assert {(item.done, item.leased) for item in items} == {(2, 0)}


@BOTH
def test_a_late_answer_is_kept_beside_the_one_that_came_in_time(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext]
) -> None:
    served = serve([Prompt(id="p0", text="Tell a story.")])
    slow = Task(join(new_context(), served.labeler))
    slow.write("Once")
    slow.wait_saved()
    theirs = slow.assignment
    served.set(tables.assignment, theirs, lease_until=1)  # an hour passes

    quick = Task(join(new_context(), served.invite("labeler-2")))
    quick.wait("write")
    slow.page.locator("#reply").press_sequentially(" upon a time")
    expect_notice(slow.page, "your work is kept")
    slow.wait_saved()
    assert served.assignment(theirs).draft["payload"]["text"] == "Once upon a time"
    quick.write("In time")
    ours = quick.submit()
    quick.wait_saved()
    slow.submit()
    slow.wait_saved()
    expect_notice(slow.page, "as an extra one")

    stored = {a.assignment_id: (a.payload["text"], a.state) for a in served.answers()}
    assert stored == {ours: ("In time", "done"), theirs: ("Once upon a time", "extra")}


def test_a_late_answer_counts_while_nobody_else_has_given_one(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext]
) -> None:
    served = serve([Prompt(id="p0", text="Tell a story.")])
    task = Task(join(new_context(), served.labeler))
    task.write("Slowly")
    task.wait_saved()
    served.set(tables.assignment, task.assignment, lease_until=1)
    task.submit()
    task.wait_saved()
    (answer,) = served.answers()
    assert (answer.payload["text"], answer.state) == ("Slowly", "done")
