import dataclasses
import io
import json
import re
import zipfile

import pytest
from sqlalchemy import select, update

from tercet.label import audit, oversight, projects, tables
from tercet.label.answers import Answer
from tercet.label.collect import Collected
from tercet.label.labelers import Person
from tercet.label.quality import measure, quality
from tercet.label.web.table import KEYS, sorted_rows
from tercet.records import Prompt
from tests.label.client import Site, Visitor
from tests.label.crowd import crowd
from tests.label.world import candidate_set, gold_ranking, ranking_world, writing_world

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture
def world(sqlite_store):
    return ranking_world(sqlite_store, items=3, k=3, labelers=2, overlap_share=1, overlap_need=2)


@pytest.fixture
def site(sqlite_store, world):
    return Site(sqlite_store)


@pytest.fixture
def boss(site):
    return site.person("boss", "admin")


def upload(visitor, world, text, dry_run=False, name="new.jsonl", prompts=None):
    fields = {"csrf": visitor.csrf, **({"dry_run": "1"} if dry_run else {})}
    return visitor.http.post(
        f"/admin/projects/{world.project_id}/import",
        data=fields,
        files={
            "file": (name, text.encode()),
            **({"prompts": ("prompts.jsonl", prompts.encode())} if prompts else {}),
        },
        headers={"accept": "text/html", "origin": "http://127.0.0.1"},
    )


def lines(*records):
    return "".join(
        record.model_dump_json(by_alias=True, exclude_none=True) + "\n" for record in records
    )


def events(store, kind):
    query = select(tables.event).where(tables.event.c.kind == kind).order_by(tables.event.c.seq)
    return store.read(lambda conn: conn.execute(query).all())


def answer_all(world):
    for labeler in world.labelers:
        while found := labeler.next():
            labeler.submit(found[0])


# --- who may look -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/people", "/verify"])
def test_labelers_are_kept_out(site, path):
    assert site.person("dee").get(f"/admin{path}").status_code == 403
    assert Visitor(site.app).get(f"/admin{path}").status_code == 303


def test_forms_need_the_sessions_token(site, world, boss):
    boss.csrf = "wrong"
    answer = boss.form(f"/admin/projects/{world.project_id}/pause", {"paused": "1"})
    assert answer.status_code == 403
    assert not site.store.read(lambda conn: projects.get(conn, world.project_id)).paused


# --- projects -----------------------------------------------------------------------------------


def test_the_overview_tells_how_far_a_project_is(world, boss):
    answer_all(world)
    assert "6 of 6 answers on 3 items" in boss.get("/admin").text


def test_an_empty_store_tells_what_to_do(sqlite_store):
    page = Site(sqlite_store).person("boss", "admin").get("/admin").text
    assert "tercet label import" in page


def test_pausing_and_resuming(site, world, boss):
    path = f"/admin/projects/{world.project_id}"
    assert boss.form(f"{path}/pause", {"paused": "1"}).status_code == 303
    assert "Resume" in boss.get(path).text
    boss.form(f"{path}/pause", {"paused": "0"})
    assert "Resume" not in boss.get(path).text
    assert [len(events(site.store, kind)) for kind in ("pause", "resume")] == [1, 1]


def test_saved_guidelines_are_a_new_version_and_the_old_one_stays(site, world, boss):
    path = f"/admin/projects/{world.project_id}"
    for text in ("first words", "second words\r\n\r\nand more"):
        assert boss.form(f"{path}/guidelines", {"text": text}).status_code == 303
    found = site.store.read(lambda conn: projects.get(conn, world.project_id))
    assert found.guidelines == "second words\n\nand more"
    page = boss.get(path).text
    assert "second words" in page and "first words" in page


def test_a_leading_newline_of_the_guidelines_survives_the_editor(site, world, boss):
    path = f"/admin/projects/{world.project_id}"
    boss.form(f"{path}/guidelines", {"text": "\nwords"})
    assert re.search(r"data-guard>\n\nwords</textarea>", boss.get(path).text)


# --- import, export, verify ---------------------------------------------------------------------


def test_a_dry_run_stores_nothing_and_says_what_would_happen(world, boss):
    text = lines(candidate_set(1, 3), candidate_set(7, 3), candidate_set(8, 3))
    page = upload(boss, world, text, dry_run=True)
    assert page.status_code == 200
    assert "Dry run, nothing was stored" in page.text
    assert "2 new, 1 there already" in page.text
    assert len(world.items()) == 3


def test_an_import_adds_the_items(world, boss):
    page = upload(boss, world, lines(candidate_set(7, 3)))
    assert "1 new, 0 there already" in page.text
    assert len(world.items()) == 4


def test_an_import_is_all_or_nothing(world, boss):
    text = lines(candidate_set(7, 3), candidate_set(1, 4))  # set 1 is there with three replies
    page = upload(boss, world, text)
    assert "Nothing was imported" in page.text and "s1:" in page.text
    assert len(world.items()) == 3


def test_rankings_become_gold_items(world, boss):
    upload(boss, world, lines(gold_ranking(1)))
    assert [bool(item.gold) for item in world.items()].count(True) == 1


def test_users_and_tags_come_from_the_prompts_own_file(world, boss):
    prompts = lines(
        Prompt(id="p7", text="Question 7?", user_id="u1", tags=("constraint",)),
        Prompt(id="gp1", text="Known question 1?", tags=("closed_domain",)),
    )
    for text in (lines(candidate_set(7, 3)), lines(gold_ranking(1))):
        assert "1 new" in upload(boss, world, text, prompts=prompts).text
    query = select(tables.prompt).where(tables.prompt.c.external_id.in_(["p7", "gp1"]))
    rows = world.read(lambda conn: conn.execute(query.order_by("external_id")).all())
    assert [(row.user_id, row.tags) for row in rows] == [
        (None, ["closed_domain"]),
        ("u1", ["constraint"]),
    ]


def test_a_broken_file_of_prompts_is_no_import(world, boss):
    page = upload(boss, world, lines(candidate_set(7, 3)), prompts="{broken\n")
    assert page.status_code == 422 and "prompts.jsonl:1" in page.text
    assert len(world.items()) == 3


def test_a_broken_line_is_named_with_the_files_own_name(world, boss):
    page = upload(boss, world, lines(candidate_set(7, 3)) + "{broken\n", name="mine.jsonl")
    assert page.status_code == 422
    assert "mine.jsonl:2" in page.text
    assert "/tmp" not in page.text


def test_prompts_do_not_go_into_a_ranking_project(world, boss):
    page = upload(boss, world, '{"schema": "tercet.prompt/1", "id": "p", "text": "Why?"}\n')
    assert page.status_code == 409
    assert "rank" in page.text


def test_no_file_is_no_import(world, boss):
    answer = boss.form(f"/admin/projects/{world.project_id}/import")
    assert answer.status_code == 422
    assert "Choose a .jsonl file" in answer.text


def test_the_export_is_a_zip_of_the_projects_answers(world, boss):
    answer_all(world)
    path = f"/admin/projects/{world.project_id}/export"
    answer = boss.get(path)
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert {"rankings.jsonl", "manifest.json", "audit.jsonl"} <= set(archive.namelist())
    assert len(archive.read("rankings.jsonl").splitlines()) == 6
    assert json.loads(archive.read("manifest.json"))["schema"] == "tercet.export/1"
    assert boss.get(path).content == answer.content


def test_verify_finds_a_changed_answer(site, world, boss):
    answer_all(world)
    assert "No fault" in boss.get("/admin/verify").text
    site.store.write(
        lambda conn: conn.execute(update(tables.annotation).values(payload={"bins": []}))
    )
    page = boss.get("/admin/verify").text
    assert "faults found" in page and "No fault" not in page


# --- items --------------------------------------------------------------------------------------


def test_an_item_shows_policies_answers_and_events(site, world, boss):
    ann = world.labelers[0]
    id_ = ann.next()[0]
    ann.submit(id_)
    ann.amend(id_)
    item = ann.item(id_)
    page = boss.get(f"/admin/items/{item.id}").text
    assert "secret-policy-0" in page
    assert "version 2" in page
    for event in events(site.store, "submit") + events(site.store, "amend"):
        assert event.hash in page


def test_ranks_stand_under_the_replies_they_were_given_to(site, world):
    ann = world.labelers[0]
    id_ = ann.next()[0]
    item = ann.item(id_)
    a, b, c = item.candidate_ids
    ann.submit(id_, payload={"bins": [[c], [a, b]], "ratings": {c: 7}, "note": "hm"})
    given = site.store.read(lambda conn: oversight.inspect(conn, item.id)).work[0].revisions[0]
    assert (given.ranks, given.ratings, given.note) == ([2, 2, 1], [None, None, 7], "hm")


def test_holding_and_releasing_an_item(world, boss):
    item = world.items()[0]
    boss.form(f"/admin/items/{item.id}/hold", {"reason": "looks odd"})
    assert "looks odd" in boss.get(f"/admin/items/{item.id}").text
    assert "Held items" in boss.get(f"/admin/projects/{world.project_id}").text
    boss.form(f"/admin/items/{item.id}/release")
    assert [row.state for row in world.items(tables.item.c.id == item.id)] == ["open"]


def test_items_are_found_by_words(world, boss):
    page = boss.get(f"/admin/projects/{world.project_id}?q=QUESTION 2").text
    assert "Question 2?" in page and "Question 1?" not in page
    assert "No item holds" in boss.get(f"/admin/projects/{world.project_id}?q=100%25").text


def test_a_demonstration_shows_its_text(sqlite_store):
    world = writing_world(sqlite_store, ["Who?"])
    ann = world.labelers[0]
    id_ = ann.next()[0]
    ann.submit(id_, payload={"text": "It was the gardener."})
    boss = Site(sqlite_store).person("boss", "admin")
    assert "It was the gardener." in boss.get(f"/admin/items/{ann.item(id_).id}").text
    assert boss.get(f"/admin/projects/{world.project_id}/quality").status_code == 200


def test_unknown_things_are_404(boss):
    for path in ("projects/x", "projects/x/quality", "projects/x/export", "items/x"):
        assert boss.get(f"/admin/{path}").status_code == 404


# --- people -------------------------------------------------------------------------------------


def test_a_new_link_is_shown_once_and_lets_its_person_in(site, boss):
    page = boss.form("/admin/people/invite", {"name": "zoe", "group": "heldout", "days": "3"}).text
    token = re.search(r"/join#([\w-]+)", page)[1]
    assert token not in boss.get("/admin/people").text
    assert Visitor(site.app).join(token).status_code == 303
    zoe = site.store.read(
        lambda conn: next(m for m in oversight.members(conn, site.store.now()) if m.name == "zoe")
    )
    assert (zoe.group, zoe.sessions, zoe.open_invite) == ("heldout", 1, None)


@pytest.mark.parametrize("bad", [{"name": " "}, {"group": "vip"}, {"days": "0"}, {"days": "x"}])
def test_a_wrong_invitation_is_refused(boss, bad):
    assert boss.form("/admin/people/invite", {"name": "zoe", **bad}).status_code == 422


def test_signing_somebody_out_ends_their_sessions(site, boss):
    dee = site.person("dee")
    id_ = next(
        m.id
        for m in site.store.read(lambda conn: oversight.members(conn, site.store.now()))
        if m.name == "dee"
    )
    assert dee.get("/").status_code == 200
    boss.form("/admin/people/sign-out", {"labeler": id_})
    assert dee.get("/").status_code == 303
    assert json.loads(events(site.store, "sessions-revoked")[0].body) == {"sessions": 1}
    assert boss.form("/admin/people/sign-out", {"labeler": "nobody"}).status_code == 404


def test_a_removed_labeler_is_out_and_no_link_is_made(site, boss):
    dee = site.person("dee")
    id_ = site.store.read(
        lambda conn: conn.scalar(select(tables.labeler.c.id).where(tables.labeler.c.name == "dee"))
    )
    boss.form("/admin/people/status", {"labeler": id_, "status": "removed"})
    assert dee.get("/").status_code in (303, 403)
    assert boss.form("/admin/people/invite", {"labeler": id_}).status_code == 409


def test_administrators_do_not_lock_themselves_out(site, boss):
    me = site.store.read(
        lambda conn: conn.scalar(select(tables.labeler.c.id).where(tables.labeler.c.name == "boss"))
    )
    answer = boss.form("/admin/people/status", {"labeler": me, "status": "removed"})
    assert answer.status_code == 409
    assert boss.get("/admin").status_code == 200


# --- quality ------------------------------------------------------------------------------------


def test_the_store_and_the_page_say_the_same(site, world, boss):
    answer_all(world)
    measured = site.store.read(lambda conn: quality(conn, world.project_id))
    assert (measured.answers, measured.overlap_items) == (6, 3)
    page = boss.get(f"/admin/projects/{world.project_id}/quality").text
    assert f"{measured.agreement['excluded'].rate * 100:.1f} %" in page


def test_the_latest_revision_counts(site, world):
    for labeler, order in zip(world.labelers, (1, -1), strict=True):
        while found := labeler.next():
            ids = labeler.item(found[0]).candidate_ids[::order]
            labeler.submit(found[0], payload={"bins": [[id_] for id_ in ids]})
    look = lambda: site.store.read(lambda conn: quality(conn, world.project_id))  # noqa: E731
    assert look().agreement["exact"].rate == 0
    bob = world.labelers[1]
    for row in world.assignments(tables.assignment.c.labeler_id == bob.person.id):
        ids = bob.item(row.id).candidate_ids
        bob.amend(row.id, payload={"bins": [[id_] for id_ in ids]})
    assert look().agreement["exact"].rate == 1
    assert look().answers == 6


def test_people_and_simulated_labelers_do_not_mix(site, world):
    answer_all(world)
    robot = world.join("robot", simulated=True)
    upload_sets = [candidate_set(number, 3) for number in (20, 21)]
    world.write(lambda c, n: projects.add_candidate_sets(c, n, world.project_id, upload_sets))
    robot.submit(robot.next()[0])
    found = {
        who: site.store.read(lambda conn, who=who: quality(conn, world.project_id, who=who))
        for who in ("people", "simulated", None)
    }
    assert [found[who].answers for who in ("people", "simulated", None)] == [6, 1, 6]


def test_planted_faults_are_named_on_the_page(sqlite_store):
    world = crowd(
        sqlite_store, labelers=6, items=60, answers=150, overlap_share=1, repeat_share=0.1
    )
    boss = Site(sqlite_store).person("boss", "admin")
    page = boss.get(f"/admin/projects/{world.project_id}/quality").text
    assert re.search(r"<bdi>first</bdi></strong> prefers the reply shown first", page)
    assert re.search(r"<bdi>hurried</bdi></strong> takes \d s for an item", page)
    measured = sqlite_store.read(lambda conn: quality(conn, world.project_id))
    assert measured.gold is not None and measured.gold.estimate > 0.6
    assert sqlite_store.read(audit.verify) == []


def test_an_unanswered_project_tells_what_to_do(world, boss):
    page = boss.get(f"/admin/projects/{world.project_id}/quality").text
    assert "Invite people" in page


def test_the_table_sorts_by_every_column(site, world, boss):
    answer_all(world)
    rows = site.store.read(lambda conn: quality(conn, world.project_id)).labelers
    for key in KEYS:
        for down in ("", "&down=1"):
            page = boss.get(f"/admin/projects/{world.project_id}/quality?sort={key}{down}")
            assert page.status_code == 200 and "aria-sort" in page.text
        assert {row.person.name for row in sorted_rows(rows, key)} == {"ann", "bob"}


def _measured(answers):
    people = [Person(name, name) for name in dict.fromkeys(a.labeler for a in answers)]
    return measure(Collected(people=people, plain=answers))


def test_sorting_downwards_leaves_those_without_a_value_last():
    rows = _measured([Answer(0, "ann", seconds=5.0), Answer(1, "bob", seconds=9.0)]).labelers
    rows.append(dataclasses.replace(rows[0], person=Person("cho", "cho"), median_seconds=None))
    for down, names in ((False, "ann bob cho"), (True, "bob ann cho")):
        assert [row.person.name for row in sorted_rows(rows, "seconds", down)] == names.split()


# --- hostile text -------------------------------------------------------------------------------


def test_hostile_text_stays_text_on_every_page(sqlite_store):
    world = ranking_world(sqlite_store, items=0, labelers=0)
    project_id = world.write(
        lambda conn, now: projects.create(
            conn, now, HOSTILE, "rank", guidelines=HOSTILE, criterion=HOSTILE
        )
    )
    set_ = candidate_set(1, 2, id=HOSTILE, prompt=HOSTILE, prompt_id=HOSTILE)
    replies = [
        c.model_copy(update={"text": HOSTILE * (n + 1), "policy": HOSTILE})
        for n, c in enumerate(set_.candidates)
    ]
    set_ = set_.model_copy(update={"candidates": tuple(replies)})
    world.write(lambda conn, now: projects.add_candidate_sets(conn, now, project_id, [set_]))
    world.project_id = project_id
    mal = world.join(HOSTILE[:80])
    id_ = mal.next()[0]
    ids = mal.item(id_).candidate_ids
    mal.submit(id_, payload={"bins": [list(ids)], "note": HOSTILE, "notes": {ids[0]: HOSTILE}})
    world.write(lambda c, n: projects.hold(c, n, mal.item(id_).id, "command", HOSTILE))
    boss = Site(sqlite_store).person("boss", "admin")
    item = mal.item(id_).id
    paths = ["", f"/projects/{project_id}", f"/projects/{project_id}/quality", f"/items/{item}",
             "/people", f"/projects/{project_id}?q={HOSTILE[:40]}"]  # fmt: skip
    for path in paths:
        page = boss.get(f"/admin{path}")
        assert page.status_code == 200
        assert "<script>alert" not in page.text and "<img" not in page.text, path
        assert "&lt;script&gt;" in page.text, path
        assert "style=" not in page.text, path


def test_a_link_bears_the_public_address(sqlite_store):
    site = Site(sqlite_store, "https://labels.example.org")
    boss = site.person("boss", "admin")
    page = boss.form("/admin/people/invite", {"name": "zoe"}, origin="https://labels.example.org")
    assert "https://labels.example.org/join#" in page.text


# --- the same on PostgreSQL ---------------------------------------------------------------------


def test_postgresql_gives_the_same_pages_and_numbers(sqlite_store, postgres_store):
    """Every administrators' page and every number, over a store of each kind with one history."""
    seen = []
    for store in (sqlite_store, postgres_store):
        world = crowd(store, labelers=4, items=12, answers=24, repeat_share=0.2)
        boss = Site(store).person("boss", "admin")
        here = f"/admin/projects/{world.project_id}"
        paths = ["/admin", "/admin/people", "/admin/verify", here, f"{here}?q=QUESTION 7"]
        paths += [f"{here}/quality?sort={key}&down=1" for key in ("name", "agreement")]
        [last] = world.items(tables.item.c.external_id == "s7")
        paths.append(f"/admin/items/{last.id}")
        for path in paths:
            assert boss.get(path).status_code == 200, path
        assert "question 7" in boss.get(f"{here}?q=QUESTION 7").text.lower()
        assert boss.form(f"/admin/items/{last.id}/hold", {"reason": "odd"}).status_code == 303
        assert "odd" in boss.get(here).text
        id_ = world.project_id
        measured = world.read(lambda conn, id_=id_: quality(conn, id_, ["fails_task"]))
        progress = world.read(lambda conn, id_=id_: projects.progress(conn, id_))
        archive = zipfile.ZipFile(io.BytesIO(boss.get(f"{here}/export?pairs=1").content))
        names = ("rankings.jsonl", "pairs.jsonl", "answers.jsonl")
        files = {name: archive.read(name) for name in names}
        assert store.read(audit.verify) == []
        shown = dataclasses.replace(measured, people=[], labelers=[])
        rows = [
            dataclasses.replace(row, person=dataclasses.replace(row.person, id=""))
            for row in measured.labelers
        ]
        seen.append((shown, rows, progress, files))
    for sqlite, postgresql in zip(*seen, strict=True):
        assert sqlite == postgresql
