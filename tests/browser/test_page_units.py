"""The pure modules of the labeling page (ranks, answers, differences, texts), run in Chromium."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext

from tests.browser.fake_server import Fake, serve

pytestmark = pytest.mark.browser

Run = Callable[..., Any]


@pytest.fixture
def run(new_context: Callable[..., BrowserContext]) -> Iterator[Run]:
    """`run("rankstate", "(m, slots) => ...", slots)`: a function of a module and arguments."""
    fake = Fake()
    server = serve(fake)
    page = new_context().new_page()
    page.goto(fake.url)

    def call(module: str, function: str, *given: Any) -> Any:
        return page.evaluate(
            f"async (given) => ({function})(await import('/static/{module}.js'), ...given)",
            list(given),
        )

    yield call
    server.shutdown()
    server.server_close()


STEPS = "(m, slots, steps) => steps.reduce((s, [name, ...rest]) => m[name](s, ...rest), slots)"


@pytest.mark.parametrize(
    ("slots", "step", "after"),
    [
        (["", "", ""], ["place", "B", 2], ["", "B", ""]),
        (["C", "B", ""], ["place", "A", 2], ["C", "AB", ""]),  # a tie, in letter order
        (["C", "B", ""], ["place", "C", 3], ["", "B", "C"]),
        (["C", "B", ""], ["place", "C", 4], ["C", "B", ""]),  # there is no rank 4
        (["C", "B", ""], ["unrank", "C"], ["", "B", ""]),
        (["C", "B", ""], ["move", "B", -1], ["BC", "", ""]),
        (["C", "B", ""], ["move", "C", -1], ["C", "B", ""]),
        (["C", "B", ""], ["move", "A", -1], ["C", "B", "A"]),  # unranked: to the end
        (["", "", "C"], ["move", "A", -1], ["", "C", "A"]),  # the end is full: room above
        (["C", "", "B"], ["tie", "B"], ["BC", "", ""]),  # the nearest filled slot above
        (["C", "", "B"], ["tie", "C"], ["C", "", "B"]),
        (["AB", "C", ""], ["split", "A"], ["B", "A", "C"]),
        (["C", "", "AB"], ["split", "B"], ["C", "A", "B"]),
        (["C", "B", ""], ["split", "B"], ["C", "B", ""]),  # not in a tie
        (["A", "B", "C"], ["insert", "C", 0], ["C", "A", "B"]),
        (["A", "B", "C"], ["insert", "A", 2], ["B", "A", "C"]),
        (["A", "B", "C"], ["insert", "A", 3], ["B", "C", "A"]),
        (["A", "", "C"], ["insert", "B", 2], ["A", "B", "C"]),
    ],
)
def test_a_step_of_the_ranking(run: Run, slots: list[str], step: list[Any], after: list[str]):
    assert run("rankstate", STEPS, slots, [step]) == after


def test_every_step_keeps_each_reply_at_one_place(run: Run):
    """1,000 random steps of nine replies: nobody is lost, nobody stands twice."""
    worst = run(
        "rankstate",
        """(m) => {
          let seed = 7, slots = m.none(9);
          const draw = (n) => (seed = (seed * 48271) % 2147483647) % n, faults = [];
          for (let i = 0; i < 1000; i += 1) {
            const letter = "ABCDEFGHI"[draw(9)];
            const before = slots.join(""), was = before.includes(letter);
            slots = [
              () => m.place(slots, letter, draw(9) + 1), () => m.move(slots, letter, -1),
              () => m.move(slots, letter, 1), () => m.tie(slots, letter),
              () => m.split(slots, letter), () => m.insert(slots, letter, draw(10)),
            ][draw(6)]();
            const now = slots.join("");
            const fine = slots.length === 9 && new Set(now).size === now.length
              && [...before].every((l) => now.includes(l)) && now.length <= before.length + !was;
            if (!fine) faults.push([i, before, now]);
          }
          return faults;
        }""",
    )
    assert worst == []


def test_arranged_by_ratings_equal_ones_tie_and_unrated_ones_stay_out(run: Run):
    slots = run("rankstate", "(m) => m.arrange('ABCD', {A: 3, B: 7, D: 3})")
    assert slots == ["B", "AD", "", ""]


def test_words_for_a_screen_reader_and_for_the_strip(run: Run):
    slots = ["C", "AF", "", "", "", ""]
    assert run("rankstate", "(m, s) => m.describe(s, 'ABCDEF', 'A')", slots) == (
        "Reply A, rank 2, tied with F; 3 unranked"
    )
    assert run("rankstate", "(m, s) => m.summary(s)", slots) == "C > A = F"


ASSIGNMENT = {
    "project": {"kind": "rank"},
    "replies": [{"id": "x1", "letter": "A"}, {"id": "x2", "letter": "B"}],
    "schema": {"reply_flags": [{"id": "f"}], "prompt_flags": [{"id": "g"}]},
    "settings": {"rate": True, "ask_prompt_flags": True},
    "draft": None,
    "amending": None,
}


def test_unanswered_is_null_and_no_is_false(run: Run):
    payload = run(
        "answer",
        """(m, assignment) => {
          const answer = new m.Answer(assignment);
          answer.change({ "flags.A.f": false, slots: ["B", "A"] });
          return answer.payload();
        }""",
        ASSIGNMENT,
    )
    assert payload["flags"] == {"x1": {"f": False}, "x2": {"f": None}}
    assert payload["ratings"] == {"x1": None, "x2": None}
    assert payload["prompt_flags"] == {"g": None}
    assert payload["bins"] == [["x2"], ["x1"]]


def test_fifty_steps_are_undone_also_after_a_reload(run: Run):
    before, at_draft, undone, redone = run(
        "answer",
        """(m, assignment) => {
          const first = new m.Answer(assignment);
          for (let i = 0; i < 60; i += 1) first.change({ "ratings.A": (i % 7) + 1 });
          const draft = JSON.parse(JSON.stringify(first.draft()));
          const second = new m.Answer({ ...assignment, draft });
          const at = second.value.ratings.A;
          let steps = 0;
          while (second.undo()) steps += 1;
          const undone = [steps, second.value.ratings.A];
          while (second.undo(true));
          return [first.value.ratings.A, at, undone, second.value.ratings.A];
        }""",
        ASSIGNMENT,
    )
    assert before == at_draft == redone == 4  # the 60th: 59 % 7 + 1
    assert undone == [50, 3]  # back to the 10th: 9 % 7 + 1


@pytest.mark.parametrize(
    ("left", "right", "changed"),
    [
        ("one two three", "one two three", [[], []]),
        ("one two three", "one 2 three", [["two "], ["2 "]]),
        ("a b c", "b c d", [["a "], [" d"]]),
        ("", "new", [[], ["new"]]),
        ("red cat", "blue dog", [["red cat"], ["blue dog"]]),
    ],
)
def test_words_that_differ(run: Run, left: str, right: str, changed: list[list[str]]):
    given = run("diff", "(m, l, r) => m.diff(l, r)", left, right)
    assert ["".join(t for t, _ in given[side]) for side in "ab"] == [left, right]
    stripped = [[text.strip() for text, is_new in given[side] if is_new] for side in "ab"]
    assert stripped == [[text.strip() for text in side] for side in changed]


def test_texts_that_differ_too_much_are_bounded_work(run: Run):
    given, took = run(
        "diff",
        """(m) => {
          const text = (step) =>
            Array.from({ length: 20000 }, (_, i) => `w${(i * step) % 9973}`).join(" ");
          const from = performance.now(), { exact } = m.diff(text(3), text(5));
          return [exact, performance.now() - from];
        }""",
    )
    assert given is False
    assert took < 2000


HIDDEN = {
    "abc\u202efdp.exe": 1,
    "zero\u200bwidth and \ufeff": 2,
    "bell\x07\x07\x07": 1,  # a run has one marker
    "👨\u200d👩\u200d👧 👍🏽 🏴\U000e0067\U000e0062\U000e007f": 0,  # joiners of emoji
    "\u0645\u06cc\u200c\u062e\u0648": 0,  # of spelling
    "pass\u200dword": 1,
    "plain\ttext\nwith lines": 0,
}


def test_hidden_characters_are_marked_and_the_text_stays_the_text(run: Run):
    for text, markers in HIDDEN.items():
        shown, count = run(
            "text",
            """(m, text) => {
              const node = m.plain(text);
              return [node.textContent, node.querySelectorAll(".mark").length];
            }""",
            text,
        )
        assert (shown, count) == (text, markers)
