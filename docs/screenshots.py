"""The pictures of docs/labeling.md, taken in a real Chromium from a real server.

    python docs/screenshots.py        # needs the dev packages and Chromium

The texts are made up for the purpose; the people on the quality page are simulated.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tercet.label.store import Store  # noqa: E402
from tercet.records import CandidateSet, Prompt, read_records  # noqa: E402
from tests.browser.harness import Served  # noqa: E402
from tests.label.crowd import crowd  # noqa: E402

IMAGES = ROOT / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]

EXAMPLES = {s.id: s for s in read_records(ROOT / "examples" / "candidates.jsonl", CandidateSet)}
REPLIES = [candidate.text for candidate in EXAMPLES["bread"].candidates]
JUDGED = ("7", "3q", "6", "1qp", "1qep")
"""Keys that rate each of them: the rating, and questions that are answered with yes."""
RANKED = {0: "1", 2: "1", 1: "2"}


def page_of(
    browser: Browser, link: str, width: int = 1280, height: int = 800, dark: bool = False
) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
    )
    page = context.new_page()
    page.goto(link)
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/" if "admin" not in page.url else "**/admin")
    return page


def begin(page: Page) -> None:
    page.get_by_role("link", name="Start", exact=True).first.click()
    page.wait_for_selector("body[data-assignment]")
    page.wait_for_selector("body:not([data-state=loading])")


def shown(page: Page, letter: str) -> int:
    """Which of the replies has this letter: the order is drawn for each labeler."""
    text = page.locator(f"article[data-letter={letter}]").inner_text()
    return next(n for n, reply in enumerate(REPLIES) if reply[:30] in text)


def save(page: Page, name: str) -> None:
    page.wait_for_timeout(400)  # transitions and the indicator of what is saved
    page.screenshot(path=IMAGES / f"label-{name}.png")
    print(f"docs/images/label-{name}.png")


def ranking(browser: Browser, folder: Path) -> None:
    with Served(folder, [EXAMPLES["bread"]]) as served:
        page = page_of(browser, served.labeler)
        save(page, "home")
        begin(page)
        for letter in "ABCDE":
            reply = shown(page, letter)
            for key in JUDGED[reply]:
                page.keyboard.press(key)
            if reply == 1:
                save(page, "rate")
            page.keyboard.press("Control+Enter")
        page.wait_for_selector("body[data-state=rank]")
        for letter in "ABCDE":
            if rank := RANKED.get(shown(page, letter)):
                page.keyboard.press(letter.lower())
                page.keyboard.press(rank)
        save(page, "rank")
        context = page.context
        narrow = context.new_page()
        narrow.set_viewport_size({"width": 360, "height": 740})
        narrow.goto(page.url)
        narrow.wait_for_selector("body[data-state=rank]")
        narrow.emulate_media(color_scheme="dark")
        save(narrow, "narrow")


def comparing(browser: Browser, folder: Path) -> None:
    with Served(folder, [EXAMPLES["train"]], "--no-rate") as served:
        page = page_of(browser, served.labeler)
        begin(page)
        letters = {
            page.inner_text(f"article[data-letter={letter}]")[:400]: letter for letter in "ABC"
        }
        first = next(letter for text, letter in letters.items() if "9:40" in text)
        page.keyboard.press(first.lower())
        page.keyboard.press("v")
        page.wait_for_selector("dialog[open]")
        other = next(letter for text, letter in letters.items() if "9:14" in text)
        page.locator("dialog[open] select").nth(1).select_option(label=f"Reply {other}")
        save(page, "compare")


def writing(browser: Browser, folder: Path) -> None:
    prompt = Prompt(
        id="haiku",
        text="Write a haiku about a library at closing time.",
        tags=("generation",),
    )
    with Served(folder, [prompt]) as served:
        page = page_of(browser, served.labeler)
        begin(page)
        page.fill("textarea#reply", "Lamps go out in rows.\nBetween two pages, someone\nkeeps a")
        save(page, "write")


def quality(browser: Browser, folder: Path) -> None:
    with Store.open(folder / "candidates.sqlite") as store:  # the one that `serve` will open
        crowd(store, labelers=12, items=400, answers=900, k=5)
    with Served(folder, [EXAMPLES["bread"]], "--project", "Bread") as served:
        page = page_of(browser, served.admin, 1280, 1500)
        href = page.get_by_role("link", name="Quality").last.get_attribute("href")
        page.goto(f"{served.url}{href}")
        save(page, "quality")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for take in (ranking, comparing, writing, quality):
            if len(sys.argv) > 1 and take.__name__ not in sys.argv[1:]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                take(browser, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
