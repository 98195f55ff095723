"""Exports: what they hold, that they come back byte for byte, and that other stages read them."""

import hashlib
import json
from types import SimpleNamespace

import pytest
from sqlalchemy import update

from tercet.data.importers import ImportConfig
from tercet.data.importers import rankings as import_rankings
from tercet.judge.rankings import verdicts
from tercet.label import assignment, audit, commands, people, projects, tables, work
from tercet.label.export import export
from tercet.label.restore import item_name, restore
from tercet.label.store import Store
from tercet.records import (
    Candidate,
    CandidateSet,
    Demonstration,
    InputError,
    Prompt,
    RankedReply,
    Ranking,
    dump,
    read_records,
    write_records,
)

RECORDS = ("demonstrations.jsonl", "rankings.jsonl", "evaluations.jsonl", "answers.jsonl")
PLAIN = projects.Settings(overlap_share=0, gold_share=0, repeat_share=0, valid_fraction=0)


def candidates(name, texts=("one", "two", "three"), policies=("sft", "sft", "base")):
    return CandidateSet(
        id=f"set/{name}",
        prompt_id=name,
        prompt=f"Say {name}.",
        candidates=tuple(
            Candidate(
                id=f"{name}/{k}", text=text, policy=policy, temperature=1.0, seed=3, finish="stop"
            )
            for k, (text, policy) in enumerate(zip(texts, policies, strict=True))
        ),
    )


class Office:
    """A store with labelers, for tests to work in."""

    def __init__(self, store):
        self.store = store

    def project(self, name, kind, *, settings=PLAIN, **options):
        return self.store.write(
            lambda conn: projects.create(
                conn, self.store.now(), name, kind, settings=settings, **options
            )
        )

    def add(self, project, *records):
        add = (
            projects.add_prompts
            if isinstance(records[0], Prompt)
            else projects.add_gold
            if isinstance(records[0], Ranking)
            else projects.add_candidate_sets
        )
        found = self.store.write(lambda conn: add(conn, self.store.now(), project, records))
        assert not found.refused
        return found

    def person(self, name, **options):
        def job(conn):
            now = self.store.now()
            id_ = people.add_labeler(conn, now, name, **options)
            return people.session(
                conn, now, people.join(conn, now, people.invite(conn, now, id_)).sid
            )

        return self.store.write(job)

    def next(self, person, project):
        """What the page of this labeler gets now: views of assignments, the first one opened."""

        def job(conn):
            now = self.store.now()
            found = assignment.next_items(conn, now, person, project).assignments
            return [assignment.view(conn, now, person, id_) for id_ in found]

        return self.store.write(job)

    def submit(self, person, task, payload, active_ms=1500):
        key = f"key-{task['id']}"
        return self.store.write(
            lambda conn: work.submit(
                conn, self.store.now(), person, task["id"], key, payload, active_ms
            )
        )

    def amend(self, person, task, payload):
        return self.store.write(
            lambda conn: work.amend(
                conn, self.store.now(), person, task["id"], f"again-{task['id']}", payload, 2000
            )
        )


@pytest.fixture
def office(sqlite_store):
    return Office(sqlite_store)


def bins(task, *texts):
    """Bins of reply ids from bins of reply texts."""
    ids = {reply["text"]: reply["id"] for reply in task["replies"]}
    return [[ids[text] for text in group] for group in texts]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rank_something(office, project, person, **more):
    """Answers the next item: two is best, one and three tie."""
    task = office.next(person, project)[0]
    payload = {"bins": bins(task, ["two"], ["one", "three"]), **more}
    office.submit(person, task, payload)
    return task


def test_a_ranking_holds_what_was_shown_and_said(office, tmp_path):
    project = office.project("Rank", "rank", criterion="helpfulness", guidelines="Be fair.")
    office.add(project, candidates("p1"))
    ann = office.person("ann", fold=2)
    task = office.next(ann, project)[0]
    ids = {reply["text"]: reply["id"] for reply in task["replies"]}
    office.submit(
        ann,
        task,
        {
            "bins": bins(task, ["two"], ["one", "three"]),
            "ratings": {ids["two"]: 6},
            "flags": {ids["one"]: {"hallucination": False, "fails_task": True}},
        },
    )
    export(office.store, tmp_path)
    (record,) = read_records(tmp_path / "rankings.jsonl", Ranking)
    assert record.id == "set/p1/helpfulness/ann"
    assert (record.prompt_id, record.prompt, record.split) == ("p1", "Say p1.", "train")
    assert [(r.id, r.text, r.rank, r.policy) for r in record.replies] == [
        ("p1/0", "one", 2, "sft"), ("p1/1", "two", 1, "sft"), ("p1/2", "three", 2, "base"),
    ]  # fmt: skip
    assert [reply.rating for reply in record.replies] == [None, 6, None]
    assert (record.judge, record.labeler, record.group, record.fold) == (
        "person",
        "ann",
        "train",
        2,
    )
    assert (record.criterion, record.seconds, record.guidelines) == ("helpfulness", 1.5, "1")


def test_no_and_not_answered_differ_in_the_file(office, tmp_path):
    project = office.project("Rank", "rank")
    office.add(project, candidates("p1"))
    ann = office.person("ann")
    task = office.next(ann, project)[0]
    ids = {reply["text"]: reply["id"] for reply in task["replies"]}
    flags = {ids["one"]: {"hallucination": False, "sexual_content": None}}
    office.submit(ann, task, {"bins": bins(task, ["two"], ["one", "three"]), "flags": flags})
    export(office.store, tmp_path)
    written = lines(tmp_path / "rankings.jsonl")[0]["replies"]
    assert written[0]["flags"]["hallucination"] is False
    assert written[0]["flags"]["sexual_content"] is None
    assert written[0]["flags"]["denigrates"] is None  # never touched
    assert set(written[1]["flags"].values()) == {None}
    (record,) = read_records(tmp_path / "rankings.jsonl", Ranking)
    assert dump(record) == (tmp_path / "rankings.jsonl").read_text().rstrip("\n")


def test_where_no_flags_are_asked_there_are_none(office, tmp_path):
    project = office.project("Rank", "rank", settings=PLAIN.model_copy(update={"rate": False}))
    office.add(project, candidates("p1"))
    rank_something(office, project, office.person("ann"))
    export(office.store, tmp_path)
    assert "flags" not in lines(tmp_path / "rankings.jsonl")[0]["replies"][0]


def test_the_latest_revision_is_exported_once(office, tmp_path):
    project = office.project("Rank", "rank")
    office.add(project, candidates("p1"))
    ann = office.person("ann")
    task = rank_something(office, project, ann)
    office.amend(ann, task, {"bins": bins(task, ["three"], ["two"], ["one"])})
    export(office.store, tmp_path)
    (record,) = read_records(tmp_path / "rankings.jsonl", Ranking)
    assert [reply.rank for reply in record.replies] == [3, 2, 1]
    assert lines(tmp_path / "answers.jsonl")[0]["revision"] == 2


def test_gold_items_are_left_out_unless_asked_for(office, tmp_path):
    everything = PLAIN.model_copy(update={"gold_share": 1.0})
    project = office.project("Rank", "rank", settings=everything)
    replies = [RankedReply(id=str(k), text=t, rank=k) for k, t in ((1, "good"), (2, "bad"))]
    known = Ranking(id="g", prompt_id="g", prompt="G?", replies=tuple(replies), judge="person")
    office.add(project, known)
    office.add(project, candidates("p1"))
    ann = office.person("ann")
    while tasks := office.next(ann, project):
        bins_ = [[reply["id"]] for reply in tasks[0]["replies"]]
        office.submit(ann, tasks[0], {"bins": bins_})
    export(office.store, tmp_path / "without")
    export(office.store, tmp_path / "with", gold=True)
    plain = [row["id"] for row in lines(tmp_path / "without" / "rankings.jsonl")]
    both = {row["id"]: row.get("gold") for row in lines(tmp_path / "with" / "answers.jsonl")}
    assert plain == ["set/p1/ann"]
    assert both == {"gold/g/ann": True, "set/p1/ann": None}


def test_late_answers_are_included_and_marked(office, tmp_path):
    lease = PLAIN.model_copy(update={"ahead": 0})
    project = office.project("Rank", "rank", settings=lease)
    office.add(project, candidates("p1"))
    ann, bob = office.person("ann"), office.person("bob")
    late = office.next(ann, project)[0]
    began = office.store.now()
    office.store.clock = lambda: began + 3_600_001
    rank_something(office, project, bob)
    office.submit(ann, late, {"bins": bins(late, ["one"], ["two"], ["three"])})
    export(office.store, tmp_path)
    extra = {row["id"]: row.get("extra", False) for row in lines(tmp_path / "answers.jsonl")}
    assert extra == {"set/p1/ann": True, "set/p1/bob": False}
    assert len(lines(tmp_path / "rankings.jsonl")) == 2


def test_evaluations_are_verdicts_and_both_bad_is_a_flagged_tie(office, tmp_path):
    project = office.project("Compare", "evaluate")
    for name in ("p1", "p2"):
        office.add(project, candidates(name, ("mine", "theirs"), ("ppo|sft", "baseline")))
    ann = office.person("ann")
    first, second = office.next(ann, project)[:2]
    by_prompt = {task["prompt"]["text"]: task for task in (first, second)}
    one, two = by_prompt["Say p1."], by_prompt["Say p2."]
    office.submit(ann, one, {"bins": bins(one, ["mine"], ["theirs"])})
    office.submit(ann, two, {"bins": bins(two, ["mine", "theirs"]), "both_bad": True})
    export(office.store, tmp_path)
    records = read_records(tmp_path / "evaluations.jsonl", Ranking)
    found = verdicts(records, "ppo", "baseline")
    assert [(v.prompt_id, v.outcome, v.labeler) for v in found] == [
        ("p1", 1.0, "ann"), ("p2", 0.5, "ann"),
    ]  # fmt: skip
    assert all(reply.flags["both_bad"] for reply in records[1].replies)
    assert not (tmp_path / "rankings.jsonl").exists()


def test_demonstrations_with_given_and_own_prompts(office, tmp_path):
    project = office.project("Write", "demonstration")
    office.add(
        project,
        Prompt(id="d1", text="Why?", user_id="u", source="s", split="valid"),
        Prompt(id="open", text=""),
    )
    ann = office.person("ann")
    for task in office.next(ann, project):
        own = {"prompt": "How?"} if task["settings"]["open_prompt"] else {}
        office.submit(ann, task, {"text": "Because.", **own})
    export(office.store, tmp_path)
    given, own = read_records(tmp_path / "demonstrations.jsonl", Demonstration)
    assert dump(given) == dump(
        Demonstration(id="d1/ann", prompt_id="d1", prompt="Why?", response="Because.",
                      labeler="ann", user_id="u", source="s", split="valid")
    )  # fmt: skip
    assert (own.id, own.prompt_id, own.prompt) == ("open/ann", "open/ann", "How?")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All kinds of projects, several labelers, ties, notes and flags. Tests only read it."""
    with Store.open(tmp_path_factory.mktemp("full") / "labels.sqlite") as store:
        yield fill(Office(store))


def fill(office):
    rank = office.project("Rank", "rank", settings=PLAIN.model_copy(update={"overlap_share": 1.0}))
    again = office.project("Rank harm", "rank", criterion="harm")
    compare = office.project("Compare", "evaluate")
    write = office.project("Write", "demonstration")
    for project in (rank, again):
        office.add(project, *(candidates(f"p{i}é") for i in range(4)))
    office.add(compare, candidates("p9", ("a", "b"), ("sft", "baseline")))
    office.add(write, Prompt(id="d1", text="Why?", tags=("open",)), Prompt(id="open", text=""))
    team = [office.person("ann"), office.person("bob", group="heldout"),
            office.person("sim", simulated=True, fold=3)]  # fmt: skip
    for number, person in enumerate(team):
        for project in (rank, again, compare, write):
            while tasks := office.next(person, project):
                task = tasks[0]
                ids = [reply["id"] for reply in task["replies"]]
                if project == write:
                    own = {"prompt": "Mine?"} if task["settings"]["open_prompt"] else {}
                    payload = {"text": "A.", "prompt_flags": {"ambiguous": False}, **own}
                elif project == compare:
                    payload = {"bins": [ids], "both_bad": True}
                else:
                    payload = {
                        "bins": [ids[:1], ids[1:]],
                        "ratings": {ids[0]: 7, ids[1]: None},
                        "flags": {ids[1]: {"hallucination": False, "denigrates": None}},
                        "notes": {ids[2]: "odd ☃"},
                        "note": f"{number}",
                        "prompt_flags": {"sensitive": True, "ambiguous": None},
                        "arranged": True,
                    }
                office.submit(person, task, payload, active_ms=1234 + number)
                if project == again and number == 0:
                    office.amend(person, task, {**payload, "note": "changed", "swapped": True})
    return office


def test_export_restore_export_is_byte_identical(full, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    export(full.store, one, pairs=True)
    with Store.open(tmp_path / "fresh.sqlite") as fresh:
        found = restore(fresh, [one / name for name in RECORDS])
        export(fresh, two, pairs=True)
        assert fresh.read(audit.verify) == []
    assert found.known == 0
    assert found.added == len(lines(one / "answers.jsonl")) > 12
    for name in (*RECORDS, "pairs.jsonl"):
        assert (two / name).read_bytes() == (one / name).read_bytes(), name


def test_records_come_back_without_answers_jsonl_too(full, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    export(full.store, one)
    with Store.open(tmp_path / "fresh.sqlite") as fresh:
        restore(fresh, [one / name for name in RECORDS[:3]])
        export(fresh, two)
    for name in RECORDS[:3]:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name


def test_a_second_export_and_a_second_restore_change_nothing(full, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    export(full.store, one)
    export(full.store, two)
    for file in one.iterdir():
        assert (two / file.name).read_bytes() == file.read_bytes()
    with Store.open(tmp_path / "fresh.sqlite") as fresh:
        files = [one / name for name in RECORDS]
        restore(fresh, files)
        before = fresh.read(audit.head)
        again = restore(fresh, files)
        assert (again.added, again.known) == (0, len(lines(one / "answers.jsonl")))
        assert fresh.read(audit.head) == before


@pytest.mark.parametrize("batch", [200, 3])
def test_postgresql_exports_the_same_bytes(full, tmp_path, postgres_url, monkeypatch, batch):
    monkeypatch.setattr("tercet.label.export.BATCH", batch)
    one, two = tmp_path / "one", tmp_path / "two"
    export(full.store, one)
    with Store.open(postgres_url) as fresh:
        restore(fresh, [one / name for name in RECORDS])
        export(fresh, two)
        assert fresh.read(audit.verify) == []
    for name in RECORDS:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name


def test_the_manifest_tells_counts_and_hashes(full, tmp_path):
    manifest = export(full.store, tmp_path)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    with pytest.raises(InputError):
        export(full.store, tmp_path, project="nothing")
    assert (tmp_path / "manifest.json").exists()  # a slip harms no export that is there
    for name, facts in manifest["files"].items():
        data = (tmp_path / name).read_bytes()
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert (facts["lines"], facts["bytes"]) == (data.count(b"\n"), len(data))
    assert {p["name"]: p["kind"] for p in manifest["projects"]} == {
        "Rank": "rank", "Rank harm": "rank", "Compare": "evaluate", "Write": "demonstration",
    }  # fmt: skip
    events = lines(tmp_path / "audit.jsonl")
    assert manifest["last_event"] == {"seq": len(events), "hash": events[-1]["hash"]}
    assert set(json.loads((tmp_path / "agreement.json").read_text())) == {
        "Rank", "Rank harm", "Compare",
    }  # fmt: skip


def test_exports_name_labelers_by_alias_only(full, tmp_path):
    export(full.store, tmp_path)
    ids = full.store.read(lambda conn: conn.scalars(tables.labeler.select()).all())
    for name in RECORDS:
        text = (tmp_path / name).read_text()
        assert not any(id_ in text for id_ in ids)


def test_pairs_have_no_ties_and_are_read_back(office, tmp_path):
    project = office.project("Rank", "rank")
    office.add(project, candidates("p1"))
    rank_something(office, project, office.person("ann"))
    export(office.store, tmp_path, pairs=True)
    found = import_rankings(tmp_path / "pairs.jsonl", ImportConfig())
    assert [[reply.text for reply in pair.replies] for pair in found] == [
        ["two", "one"], ["two", "three"],
    ]  # fmt: skip
    assert {(pair.prompt, pair.labeler, pair.split) for pair in found} == {
        ("Say p1.", "ann", "train")
    }


def test_one_project_can_be_exported_alone(full, tmp_path):
    export(full.store, tmp_path, project="Rank harm")
    records = read_records(tmp_path / "rankings.jsonl", Ranking)
    assert {record.criterion for record in records} == {"harm"}
    assert not (tmp_path / "evaluations.jsonl").exists()
    with pytest.raises(InputError, match="no project 'Rnk'; the store has Compare, Rank, Rank ha"):
        export(full.store, tmp_path, project="Rnk")


def test_two_projects_that_ask_the_same_are_refused_together(office, tmp_path):
    ann = office.person("ann")
    for name in ("Rank", "Rank again"):
        project = office.project(name, "rank")
        office.add(project, candidates("p1"))
        rank_something(office, project, ann)
    with pytest.raises(InputError, match="ask ann the same of set/p1; export them one by one"):
        export(office.store, tmp_path)
    assert not (tmp_path / "rankings.jsonl").exists()
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_edited_answer_is_seen_after_restoring_too(full, tmp_path):
    export(full.store, tmp_path)
    with Store.open(tmp_path / "fresh.sqlite") as fresh:
        restore(fresh, [tmp_path / "rankings.jsonl"])
        a = tables.annotation
        fresh.write(lambda conn: conn.execute(update(a).values(payload={"bins": []})))
        faults = fresh.read(audit.verify)
    assert any("was edited" in fault for fault in faults)


@pytest.mark.parametrize(
    ("id_", "labeler", "criterion", "expected"),
    [
        ("set/p1/ann", "ann", None, "set/p1"),
        ("set/p1/harm/ann", "ann", "harm", "set/p1"),
        ("set/p1-simulated-9", "simulated-9", None, "set/p1"),
        ("set/p1/ann", "joann", None, "set/p1/ann"),
        ("hh/0", None, None, "hh/0"),
        ("/ann", "ann", None, "/ann"),
    ],
)
def test_the_item_of_an_answer(id_, labeler, criterion, expected):
    replies = tuple(RankedReply(id=str(k), text=str(k), rank=1) for k in range(2))
    record = Ranking(id=id_, prompt_id="p", prompt="P", replies=replies, judge="person",
                     labeler=labeler, criterion=criterion)  # fmt: skip
    assert item_name(record) == expected


def ranking(**changes):
    replies = tuple(RankedReply(id=str(k), text=f"t{k}", rank=k) for k in (1, 2))
    base = Ranking(id="x/ann", prompt_id="p", prompt="P", replies=replies, judge="person",
                   labeler="ann")  # fmt: skip
    return base.model_copy(update=changes)


def test_flags_of_unknown_names_make_questions(sqlite_store, tmp_path):
    reply = RankedReply(id="1", text="a", rank=1, flags={"too_long": True, "hallucination": None})
    other = RankedReply(id="2", text="b", rank=2, flags={"too_long": False, "hallucination": True})
    write_records(tmp_path / "rankings.jsonl", [ranking(replies=(reply, other))])
    restore(sqlite_store, [tmp_path / "rankings.jsonl"])
    project = sqlite_store.read(lambda conn: projects.get(conn, "Rank replies"))
    assert [flag.id for flag in project.schema.reply_flags] == ["hallucination", "too_long"]
    export(sqlite_store, tmp_path / "out")
    (record,) = read_records(tmp_path / "out" / "rankings.jsonl", Ranking)
    assert record.replies[0].flags == {"too_long": True, "hallucination": None}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([ranking(judge="reward")], "x/ann: was ranked by judge 'reward', not by a labeler"),
        ([ranking(), ranking(replies=ranking().replies[::-1], id="x/ann")], "another answer"),
        ([ranking(), ranking(labeler="bob", id="x/bob", judge="simulated"),
          ranking(id="y/bob", labeler="bob")], "bob is a person here and simulated there"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_whole(sqlite_store, tmp_path, records, said):
    if said == "another answer":
        swapped = tuple(r.model_copy(update={"rank": 3 - r.rank}) for r in ranking().replies)
        records = [ranking(), ranking(replies=swapped)]
    write_records(tmp_path / "rankings.jsonl", records)
    with pytest.raises(InputError, match=f"nothing was restored: .*{said}"):
        restore(sqlite_store, [tmp_path / "rankings.jsonl"])
    left = sqlite_store.read(lambda conn: conn.execute(tables.item.select()).all())
    assert left == []


def test_a_dry_run_leaves_the_store_as_it_was(sqlite_store, tmp_path):
    write_records(tmp_path / "rankings.jsonl", [ranking()])
    before = sqlite_store.read(audit.head)
    assert restore(sqlite_store, [tmp_path / "rankings.jsonl"], dry_run=True).added == 1
    assert sqlite_store.read(audit.head) == before


def test_another_file_is_named(sqlite_store, tmp_path):
    write_records(tmp_path / "candidates.jsonl", [candidates("p1")])
    with pytest.raises(InputError, match=r"candidates\.jsonl: .*'tercet.candidates/1'; restoring"):
        restore(sqlite_store, [tmp_path / "candidates.jsonl"])


def test_votes_of_unnamed_people_get_one_alias(sqlite_store, tmp_path):
    pair = SimpleNamespace(id="hh/0", labeler=None)
    write_records(tmp_path / "rankings.jsonl", [ranking(id=pair.id, labeler=pair.labeler)])
    restore(sqlite_store, [tmp_path / "rankings.jsonl"])
    export(sqlite_store, tmp_path / "out")
    (record,) = read_records(tmp_path / "out" / "rankings.jsonl", Ranking)
    assert (record.id, record.labeler) == ("hh/0/imported", "imported")


def test_the_command_line_exports_and_imports_back(full, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    fresh = str(tmp_path / "fresh.sqlite")
    assert commands.run("export", [str(full.store.path), "--out", str(one)]) == 0
    files = [str(one / name) for name in RECORDS]
    assert commands.run("import", [fresh, *files, "--dry-run"]) == 0
    assert "would restore" in capsys.readouterr().out
    assert commands.run("import", [fresh, *files]) == 0
    count = len(lines(one / "answers.jsonl"))
    assert f"restored {count} new answers, 0 known, in" in capsys.readouterr().out
    assert commands.run("export", [fresh, "--out", str(two)]) == 0
    for name in RECORDS:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name


def test_answers_and_candidates_are_not_imported_together(full, tmp_path):
    export(full.store, tmp_path)
    write_records(tmp_path / "candidates.jsonl", [candidates("p1")])
    store, ranked = str(tmp_path / "fresh.sqlite"), str(tmp_path / "rankings.jsonl")
    with pytest.raises(InputError, match="restoring takes"):
        commands.run("import", [store, ranked, str(tmp_path / "candidates.jsonl")])
    with pytest.raises(InputError, match="give candidates or prompts, and answers apart"):
        commands.run("import", [store, str(tmp_path / "candidates.jsonl"), ranked])
