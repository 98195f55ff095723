"""The labeling page as a person meets it: joining, rating, ranking, submitting."""

from collections.abc import Sequence
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, expect


def join(context: BrowserContext, link: str) -> Page:
    """Opens an invite link and presses Start."""
    page = context.new_page()
    page.goto(link)
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/")
    return page


class Task:
    """A task page; `Task(join(context, link))` opens the labeler's first project from home."""

    def __init__(self, page: Page, project: str | None = None) -> None:
        self.page = page
        if project:
            page.goto(f"{_origin(page)}/task/{project}")
        else:
            page.locator("a[href^='/task/']").first.click()
        self.wait()

    # What it shows

    @property
    def state(self) -> str:
        """ "loading", "rate", "rank", "compare", "write" or "empty"."""
        return self.page.evaluate("() => document.body.dataset.state ?? 'loading'")

    @property
    def assignment(self) -> str:
        return self.page.evaluate("() => document.body.dataset.assignment ?? ''")

    def ui(self) -> Any:
        """All that the labeler did here."""
        return self.page.evaluate("() => window.tercet.state()")

    def wait(self, state: str = "", not_: str = "") -> str:
        """Waits for a state (any: ""), and for another assignment than `not_`; returns its id."""
        self.page.wait_for_function(
            """([state, not]) => {
               const { state: now, assignment = "" } = document.body?.dataset ?? {};
               return window.tercet && (state ? now === state : now && now !== "loading")
                 && (!not || assignment !== not); }""",
            arg=[state, not_],
        )
        self.seen_at = self.page.evaluate("() => performance.now()")
        return self.assignment

    def reload(self) -> None:
        self.page.reload()
        self.wait()

    def wait_saved(self, state: str = "saved") -> None:
        """Waits until the server has everything."""
        self.page.locator(f"#save[data-state={state}]").wait_for()

    def letters(self) -> dict[str, str]:
        """Letter -> reply id."""
        return self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll("article[data-reply]")]
                 .map((card) => [card.dataset.letter, card.dataset.reply]).sort())"""
        )

    def texts(self) -> dict[str, str]:
        """Reply id -> the text on the screen."""
        return self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll("article[data-reply]")]
                 .map((card) => [card.dataset.reply, card.lastElementChild.textContent]))"""
        )

    def bins(self) -> list[list[str]]:
        """The ranking on the screen, as reply ids; sorted inside a tie."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("[data-rank]:not([data-rank='0'])")]
                 .sort((a, b) => a.dataset.rank - b.dataset.rank)
                 .map((bin) => [...bin.querySelectorAll("article")]
                   .map((card) => card.dataset.reply).sort())
                 .filter((bin) => bin.length)"""
        )

    def card(self, letter: str) -> Locator:
        return self.page.locator(f"article[data-letter={letter}]")

    def bin(self, rank: int) -> Locator:
        return self.page.locator(f"[data-rank='{rank}']")

    # What a person does

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def to_rank(self) -> None:
        """From the rate step, without rating anything."""
        if self.state == "rate":
            self.page.get_by_role("button", name="Rank", exact=True).click()
        self.wait("rank")

    def rank(self, digits: str) -> None:
        """One key for each reply in the order of the letters."""
        self.to_rank()
        self.press(*digits)

    def submit_ranked(self, digits: str) -> str:
        self.rank(digits)
        return self.submit()

    def submit(self, wait: bool = True) -> str:
        """Ctrl+Enter; returns the id of the answered assignment."""
        before = self.assignment
        self.settle()
        self.press("Control+Enter")
        if wait:
            self.wait(not_=before)
        return before

    def settle(self) -> None:
        """The page takes no submit in the first 0.4 s of an item: a second click is of the last."""
        self.page.wait_for_function("(t) => performance.now() - t > 420", arg=self.seen_at)

    def write(self, text: str) -> None:
        self.page.locator("#reply").fill(text)


def ranked(bins: Sequence[Sequence[str]]) -> list[list[str]]:
    """Bins with ties in one order, to compare."""
    return [sorted(bin_) for bin_ in bins]


def expect_notice(page: Page, text: str) -> None:
    expect(page.locator(".notice", has_text=text).first).to_be_visible()


def _origin(page: Page) -> str:
    return page.evaluate("() => location.origin")
