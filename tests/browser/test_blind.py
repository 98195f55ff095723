"""Check 17: nothing that reaches a labeler's browser tells who wrote a reply."""

import base64
import hashlib
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Route

from tercet.label import projects
from tercet.records import Candidate, CandidateSet, RankedReply, Ranking
from tests.browser.live import Live, in_order
from tests.browser.pages import Task, join

pytestmark = pytest.mark.browser

POLICIES = ("zebra-7b-instruct", "runs/quagga/ppo-final")
SEEDS = (918_273_645, 564_738_291)
TEMPERATURES = (0.73519, 0.91247)
CANDIDATES = ("okapi-reply-one", "okapi-reply-two")
GOLD = "tapir-gold-item"


def variants(secret: str) -> set[bytes]:
    """As it is, and in the forms in which it could slip out."""
    plain = secret.encode()
    digest = hashlib.sha256(plain)
    return {
        plain.lower(),
        plain.hex().encode(),
        base64.b64encode(plain).rstrip(b"=").lower(),
        digest.hexdigest().encode(),
        base64.b64encode(digest.digest()).rstrip(b"=").lower(),
    }


# What files, sets and candidates are called may name a policy too.
SECRETS = {
    form: word
    for word in (
        *POLICIES,
        *(part for policy in POLICIES for part in policy.split("/") if part != "runs"),
        *map(str, SEEDS),
        *map(str, TEMPERATURES),
        *CANDIDATES,
        "okapi",
        GOLD,
        "tapir",
        "policy_id",
        "decode_params",
        "candidates.jsonl",
    )
    for form in variants(word)
}
# Of an assignment, these would tell a test item from a real one.
FIELDS = {b'"gold"', b'"policy"', b'"repeat_of"', b'"need"', b'"finish"', b'"split"', b'"seed"'}


def evaluation(number: int) -> CandidateSet:
    return CandidateSet(
        id=f"okapi-set-{number}",
        prompt_id=f"okapi-prompt-{number}",
        prompt=f"Which is better, {number}?",
        candidates=tuple(
            Candidate(
                id=f"{CANDIDATES[j]}-{number}",
                text=f"Answer {'xy'[j]} to {number}.",
                policy=POLICIES[j],
                temperature=TEMPERATURES[j],
                seed=SEEDS[j],
                finish="stop",
            )
            for j in range(2)
        ),
    )


def gold(number: int) -> Ranking:
    return Ranking(
        id=f"{GOLD}-{number}",
        prompt_id=f"{GOLD}-prompt-{number}",
        prompt=f"Which is better, {100 + number}?",
        replies=tuple(
            RankedReply(
                id=f"{CANDIDATES[j]}-gold-{number}",
                text=f"Answer {'xy'[j]} to {100 + number}.",
                rank=j + 1,
                policy=POLICIES[j],
            )
            for j in range(2)
        ),
        judge="gold",
    )


class Scan:
    """Reads every byte that a page gets, on its way to the browser."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.seen = 0

    def follow(self, context: BrowserContext) -> None:
        context.route("**/*", self.pass_on)

    def pass_on(self, route: Route) -> None:
        if route.request.method == "POST" and route.request.is_navigation_request():
            return route.continue_()  # a form: the answer is a redirect, without a body
        answer = route.fetch(max_redirects=0)
        about = f"{route.request.method} {route.request.url}"
        self.look(f"headers of {about}", repr(answer.headers_array).encode())
        self.look(about, answer.body())
        route.fulfill(response=answer)

    def look(self, where: str, data: bytes) -> None:
        self.seen += 1
        lower = data.lower()
        self.found += [f"{word} in {where}" for form, word in SECRETS.items() if form in lower]
        if "/api/" in where:
            self.found += [f"{field!r} in {where}" for field in FIELDS if field in lower]

    def read(self, page: Page) -> None:
        """The page, with all that it keeps."""
        self.look(f"the DOM of {page.url}", page.content().encode())
        self.look(f"the state of {page.url}", str(page.evaluate(KEPT)).encode())


KEPT = """async () => {
  const all = [document.cookie, JSON.stringify(localStorage)];
  all.push(JSON.stringify(window.tercet?.state()));
  for (const { name, version } of await indexedDB.databases()) {
    const db = await new Promise((done) => {
      const request = indexedDB.open(name, version);
      request.onsuccess = () => done(request.result);
    });
    for (const store of db.objectStoreNames) {
      const rows = await new Promise((done) => {
        const request = db.transaction(store).objectStore(store).getAll();
        request.onsuccess = () => done(request.result);
      });
      all.push(JSON.stringify(rows));
    }
    db.close();
  }
  return all.join("\\n");
}"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("live")) as live:
        yield live


def test_no_answer_names_a_policy_or_how_it_sampled(
    live: Live, new_context: Callable[..., BrowserContext]
) -> None:
    sets = [evaluation(i) for i in range(3)]
    project = live.add("Blind", "evaluate", sets=sets, gold_share=0.5, rate=False)
    live.write(lambda conn, now: projects.add_gold(conn, now, project, [gold(i) for i in (1, 2)]))
    ranking = live.add("Blind ranks", sets=[evaluation(i) for i in range(10, 12)])
    scan, context = Scan(), new_context()
    scan.follow(context)
    page = join(context, live.labeler)
    scan.read(page)
    task = Task(page, project)
    while task.wait() and task.state != "empty":
        scan.read(page)
        task.press("m")
        page.wait_for_selector("article .rich")
        page.get_by_role("button", name="Mark differences").click()
        page.wait_for_selector("#compare[open]")
        scan.read(page)
        task.press("Escape", "1")
        task.wait_saved()
        scan.read(page)
        task.submit()
    task.wait_saved()
    scan.read(page)
    task = Task(page, ranking)
    scan.read(page)
    task.press("5", "q")
    page.get_by_role("button", name="Compare", exact=True).click()
    task.wait("compare")
    task.press("2")
    task.wait_saved()
    scan.read(page)
    page.reload()
    task.wait("compare")
    scan.read(page)
    task.submit()
    for path in ("/", "/history", "/api/me", "/metrics", f"/guidelines/{project}"):
        page.goto(live.url + path)
        scan.read(page)
    page.goto(f"{live.url}/amend/{live.answers()[0].assignment_id}")
    page.wait_for_selector("article")
    scan.read(page)
    page.wait_for_load_state("networkidle")  # what the page fetches ahead is read too
    context.unroute_all(behavior="wait")
    assert len(live.answers()) >= 5  # gold items among them
    assert scan.seen > 100
    assert scan.found == []


def test_the_scan_finds_what_it_looks_for() -> None:
    scan = Scan()
    for secret in (b"Zebra-7B-instruct", b"918273645", base64.b64encode(POLICIES[1].encode())):
        before = len(scan.found)
        scan.look("a page", b"<p>" + secret + b"</p>")
        assert len(scan.found) > before
    scan.look("GET /api/x", b'{"gold": null}')
    assert scan.found[-1].startswith("b'\"gold\"'")


def test_order_and_ids_do_not_follow_the_policies(live: Live) -> None:
    count = 80
    project = live.add(
        "Order", "evaluate", sets=[evaluation(i) for i in range(200, 200 + count)], ahead=10
    )
    ann = live.account("order")
    first = by_id = total = 0
    while left := live.next(ann, project):
        for assignment in left:
            texts = {reply["id"]: reply["text"] for reply in assignment["replies"]}
            first += assignment["replies"][0]["text"].startswith("Answer x")
            by_id += texts[min(texts)].startswith("Answer x")
            total += 1
            live.submit(ann, assignment["id"], in_order(assignment))
    assert total == count
    # Chance gives 40, and less than 15 or more than 65 once in 100 million times.
    assert 15 <= first <= 65
    assert 15 <= by_id <= 65


def test_labelers_of_one_item_see_their_own_order(live: Live) -> None:
    sets = [evaluation(i) for i in range(300, 310)]
    project = live.add("Orders", "evaluate", sets=sets, overlap_share=1, overlap_need=3, ahead=10)
    orders = []
    for name in ("one", "two", "three"):
        given = live.next(live.account(name), project)
        shown = {a["prompt"]["text"]: [reply["id"] for reply in a["replies"]] for a in given}
        orders.append([shown[prompt] for prompt in sorted(shown)])
    assert len(orders[0]) == 10
    assert not orders[0] == orders[1] == orders[2]
