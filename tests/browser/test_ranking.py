"""Acceptance 1 to 4: what is stored is what was shown, by keys, by buttons, by dragging."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tercet.label import tables
from tercet.records import Prompt
from tests.browser.conftest import BOTH
from tests.browser.harness import Served, ranking_set
from tests.browser.pages import Task, join, ranked

pytestmark = pytest.mark.browser

# Nine replies in letter order: B and C tie, and E with F and G.
DIGITS = "122344567"
SHOWN = ["A", "BC", "D", "EF", "G", "H", "I"]


def as_ids(task: Task, bins: list[str]) -> list[list[str]]:
    ids = task.letters()
    return ranked([[ids[letter] for letter in bin_] for bin_ in bins])


@BOTH
def test_from_the_invite_to_the_rows_for_every_k(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext]
) -> None:
    served = serve([ranking_set(f"k{k}", k) for k in range(4, 10)], "--no-ask-prompt-flags")
    task = Task(join(new_context(), served.labeler))
    expected: dict[str, dict[str, Any]] = {}
    for number in range(6):
        assignment = task.wait("rate")
        letters = task.letters()
        texts = task.texts()
        for place in range(len(letters)):
            task.press(str(place % 7 + 1), "q", "Shift+W", "Control+Enter")
        task.wait("rank")
        # Ties the last reply with the first: 2 3 4 ... 2
        task.press(*[str(n) for n in range(2, len(letters) + 1)], "2")
        bins = task.bins()
        task.submit()
        expected[assignment] = {"letters": letters, "texts": texts, "bins": bins}
        assert sum(map(len, bins)) == len(letters) and len(bins) == len(letters) - 1, number
    task.wait("empty")
    task.wait_saved()

    answers = served.answers()
    candidates = {row.id: row for row in served.rows(tables.candidate)}
    assert [answer.assignment_id for answer in answers] == list(expected)
    for answer in answers:
        shown = expected[answer.assignment_id]
        ids = list(shown["letters"].values())
        assert answer.display_order == ids
        assert {id_: candidates[id_].text for id_ in ids} == shown["texts"]
        assert ranked(answer.payload["bins"]) == shown["bins"]
        assert answer.payload["ratings"] == {id_: n % 7 + 1 for n, id_ in enumerate(ids)}
        flags = answer.payload["flags"][ids[0]]
        assert (flags["fails_task"], flags["inappropriate"]) == (True, False)
        assert flags["sexual_content"] is None
        assert (answer.state, answer.revision) == ("done", 1)
    assert sorted(len(a.display_order) for a in answers) == [4, 5, 6, 7, 8, 9]


@BOTH
def test_a_demonstration_is_stored_as_it_was_written(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext]
) -> None:
    served = serve([Prompt(id="p0", text="Say hello."), Prompt(id="p1", text="")])
    task = Task(join(new_context(), served.labeler))
    written = {}
    for _ in range(2):
        task.wait("write")
        text = 'Hello, שלום 👋🏽\n\n  two spaces, "quotes" <b>&amp;'
        task.write(text)
        open_prompt = task.page.locator("#open-prompt")
        prompt = "A prompt of my own" if open_prompt.count() else None
        if prompt:
            open_prompt.fill(prompt)
        written[task.submit()] = {"text": text, **({"prompt": prompt} if prompt else {})}
    task.wait("empty")
    task.wait_saved()
    stored = {a.assignment_id: a.payload for a in served.answers()}
    assert {
        id_: {name: payload[name] for name in ("text", "prompt") if name in payload}
        for id_, payload in stored.items()
    } == written


def ranking_page(
    serve: Callable[..., Served], context: BrowserContext, k: int = 9
) -> tuple[Served, Task]:
    served = serve([ranking_set("s0", k)], "--no-rate", "--no-ask-prompt-flags")
    task = Task(join(context, served.labeler))
    task.wait("rank")
    return served, task


def test_nine_replies_with_two_ties_take_ten_keys(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext]
) -> None:
    served, task = ranking_page(serve, new_context())
    wanted = as_ids(task, SHOWN)
    task.settle()
    keys = [*DIGITS, "Control+Enter"]
    assert len(keys) == 10
    task.press(*keys)
    task.wait("empty")
    task.wait_saved()
    (answer,) = served.answers()
    assert ranked(answer.payload["bins"]) == wanted


def test_the_select_and_the_buttons_rank_without_dragging(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext]
) -> None:
    served, task = ranking_page(serve, new_context())
    wanted = as_ids(task, SHOWN)
    for letter, digit in zip("ABCDEFGHI", DIGITS, strict=True):
        select = task.card(letter).locator("select[data-role=rank]")
        # One rank too low for G, and the Up button mends it; Down mends D.
        off = {"G": 1, "D": -1}.get(letter, 0)
        select.select_option(str(int(digit) + off))
    task.card("G").locator("button[data-role=up]").click()
    task.card("D").locator("button[data-role=down]").click()
    assert task.bins() == wanted
    task.settle()
    task.page.locator("#submit").click()
    task.wait("empty")
    task.wait_saved()
    (answer,) = served.answers()
    assert ranked(answer.payload["bins"]) == wanted


def centre(task: Task, letter: str, rank: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """From the drag handle of a reply to the middle of a bin, both on the screen."""
    target = task.bin(rank)
    target.scroll_into_view_if_needed()
    handle = task.card(letter).locator("[data-role=drag]")
    box, bin_ = handle.bounding_box(), target.bounding_box()
    assert box and bin_
    return (
        (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2),
        (bin_["x"] + bin_["width"] / 2, bin_["y"] + bin_["height"] / 2),
    )


def drag_with_mouse(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=6)
    page.mouse.up()


def drag_with_touch(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        session.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )

    touch("touchStart", start)
    for step in range(1, 7):
        x, y = (a + (b - a) * step / 6 for a, b in zip(start, end, strict=True))
        touch("touchMove", (x, y))
    touch("touchEnd")
    session.detach()


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_dragging_gives_the_same_bins(
    serve: Callable[..., Served], new_context: Callable[..., BrowserContext], touch: bool
) -> None:
    context = new_context(viewport={"width": 1300, "height": 2400}, has_touch=touch)
    served, task = ranking_page(serve, context)
    wanted = as_ids(task, SHOWN)
    move = drag_with_touch if touch else drag_with_mouse
    for letter, digit in zip("ABCDEFGHI", DIGITS, strict=True):
        move(task.page, *centre(task, letter, int(digit)))
    assert task.bins() == wanted
    task.submit()
    task.wait_saved()
    (answer,) = served.answers()
    assert ranked(answer.payload["bins"]) == wanted
