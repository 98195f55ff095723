import json
import re
import sqlite3

import pytest
from sqlalchemy import func, select

from tercet.cli import LABEL, main
from tercet.label import options, projects, tables
from tercet.label.commands import COMMANDS
from tercet.label.errors import Refused
from tercet.label.settings import Settings
from tercet.label.store import Store
from tercet.records import Demonstration, Prompt, write_records
from tests.label.world import candidate_set, gold_ranking


@pytest.fixture
def source(tmp_path):
    """Three candidate sets in a file, not imported yet."""
    write_records(tmp_path / "c.jsonl", [candidate_set(n) for n in range(3)])
    return tmp_path / "c.jsonl"


@pytest.fixture
def filled(source, label):
    """The same, imported."""
    label("import", source, source)
    return source


@pytest.fixture
def label(capsys):
    """Runs `tercet label ...` and returns its (exit code, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()
        try:
            code = main(["label", *map(str, argv)])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def count(path, table):
    with Store.open(path.with_suffix(".sqlite"), create=False) as store:
        return store.read(lambda conn: conn.scalar(select(func.count()).select_from(table)))


def project(path, name="Rank replies"):
    with Store.open(path.with_suffix(".sqlite"), create=False) as store:
        return store.read(lambda conn: projects.get(conn, name))


def test_help_names_every_subcommand_and_every_subcommand_has_help(label, capsys):
    assert set(LABEL) == set(COMMANDS)
    _, out, _ = label("--help")
    for sub in LABEL:
        assert f"  {sub} " in out
        code, text, _ = label(sub, "--help")
        assert code == 0 and f"tercet label {sub}" in text and "SOURCE" in text


def test_import_counts_and_may_be_repeated(label, source):
    assert label("import", source, source)[:2] == (
        0,
        f"{source}: imported Rank replies: 3 new, 0 known\n",
    )
    assert "0 new, 3 known" in label("import", source, source)[1]
    assert count(source, tables.item) == 3


def test_a_dry_run_stores_nothing(label, source):
    code, out, _ = label("import", source, source, "--dry-run")
    assert code == 0 and "would import Rank replies: 3 new" in out
    assert count(source, tables.item) == 0 and count(source, tables.project) == 0


def test_an_import_is_whole_or_not_at_all(label, source):
    write_records(source, [candidate_set(0), candidate_set(1, k=1)])
    code, out, err = label("import", source, source)
    assert (code, out) == (2, "") and "nothing was imported: s1: has 1 reply" in err
    assert count(source, tables.item) == 0


def test_prompts_are_for_demonstrations(label, tmp_path):
    file = tmp_path / "prompts.jsonl"
    write_records(file, [Prompt(id="p", text="Why?")])
    assert "imported Write replies: 1 new" in label("import", file, file)[1]
    assert project(file, "Write replies").kind == "demonstration"


def test_the_kind_and_the_name_can_be_chosen(label, source):
    label("import", source, source, "--kind", "evaluate", "--project", "Spring", "--criterion", "x")
    found = project(source, "Spring")
    assert (found.kind, found.criterion) == ("evaluate", "x")


def test_a_store_that_cannot_be_written_is_no_wrong_input(label, source, monkeypatch):
    def full(*_, **__):
        raise Refused(507, "disk-full", "the server's disk is full")

    label("import", source, source)
    monkeypatch.setattr(Store, "write", full)
    code, _, err = label("invite", source, "ann")
    assert code == 1 and "is full" in err


def test_a_name_of_another_kind_is_refused(label, filled):
    code, _, err = label(
        "import", filled, filled, "--kind", "evaluate", "--project", "Rank replies"
    )
    assert code == 2 and "is of kind rank; choose another name" in err


def test_gold_items_are_rankings(label, filled, tmp_path):
    write_records(tmp_path / "gold.jsonl", [gold_ranking(0)])
    assert "1 new" in label("import", filled, tmp_path / "gold.jsonl", "--gold")[1]
    code, _, err = label("import", filled, tmp_path / "gold.jsonl")
    assert code == 2 and "ranked by judge 'gold', not by a labeler" in err
    code, _, err = label("import", filled, filled, "--gold")
    assert code == 2 and "give rankings" in err


def test_gold_items_need_a_project(label, source, tmp_path):
    write_records(tmp_path / "gold.jsonl", [gold_ranking(0)])
    code, _, err = label("import", source, tmp_path / "gold.jsonl", "--gold")
    assert code == 2 and "the store has none yet" in err


def test_settings_of_a_project_change_only_where_flags_say_so(label, source):
    label("import", source, source, "--lease-s", "600", "--no-rate")
    label("import", source, source, "--overlap-share", "0.5")
    assert project(source).settings == Settings(lease_s=600, rate=False, overlap_share=0.5)


def test_guidelines_come_from_a_file_and_get_versions(label, source, tmp_path):
    file = tmp_path / "rules.md"
    for text, version in (("Be fair.", 1), ("Be fair.", 1), ("Be kind.", 2)):
        file.write_text(text)
        label("import", source, source, "--guidelines", file)
        assert project(source).guidelines == text
        assert project(source).guidelines_version == version


def test_tags_and_users_come_from_the_runs_prompts(label, tmp_path):
    run = tmp_path / "run"
    write_records(run / "sample" / "candidates.jsonl", [candidate_set(0)])
    prompt = Prompt(id="p0", text="Question 0?", user_id="u7", tags=("closed_domain",))
    write_records(run / "data" / "prompts.jsonl", [prompt])
    label("import", run, run / "sample" / "candidates.jsonl")
    with Store.open(run / "label" / "labels.sqlite", create=False) as store:
        row = store.read(lambda conn: conn.execute(select(tables.prompt)).one())
    assert (row.user_id, row.tags) == ("u7", ["closed_domain"])


def test_invite_prints_one_link(label, filled):
    code, out, _ = label("invite", filled, "ann", "--url", "https://label.example")
    assert code == 0 and re.fullmatch(r"https://label\.example/join#[\w-]{43}\n", out)
    assert count(filled, tables.invite) == 1


def test_invite_makes_admins_and_held_out_labelers(label, filled):
    label("invite", filled, "boss", "--admin")
    label("invite", filled, "hal", "--group", "heldout", "--simulated")
    with Store.open(filled.with_suffix(".sqlite"), create=False) as store:
        t = tables.labeler.c
        columns = (t.name, t.role, t.group, t.simulated)
        found = store.read(lambda conn: conn.execute(select(*columns).order_by(t.name)).all())
    assert found == [("boss", "admin", "train", False), ("hal", "labeler", "heldout", True)]


def test_status_shows_projects_and_people(label, filled):
    label("invite", filled, "ann")
    code, out, _ = label("status", filled)
    assert code == 0
    assert re.search(r"Rank replies +rank +3 +0 of \d", out)
    assert re.search(r"ann +labeler +train +active +0 +-", out)


def test_backup_is_a_store(label, filled, tmp_path):
    copy = tmp_path / "copy.sqlite"
    assert label("backup", filled, "--out", copy)[:2] == (0, f"backup   {copy}\n")
    assert count(copy, tables.item) == 3
    code, _, err = label("backup", filled, "--out", copy)
    assert code == 2 and "exists" in err
    code, out, _ = label("backup", filled)
    assert re.search(r"c\.\d{8}-\d{6}\.sqlite\n$", out)


def test_verify_finds_what_was_changed_behind_its_back(label, filled):
    code, out, _ = label("verify", filled)
    assert code == 0 and re.match(r"sound    \d+ events, the newest has the hash [0-9a-f]{64}", out)
    with Store.open(filled.with_suffix(".sqlite")) as store:
        changed = tables.event.update().where(tables.event.c.seq == 1).values(body="{}")
        store.write(lambda conn: conn.execute(changed))
    code, out, err = label("verify", filled)
    assert code == 1 and "1" in out and "restore a backup" in err


def test_export_writes_beside_the_store(label, filled):
    code, out, _ = label("export", filled, "--pairs")
    assert code == 0 and (filled.parent / "export" / "manifest.json").exists()
    assert str(filled.parent / "export") in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serv", "x"], "label has no 'serv'; did you mean 'label serve'?"),
        (["serve"], "Missing"),
        (["serve", "{c}", "--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["serve", "{c}", "--port", "many"], "--port: invalid literal"),
        (["serve", "{c}", "--lease-s", "3"], "--lease-s: Input should be greater"),
        (["serve", "{c}", "--host", "0.0.0.0"], "--behind-proxy"),
        (["serve", "{c}", "--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
        (["serve", "{c}", "--workers", "2"], "SQLite store has one server process"),
        (["serve", "{c}", "--database", "labels.sqlite"], "is no address; write postgresql"),
        (["serve", "{c}", "--database", "mysql://u:secret@h/d"], "postgresql+psycopg://"),
        (["serve", "{c}", "--kind", "demonstration"], "--kind rank or evaluate"),
        (["serve", "{folder}/gone.sqlite"], "there is no store"),
        (["serve", "{folder}/gone.jsonl"], "no such file"),
        (["import", "{c}", "{folder}/gone.jsonl"], "no such file"),
        (["invite", "{c}", "ann"], "there is no store"),
        (["invite", "{c}"], "Missing"),
        (["invite", "{c}", "ann", "--days", "0"], "--days 0: a link works for some time"),
        (["invite", "{c}", "ann", "--days", "nan"], "--days nan: a link works for some time"),
        (["invite", "{c}", "ann", "--days", "1e300"], "3660 days at most"),
        (["invite", "{c}", "ann", "--url", "here"], "--url 'here' is no address"),
        (["serve", "{c}", "--public-url", "https://[::1"], "--public-url 'https://[::1' is no"),
        (["serve", "{c}", "--public-url", "https://a:99999"], "is no address"),
        (["serve", "{c}", "--database", ""], "--database '' is no address"),
        (["import", "{c}"], "name one or more files"),
        (["status", "{folder}"], "holds neither candidates.jsonl"),
        (["verify", "{c}"], "there is no store"),
        (["import", "{c}", "{c}", "--guidelines", "{folder}/no.md"], "no such file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(label, source, argv, said):
    filling = {"{c}": str(source), "{folder}": str(source.parent)}
    for mark, path in filling.items():
        argv = [part.replace(mark, path) for part in argv]
    code, _, err = label(*argv)
    assert code == 2 and said in err and err.count("\n") == 1
    assert "secret" not in err


def refused(answer, said, code=2):
    """Nothing but one line about it."""
    given, out, err = answer
    return (given, out) == (code, "") and said in err and err.count("\n") == 1


def test_a_dry_run_refuses_what_an_import_refuses(label, source):
    write_records(source, [candidate_set(0), candidate_set(1, k=1)])
    assert refused(label("import", source, source, "--dry-run"), "nothing would be imported")


def test_another_criterion_is_not_ignored(label, filled):
    answer = label("import", filled, filled, "--criterion", "which is safer")
    assert refused(answer, "the project Rank replies asks by another criterion (it names none)")
    assert label("import", filled, filled)[0] == 0


def test_guidelines_that_are_no_text_are_named(label, source, tmp_path):
    (tmp_path / "g.md").write_text("a\0b")
    answer = label("import", source, source, "--guidelines", tmp_path / "g.md")
    assert refused(answer, f"{tmp_path / 'g.md'}: holds NUL characters")


def test_a_person_never_becomes_a_program(label, filled):
    assert label("invite", filled, "ann")[0] == 0
    assert refused(label("invite", filled, "ann", "--simulated"), "ann is there as a person")


@pytest.mark.parametrize("place", ["c.jsonl", "c.jsonl/deeper"])
def test_an_export_needs_a_folder(label, filled, place):
    out = filled.parent / place
    assert refused(label("export", filled, "--out", out), f"{out}: no folder that can be written")


def test_demonstrations_of_elsewhere_are_named_as_they_like(label, tmp_path):
    row = Demonstration(id="d7", prompt_id="p1", prompt="A question", response="A reply")
    write_records(tmp_path / "d.jsonl", [row])
    store, file = tmp_path / "s.sqlite", tmp_path / "d.jsonl"
    assert label("import", store, file)[:2] == (0, "restored 1 new answers, 0 known, in "
                                                   "Write replies\n")  # fmt: skip
    assert "0 new answers, 1 known" in label("import", store, file)[1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"at": "noon"}, "a.jsonl:1: field 'at'"),
        ({"at": 10**30}, "a.jsonl:1: field 'at'"),
        ({"revision": 0}, "a.jsonl:1: field 'revision'"),
        ({"shown": 5}, "a.jsonl:1: field 'shown'"),
        ({"notes": ["x"]}, "a.jsonl:1: field 'notes'"),
        ({"notes": {"other": "x"}}, "g/1: answers.jsonl tells of other replies"),
    ],
)
def test_wrong_lines_about_answers_are_named(label, tmp_path, wrong, said):
    ranking = gold_ranking(1).model_copy(update={"id": "g/1", "judge": "person"})
    write_records(tmp_path / "r.jsonl", [ranking])
    line = {"schema": "tercet.answer/1", "kind": "rank", "id": "g/1", "at": 1, **wrong}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    assert refused(label("import", tmp_path / "s.sqlite", *tmp_path.glob("?.jsonl")), said)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"seed":' + "9" * 5000 + "}"])
def test_json_that_python_gives_up_on(label, source, line):
    source.write_text(line + "\n")
    assert refused(label("import", source.with_suffix(".sqlite"), source), f"{source}:1: not JSON")


@pytest.mark.parametrize("sub", ["status", "verify", "export", "invite"])
def test_a_damaged_store_is_a_failure_with_a_remedy(label, filled, sub):
    store = filled.with_suffix(".sqlite")
    with sqlite3.connect(store) as raw:
        raw.execute("ALTER TABLE labeler RENAME COLUMN name TO names")
        raw.execute("ALTER TABLE item RENAME COLUMN need TO needs")
    raw.close()
    name = ["ann"] if sub == "invite" else []
    assert refused(label(sub, store, *name), "restore a backup", code=1)


def test_a_recipe_still_runs_the_stage(label, tmp_path):
    code, _, err = label(tmp_path / "none.toml")
    assert code == 2 and "no such recipe" in err


def test_all_flags_that_help_shows_are_known(label):
    for sub, (type_, _) in COMMANDS.items():
        shown = set(re.findall(r"--[a-z][a-z-]*", label(sub, "--help")[1])) - {"--help"}
        assert shown <= {*options.flags(type_), "--tls-cert", "--behind-proxy", "--gold"}, sub
