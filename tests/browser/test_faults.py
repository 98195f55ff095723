"""Acceptance 5 to 9: reloads, kills, no network, repeated requests; nothing lost or doubled."""

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, Request

from tercet.records import Prompt
from tests.browser import robot
from tests.browser.conftest import BOTH, Killable, Watch
from tests.browser.harness import Served, ranking_set, sets_of
from tests.browser.pages import Task, join, ranked

pytestmark = pytest.mark.browser

NO_RATE = ("--no-rate", "--no-ask-prompt-flags")
WALKS, STEPS = 4, 50


def act(task: Task, draw: random.Random) -> str:
    """One thing that a labeler may do; returns what it was."""
    page = task.page
    letter = draw.choice("ABCDE")
    kinds = {
        "rate": ["digit", "flag", "no", "clear", "undo", "redo", "note", "next", "step"],
        "rank": ["digit", "letter", "up", "tie", "split", "clear", "undo", "redo", "note",
                 "select", "step"],
    }  # fmt: skip
    kind = draw.choice(kinds[task.state])
    if kind == "digit":
        task.press(str(draw.randint(1, 5)))
    elif kind in ("flag", "no"):
        key = draw.choice("qwertyuop")
        task.press(key if kind == "flag" else f"Shift+{key.upper()}")
    elif kind == "letter":
        task.press(letter.lower())
    elif kind == "select":
        task.card(letter).locator("select[data-role=rank]").select_option(str(draw.randint(0, 5)))
    elif kind == "note":
        note = page.locator("textarea[name=note]")
        if not note.is_visible():
            page.locator("details.about summary").click()
        note.press_sequentially(draw.choice(["a", "é", "字", " x"]))
        page.locator("article:visible").first.focus()
    elif kind == "next":
        task.press("Control+Enter")
    elif kind == "step":
        task.page.get_by_role("button", name=draw.choice(["Rate", "Rank"]), exact=True).click()
    else:
        keys = {"up": draw.choice(["Shift+ArrowUp", "Shift+ArrowDown"]), "tie": "=", "split": "-",
                "clear": "0", "undo": "z", "redo": "Shift+Z"}  # fmt: skip
        task.press(keys[kind])
    return kind


@pytest.mark.parametrize("seed", range(WALKS))
def test_a_reload_after_every_action_changes_nothing(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], seed: int
) -> None:
    served = serve([ranking_set("s0", 5)])
    task = Task(join(new_context(), served.labeler))
    draw = random.Random(seed)
    done: list[str] = []
    for _ in range(STEPS):
        done.append(act(task, draw))
        before = task.ui()
        task.reload()
        assert task.ui() == before, done
    assert len(set(done)) >= 8  # the walk was one


def test_text_typed_just_before_the_browser_is_killed_is_there_again(
    serve: Callable[..., Served], killable: Callable[[], Killable], watch: Watch
) -> None:
    watch.allow("Failed to load resource: net::ERR_CONNECTION")
    served = serve([Prompt(id="p0", text="Tell a story.")])
    first = killable()
    task = Task(join(first.context, served.labeler))
    served.kill()  # so that only the browser's own disk can have it
    task.page.locator("#reply").press_sequentially("Once upon a time")
    time.sleep(0.2)
    first.kill()
    served.start()
    # Chromium writes cookies every half minute, so this one is lost: the new link is for the same
    # labeler, and the journal is theirs.
    task = Task(join(killable().context, served.labeler))
    assert task.page.locator("#reply").input_value() == "Once upon a time"
    task.wait_saved()
    assert served.assignment(task.assignment).draft["payload"]["text"] == "Once upon a time"


def test_the_server_has_text_200_ms_later_too(
    serve: Callable[..., Served], killable: Callable[[], Killable]
) -> None:
    served = serve([Prompt(id="p0", text="Tell a story.")])
    first = killable()
    task = Task(join(first.context, served.labeler))
    assignment = task.assignment
    task.page.locator("#reply").press_sequentially("Once upon a time", delay=20)
    time.sleep(0.2)
    first.kill()
    assert served.assignment(assignment).draft["payload"]["text"] == "Once upon a time"


def test_a_server_killed_at_random_points_of_100_submits_loses_and_doubles_none(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.allow("Failed to load resource")
    served = serve(sets_of(100, k=3), *NO_RATE)
    context = new_context()
    robot.hurry(context)
    task = Task(join(context, served.labeler))
    acknowledged: list[str] = []
    task.page.on(
        "response",
        lambda r: (
            acknowledged.append(r.url.split("/")[-2])
            if r.url.endswith("/submit") and r.status == 201
            else None
        ),
    )
    draw = random.Random(7)
    robot.start(task.page)
    for kill_at in sorted(draw.sample(range(3, 90), 6)):
        task.page.wait_for_function(
            "(n) => robot.answered.length >= n || !robot.running", arg=kill_at, timeout=60_000
        )
        time.sleep(draw.random() * 0.05)
        served.kill()
        served.start()
    answered = robot.finish(task.page)
    task.wait_saved()
    stored = served.answers()
    assert len(answered) == len(stored) == 100
    assert Counter(a.assignment_id for a in stored) == Counter(id_ for id_, _ in answered)
    assert set(acknowledged) <= {a.assignment_id for a in stored}
    assert {a.assignment_id: a.payload["bins"] for a in stored} == dict(answered)


def test_three_items_finished_offline_arrive_in_order(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.allow("Failed to load resource")
    served = serve(sets_of(5), *NO_RATE)
    context = new_context()
    task = Task(join(context, served.labeler))
    task.wait_saved()
    context.set_offline(True)
    shown = {}
    for digits in ("1234", "2211", "4321"):
        task.rank(digits)
        bins = task.bins()
        shown[task.submit()] = bins
    assert task.state == "empty"
    task.wait_saved("offline")
    assert served.answers() == []
    context.set_offline(False)
    task.wait("rank")  # goes on by itself
    task.wait_saved()
    stored = served.answers()
    assert [a.assignment_id for a in stored] == list(shown)
    assert [ranked(a.payload["bins"]) for a in stored] == list(shown.values())


def test_work_in_progress_offline_survives_closing_the_tab(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.allow("Failed to load resource")
    served = serve(sets_of(3), *NO_RATE)
    context = new_context()
    task = Task(join(context, served.labeler))
    context.set_offline(True)
    first = task.submit_ranked("1234")
    task.rank("21")
    second = task.ui()
    task.page.close()
    context.set_offline(False)
    task = Task(_new_tab(context, served))
    assert task.ui() == second
    task.wait_saved()
    assert [a.assignment_id for a in served.answers()] == [first]


def _new_tab(context: BrowserContext, served: Served) -> Page:
    page = context.new_page()
    page.goto(f"{served.url}/")
    return page


@BOTH
def test_however_often_it_is_sent_an_answer_counts_once(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], watch: Watch
) -> None:
    watch.allow("Failed to load resource")
    served = serve(sets_of(4), *NO_RATE)
    context = new_context()
    task = Task(join(context, served.labeler))
    submits: list[Request] = []
    context.on("request", lambda r: submits.append(r) if r.url.endswith("/submit") else None)

    task.rank("1234")  # a double click
    task.settle()
    first = task.assignment
    task.page.locator("#submit").dblclick()
    task.wait(not_=first)

    task.rank("2134")  # Enter held down on the button
    task.settle()
    second = task.assignment
    task.page.locator("#submit").focus()
    for _ in range(5):
        task.page.keyboard.down("Enter")
    task.page.keyboard.up("Enter")
    task.wait(not_=second)

    third = task.submit_ranked("3214")  # then back, and forward to what was there
    task.page.go_back()
    task.page.go_forward()
    task.wait()
    assert task.assignment != third
    task.wait_saved()

    replayed = [_replay(task.page, request) for request in list(submits)]
    assert {status for status, _ in replayed} == {201}
    stored = served.answers()
    assert [a.assignment_id for a in stored] == [first, second, third]
    assert {body["annotation_id"] for _, body in replayed} == {a.id for a in stored}


def _replay(page: Page, request: Request) -> tuple[int, dict[str, str]]:
    """The same request once more, as a proxy that got no answer would send it."""
    return tuple(
        page.evaluate(
            """async ([url, headers, body]) => {
                 const reply = await fetch(url, { method: "POST", headers, body });
                 return [reply.status, await reply.json()]; }""",
            [
                request.url,
                {
                    name: request.headers[name]
                    for name in ("content-type", "x-csrf-token", "idempotency-key")
                },
                request.post_data,
            ],
        )
    )
