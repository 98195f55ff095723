"""Check 14: whatever people and models write stays text, on every screen.

One labeler and one admin tour all screens twice, in a store full of attacks and in one that holds
harmless texts in the same places. Nothing may open, load or break a policy; the screens must have
the same elements; every text must be on its screen letter by letter.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page
from sqlalchemy import Connection

from tercet import cli
from tercet.label import people, projects, tables
from tercet.label.schema import Flag, LabelSchema
from tercet.label.store import Store
from tercet.records import Candidate, CandidateSet, Prompt
from tests.browser.conftest import Watch
from tests.browser.live import Live, in_order
from tests.browser.pages import Task
from tests.browser.payloads import NAMES, PAYLOADS

pytestmark = pytest.mark.browser

K = 9
HARMLESS = tuple(f"harmless text {i}" for i in range(len(PAYLOADS)))

# How often each kind of element is there. Marks of invisible characters and of differing words
# depend on the text itself.
ELEMENTS = """() => {
  const counts = {};
  for (const node of document.querySelectorAll("*")) {
    if (node.matches(".mark, .pane-text ins, .pane-text del")) continue;
    const kind = [node.namespaceURI.split("/").pop(), node.localName,
      ...[...node.attributes].map((a) => a.name).sort()].join(" ");
    counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return counts;
}"""
TEXTS = """() => Object.fromEntries([...document.querySelectorAll("article")].map((card) =>
  [card.dataset.reply, card.querySelector(".text").textContent]))"""
RICH = """() => [...new Set([...document.querySelectorAll(".rich *")].map((node) =>
  `${node.localName} ${[...node.attributes].map((a) => a.name).sort().join(" ")}`.trim()))]"""
RICH_TAGS = {"p", "ul", "ol", "li", "blockquote", "code", "pre", "em", "strong", "br", "hr", "h2"}
RICH_TAGS |= {"span"}
RICH_ATTRIBUTES = {"class", "dir", "title", "data-code", "tabindex"}
PAIRS = """() => {
  const [left] = document.querySelectorAll("#compare select");
  const text = document.querySelector("#compare .pane-text");
  return Object.fromEntries([...left.options].map(({ value }) => {
    left.value = value;
    left.dispatchEvent(new Event("change"));
    const { reply } = document.querySelector(`article[data-letter=${value}]`).dataset;
    return [reply, text.textContent];
  }));
}"""


@dataclass
class Tour:
    """What was met: the sets of elements that a screen had, and texts that were not as given."""

    elements: dict[str, set[frozenset[tuple[str, int]]]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    rich: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    compared: int = 0

    def look(self, page: Page, screen: str) -> None:
        counts = page.evaluate(ELEMENTS)
        if "quality" in screen:  # its charts have a mark for each group of lengths
            counts = dict.fromkeys(counts, 1)
        found = frozenset(counts.items())
        self.elements.setdefault(screen, set()).add(found)

    def same(self, screen: str, got: Any, wanted: Any) -> None:
        self.compared += 1
        if got != wanted:
            self.wrong.append(f"{screen}: {got!r:.300} is not {wanted!r:.300}")

    def shows(self, page: Page, screen: str, texts: Sequence[str]) -> None:
        """Every text is somewhere on the page, as it is."""
        # An HTML file cannot hold a carriage return.
        whole = page.evaluate("() => document.documentElement.textContent").replace("\r\n", "\n")
        for text in texts:
            self.compared += 1
            if text.replace("\r\n", "\n") not in whole:
                self.wrong.append(f"{screen}: {text!r} is missing")


class World:
    """The store of one tour: `texts` wherever a text can be, `names` where it must be short."""

    def __init__(self, live: Live, texts: Sequence[str], names: Sequence[str]) -> None:
        self.live, self.texts, self.names = live, texts, names
        chunks = [texts[i : i + K] for i in range(0, len(texts), K)]
        chunks[-1] = (*chunks[-1], *(f"filler {i}" for i in range(K - len(chunks[-1]))))
        # Items of harmless texts are all alike.
        self.visits = len(chunks) if texts is PAYLOADS else 2
        self.sets = [self.candidate_set(i, chunk) for i, chunk in enumerate(chunks)]
        self.tags = tuple(texts[20:23])
        self.criterion = texts[0]
        self.rank = live.add(
            names[0],
            sets=self.sets,
            tags={set_.prompt_id: self.tags for set_ in self.sets},
            guidelines="\n\n".join(texts),
            criterion=self.criterion,
            schema=LabelSchema(
                rating_low=texts[1],
                rating_high=texts[2],
                reply_flags=tuple(_flags("r", names[10:20], "qwertyuop[")),
                prompt_flags=tuple(_flags("p", names[20:30], " " * 10)),
            ),
            amend_hours=24,
        )
        self.every = "\n".join(texts)
        self.write = live.add(names[1], "demonstration", prompts=[Prompt(id="p", text=self.every)])
        pair = self.candidate_set(0, texts[30:32])
        self.compare = live.add(names[2], "evaluate", sets=[pair], rate=False)
        self.ann = live.account(names[0])
        self.admin = live.account(names[1], "admin")
        live.write(self.fill)
        self.by_id: dict[str, str] = live.read(
            lambda conn: {row.id: row.text for row in conn.execute(tables.candidate.select())}
        )

    def fill(self, conn: Connection, now: int) -> None:
        """A project and a labeler of every name."""
        for name in self.names[3:]:
            projects.create(conn, now, name, "rank")
        for name in self.names[2:]:
            people.add_labeler(conn, now, name)

    def candidate_set(self, i: int, replies: Sequence[str]) -> CandidateSet:
        texts = self.texts
        return CandidateSet(
            id=f"{i} {texts[i]}",
            prompt_id=f"{i} {texts[i]} of {len(replies)}",
            prompt="\n".join(replies),
            candidates=tuple(
                Candidate(
                    id=f"{j} {texts[-1 - j]}",
                    text=text,
                    policy=texts[(K * i + j + 60) % len(texts)],
                    temperature=1,
                    seed=j,
                    finish="length",
                )
                for j, text in enumerate(replies)
            ),
        )

    def rows(self, table: Any, **where: Any) -> list[Any]:
        query = table.select().where(*(table.c[name] == value for name, value in where.items()))
        return self.live.rows(query)


def _flags(prefix: str, names: Sequence[str], keys: str) -> Iterator[Flag]:
    for i, name in enumerate(names):
        yield Flag(id=f"{prefix}{i}", label=name, help=name, key=keys[i].strip())


def _labeler(world: World, page: Page, tour: Tour) -> None:
    live, ann = world.live, world.ann
    page.goto(f"{live.url}/")
    tour.look(page, "home")
    tour.shows(page, "home", world.names)
    page.goto(f"{live.url}/task/{world.rank}")
    assert "/guidelines/" in page.url, "the guidelines come first"
    tour.shows(page, "guidelines", [world.names[0]])
    page.get_by_role("button", name="I have read").click()
    page.wait_for_url("**/task/**")
    for _ in range(world.visits):
        _item(world, Task(page, world.rank), tour)
    while left := live.next(ann, world.rank):
        for assignment in left:
            live.submit(ann, assignment["id"], in_order(assignment))
    tour.same("queue", Task(page, world.rank).state, "empty")
    tour.look(page, "empty")
    page.goto(f"{live.url}/history")
    tour.look(page, "history")
    tour.shows(page, "history", [world.names[0]])
    for cell in page.locator("td[dir=auto]").all_text_contents():
        whole = cell.strip().removesuffix("…").removesuffix("...").strip()
        tour.same("history", any(whole in set_.prompt for set_ in world.sets), True)
    done = min(world.rows(tables.assignment, labeler_id=ann.id), key=lambda row: row.id)
    page.goto(f"{live.url}/amend/{done.id}")
    page.wait_for_selector("article")
    tour.look(page, "amend")
    for i, (reply, text) in enumerate(zip(done.display_order, world.texts, strict=False)):
        page.locator(".step").nth(i).click()
        tour.same("amend", page.input_value(f"textarea[name='note-{reply}']"), text)
    for end in ("task", "guidelines", "amend", "admin/items"):
        for text in world.texts[3:60:8]:
            page.goto(f"{live.url}/{end}/{quote(text, safe='')}")
            tour.look(page, "not found")


def _item(world: World, task: Task, tour: Tour) -> None:
    """All views of one item; then it is answered, in the way of the page's script."""
    page, live = task.page, world.live
    shown = live.call(world.ann, "GET", f"/api/assignments/{task.assignment}").json
    tour.look(page, "rate")
    _texts(world, task, tour, "rate")
    tour.same("prompt", page.text_content(".prompt-text"), shown["prompt"]["text"])
    tour.shows(page, "rate", [world.criterion, *(tag.replace("_", " ") for tag in world.tags)])
    tour.shows(page, "rate", [*world.texts[1:3], *world.names[10:30]])
    task.to_rank()
    tour.look(page, "rank")
    _texts(world, task, tour, "rank")
    task.press("v")
    page.wait_for_selector("#compare[open]")
    tour.look(page, "compare")
    for reply, text in page.evaluate(PAIRS).items():
        tour.same("compare", text, world.by_id[reply])
    task.press("Escape")
    task.press("m")
    page.wait_for_selector("article .rich")
    tour.rich |= set(page.evaluate(RICH))
    replies = [reply["id"] for reply in shown["replies"]]
    notes = dict(zip(replies, world.texts, strict=False))
    payload = in_order(shown, notes=notes, note=world.texts[9])
    task.wait_saved()
    live.submit(world.ann, task.assignment, payload)


def _texts(world: World, task: Task, tour: Tour, screen: str) -> None:
    for reply, text in task.page.evaluate(TEXTS).items():
        tour.same(screen, text, world.by_id[reply])


def _other_kinds(world: World, page: Page, tour: Tour) -> None:
    live, ann = world.live, world.ann
    task = Task(page, world.write)
    task.write("mine")
    task.wait_saved()
    rev = live.call(ann, "GET", f"/api/assignments/{task.assignment}").json["rev"]
    other = {"payload": {"text": world.every, "note": world.texts[9]}, "ui": {}, "undo": []}
    stamp = {"page": "another", "n": 1}
    live.call(
        ann,
        "PUT",
        f"/api/assignments/{task.assignment}/draft",
        {"draft": {**other, "stamp": stamp}, "active_ms": 0},
        {"If-Match": str(rev)},
    )
    task.write("mine again")
    page.wait_for_selector("#conflict[open]")
    tour.look(page, "conflict")
    theirs = page.locator("#conflict .pane-text").last.text_content() or ""
    tour.same("conflict", theirs.endswith(f"Note: {world.texts[9]}\n{world.every}"), True)
    page.click("#use-theirs")
    task.wait("write")
    tour.look(page, "write")
    # A text area holds no carriage returns.
    wanted = world.every.replace("\r\n", "\n")
    tour.same("write", page.input_value("#reply"), wanted)
    tour.same("write", page.text_content(".prompt-text"), world.every)
    task = Task(page, world.compare)
    tour.look(page, "pair")
    _texts(world, task, tour, "pair")


def _admin(world: World, page: Page, tour: Tour) -> None:
    live = world.live
    reported = live.next(world.ann, world.compare)[0]["id"]
    reason = {"reason": world.texts[13]}
    live.call(world.ann, "POST", f"/api/assignments/{reported}/report", reason)
    item = world.rows(tables.assignment, id=reported)[0].item_id
    answered = min(world.rows(tables.assignment, state="done"), key=lambda row: row.id)
    (set_,) = (
        set_
        for set_ in world.sets
        for row in world.rows(tables.item, id=answered.item_id)
        if set_.id == row.external_id
    )
    texts = {
        "/admin": world.names,
        "/admin/people": world.names,
        f"/admin/projects/{world.rank}": [world.names[0]],
        f"/admin/projects/{world.rank}/quality": [world.names[0]],
        f"/admin/items/{answered.item_id}": [
            set_.prompt,
            *(candidate.text for candidate in set_.candidates),
            *(candidate.policy for candidate in set_.candidates),
            *world.texts[: K + 1],
        ],
        f"/admin/items/{item}": [*world.texts[30:32], world.texts[13]],
    }
    for path, wanted in texts.items():
        screen = path.replace(answered.item_id, "answered").replace(item, "reported")
        screen = screen.replace(world.rank, "rank")
        answer = page.goto(live.url + path)
        assert answer and answer.status == 200, f"{path}: {answer and answer.status}"
        tour.look(page, screen)
        tour.shows(page, screen, wanted)


def _tour(browser: Browser, folder: Path, texts: Sequence[str], names: Sequence[str]) -> Tour:
    tour, watch = Tour(), Watch()
    # Wrong addresses are part of the tour.
    watch.allow("Failed to load resource")
    with ExitStack() as stack:
        live = stack.enter_context(Live(folder))
        world = World(live, texts, names)
        for account, visit in (
            (world.ann, (_labeler, _other_kinds)),
            (world.admin, (_admin,)),
        ):
            context = stack.enter_context(browser.new_context())
            context.set_default_timeout(10_000)
            watch.follow(context)
            page = live.page(context, account)
            for part in visit:
                part(world, page, tour)
    tour.faults = [f for f in watch.faults if not any(part in f for part in watch.allowed)]
    return tour


@pytest.fixture(scope="module")
def tours(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tour, Tour]:
    """Through the attacks, and through the harmless texts."""
    names = tuple(f"harmless name {i}" for i in range(len(NAMES)))
    return (
        _tour(browser, tmp_path_factory.mktemp("hostile"), PAYLOADS, NAMES),
        _tour(browser, tmp_path_factory.mktemp("harmless"), HARMLESS, names),
    )


def test_the_corpus_has_a_hundred_payloads() -> None:
    assert len(set(PAYLOADS)) >= 100
    assert len(set(NAMES)) >= 100


def test_the_corpus_attacks_a_page_that_trusts_it(browser: Browser) -> None:
    """Otherwise the tour would prove nothing."""
    context = browser.new_context()
    page = context.new_page()
    requests: list[str] = []
    page.add_init_script("window.alerts = 0; window.alert = () => { window.alerts += 1; }")
    page.on("request", lambda r: requests.append(r.url))
    page.route("**/evil.test/**", lambda route: route.abort())
    page.route(
        "http://trusting.test/", lambda route: route.fulfill(body="<p>", content_type="text/html")
    )
    page.goto("http://trusting.test/")
    elements = page.evaluate(
        """(texts) => texts.filter((text) => {
             if (/<meta|<base/.test(text)) return false;  // they would change the page itself
             const at = document.body.appendChild(document.createElement("div"));
             at.innerHTML = text;
             return at.querySelector("*");
           }).length""",
        PAYLOADS,
    )
    page.wait_for_function("() => window.alerts >= 10")
    context.close()
    assert elements >= 100
    assert len([url for url in requests if "evil.test" in url]) >= 10


def test_nothing_opens_loads_or_breaks_the_policy(tours: tuple[Tour, Tour]) -> None:
    assert tours[0].faults == []


def test_the_screens_have_the_elements_that_harmless_texts_have(tours: tuple[Tour, Tour]) -> None:
    hostile, harmless = tours
    assert hostile.elements.keys() == harmless.elements.keys()
    different = {
        screen: [sorted(found ^ usual) for found in hostile.elements[screen] - usuals]
        for screen, usuals in harmless.elements.items()
        for usual in usuals
    }
    assert {screen: found for screen, found in different.items() if found} == {}


def test_every_text_is_on_its_screen_letter_by_letter(tours: tuple[Tour, Tour]) -> None:
    hostile, _ = tours
    assert "\n".join(hostile.wrong) == ""
    assert hostile.compared > 5 * len(PAYLOADS)


def test_the_terminal_shows_names_as_they_are(
    live_names: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(["label", "status", str(live_names)]) == 0
    out = capsys.readouterr().out
    assert [name for name in NAMES if name not in out] == []


@pytest.fixture
def live_names(tmp_path: Path) -> Path:
    """A store with a project and a labeler of every name."""
    path = tmp_path / "names.sqlite"
    with Store.open(path) as store:

        def fill(conn: Connection) -> None:
            for name in NAMES:
                projects.create(conn, 1, name, "rank")
                people.add_labeler(conn, 1, name)

        store.write(fill)
    return path


def test_markdown_makes_no_other_elements_than_its_own(tours: tuple[Tour, Tour]) -> None:
    hostile, _ = tours
    tags = {node.split(" ")[0] for node in hostile.rich}
    attributes = {name for node in hostile.rich for name in node.split(" ")[1:]}
    assert "strong" in tags  # the view was there
    assert tags <= RICH_TAGS
    assert attributes <= RICH_ATTRIBUTES
