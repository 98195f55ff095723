"""journal.js, api.js and sync.js in a real browser, against a server that breaks on demand."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.browser.conftest import Watch
from tests.browser.fake_server import Fake, serve

pytestmark = pytest.mark.browser

START = """async () => {
  const [{ Api }, { openJournal }, { Sync }] = await Promise.all(
    ["api", "journal", "sync"].map((name) => import(`/static/${name}.js`)));
  window.events = [];
  window.journal = await openJournal();
  window.sync = new Sync({ api: new Api(), journal, project: "p" });
  for (const type of ["status", "conflict", "late", "refused", "resumed"])
    sync.addEventListener(type, ({ detail }) => { events.push({ type, ...detail }); });
  window.type = (text) => sync.change({ payload: { text }, ui: {}, undo: [] });
  const first = await sync.start();
  return { id: first.id, text: first.draft?.payload.text ?? null };
}"""
SAVED = "() => events.findLast((e) => e.type === 'status').state === 'saved'"


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    server = serve(fake)
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def context(new_context: Callable[..., BrowserContext], watch: Watch) -> BrowserContext:
    watch.allow("Failed to load resource")
    return new_context()


def opened(context: BrowserContext, fake: Fake) -> tuple[Page, dict[str, Any]]:
    page = context.new_page()
    page.goto(fake.url)
    return page, page.evaluate(START)


def wait_saved(page: Page) -> None:
    page.wait_for_function(SAVED)


def wait_state(page: Page, state: str) -> None:
    page.wait_for_function(
        "(s) => events.findLast((e) => e.type === 'status').state === s", arg=state
    )


def text(fake: Fake, name: str = "a1") -> str | None:
    draft = fake.rows[name]["draft"]
    return draft and draft["payload"]["text"]


def wait_text(page: Page, fake: Fake, wanted: str, name: str = "a1") -> None:
    for _ in range(100):
        if text(fake, name) == wanted:
            return
        page.wait_for_timeout(20)
    assert text(fake, name) == wanted


def wait_for_drafts(page: Page, count: int) -> None:
    kept: list[Any] = []
    for _ in range(100):
        kept = page.evaluate("() => journal.drafts()")
        if len(kept) == count:
            return
        page.wait_for_timeout(20)
    assert len(kept) == count, kept


def in_journal(page: Page, name: str = "a1") -> str | None:
    return page.evaluate("async (id) => (await journal.draft(id))?.draft.payload.text", name)


def messages(page: Page) -> list[str]:
    return page.evaluate("() => events.filter((e) => e.type === 'status').map((e) => e.message)")


# Changes


def test_the_first_change_is_sent_at_once_and_the_rest_150_ms_later_in_one(
    context: BrowserContext, fake: Fake
) -> None:
    page, first = opened(context, fake)
    assert first == {"id": "a1", "text": None}
    sent = page.evaluate(
        """async () => {
          const sent = [], real = window.fetch;
          window.fetch = (...all) => { sent.push(performance.now()); return real(...all); };
          for (let i = 0; i < 10; i++) type(`${i}`);
          while (sent.length < 2) await new Promise((done) => setTimeout(done, 5));
          return sent;
        }"""
    )
    wait_saved(page)
    puts = fake.named("PUT", "a1/draft")
    assert [c.body["draft"]["payload"]["text"] for c in puts] == ["0", "9"]
    assert [c.headers["If-Match"] for c in puts] == ["0", "1"]
    assert sent[1] - sent[0] >= 149


def test_the_journal_has_a_change_before_the_server_answers(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.delay_s = 3
    page.evaluate("() => { type('typed'); }")
    page.wait_for_function(
        "async () => (await journal.draft('a1'))?.draft.payload.text === 'typed'"
    )
    assert text(fake) is None


def test_a_draft_whose_reply_was_lost_does_not_come_back_as_another_tabs(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.lose_replies = True
    page.evaluate("() => type('first')")
    wait_text(page, fake, "first")
    page.close()
    fake.lose_replies = False

    page, first = opened(context, fake)
    assert first["text"] == "first"
    page.evaluate("() => type('second')")
    wait_saved(page)
    kept = "async () => (await journal.drafts()).map((kept) => kept.draft.payload.text)"
    assert page.evaluate(kept) == ["second"]


def test_a_draft_of_another_assignment_that_the_server_has_is_dropped(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.lose_replies = True
    page.evaluate("() => type('first')")
    wait_text(page, fake, "first")
    page.close()
    fake.lose_replies = False
    fake.rows["a1"]["draft"]["more"] = True  # no longer word for word what was sent

    fake.rows = dict(reversed(fake.rows.items()))

    page, first = opened(context, fake)
    assert first["id"] != "a1"
    wait_for_drafts(page, 0)


def test_leaving_the_page_sends_the_last_change(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    page.evaluate("() => { type('first'); }")
    wait_saved(page)
    page.evaluate("() => { type('last'); location = 'about:blank'; }")
    page.wait_for_url("about:blank")
    wait_text(page, fake, "last")


def test_leaving_while_a_change_is_on_its_way_sends_the_last_one_after_it(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.delay_s = 0.2
    page.evaluate("() => { type('first'); setTimeout(() => { type('last');"
                  " location = 'about:blank'; }, 100); }")  # fmt: skip
    page.wait_for_url("about:blank")
    wait_text(page, fake, "last")
    assert fake.rows["a1"]["rev"] == 2


def test_a_lost_reply_is_no_conflict(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    fake.lose_replies = True
    page.evaluate("() => { type('one'); }")
    wait_state(page, "offline")
    fake.lose_replies = False
    page.evaluate("() => { type('two'); }")
    wait_saved(page)
    assert text(fake) == "two"
    assert not page.evaluate("() => events.some((e) => e.type === 'conflict')")


def test_a_draft_that_the_server_refuses_is_shown_and_kept(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.refuse["a1/draft"] = (413, {"code": "large", "message": "The draft is too long."})
    page.evaluate("() => { type('long'); }")
    wait_state(page, "error")
    assert messages(page)[-1] == "The draft is too long."
    assert in_journal(page) == "long"
    page.wait_for_timeout(400)
    assert len(fake.named("PUT", "a1/draft")) == 1


# Newest of journal and server


def test_a_reload_takes_the_journal_when_the_server_missed_changes(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    page.evaluate("() => { type('saved'); }")
    wait_saved(page)
    fake.down = True
    page.evaluate("async () => { type('newer'); await new Promise((r) => setTimeout(r, 300)); }")
    fake.down = False
    page.reload()
    assert page.evaluate(START)["text"] == "newer"
    wait_text(page, fake, "newer")


def test_a_reload_goes_on_where_a_lost_reply_left_the_server_one_change_behind(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.lose_replies = True
    page.evaluate("() => { type('one'); }")
    wait_state(page, "offline")
    fake.down = True
    page.evaluate("async () => { type('two'); await new Promise((r) => setTimeout(r, 300)); }")
    fake.down = fake.lose_replies = False
    assert (fake.rows["a1"]["rev"], text(fake)) == (1, "one")
    page.reload()
    assert page.evaluate(START)["text"] == "two"
    wait_saved(page)
    assert (fake.rows["a1"]["rev"], text(fake)) == (2, "two")
    assert not page.evaluate("() => events.some((e) => e.type === 'conflict')")


def test_a_tie_takes_the_server(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    page.evaluate("() => { type('mine'); }")
    wait_saved(page)
    fake.rows["a1"]["draft"]["payload"]["text"] = "same change, as the server has it"
    page.reload()
    assert page.evaluate(START)["text"] == "same change, as the server has it"


def test_what_another_computer_saved_later_is_taken_without_a_question(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    page.evaluate("() => { type('here'); }")
    wait_saved(page)
    page.wait_for_function("async () => (await journal.draft('a1')).saved")
    fake.rows["a1"].update(
        rev=5, draft={"payload": {"text": "there"}, "stamp": {"page": "x", "n": 1}}
    )
    page.reload()
    assert page.evaluate(START)["text"] == "there"
    page.evaluate("() => { type('here again'); }")
    wait_saved(page)
    assert fake.rows["a1"]["rev"] == 6
    assert not page.evaluate("() => events.some((e) => e.type === 'conflict')")


def test_unsaved_work_of_another_assignment_reaches_the_server_too(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.refuse["a1/draft"] = (503, {})
    page.evaluate("() => { type('typed offline'); }")
    wait_state(page, "offline")
    fake.answers.append(("a1", "k", None))  # no longer offered
    fake.refuse.clear()
    page.reload()
    assert page.evaluate(START)["id"] == "a2"
    wait_text(page, fake, "typed offline")


# Two tabs


def clash(context: BrowserContext, fake: Fake) -> Page:
    mine, _ = opened(context, fake)
    other, _ = opened(context, fake)
    other.evaluate("() => { type('theirs'); }")
    wait_saved(other)
    mine.evaluate("() => { type('mine'); }")
    mine.wait_for_function("() => events.some((e) => e.type === 'conflict')")
    return mine


def test_two_tabs_conflict_and_nothing_is_overwritten(context: BrowserContext, fake: Fake) -> None:
    page = clash(context, fake)
    found = page.evaluate("() => { const e = events.find((e) => e.type === 'conflict');"
                          " return [e.mine.payload.text, e.theirs.payload.text]; }")  # fmt: skip
    assert found == ["mine", "theirs"]
    page.evaluate("() => { type('mine 2'); }")
    page.wait_for_timeout(300)
    assert text(fake) == "theirs"
    wait_state(page, "error")


def test_choosing_mine_sends_it(context: BrowserContext, fake: Fake) -> None:
    page = clash(context, fake)
    page.evaluate("() => { events.find((e) => e.type === 'conflict').choose('mine'); }")
    wait_saved(page)
    assert (fake.rows["a1"]["rev"], text(fake)) == (2, "mine")


def test_choosing_theirs_takes_it_over(context: BrowserContext, fake: Fake) -> None:
    page = clash(context, fake)
    chosen = page.evaluate(
        "() => events.find((e) => e.type === 'conflict').choose('theirs').payload.text"
    )
    wait_saved(page)
    page.evaluate("() => { type('after'); }")
    wait_saved(page)
    assert (chosen, fake.rows["a1"]["rev"], text(fake)) == ("theirs", 2, "after")


def test_an_unsolved_conflict_is_asked_again_after_a_reload(
    context: BrowserContext, fake: Fake
) -> None:
    page = clash(context, fake)
    page.reload()
    assert page.evaluate(START)["text"] == "mine"
    page.wait_for_function("() => events.some((e) => e.type === 'conflict')")
    assert text(fake) == "theirs"


def test_the_queue_is_sent_by_one_tab_at_a_time(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    other, _ = opened(context, fake)
    fake.down = True
    for i in range(3):
        page.evaluate("(i) => sync.submit({ i }).then(() => {})", i)
    fake.down, fake.delay_s = False, 0.05
    fake.calls.clear()
    for tab in (page, other):
        tab.evaluate("() => { dispatchEvent(new Event('online')); }")
    wait_saved(page)
    keys = [c.headers["Idempotency-Key"] for c in fake.named("POST", "submit")]
    assert len(keys) == len(set(keys)) == 3


# Answers


def test_the_next_assignment_comes_before_the_server_answers(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.delay_s = 0.5
    assert page.evaluate("async () => (await sync.submit({ i: 1 })).id") == "a2"
    assert fake.answers == []
    wait_state(page, "queued")
    wait_saved(page)
    assert [(name, payload) for name, _, payload in fake.answers] == [("a1", {"i": 1})]


def test_an_answer_does_not_overtake_the_draft_before_it(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.delay_s = 0.3
    page.evaluate("async () => { type('last change'); await sync.submit({ i: 1 }); }")
    wait_saved(page)
    (draft,), (answer,) = fake.named("PUT", "a1/draft"), fake.named("POST", "a1/submit")
    assert answer.at - draft.at >= 0.3


def test_a_queue_under_way_waits_for_the_draft_of_the_answer_that_it_meets(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.delay_s = 0.3
    page.evaluate(
        """async () => {
          await sync.submit({ i: 1 });
          await new Promise((done) => setTimeout(done, 150));
          type('last change');
          await sync.submit({ i: 2 });
        }"""
    )
    wait_saved(page)
    (draft,), (answer,) = fake.named("PUT", "a2/draft"), fake.named("POST", "a2/submit")
    assert answer.at - draft.at >= 0.3


def test_answers_given_offline_are_sent_in_order_each_under_one_key(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.down = True
    ids = [page.evaluate("async (i) => (await sync.submit({ i })).id", i) for i in range(2)]
    assert ids == ["a2", "a3"]
    last = page.evaluate("async () => { type('offline'); return await sync.submit({ i: 2 }); }")
    assert last == {"reason": "offline", "retry_at": None}
    wait_state(page, "offline")
    assert page.evaluate("() => events.findLast((e) => e.type === 'status').pending") == 3
    fake.down = False
    page.evaluate("() => { dispatchEvent(new Event('online')); }")
    page.wait_for_function("() => events.some((e) => e.type === 'resumed')")
    assert [(name, p["i"]) for name, _, p in fake.answers] == [("a1", 0), ("a2", 1), ("a3", 2)]
    tried = {c.headers["Idempotency-Key"] for c in fake.named("POST", "a1/submit")}
    assert len(fake.named("POST", "a1/submit")) > 1 and len(tried) == 1
    assert page.evaluate("async () => (await sync.next()).id") == "a4"
    assert page.evaluate("async () => (await journal.drafts()).length") == 0


def test_a_closed_page_leaves_its_queue_to_the_next_one(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.lose_replies = True
    page.evaluate("() => sync.submit({ i: 1 }).then(() => {})")
    wait_state(page, "offline")
    page.close()
    fake.lose_replies = False
    page, first = opened(context, fake)
    assert first["id"] == "a2"
    assert [name for name, _, _ in fake.answers] == ["a1"]  # sent twice, counted once
    assert page.evaluate("async () => (await journal.queue()).length") == 0


def test_two_submits_in_one_moment_are_one(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    both = page.evaluate(
        "async () => (await Promise.all([sync.submit({}), sync.submit({})])).map((a) => a.id)"
    )
    wait_saved(page)
    assert both == ["a2", "a2"]
    assert len(fake.named("POST", "/submit")) == 1


def test_a_refused_answer_stays_until_it_is_answered_again(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    body = {"code": "incomplete", "message": "bins: 2 of 4", "errors": [{"field": "bins"}]}
    fake.refuse["a1/submit"] = (422, body)
    page.evaluate("async () => { type('work'); await sync.submit({ bins: [] }); }")
    page.wait_for_function("() => events.some((e) => e.type === 'refused')")
    page.reload()
    assert page.evaluate(START) == {"id": "a1", "text": "work"}  # offered again, with its draft
    told = page.evaluate("() => { const { discard, ...e } = events.find((e) =>"
                         " e.type === 'refused'); return e; }")  # fmt: skip
    assert (told["assignment"], told["status"], told["payload"]) == ("a1", 422, {"bins": []})
    assert (told["message"], told["errors"]) == ("bins: 2 of 4", [{"field": "bins"}])
    assert page.evaluate("async () => (await journal.queue()).length") == 1
    fake.refuse.clear()
    page.evaluate("() => sync.submit({ bins: [1] }).then(() => {})")
    wait_saved(page)
    assert [payload for _, _, payload in fake.answers] == [{"bins": [1]}]
    assert page.evaluate("async () => (await journal.queue()).length") == 0


def test_a_refused_answer_does_not_hold_up_the_ones_behind_it(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.down = True
    for i in range(2):
        page.evaluate("(i) => sync.submit({ i }).then(() => {})", i)
    fake.refuse["a1/submit"] = (409, {"code": "done", "message": "already answered"})
    fake.down = False
    page.evaluate("() => { dispatchEvent(new Event('online')); }")
    page.wait_for_function("() => events.some((e) => e.type === 'refused')")
    wait_saved(page)
    assert [name for name, _, _ in fake.answers] == ["a2"]


def test_skip_and_report_hand_an_assignment_back(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    assert page.evaluate("async () => (await sync.skip('unclear')).id") == "a2"
    assert page.evaluate("async () => (await sync.report('broken')).id") == "a3"
    wait_saved(page)
    assert fake.answers == [("a1", "skip", "unclear"), ("a2", "report", "broken")]


def test_an_answer_that_did_not_count_is_told(context: BrowserContext, fake: Fake) -> None:
    page, _ = opened(context, fake)
    fake.refuse["a1/submit"] = (201, {"counted": False, "next": fake.next()})
    page.evaluate("() => sync.submit({}).then(() => {})")
    page.wait_for_function("() => events.some((e) => e.type === 'late')")
    assert page.evaluate("() => events.find((e) => e.type === 'late').assignment") == "a1"


def test_a_signed_out_labeler_keeps_the_work_and_is_told(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    fake.refuse["/submit"] = (401, {"code": "signed-out", "message": "You are signed out."})
    page.evaluate("() => sync.submit({}).then(() => {})")
    wait_state(page, "offline")
    assert "You are signed out. Join again" in messages(page)[-1]
    assert page.evaluate("async () => (await journal.queue()).length") == 1


def test_retries_wait_longer_each_time(
    new_context: Callable[..., BrowserContext], watch: Watch, fake: Fake
) -> None:
    watch.allow("Failed to load resource")
    context = new_context()
    page = context.new_page()
    page.clock.install()
    page.goto(fake.url)
    page.evaluate(START)
    fake.refuse["a1/draft"] = (503, {"message": "busy"})

    def tries(milliseconds: int) -> int:
        page.clock.run_for(milliseconds)
        page.wait_for_timeout(100)
        return len(fake.named("PUT", "a1/draft"))

    page.evaluate("() => { type('x'); }")
    wait_state(page, "offline")
    assert tries(500) == 1
    assert tries(700) == 2  # 1 s, give or take a fifth
    assert tries(1200) == 2
    assert tries(1300) == 3  # 2 s
    for _ in range(6):
        last = tries(40_000)  # never more than 30 s
    assert last >= 8


# Storage


def test_another_labeler_on_this_browser_sees_and_sends_nothing_of_the_first(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    context.set_offline(True)
    page.evaluate("async () => { type('secret'); await sync.submit({ i: 1 }); type('more'); }")
    wait_state(page, "offline")
    page.close()
    context.set_offline(False)
    fake.labeler = "labeler-2"
    page, first = opened(context, fake)
    wait_saved(page)
    assert first["text"] is None
    assert page.evaluate("async () => [await journal.queue(), await journal.drafts()]") == [[], []]
    assert fake.answers == []
    page.close()
    fake.labeler = "labeler-1"
    page, first = opened(context, fake)
    assert (first["id"], first["text"]) == ("a2", "more")
    assert [name for name, _, _ in fake.answers] == ["a1"]


def test_full_storage_is_shown_and_the_server_still_saves(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    page.evaluate(
        """() => { for (const name of ["put", "add"]) IDBObjectStore.prototype[name] = () => {
             throw new DOMException("full", "QuotaExceededError"); }; }"""
    )
    page.evaluate("() => { type('typed'); }")
    wait_text(page, fake, "typed")
    wait_saved(page)
    assert messages(page)[-1] == "This browser keeps no copy of your work (its storage is full)."
    page.evaluate("() => sync.submit({ i: 1 }).then(() => {})")
    assert [name for name, _, _ in fake.answers] == ["a1"]  # the server had it before the page left


def test_without_storage_an_answer_waits_for_the_server_and_keeps_its_key(
    context: BrowserContext, fake: Fake
) -> None:
    context.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    page, first = opened(context, fake)
    assert first["id"] == "a1"
    page.evaluate("() => { type('typed'); }")
    wait_saved(page)
    assert messages(page)[-1].startswith("This browser keeps no copy of your work")
    fake.lose_replies = True
    failed = page.evaluate("() => sync.submit({ i: 1 }).then(() => '', (e) => e.name + e.message)")
    assert failed and page.evaluate("() => sync.current.id") == "a1"
    wait_state(page, "error")
    assert "Do not close this page" in messages(page)[-1]
    fake.lose_replies = False
    assert page.evaluate("async () => (await sync.submit({ i: 1 })).id") == "a2"
    assert [name for name, _, _ in fake.answers] == ["a1"]


def test_storage_that_was_cleared_meanwhile_opens_again(
    context: BrowserContext, fake: Fake
) -> None:
    page, _ = opened(context, fake)
    session = context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": fake.url, "storageTypes": "all"})
    page.evaluate("() => { type('after'); }")
    wait_saved(page)
    page.wait_for_function("async () => (await journal.draft('a1'))?.saved")
    assert in_journal(page) == "after"


# Time


def test_only_time_within_a_minute_of_an_input_is_active(
    new_context: Callable[..., BrowserContext], fake: Fake
) -> None:
    page = new_context().new_page()
    page.clock.install()
    page.goto(fake.url)
    page.evaluate(START)
    page.clock.run_for(30_000)
    page.keyboard.press("a")
    page.clock.fast_forward(300_000)
    page.evaluate("() => { type('x'); }")
    page.wait_for_timeout(200)
    (put,) = fake.named("PUT", "a1/draft")
    assert 90_000 <= put.body["active_ms"] < 92_000  # 30 s, then one minute of the five
