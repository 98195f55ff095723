"""Check 18: axe on every screen, in both colour schemes, wide and narrow; and what axe cannot see:
the order of the focus, what is said aloud, zoom, motion, forced colours."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tercet.label import tables
from tercet.records import Prompt
from tests.browser.harness import sets_of
from tests.browser.live import Account, Live, in_order
from tests.browser.pages import Task

pytestmark = pytest.mark.browser

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDTHS = (1280, 320)
RUN = """async ([tags, rules]) => {
  const only = rules ? { type: "rule", values: rules } : { type: "tag", values: tags };
  const { violations } = await axe.run(document, { runOnly: only, resultTypes: ["violations"] });
  return violations.filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => node.target).join(", ")}`);
}"""
WIDER = """() => {
  const root = document.scrollingElement;
  return root.scrollWidth - root.clientWidth;
}"""
MOVES = """() => [...document.querySelectorAll("*")].filter((node) => {
  const { transitionDuration, animationDuration, animationName } = getComputedStyle(node);
  const long = (times) => times.split(",").some((time) => parseFloat(time) > 0.01);
  return long(transitionDuration) || (animationName !== "none" && long(animationDuration));
}).map((node) => node.outerHTML.slice(0, 80))"""


class Site:
    """A store with one project of each kind, people, and an answer."""

    def __init__(self, live: Live) -> None:
        self.live = live
        guidelines = "# How\n\nRead *all* of it.\n\n1. First\n2. Then\n\n```\ncode\n```\n\n> Quote"
        self.rank = live.add(
            "Rank replies well",
            sets=sets_of(6, 4),
            tags={"prompt-s0": ["brainstorming"]},
            guidelines=guidelines,
            criterion="Which is the most helpful?",
        )
        again = {"overlap_share": 1, "overlap_need": 100, "ahead": 0}
        self.fresh = live.add("For everybody", sets=sets_of(1, 4), **again)
        self.people = itertools.count()
        self.pair = live.add("Compare two", "evaluate", sets=sets_of(1, 2), strength=True)
        prompts = [Prompt(id="p", text="Why is it so?"), Prompt(id="open", text="")]
        self.write = live.add("Write replies", "demonstration", prompts=prompts)
        self.empty = live.add("Nothing here")
        self.ann = live.account("ann")
        self.admin = live.account("boss", "admin")
        answered = live.next(self.ann, self.rank)[0]
        live.submit(self.ann, answered["id"], in_order(answered, note="a note"))
        self.answered = answered["id"]
        self.item = live.assignment(self.answered).item_id

    def start(self, context: BrowserContext) -> Task:
        """The rate step of somebody new."""
        return self.live.task(context, self.live.account(f"new {next(self.people)}"), self.fresh)

    def read_guidelines(self) -> None:
        body = f"csrf={self.ann.csrf}&version=1".encode()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        path = f"/guidelines/{self.rank}/read"
        assert self.live.call(self.ann, "POST", path, body, form).status == 303


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Live(tmp_path_factory.mktemp("live")) as live:
        site = Site(live)
        site.read_guidelines()
        yield site


@pytest.fixture(scope="module")
def pages(browser: Browser, site: Site) -> Iterator[dict[str, Page]]:
    """A page of the labeler, the admin and nobody. The policy is off, for axe alone; so is motion,
    as colours that are on their way have no contrast to measure."""
    contexts = [browser.new_context(bypass_csp=True, reduced_motion="reduce") for _ in range(3)]
    for context in contexts:
        context.set_default_timeout(10_000)
        context.add_init_script(AXE)
    people: dict[str, Account | None] = {"labeler": site.ann, "admin": site.admin, "nobody": None}
    yield {
        who: site.live.page(context, account, "/join") if account else context.new_page()
        for (who, account), context in zip(people.items(), contexts, strict=True)
    }
    for context in contexts:
        context.close()


def rating(site: Site, page: Page) -> None:
    Task(page, site.rank).wait("rate")
    page.locator(".about summary").click()


def ranking(site: Site, page: Page) -> None:
    task = Task(page, site.rank)
    task.to_rank()
    task.press("a", "1", "b", "1", "c", "0", "d", "0")


def comparing(site: Site, page: Page) -> None:
    ranking(site, page)
    page.keyboard.press("v")
    page.wait_for_selector("#compare[open]")


def rich(site: Site, page: Page) -> None:
    Task(page, site.rank).to_rank()
    page.keyboard.press("m")
    page.wait_for_selector("article .rich")


def complaining(site: Site, page: Page) -> None:
    ranking(site, page)
    Task(page, site.rank).submit(wait=False)
    page.wait_for_selector(".notice.bad")


def pairing(site: Site, page: Page) -> None:
    task = Task(page, site.pair)
    page.get_by_role("button", name="Compare", exact=True).click()
    task.wait("compare")
    task.press("1")


def writing(site: Site, page: Page) -> None:
    Task(page, site.write).write("Because.")


def helping(site: Site, page: Page) -> None:
    Task(page, site.rank)
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")


def skipping(site: Site, page: Page) -> None:
    Task(page, site.rank)
    page.keyboard.press("s")
    page.wait_for_selector("#skip[open]")


def conflicting(site: Site, page: Page) -> None:
    task = Task(page, site.write)
    task.write("mine")
    task.wait_saved()
    path = f"/api/assignments/{task.assignment}"
    rev = site.live.call(site.ann, "GET", path).json["rev"]
    draft = {"payload": {"text": "theirs"}, "ui": {}, "undo": [], "stamp": {"page": "x", "n": rev}}
    body = {"draft": draft, "active_ms": 0}
    answer = site.live.call(site.ann, "PUT", f"{path}/draft", body, {"If-Match": str(rev)})
    assert answer.status == 200
    task.write("mine again")
    page.wait_for_selector("#conflict[open]")


def nothing(site: Site, page: Page) -> None:
    assert Task(page, site.empty).state == "empty"


def at(path: str) -> Callable[[Site, Page], None]:
    def go(site: Site, page: Page) -> None:
        page.goto(site.live.url + path.format(**vars(site)))
        if path.startswith("/amend"):
            page.wait_for_selector("article")

    return go


SCREENS: dict[str, tuple[str, Callable[[Site, Page], None]]] = {
    "join": ("nobody", at("/join")),
    "join with a link": ("nobody", at("/join#token")),
    "home": ("labeler", at("/")),
    "guidelines": ("labeler", at("/guidelines/{rank}")),
    "rate": ("labeler", rating),
    "rank": ("labeler", ranking),
    "markdown": ("labeler", rich),
    "not complete": ("labeler", complaining),
    "compare": ("labeler", comparing),
    "pair": ("labeler", pairing),
    "write": ("labeler", writing),
    "help": ("labeler", helping),
    "skip": ("labeler", skipping),
    "conflict": ("labeler", conflicting),
    "empty": ("labeler", nothing),
    "history": ("labeler", at("/history")),
    "amend": ("labeler", at("/amend/{answered}")),
    "not found": ("labeler", at("/task/nowhere")),
    "admin": ("admin", at("/admin")),
    "people": ("admin", at("/admin/people")),
    "project": ("admin", at("/admin/projects/{rank}")),
    "quality": ("admin", at("/admin/projects/{rank}/quality")),
    "item": ("admin", at("/admin/items/{item}")),
    "verify": ("admin", at("/admin/verify")),
}


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing_serious(site: Site, pages: dict[str, Page], screen: str) -> None:
    who, show = SCREENS[screen]
    page = pages[who]
    page.set_viewport_size({"width": WIDTHS[0], "height": 800})
    show(site, page)
    found: list[str] = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(WIDER) <= 0, f"at {width} the page scrolls sideways"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            # Only colours differ between the two schemes.
            rules = None if scheme == "light" else ["color-contrast"]
            told = page.evaluate(RUN, [TAGS, rules])
            found += [f"{scheme}, {width}: {fault}" for fault in told]
    page.emulate_media(color_scheme="light")
    assert "\n".join(found) == ""


def test_axe_is_there_and_finds_faults(pages: dict[str, Page]) -> None:
    page = pages["nobody"]
    page.goto("about:blank")
    page.set_content('<img src="data:,"><p style="color:#999;background:#aaa">faint</p>')
    page.evaluate(AXE)
    told = page.evaluate(RUN, [TAGS, None])
    assert {fault.split(":")[0] for fault in told} >= {"image-alt", "color-contrast"}


@pytest.fixture
def task(site: Site, new_context: Callable[..., BrowserContext]) -> Task:
    return site.start(new_context())


FOCUSED = """() => {
  const node = document.activeElement, box = node.getBoundingClientRect();
  const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(node);
  const label = node.closest("label");
  const around = label ? getComputedStyle(label) : {};
  return {
    name: [node.localName, node.id || node.dataset.role || node.name || node.className,
      node.closest("article")?.dataset.letter].filter(Boolean).join(" "),
    top: box.top + scrollY, visible: box.width > 0 && box.height > 0,
    inside: box.bottom > 0 && box.top < innerHeight,
    drawn: outlineStyle !== "none" && parseFloat(outlineWidth) > 0 || boxShadow !== "none"
      || (around.outlineStyle ?? "none") !== "none" || (around.boxShadow ?? "none") !== "none"
      || [...node.parentElement.children].some((n) => getComputedStyle(n).outlineStyle !== "none"),
  };
}"""


def walk(page: Page, most: int = 150) -> list[dict[str, Any]]:
    """What Tab reaches, from the start of the page until it leaves it."""
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.locator("body").evaluate("(body) => { body.tabIndex = -1; body.focus(); }")
    stops: list[dict[str, Any]] = []
    while len(stops) < most:
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop["name"].startswith("body") or (stops and stop == stops[0]):
            return stops
        stops.append(stop)
    raise AssertionError(f"Tab never leaves the page: {[stop['name'] for stop in stops[-5:]]}")


def test_tab_goes_through_the_rank_step_in_reading_order(task: Task) -> None:
    task.to_rank()
    stops = walk(task.page)
    names = [stop["name"] for stop in stops]
    assert names[0].startswith("a skip")
    assert all(stop["visible"] and stop["inside"] for stop in stops)
    undrawn = [stop["name"] for stop in stops if not stop["drawn"]]
    assert undrawn == []
    for role in ("rank", "up", "down"):
        letters = [name[-1] for name in names if f" {role} " in f"{name} " and name[-1] in "ABCD"]
        assert letters == list("ABCD"), role
    prompt = next(i for i, name in enumerate(names) if "prompt-text" in name)
    first = next(i for i, name in enumerate(names) if name.endswith(" A"))
    assert prompt < first < names.index("button submit")


def test_tab_goes_through_the_rate_step(task: Task) -> None:
    names = [stop["name"] for stop in walk(task.page)]
    rating = next(i for i, name in enumerate(names) if name.startswith("input rating-"))
    flag = next(i for i, name in enumerate(names) if name.startswith("input flags."))
    note = next(i for i, name in enumerate(names) if name.startswith("textarea note-"))
    assert rating < flag < note < names.index("button next")


def test_a_dialog_keeps_the_focus_and_gives_it_back(task: Task) -> None:
    task.to_rank()
    page = task.page
    task.press("b", "v")
    page.wait_for_selector("#compare[open]")
    for _ in range(12):
        task.press("Tab")
        held = "() => document.activeElement === document.body || "
        held += "Boolean(document.activeElement.closest('#compare'))"
        assert page.evaluate(held)
    task.press("Escape")
    page.wait_for_selector("#compare", state="detached")
    assert page.evaluate("() => document.activeElement.dataset.letter") == "B"


def test_every_move_is_said_in_full(task: Task) -> None:
    task.to_rank()
    live = task.page.locator("#live")
    assert live.get_attribute("aria-live") == "polite"
    told = []
    for key in ("1", "1", "Shift+ArrowUp", "a", "Shift+ArrowDown", "z", "0"):
        task.press(key)
        told.append((live.text_content() or "").replace("\u00a0", ""))
    assert told[0] == "Reply A, rank 1; 3 unranked"
    assert told[1] == "Reply B, rank 1, tied with A; 2 unranked"
    assert told[2] == "Reply C, rank 2; 1 unranked"  # up from below: to the end of the ranking
    assert told[4] == "Reply A, rank 2, tied with C; 1 unranked"
    assert told[5].startswith("Undone; A = B > C")
    assert told[6] == "Reply A, unranked; 2 unranked"


def test_ratings_and_answers_are_said(task: Task) -> None:
    live = task.page.locator("#live")
    task.press("5")
    assert live.text_content() == "Reply A: 5 of 7"
    task.press("q")
    assert live.text_content() == "Fails to follow the correct instruction or task: yes"


def test_bins_and_cards_have_names(task: Task) -> None:
    task.rank("11")
    page = task.page
    assert page.get_by_role("group", name="Rank 1, 2 replies, tied").count() == 1
    assert page.get_by_role("group", name="Unranked, 2 replies").count() == 1
    assert page.get_by_role("article", name="Reply A").count() == 1
    assert page.get_by_role("combobox", name="Rank of reply A").count() == 1
    assert page.get_by_role("listbox").count() == 0


def test_single_keys_can_be_switched_off(task: Task) -> None:
    page = task.page
    task.press("?")
    page.locator("#help input[type=checkbox]").first.uncheck()
    page.get_by_role("button", name="Close").click()
    task.to_rank()
    task.press("1", "b", "2")
    assert task.bins() == []
    task.press("Shift+ArrowUp")
    assert len(task.bins()) == 1
    page.evaluate("() => localStorage.clear()")


# 1280 x 800 at 200 % is 640 x 400 with twice the pixels; at 400 % it is 320 x 200.
@pytest.mark.parametrize(("width", "height", "scale"), [(640, 400, 2), (320, 200, 4)])
def test_zoom_hides_nothing(
    site: Site,
    new_context: Callable[..., BrowserContext],
    width: int,
    height: int,
    scale: int,
) -> None:
    size = {"width": width, "height": height}
    task = site.start(new_context(viewport=size, device_scale_factor=scale))
    task.to_rank()
    page = task.page
    assert page.evaluate(WIDER) <= 0
    # All can be used with the pointer: each is scrolled into view, and nothing lies over it.
    for letter in "ABCD":
        task.card(letter).locator("select[data-role=rank]").select_option("1")
        task.card(letter).locator("button[data-role=down]").click(timeout=3000)
    assert sum(map(len, task.bins())) == 4
    task.settle()
    page.locator("#submit").click(trial=True, timeout=3000)
    for stop in walk(page):
        assert stop["inside"], stop


def test_who_wants_less_motion_gets_none(
    site: Site, new_context: Callable[..., BrowserContext]
) -> None:
    task = site.start(new_context(reduced_motion="reduce"))
    task.rank("12")
    assert task.page.evaluate(MOVES) == []


def test_forced_colours_keep_choices_and_focus_visible(
    site: Site, new_context: Callable[..., BrowserContext]
) -> None:
    task = site.start(new_context(forced_colors="active"))
    page = task.page
    chosen = page.locator(".scale label").nth(4)
    before = chosen.screenshot()
    task.press("5")
    assert chosen.screenshot() != before
    assert page.evaluate("() => matchMedia('(forced-colors: active)').matches")
    task.to_rank()
    assert [stop["name"] for stop in walk(page) if not stop["drawn"]] == []


def test_the_chosen_theme_wins_over_the_systems(
    site: Site, new_context: Callable[..., BrowserContext]
) -> None:
    page = site.live.page(new_context(color_scheme="light"), site.ann, "/")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="theme").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == dark


def test_the_name_of_the_page_and_its_language_are_set(site: Site, pages: dict[str, Page]) -> None:
    names = {}
    for path in ("/", "/history", f"/task/{site.rank}", f"/guidelines/{site.rank}"):
        pages["labeler"].goto(site.live.url + path)
        names[path] = pages["labeler"].title()
        assert pages["labeler"].locator("html").get_attribute("lang") == "en"
        assert pages["labeler"].locator("h1").count() == 1
    assert len(set(names.values())) == 4
    assert site.live.rows(tables.item)
