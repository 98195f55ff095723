"""Records become items. All functions here may be called again with the same records, and the
caller's transaction makes them whole: a dry run is one that the caller rolls back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select

from tercet.data.split import owner, split_of
from tercet.label import audit, ids, tables
from tercet.label.errors import Refused
from tercet.label.leak import leaks, policy_names
from tercet.label.schema import unstorable
from tercet.label.settings import Project, get
from tercet.records import Candidate, CandidateSet, Prompt, Ranking, prompt_text

LEAST, MOST = 2, 9  # replies of an item
GOLD_NEED = 1_000_000  # everybody may meet a gold item
CHUNK = 400  # ids in one query

Bins = list[list[str]]


@dataclass(frozen=True)
class Imported:
    """What became of the records: new items, items that were there already, new items held back
    because a reply names its maker, and a sentence for each record that was refused."""

    added: int
    known: int
    held: int
    refused: list[str]


def add_candidate_sets(
    conn: Connection,
    now: int,
    project: str,
    sets: Sequence[CandidateSet],
    *,
    users: Mapping[str, str] | None = None,
    tags: Mapping[str, Sequence[str]] | None = None,
    actor: str = "command",
) -> Imported:
    """Adds items to rank or to evaluate.

    users, tags: prompt id -> user id, tags. Held-out prompts are drawn by user as the label stage
    does it, so that people and simulated labelers hold out the same ones.

    Raises:
        Refused: 404 no such project, 409 a project for demonstrations.
    """
    found = _project(conn, project, ranked=True)
    chosen = found.settings
    shares = {"valid": chosen.valid_fraction, "train": 1 - chosen.valid_fraction}
    batch = _Batch(conn, now, found)
    batch.look_up([s.id for s in sets], [s.prompt_id for s in sets])
    for set_ in sets:
        split = None
        if found.kind == "rank":
            split = split_of(owner(set_, users), shares, f"label {chosen.seed}")
        if split == "valid":
            need = chosen.valid_need
        else:
            several = ids.draw(chosen.seed, "overlap", set_.id) < chosen.overlap_share
            need = chosen.overlap_need if several else 1
        about = _Prompt(
            set_.prompt_id,
            set_.prompt,
            split=split,
            tags=list((tags or {}).get(set_.prompt_id, ())) or None,
            user_id=(users or {}).get(set_.prompt_id),
        )
        batch.add(set_.id, about, set_.candidates, need)
    return batch.finish(actor, "candidate sets")


def add_prompts(
    conn: Connection, now: int, project: str, prompts: Sequence[Prompt], actor: str = "command"
) -> Imported:
    """Adds prompts to write replies to; where the text is empty, people write the prompt too.

    Raises:
        Refused: 404 no such project, 409 a project that is not for demonstrations.
    """
    batch = _Batch(conn, now, _project(conn, project, ranked=False))
    names = [prompt.id for prompt in prompts]
    batch.look_up(names, names)
    for prompt in prompts:
        about = _Prompt(
            prompt.id,
            prompt_text(prompt),
            split=prompt.split,
            tags=list(prompt.tags) if prompt.tags else None,
            user_id=prompt.user_id,
            source=prompt.source,
        )
        batch.add(prompt.id, about, (), need=1)
    return batch.finish(actor, "prompts")


def add_gold(
    conn: Connection,
    now: int,
    project: str,
    rankings: Sequence[Ranking],
    *,
    tags: Mapping[str, Sequence[str]] | None = None,
    actor: str = "command",
) -> Imported:
    """Adds items whose order is known; labelers meet them among the others and cannot tell.

    tags: prompt id -> tags. An item without tags is asked everything, which would set it apart
    where the others have tags.

    Raises:
        Refused: 404 no such project, 409 a project for demonstrations.
    """
    batch = _Batch(conn, now, _project(conn, project, ranked=True))
    names = [f"gold/{ranking.id}" for ranking in rankings]
    batch.look_up(names, [ranking.prompt_id for ranking in rankings])
    for name, ranking in zip(names, rankings, strict=True):
        replies = [
            Candidate(
                id=r.id, text=r.text, policy=r.policy or "", temperature=0, seed=0, finish=r.finish
            )
            for r in ranking.replies
        ]
        ranks = sorted({reply.rank for reply in ranking.replies})
        if len(ranks) == 1:
            batch.refuse(f"{ranking.id}: all replies tie; a known answer needs an order")
            continue
        bins = [[reply.id for reply in ranking.replies if reply.rank == rank] for rank in ranks]
        about = _Prompt(
            ranking.prompt_id,
            ranking.prompt,
            tags=list((tags or {}).get(ranking.prompt_id, ())) or None,
        )
        batch.add(name, about, replies, GOLD_NEED, bins)
    return batch.finish(actor, "gold items")


def _project(conn: Connection, project: str, *, ranked: bool) -> Project:
    found = get(conn, project)
    if ranked == (found.kind == "demonstration"):
        wanted = "replies to rank" if ranked else "prompts to write replies to"
        raise Refused(
            409, "kind", f"the project {found.name} is of kind {found.kind}: it takes no {wanted}"
        )
    return found


@dataclass(frozen=True)
class _Prompt:
    external_id: str
    text: str
    split: str | None = None
    tags: list[str] | None = None
    user_id: str | None = None
    source: str | None = None


@dataclass
class _Batch:
    """Collects rows, so that an import is a handful of statements whatever its size."""

    conn: Connection
    now: int
    project: Project
    prompts: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    known: int = 0
    held: int = 0
    _contents: dict[str, str] = field(default_factory=dict)  # of items, by external id
    _prompts: dict[str, tuple[str, str]] = field(default_factory=dict)  # (id, sha256)

    def look_up(self, items: Sequence[str], prompts: Sequence[str]) -> None:
        """Reads what the store has of these external ids."""
        p, i = tables.prompt, tables.item
        for part in _chunks(prompts):
            rows = self.conn.execute(
                select(p.c.external_id, p.c.id, p.c.sha256).where(
                    p.c.project_id == self.project.id, p.c.external_id.in_(part)
                )
            )
            self._prompts.update({row[0]: (row[1], row[2]) for row in rows})
        for part in _chunks(items):
            rows = self.conn.execute(
                select(i.c.external_id, i.c.candidate_ids, i.c.gold, p.c.external_id, p.c.sha256)
                .join_from(i, p)
                .where(i.c.project_id == self.project.id, i.c.external_id.in_(part))
            ).all()
            replies = self._replies([id_ for row in rows for id_ in row[1]])
            for name, candidate_ids, gold, prompt_id, prompt_sha256 in rows:
                bins = gold and [[replies[id_][0] for id_ in ranked] for ranked in gold]
                shown = [replies[id_] for id_ in candidate_ids]
                self._contents[name] = _content(prompt_id, prompt_sha256, shown, bins)

    def _replies(self, candidate_ids: Sequence[str]) -> dict[str, list[Any]]:
        c = tables.candidate
        columns = (c.c.external_id, c.c.text, c.c.finish, c.c.policy, c.c.temperature, c.c.seed)
        found = {}
        for part in _chunks(candidate_ids):
            rows = self.conn.execute(select(c.c.id, *columns).where(c.c.id.in_(part)))
            found.update({row[0]: list(row[1:]) for row in rows})
        return found

    def refuse(self, why: str) -> None:
        self.refused.append(why)

    def add(
        self,
        name: str,
        prompt: _Prompt,
        candidates: Sequence[Candidate],
        need: int,
        gold: Bins | None = None,
    ) -> None:
        """Takes one record in, or notes why not. `gold` holds the candidates' own ids."""
        shown = name.removeprefix("gold/")
        replies = [[c.id, c.text, c.finish, c.policy, c.temperature, c.seed] for c in candidates]
        if problem := _problem(shown, prompt, candidates, ranked=self.project.kind):
            return self.refuse(f"{shown}: {problem}")
        sha256 = ids.sha256(prompt.text)
        content = _content(prompt.external_id, sha256, replies, gold)
        if name in self._contents:
            if self._contents[name] == content:
                self.known += 1
                return None
            return self.refuse(
                f"{shown}: is there already with other content; give the new one another id"
            )
        if self._prompts.get(prompt.external_id, ("", sha256))[1] != sha256:
            return self.refuse(
                f"{shown}: the prompt {prompt.external_id} is there with another text; "
                "give this one another prompt id"
            )
        self._contents[name] = content
        self._insert(name, prompt, sha256, candidates, need, gold)
        return None

    def _insert(
        self,
        name: str,
        prompt: _Prompt,
        sha256: str,
        candidates: Sequence[Candidate],
        need: int,
        gold: Bins | None,
    ) -> None:
        common = {"project_id": self.project.id}
        if prompt.external_id not in self._prompts:
            self._prompts[prompt.external_id] = (ids.ulid(self.now), sha256)
            self.prompts.append(
                {**common, **vars(prompt)}
                | {"id": self._prompts[prompt.external_id][0], "sha256": sha256}
            )
        # All ids of an import share one millisecond: their order tells nothing about policies.
        given = {c.id: ids.ulid(self.now) for c in candidates}
        self.candidates += [
            {**common, **c.model_dump(exclude={"id"}), "id": given[c.id], "external_id": c.id}
            for c in candidates
        ]
        names = [*self.project.settings.identity_names]
        names += policy_names([c.policy for c in candidates])
        told = [(c.id, said) for c in candidates if (said := leaks(c.text, names))]
        self.held += bool(told)
        seed = self.project.settings.seed
        self.items.append(
            {
                **common,
                "id": ids.ulid(self.now),
                "prompt_id": self._prompts[prompt.external_id][0],
                "external_id": name,
                "candidate_ids": list(given.values()),
                "split": prompt.split,
                "need": need,
                "shuffle": ids.draw(seed, "shuffle", name),
                "state": "held" if told else "open",
                "held_reason": "; ".join(
                    f"reply {id_} names its maker: {', '.join(said)}" for id_, said in told
                )
                or None,
                "gold": gold and [[given[id_] for id_ in ranked] for ranked in gold],
            }
        )

    def finish(self, actor: str, what: str) -> Imported:
        """Writes the rows and the event."""
        rows = (
            (tables.prompt, self.prompts),
            (tables.candidate, self.candidates),
            (tables.item, self.items),
        )
        for table, values in rows:
            if values:
                self.conn.execute(insert(table), values)
        result = Imported(len(self.items), self.known, self.held, self.refused)
        if self.items:
            body = {"what": what, "added": result.added, "known": result.known}
            body |= {"held": result.held, "refused": len(result.refused)}
            audit.append(self.conn, self.now, actor, "import", self.project.id, body)
        return result


def _problem(
    name: str, prompt: _Prompt, candidates: Sequence[Candidate], ranked: str
) -> str | None:
    """Why this record cannot be an item, and what to do."""
    texts = [name, prompt.external_id, prompt.text, *(c.id for c in candidates)]
    for text in (*texts, *(c.text for c in candidates), *(c.policy for c in candidates)):
        if problem := unstorable(text):
            return f"{problem}; mend the text"
    if ranked == "demonstration":
        return None
    if len(candidates) < LEAST:
        return f"has {len(candidates)} reply; {LEAST} to {MOST} can be ranked, so sample more"
    if len(candidates) > MOST:
        return f"has {len(candidates)} replies; {LEAST} to {MOST} can be ranked, so split the set"
    first: dict[str, str] = {}
    for candidate in candidates:
        twin = first.setdefault(candidate.text.strip(), candidate.id)
        if twin != candidate.id:
            return f"the replies {twin} and {candidate.id} have the same text; keep one of them"
    if any(abs(c.seed) >= 2**63 for c in candidates):
        return "a reply's seed has more than 63 bits; give a smaller one"
    return None


def _content(prompt_id: str, prompt_sha256: str, replies: list[Any], gold: Bins | None) -> str:
    ranked = gold and [sorted(tied) for tied in gold]
    return ids.sha256(ids.canonical([prompt_id, prompt_sha256, replies, ranked]))


def _chunks(names: Iterable[str]) -> list[list[str]]:
    distinct = list(dict.fromkeys(names))
    return [distinct[i : i + CHUNK] for i in range(0, len(distinct), CHUNK)]
