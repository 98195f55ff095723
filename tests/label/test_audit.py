import pytest
from sqlalchemy import delete, insert, select, text, update

from tercet.label import audit
from tercet.label.ids import canonical, sha256
from tercet.label.tables import annotation, assignment, chain, item, labeler, project, prompt
from tercet.label.tables import event as events

PAYLOAD = {"bins": [["c1"], ["c2"]], "note": "é"}


def fill(conn):
    """One item, answered by ann and by ben; a third person has it open. Five events."""
    at = {"created_at": 1}
    pinned = {"schema_version": 1, "guidelines_version": 1}
    conn.execute(insert(project).values(id="p", name="p", kind="rank", settings={}, **pinned, **at))
    conn.execute(
        insert(prompt).values(id="q", project_id="p", external_id="q", text="?", sha256="")
    )
    conn.execute(
        insert(item).values(
            **{"id": "i", "project_id": "p", "prompt_id": "q", "external_id": "i"},
            **{"candidate_ids": ["c1", "c2"], "need": 3, "done": 2, "leased": 1, "shuffle": 0.5},
        )
    )
    for fold, name in enumerate(["ann", "ben", "cat"]):
        conn.execute(
            insert(labeler).values(
                id=name, name=name, role="labeler", group="train", fold=fold, **at
            )
        )
        conn.execute(
            insert(assignment).values(
                **{"id": f"a-{name}", "item_id": "i", "project_id": "p", "labeler_id": name},
                **{"state": "open" if name == "cat" else "done", "lease_until": 9},
                **{"display_order": ["c2", "c1"], **pinned, **at},
            )
        )
    audit.append(conn, 1, "command", "import", "p", {"items": 1})
    for name in ("ann", "ben"):
        conn.execute(
            insert(annotation).values(
                **{"id": f"n-{name}", "assignment_id": f"a-{name}", "revision": 1},
                **{"payload": PAYLOAD, "active_ms": 5, "at": 2, "app_version": "1", **pinned},
            )
        )
        told = {"annotation_id": f"n-{name}", "payload_sha256": sha256(canonical(PAYLOAD))}
        audit.append(conn, 2, name, "submit", f"a-{name}", told)
    audit.append(conn, 3, "cat", "draft", "a-cat", {"half": "\ud800", "nul": "\0"})
    audit.append(conn, 4, "command", "pause", "p", {})


@pytest.fixture
def filled(store):
    store.write(fill)
    return store


@pytest.fixture
def sqlite_filled(sqlite_store):
    sqlite_store.write(fill)
    return sqlite_store


def faults_after(store, *statements):
    def work(conn):
        conn.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for statement in statements:
            assert conn.execute(statement).rowcount >= 1
        return audit.verify(conn)

    return store.write(work)


def test_a_store_that_agrees_has_no_faults(filled):
    assert filled.read(audit.verify) == []
    assert filled.read(audit.head)[0] == 5


def test_an_empty_store_has_no_faults(store):
    assert store.read(audit.verify) == []
    assert store.read(audit.head) == (0, "0" * 64)


def test_every_event_names_the_hash_of_the_one_before(filled):
    rows = filled.read(
        lambda conn: conn.execute(
            select(events.c.seq, events.c.prev_hash, events.c.hash).order_by(events.c.seq)
        ).all()
    )
    assert [seq for seq, _, _ in rows] == [1, 2, 3, 4, 5]
    assert [previous for _, previous, _ in rows] == ["0" * 64] + [h for _, _, h in rows[:-1]]
    assert len({h for _, _, h in rows}) == 5


def test_the_hash_is_of_the_published_text(sqlite_store):
    sqlite_store.write(lambda c: audit.append(c, 7, "ann", "submit", "a1", {"b": 2, "a": "é"}))
    row = sqlite_store.read(lambda c: c.execute(select(events)).one())
    assert row.body == '{"a":"\\u00e9","b":2}'
    text = '[1,7,"ann","submit","a1","{\\"a\\":\\"\\\\u00e9\\",\\"b\\":2}","' + "0" * 64 + '"]'
    assert row.hash == sha256(text)


@pytest.mark.parametrize(
    "change",
    [
        {"body": "{}"},
        {"actor": "ann"},
        {"kind": "nothing"},
        {"ref": "x"},
        {"at": 99},
    ],
)
def test_an_edited_event_is_found(sqlite_filled, change):
    edit = update(events).where(events.c.seq == 4).values(**change)
    (fault,) = faults_after(sqlite_filled, edit)
    assert fault.startswith("event 4 (")
    assert "was edited" in fault


def test_an_edited_event_with_a_new_hash_is_found_by_the_next_one(sqlite_filled):
    forged = audit._hash(4, 3, "cat", "draft", "a-cat", "{}", "x")
    edit = update(events).where(events.c.seq == 4).values(body="{}", hash=forged, prev_hash="x")
    assert faults_after(sqlite_filled, edit) == [
        "event 4 does not follow event 3: its previous hash differs",
        "event 5 does not follow event 4: its previous hash differs",
    ]


def test_a_removed_event_is_found(sqlite_filled):
    faults = faults_after(sqlite_filled, delete(events).where(events.c.seq == 4))
    assert faults == ["event 4 is missing: the one after 3 is 5"]


def test_a_removed_first_event_is_found(sqlite_filled):
    faults = faults_after(sqlite_filled, delete(events).where(events.c.seq == 1))
    assert faults == ["event 1 is missing: the one after 0 is 2"]


def test_removed_last_events_are_found(sqlite_filled):
    faults = faults_after(sqlite_filled, delete(events).where(events.c.seq >= 4))
    assert faults == ["the event chain ends at event 3, its head names event 5"]


def test_a_missing_head_is_found(sqlite_filled):
    assert faults_after(sqlite_filled, delete(chain)) == ["the head of the event chain is missing"]


def test_swapped_events_are_found(sqlite_filled):
    swap = [
        update(events).where(events.c.seq == old).values(seq=new)
        for old, new in [(2, 99), (3, 2), (99, 3)]
    ]
    faults = faults_after(sqlite_filled, *swap)
    assert "event 2 does not follow event 1: its previous hash differs" in faults
    assert "event 2 (submit) was edited: its hash does not fit its content" in faults


def test_an_edited_answer_is_found(sqlite_filled):
    other = {**PAYLOAD, "bins": [["c2"], ["c1"]]}
    edit = update(annotation).where(annotation.c.id == "n-ann").values(payload=other)
    assert faults_after(sqlite_filled, edit) == [
        "annotation n-ann was edited: its payload does not fit its event"
    ]


def test_an_answer_that_is_no_json_any_more_is_found(sqlite_filled):
    edit = text("UPDATE annotation SET payload = '{\"bins\": [[' WHERE id = 'n-ann'")
    assert faults_after(sqlite_filled, edit) == [
        "annotation n-ann was edited: its payload does not fit its event"
    ]


def test_an_answer_given_to_another_labeler_is_found(sqlite_filled):
    swap = [
        update(assignment).where(assignment.c.id == id_).values(labeler_id=labeler_id)
        for id_, labeler_id in [("a-cat", "cat2"), ("a-ann", "cat"), ("a-cat", "ann")]
    ]
    faults = faults_after(sqlite_filled, add_person("cat2"), *swap)
    assert faults == ["annotation n-ann belongs to another labeler than its event names"]


def add_person(name):
    return insert(labeler).values(
        id=name, name=name, role="labeler", group="train", fold=0, created_at=1
    )


def test_an_answer_moved_to_another_assignment_is_found(sqlite_filled):
    move = update(annotation).where(annotation.c.id == "n-ann").values(assignment_id="a-cat")
    assert faults_after(sqlite_filled, move) == [
        "annotation n-ann belongs to another labeler than its event names",
        "assignment a-cat has an annotation but is open",
        "assignment a-ann is done but has no annotation",
    ]


def test_a_removed_answer_is_found(sqlite_filled):
    assert faults_after(sqlite_filled, delete(annotation).where(annotation.c.id == "n-ben")) == [
        "annotation n-ben is missing: there is only its event",
        "assignment a-ben is done but has no annotation",
    ]


def test_an_answer_that_nobody_gave_is_found(sqlite_filled):
    forged = insert(annotation).values(
        **{"id": "n-2", "assignment_id": "a-ann", "revision": 2, "payload": PAYLOAD},
        **{"active_ms": 5, "at": 2, "app_version": "1"},
        **{"schema_version": 1, "guidelines_version": 1},
    )
    assert faults_after(sqlite_filled, forged) == ["annotation n-2 has no event"]


@pytest.mark.parametrize(
    ("drift", "told"),
    [
        ({"done": 1}, "item i counts 1 answers, there are 2"),
        ({"leased": 0}, "item i counts 0 open assignments, there are 1"),
    ],
)
def test_counters_that_drifted_are_found(sqlite_filled, drift, told):
    assert faults_after(sqlite_filled, update(item).values(**drift)) == [told]


def test_more_answers_than_wanted_are_found(sqlite_filled):
    def work(conn):
        conn.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        conn.execute(update(item).values(need=1))
        return audit.verify(conn)

    assert sqlite_filled.write(work) == ["item i has 2 counted answers, 1 were wanted"]


def test_no_more_than_a_hundred_faults_are_told(sqlite_store):
    def work(conn):
        for i in range(150):
            audit.append(conn, 1, "a", "b", str(i), {})
        conn.execute(update(events).values(at=2))
        return audit.verify(conn)

    assert len(sqlite_store.write(work)) == 100
