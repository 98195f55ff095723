"""Check 21: long, foreign and strange texts break no layout, and all of each can be read."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page

from tercet.label import tables
from tests.browser.live import Live, set_of
from tests.browser.pages import Task

pytestmark = pytest.mark.browser

WORDS = "The quick brown fox jumps over the lazy dog, and then it goes home. "
TEXTS = {
    "12,000 characters": (WORDS * 200)[:12_000],
    "one word of 12,000": "x" * 12_000,
    "a line of 200 KB": "lorem ipsum " * 17_067,
    "Arabic and Hebrew": "مرحبا بالعالم، هذا نص عربي طويل. שלום עולם, זה טקסט בעברית. " * 20,
    "both directions": "The word שלום (shalom) and the number 42 in العربية stay in order. " * 10,
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🤷🏾‍♀️ " * 30,
    "code": "def f(x):\n\treturn {\n\t\t'a': [1, 2, 3],\n\t}\n" + "y = " + "f(" * 300 + ")" * 300,
    "control characters": "\x1b[31mred\x1b[0m\tbell\x07 back\x08\u202eflipped\u202c\u200b\ufeff",
    "blank lines": "\n\n\nfirst\n\n\n\n\nlast   \n\n  ",
}
OVERFLOW = """() => {
  const root = document.scrollingElement;
  const wide = [...document.querySelectorAll("body *")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !node.closest(".hidden, .skip");
  });
  return { page: root.scrollWidth - root.clientWidth,
    wide: wide.slice(0, 3).map((node) => node.outerHTML.slice(0, 120)) };
}"""
# Can the end of the text be brought into view?
REACHED = """(node) => {
  const range = document.createRange();
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  let last = null;
  while (walker.nextNode()) if (walker.currentNode.data.trim()) last = walker.currentNode;
  const end = last.data.trimEnd().length;
  range.setStart(last, Math.max(0, end - 3));
  range.setEnd(last, end);
  const at = () => range.getBoundingClientRect();
  scrollBy(0, at().top - innerHeight / 2);
  for (let box = node; box; box = box.parentElement) {
    if (getComputedStyle(box).overflowY === "auto") box.scrollTop = box.scrollHeight;
  }
  scrollBy(0, at().top - innerHeight / 2);
  const { left, right, top, bottom } = at();
  return left >= -1 && right <= innerWidth + 1 && top >= 0 && bottom <= innerHeight;
}"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture(scope="module")
def project(live: Live) -> str:
    sets = [set_of("texts", "\n".join(TEXTS.values())[:60_000], list(TEXTS.values()))]
    return live.add("Texts", sets=sets)


@pytest.fixture
def task(live: Live, project: str, new_context: Callable[..., BrowserContext]) -> Task:
    """Each test's labeler is the same one, at the rank step."""
    task = live.task(new_context(), live.account("ann"), project)
    task.to_rank()
    return task


def by_id(live: Live) -> dict[str, str]:
    return {row.id: row.text for row in live.rows(tables.candidate)}


def fits(page: Page) -> None:
    found = page.evaluate(OVERFLOW)
    assert found == {"page": 0, "wide": []}


def test_every_text_is_shown_whole(task: Task, live: Live) -> None:
    texts = by_id(live)
    shown = task.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("article")].map((card) =>
             [card.dataset.reply, card.querySelector(".text").textContent]))"""
    )
    assert len(shown) == len(TEXTS)
    assert {id_ for id_, text in shown.items() if text != texts[id_]} == set()


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_no_text_makes_the_page_wider(task: Task, width: int) -> None:
    page = task.page
    page.set_viewport_size({"width": width, "height": 800})
    fits(page)
    page.get_by_role("button", name="Rate", exact=True).click()
    for step in page.locator(".step").all():
        step.click()
        fits(page)


def test_the_end_of_every_text_can_be_reached(task: Task) -> None:
    page = task.page
    for letter in task.letters():
        text = task.card(letter).locator(".text")
        assert text.evaluate(REACHED), text.text_content()[:40]
    assert page.locator(".prompt-text").evaluate(REACHED)


def test_the_markdown_view_and_the_comparison_fit_too(task: Task) -> None:
    page = task.page
    task.press("m")
    page.wait_for_selector("article .rich")
    fits(page)
    task.press("m", "v")
    page.wait_for_selector("#compare[open]")
    fits(page)
    left = page.locator("#compare select").first
    for letter in "ABCDEFGHI":
        left.select_option(letter)
        fits(page)


def test_directions_follow_each_text(task: Task, live: Live) -> None:
    texts = by_id(live)
    for letter, reply in task.letters().items():
        card = task.card(letter).locator(".text")
        hebrew = texts[reply].startswith("مرحبا")
        assert card.evaluate("(n) => getComputedStyle(n).direction") == ("rtl" if hebrew else "ltr")


def test_invisible_characters_have_visible_marks(task: Task, live: Live) -> None:
    texts = by_id(live)
    (reply,) = (id_ for id_ in task.letters().values() if texts[id_].startswith("\x1b"))
    marks = task.page.locator(f"article[data-reply='{reply}'] .mark")
    codes = [mark.get_attribute("data-code") for mark in marks.all()]
    assert codes == ["U+001B", "U+001B", "U+0007", "U+0008", "U+202E", "U+202C", "U+200B", "U+FEFF"]
    drawn = marks.first.evaluate("(n) => getComputedStyle(n, '::before').content")
    assert "001B" in drawn or "attr" in drawn


def test_emoji_get_no_marks(task: Task, live: Live) -> None:
    texts = by_id(live)
    (reply,) = (id_ for id_ in task.letters().values() if texts[id_].startswith("👩"))
    assert task.page.locator(f"article[data-reply='{reply}'] .mark").count() == 0
