"""The label stage with people: a real run, a scripted labeler over HTTP, kills and restarts."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request

import pytest

from tercet.label import campaign, people, projects
from tercet.label.campaign import Campaign, Plan
from tercet.label.errors import Refused
from tercet.label.server import Address
from tercet.label.settings import Settings
from tercet.label.store import Store
from tercet.pipeline.steps import STEPS
from tercet.records import (
    Candidate,
    CandidateSet,
    InputError,
    Prompt,
    RankedReply,
    Ranking,
    RunFailed,
    read_records,
    write_records,
)
from tercet.stages import label
from tests.label.test_export import Office
from tests.toy import stage

PATIENCE = 120  # seconds a started run may take to say something

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def sets(count, texts=("longest reply", "short one", "middle reply")):
    return [
        CandidateSet(
            id=f"set/p{i}",
            prompt_id=f"p{i}",
            prompt=f"Prompt {i}",
            candidates=tuple(
                Candidate(id=f"p{i}/{k}", text=text, policy="sft", temperature=1, seed=0,
                          finish="stop")
                for k, text in enumerate(texts)
            ),
        )
        for i in range(count)
    ]  # fmt: skip


class Page:
    """What the labeling page does, without a browser."""

    def __init__(self, link):
        self.base, _, self.token = link.partition("/join#")
        self.cookie = ""
        form = urllib.parse.urlencode({"token": self.token}).encode()
        self._send("POST", "/join", form)
        self.csrf = re.search(r'name="csrf" content="([^"]+)"', self._send("GET", "/"))[1]
        self.project = self.json("GET", "/api/me")["projects"][0]["id"]

    def _send(self, method, path, body=None, headers=None):
        request = urllib.request.Request(
            self.base + path,
            body,
            {"Cookie": self.cookie, "Origin": self.base, **(headers or {})},
            method=method,
        )
        opener = urllib.request.build_opener(_Stay)
        with opener.open(request, timeout=20) as answer:
            if cookie := answer.headers.get("set-cookie"):
                self.cookie = cookie.partition(";")[0]
            return answer.read().decode()

    def json(self, method, path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode()
        headers |= {"Content-Type": "application/json", "X-CSRF-Token": getattr(self, "csrf", "")}
        return json.loads(self._send(method, path, data, headers) or "null")

    def rank(self, most):
        """Ranks up to `most` items by length of the reply, longest first; returns how many."""
        for number in range(most):
            found = self.json("POST", f"/api/projects/{self.project}/next", {})["assignments"]
            if not found:
                return number
            task = found[0]
            ordered = sorted(task["replies"], key=lambda reply: -len(reply["text"]))
            payload = {"bins": [[reply["id"]] for reply in ordered]}
            self.json(
                "POST",
                f"/api/assignments/{task['id']}/submit",
                {"payload": payload, "active_ms": 1000},
                **{"Idempotency-Key": f"key-{task['id']}"},
            )
        return most


class _Stay(urllib.request.HTTPRedirectHandler):
    """303 is an answer: its cookie is wanted."""

    def redirect_request(self, *_):
        return None

    def http_error_303(self, request, answer, *_):
        return answer


class Run:
    """`tercet run RECIPE` as a process whose lines can be waited for."""

    def __init__(self, recipe):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tercet", "run", str(recipe)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=recipe.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.lines = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)

    def link(self, beginning):
        while True:
            line = self.lines.get(timeout=PATIENCE)
            if line.startswith(beginning):
                return line.split()[1]

    def end(self, signal_=None):
        """(exit code, stderr) after a signal to all its processes, or when it is done by itself."""
        if signal_ is not None:
            os.killpg(self.process.pid, signal_)
        said = self.process.stderr.read()
        code = self.process.wait(PATIENCE)
        self.reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()
        return code, said


@pytest.fixture
def recipe(tmp_path):
    write_records(tmp_path / "candidates.jsonl", sets(6))
    (tmp_path / "guide.md").write_text("# Longer is better")
    path = tmp_path / "people.toml"
    path.write_text(
        """
        [run]
        processes = 2

        [label]
        mode = "people"
        candidates = "candidates.jsonl"
        guidelines = "guide.md"
        criterion = "length"
        labelers = ["ann", "bob"]
        overlap_share = 0.0
        valid_fraction = 0.4
        port = 0
        """
    )
    return path


def test_a_run_waits_for_people_through_kills_and_goes_on(recipe):
    folder = recipe.parent / "runs" / "people" / "label"
    first = Run(recipe)
    ann = Page(first.link("labeler"))
    assert ann.rank(2) == 2
    first.end(signal.SIGKILL)

    second = Run(recipe)
    bob = Page([second.link("labeler"), second.link("labeler")][1])
    assert bob.rank(1) == 1
    code, said = second.end(signal.SIGINT)
    assert code == 130
    assert "to go on" in said
    assert not (folder / "done.json").exists()

    third = Run(recipe)
    ann, bob = (Page(third.link("labeler")) for _ in range(2))
    ann.rank(20)
    bob.rank(20)
    code, said = third.end()
    assert code == 0, said
    rankings = read_records(folder / "rankings.jsonl", Ranking)
    counts = [sum(r.prompt_id == f"p{i}" for r in rankings) for i in range(6)]
    splits = {r.prompt_id: r.split for r in rankings}
    assert counts == [2 if splits[f"p{i}"] == "valid" else 1 for i in range(6)]
    assert set(splits.values()) == {"train", "valid"}
    assert {r.labeler for r in rankings} == {"ann", "bob"}
    assert all([reply.rank for reply in r.replies] == [1, 3, 2] for r in rankings)
    done = json.loads((folder / "done.json").read_text())
    assert (done["judge"], done["rankings"]) == ("person", len(rankings))
    assert done["held_out_rankings"] == sum(r.split == "valid" for r in rankings)
    assert (done["all_tied"], done["tie_rate"]) == (0, 0.0)
    assert done["agreement"]["accuracy"] == 1.0
    assert (folder / "manifest.json").exists()

    again = Run(recipe)
    code, said = again.end()
    assert (code, "unchanged, skipped" in said) == (0, True)


def fill(office, project, person, most=100):
    for number in range(most):
        tasks = office.next(person, project)
        if not tasks:
            return number
        office.submit(person, tasks[0], {"bins": [[r["id"]] for r in tasks[0]["replies"]]})
    return most


def plain(tmp_path, count=4, **changes):
    values = {
        "store": tmp_path / "labels.sqlite",
        "sets": sets(count),
        "project": "Rank",
        "address": None,
        "settings": Settings(overlap_share=0, gold_share=0, repeat_share=0, valid_fraction=0),
    }
    return Plan(**(values | changes))


def test_enough_ends_the_waiting_early(tmp_path):
    write_records(tmp_path / "candidates.jsonl", sets(4))
    config = label.Config(
        candidates=tmp_path / "candidates.jsonl", mode="people", serve=False, enough=0.5,
        overlap_share=0, valid_fraction=0.01,
    )  # fmt: skip
    with Campaign.open(label.plan(config, stage_folder(tmp_path))) as first:
        office = Office(first.store)
        fill(office, first.project_id, office.person("labeler-1"), 2)
    run = stage(label.main, config, tmp_path / "label")
    assert run.done()["rankings"] == 2


def stage_folder(tmp_path):
    from tercet.rundir import RunDir

    return RunDir(tmp_path / "label")


def test_a_store_that_another_process_serves_is_only_waited_for(tmp_path, capsys):
    with (
        Store.open(tmp_path / "labels.sqlite", serving=True),
        Campaign.open(plain(tmp_path, address=Address(port=0))) as found,
    ):
        assert found.served is None
        assert found.count() == campaign.Count(0, 4)
    assert "by the server that runs already" in capsys.readouterr().out


def test_an_import_may_be_repeated_but_not_changed(tmp_path):
    for _ in range(2):
        with Campaign.open(plain(tmp_path)) as found:
            assert found.count().open == 4
    other = sets(4, ("x", "y", "z"))
    with pytest.raises(InputError, match=r"set/p0: .*other content.*belong into a new store"):
        Campaign.open(plain(tmp_path, sets=other))
    with Campaign.open(plain(tmp_path, sets=other, project="Rank again")) as found:
        assert found.count().open == 4


def test_sets_that_cannot_be_ranked_are_left_out_and_said(tmp_path, capsys):
    bad = sets(1, ("same", "same "))[0].model_copy(update={"id": "set/bad", "prompt_id": "bad"})
    with Campaign.open(plain(tmp_path, sets=[*sets(3), bad])) as found:
        assert found.count().open == 3
    assert "label: left out set/bad: the replies" in capsys.readouterr().err


def test_another_criterion_needs_another_project(tmp_path):
    with Campaign.open(plain(tmp_path, criterion="helpfulness")):
        pass
    with pytest.raises(InputError, match="the project Rank asks by another criterion"):
        Campaign.open(plain(tmp_path, criterion="harm"))


def test_a_database_that_does_not_answer_is_waited_for(tmp_path, monkeypatch):
    def fails(*_):
        raise Refused(503, "unavailable", "the database does not answer")

    with Campaign.open(plain(tmp_path)) as found:
        monkeypatch.setattr(found.store, "read", fails)
        with pytest.raises(RunFailed, match="does not answer"):  # it never did
            found.count()
        monkeypatch.undo()
        assert found.count() == campaign.Count(0, 4)
        monkeypatch.setattr(found.store, "read", fails)
        assert found.count() == campaign.Count(0, 4)
        with pytest.raises(RunFailed, match="does not answer"):
            found.export(tmp_path / "out")


def test_a_labeler_must_not_be_called_as_the_admin(tmp_path):
    with pytest.raises(InputError, match="admin is there as labeler"):
        Campaign.open(plain(tmp_path, labelers=("admin",), address=Address(port=0)))


def test_quotas_that_nobody_is_left_for_are_not_waited_for(tmp_path):
    three = Settings(overlap_share=1, overlap_need=3, gold_share=0, repeat_share=0,
                     valid_fraction=0)  # fmt: skip
    with Campaign.open(plain(tmp_path, 2, settings=three)) as found:
        office = Office(found.store)
        assert found.count() == campaign.Count(0, 2)  # one labeler is known: one answer each
        ann, bob = office.person("labeler-1"), office.person("bob")
        assert found.count() == campaign.Count(0, 4)
        fill(office, found.project_id, ann, 1)
        assert found.count() == campaign.Count(1, 3)
        task = office.next(ann, found.project_id)[0]
        office.store.write(lambda conn: skip(conn, office, ann, task))
        assert found.count() == campaign.Count(1, 2)
        remove = people.set_status
        found.store.write(lambda conn: remove(conn, office.store.now(), bob.id, "removed", "t"))
        assert found.count() == campaign.Count(1, 0)
        assert found.count().share == 1.0


def skip(conn, office, person, task):
    from tercet.label import work

    work.skip(conn, office.store.now(), person, task["id"], "not my language")


def test_held_out_labelers_and_held_items_do_not_count_for_training(tmp_path):
    three = Settings(overlap_share=1, overlap_need=3, gold_share=0, repeat_share=0,
                     valid_fraction=0)  # fmt: skip
    with Campaign.open(plain(tmp_path, 2, settings=three, held_out_labelers=("hal",))) as found:
        assert found.count() == campaign.Count(0, 2)
        office = Office(found.store)
        task = office.next(office.person("labeler-1"), found.project_id)[0]
        item = found.store.read(
            lambda conn: conn.exec_driver_sql(
                f"SELECT item_id FROM assignment WHERE id = '{task['id']}'"
            ).scalar_one()
        )
        found.store.write(lambda conn: projects.hold(conn, office.store.now(), item, "t"))
        assert found.count() == campaign.Count(0, 1)


def test_who_wrote_for_a_prompt_is_not_waited_for(tmp_path):
    with Campaign.open(plain(tmp_path, 2)) as found:
        office = Office(found.store)
        writing = office.project("Write", "demonstration")
        office.add(writing, Prompt(id="p0", text="Prompt 0"))
        ann = office.person("labeler-1")
        assert found.count() == campaign.Count(0, 2)
        office.submit(ann, office.next(ann, writing)[0], {"text": "A reply."})
        assert found.count() == campaign.Count(0, 1)
        assert fill(office, found.project_id, ann) == 1
        assert found.count() == campaign.Count(1, 0)


def test_gold_and_tags_reach_the_project(tmp_path):
    replies = tuple(RankedReply(id=str(k), text=f"t{k}", rank=k) for k in (1, 2))
    gold = Ranking(id="g", prompt_id="g", prompt="G?", replies=replies, judge="person")
    write_records(tmp_path / "gold.jsonl", [gold])
    write_records(tmp_path / "candidates.jsonl", sets(1))
    prompt = Prompt(id="p0", text="Prompt 0", tags=("constraint",), user_id="u")
    write_records(tmp_path / "prompts.jsonl", [prompt])
    config = label.Config(
        candidates=tmp_path / "candidates.jsonl", prompts=tmp_path / "prompts.jsonl",
        gold=tmp_path / "gold.jsonl", gold_share=1.0, mode="people", serve=False,
    )  # fmt: skip
    with Campaign.open(label.plan(config, stage_folder(tmp_path))) as found:
        office = Office(found.store)
        shown = office.next(office.person("labeler-1"), found.project_id)
    assert {task["prompt"]["text"] for task in shown} >= {"G?"}
    assert found.project_id


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "simulated"}, "needs world"),
        ({"mode": "people", "enough": 0.0}, "enough must be"),
        ({"mode": "people", "labelers": ()}, "labelers needs at least one"),
        ({"mode": "people", "tls_cert": "x.pem"}, "belong together"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        label.Config(candidates="c.jsonl", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overlap_labelers": 0}, r"\[label\] overlap_need"),
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"database": "mysql://x"}, "a store is a .sqlite file or postgresql"),
    ],
)
def test_options_that_the_server_refuses(tmp_path, options, said):
    write_records(tmp_path / "candidates.jsonl", sets(1))
    config = label.Config(candidates=tmp_path / "candidates.jsonl", mode="people", **options)
    with pytest.raises(InputError, match=said):
        stage(label.main, config, tmp_path / "label")


def test_people_need_no_world(tmp_path):
    step = next(step for step in STEPS if step.name == "label")
    assert "world" not in step.wire(tmp_path, {"data", "label"})
    assert step.wire(tmp_path, {"world", "label"})["world"] == tmp_path / "data" / "world.json"
