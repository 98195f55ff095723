r"""What other tools write becomes rows of prompt, replies and responses, as `importers` reads them.

TRL             {prompt, chosen, rejected} as texts or as messages, the prompt also left out
hh-rlhf         {chosen, rejected}, whole transcripts "\n\nHuman: ...\n\nAssistant: ..."
Argilla         records with `fields` and `responses`: `to_json`, version 1's form, or flattened
Label Studio    tasks with `data` and `annotations` (JSON export): Ranker, Pairwise, TextArea

Texts come through byte for byte: prompt + reply is what the file has.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, TypeGuard

from tercet.records import InputError

Fields = dict[str, Any]
Want = Literal["rankings", "demonstrations", "prompts"]

ASSISTANT = "\n\nAssistant:"
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
BODIES = ("body", "text", "html", "title")  # where a Label Studio list keeps an item's words


@dataclass(frozen=True)
class Choice:
    """Which question or control holds the answer, which field the prompt, and what buckets mean."""

    question: str | None = None
    prompt_field: str = "prompt"
    buckets: tuple[str, ...] = ()


def rows(fields: Fields, where: str, want: Want, choice: Choice) -> Iterator[Fields]:
    """The row itself where it is in tercet's own form, else one row an answer.

    Raises:
        InputError: an answer of another tool that does not say which reply is better, or whose
            parts are not of the kind that the tool writes.
    """
    try:
        yield from _rows(fields, where, want, choice)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A list where an object belongs, a number where a list does, anywhere in the row.
        raise InputError(
            f"{where}: is not built as TRL, hh-rlhf, Argilla or Label Studio write it ({error}); "
            "mend or delete this row"
        ) from error


def _rows(fields: Fields, where: str, want: Want, choice: Choice) -> Iterator[Fields]:
    if isinstance(fields.get("annotations"), list) and isinstance(fields.get("data"), dict):
        yield from _label_studio(fields, where, want, choice)
    elif "responses" in fields and isinstance(fields.get("fields"), dict):
        yield from _argilla(fields, where, want, choice)
    elif any(name.endswith(".responses") for name in fields):
        yield from _argilla(_nested(fields), where, want, choice)
    elif "chosen" in fields and "rejected" in fields:
        yield _pair(fields, where)
    elif _is_dialogue(fields.get("prompt")):
        yield {**fields, "prompt": transcript(fields["prompt"], where) + ASSISTANT}
    else:
        yield fields


def transcript(messages: Sequence[Mapping[str, str]], where: str) -> str:
    r"""Messages in the form of public transcripts: "\n\nHuman: Hi\n\nAssistant: Hello"."""
    for message in messages:
        if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            raise InputError(
                f"{where}: a message is {dict(message)!r:.60}; give each a 'role' and a 'content'"
            )
    return "".join(f"\n\n{SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in messages)


def _is_dialogue(value: Any) -> TypeGuard[list[Fields]]:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value)


def _pair(fields: Fields, where: str) -> Fields:
    """A preference as {prompt, chosen, rejected} texts, whatever part of it is messages."""
    prompt: Any = fields.get("prompt")
    chosen: Any = fields["chosen"]
    rejected: Any = fields["rejected"]
    if _is_dialogue(chosen) and _is_dialogue(rejected):
        if prompt is None or chosen[0].get("role") != "assistant":
            # What the two share; a last turn is a reply even where it is the same.
            last = min(len(chosen), len(rejected)) - 1
            same = (i for i in range(last) if chosen[i] != rejected[i])
            prompt = chosen[: next(same, last)]
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        elif isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        start = transcript(prompt, where) + ASSISTANT
        whole = [transcript([*prompt, *reply], where) for reply in (chosen, rejected)]
        if not (prompt and all(text.startswith(start) for text in whole)):
            raise InputError(
                f"{where}: the messages of 'chosen' and 'rejected' do not both answer one prompt "
                "as the assistant; mend or delete this row"
            )
        texts = [text[len(start) :] for text in whole]
        return {**fields, "prompt": start, "chosen": texts[0], "rejected": texts[1]}
    if _is_dialogue(prompt):
        return {**fields, "prompt": transcript(prompt, where) + ASSISTANT}
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        length = _prompt_length(chosen, rejected)
        if not length:
            raise InputError(
                f"{where}: field 'prompt' is missing, and 'chosen' and 'rejected' begin with no "
                f"common words to be it (has: {', '.join(fields)}); add it"
            )
        return {
            **fields,
            "prompt": chosen[:length],
            "chosen": chosen[length:],
            "rejected": rejected[length:],
        }
    return fields


def _prompt_length(chosen: str, rejected: str) -> int:
    """Where the prompt ends in what two dialogues share: after the last "Assistant:", else before
    the last space, so that no word is cut."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    common = "".join(a for a, _ in same)
    turn = common.rfind(ASSISTANT)
    if turn >= 0:
        return turn + len(ASSISTANT)
    return max(common.rfind(" "), common.rfind("\n"), 0)


def _label_studio(task: Fields, where: str, want: Want, choice: Choice) -> Iterator[Fields]:
    data = task["data"]
    row = {"prompt": _prompt(data, where, choice), "source": data.get("source")}
    if want == "prompts":
        yield row
        return
    kinds = ("textarea",) if want == "demonstrations" else ("ranker", "pairwise")
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        results = {
            str(result.get("from_name")): result
            for result in annotation.get("result") or ()
            if result.get("type") in kinds
        }
        if (found := _the_one(results, choice.question, where)) is None:
            continue
        who = annotation.get("completed_by")
        who = who.get("id") if isinstance(who, dict) else who
        answer = row | {
            "id": f"{task.get('id')}/{annotation.get('id')}",
            "annotator": None if who is None else f"annotator-{who}",
        }
        value = found.get("value") or {}
        if found["type"] == "textarea":
            text = value.get("text")
            yield answer | {"response": "\n".join(text) if isinstance(text, list) else text}
        elif found["type"] == "pairwise":
            yield answer | {"replies": _sides(data, found, where)}
        else:
            yield answer | {"replies": _ranker(data, value.get("ranker"), where, choice.buckets)}


def _sides(data: Fields, result: Fields, where: str) -> list[Fields]:
    """The two replies of a Pairwise control: its two names are fields of the task."""
    names = result.get("to_name")
    names = names.split(",") if isinstance(names, str) else names or []
    if len(names) != 2 or any(name not in data for name in names):
        names = ["answer1", "answer2"]  # those of Label Studio's own template
    selected = (result.get("value") or {}).get("selected")
    if selected not in ("left", "right") or any(name not in data for name in names):
        raise InputError(
            f"{where}: a pairwise answer selects {selected!r} of {result.get('to_name')!r}, and "
            f"the task has {', '.join(data)}; name the two Text tags as the fields they show"
        )
    return [
        {"text": data[name], "rank": 1 if side == selected else 2}
        for name, side in zip(names, ("left", "right"), strict=True)
    ]


def _ranker(data: Fields, order: Any, where: str, buckets: Sequence[str]) -> list[Fields]:
    """The replies of a Ranker: a list of ids, or buckets in the order that the reader gave."""
    lists = [v for v in data.values() if _is_dialogue(v) and all("id" in item for item in v)]
    if len(lists) != 1:
        raise InputError(f"{where}: {len(lists)} fields of the task are lists of items; needs one")
    if isinstance(order, dict):
        used = [name for name, ids in order.items() if ids]
        if unknown := [name for name in used if name not in buckets]:
            raise InputError(
                f"{where}: replies lie in the buckets {', '.join(used)}, and "
                f"'{unknown[0]}' has no place in an order; set buckets to their names, best first"
            )
        groups = [order.get(name) or [] for name in buckets]
    else:
        groups = [[id_] for id_ in order or []]
    ranks = {id_: rank for rank, ids in enumerate(groups, 1) for id_ in ids}
    if missing := [item["id"] for item in lists[0] if item["id"] not in ranks]:
        raise InputError(f"{where}: reply {missing[0]!r} is not ranked; mend or delete this task")
    return [
        {
            "text": next((item[name] for name in BODIES if item.get(name)), None),
            "rank": ranks[item["id"]],
            "model": str(item["id"]),
        }
        for item in lists[0]
    ]


def _nested(fields: Fields) -> Fields:
    """Argilla's flattened row as its record."""
    responses: Fields = {}
    for name, values in fields.items():
        if name.endswith(".responses"):
            size = len(values or ())
            users = fields.get(f"{name}.users") or [None] * size
            statuses = fields.get(f"{name}.status") or [None] * size
            responses[name.removesuffix(".responses")] = [
                {"value": value, "user_id": user, "status": status}
                for value, user, status in zip(values or (), users, statuses, strict=True)
            ]
    shown = {name: value for name, value in fields.items() if ".responses" not in name}
    return {"id": fields.get("id"), "fields": shown, "responses": responses}


def _argilla(record: Fields, where: str, want: Want, choice: Choice) -> Iterator[Fields]:
    shown = record["fields"]
    source = (record.get("metadata") or {}).get("source")
    row = {"prompt": _prompt(shown, where, choice), "source": source}
    if want == "prompts":
        yield row
        return
    type_ = str if want == "demonstrations" else list
    by_user: dict[Any, dict[str, Any]] = {}
    for user, question, value in _argilla_answers(record["responses"]):
        if isinstance(value, type_):
            by_user.setdefault(user, {})[question] = {"value": value}
    for number, (user, answers) in enumerate(by_user.items()):
        if (found := _the_one(answers, choice.question, where)) is None:
            continue
        answer = row | {
            "id": f"{record.get('id') or where}/{number}",
            "annotator": None if user is None else str(user),
        }
        if want == "demonstrations":
            yield answer | {"response": found["value"]}
        else:
            yield answer | {"replies": _argilla_ranking(shown, found["value"], where)}


def _argilla_answers(responses: Any) -> Iterator[tuple[Any, str, Any]]:
    """(user, question, value) of every submitted answer: version 2's dict or version 1's list."""
    if isinstance(responses, dict):
        for question, given in responses.items():
            for answer in given or ():
                if answer.get("status") in (None, "submitted"):
                    yield answer.get("user_id"), question, answer.get("value")
    else:
        for given in responses or ():
            if given.get("status") in (None, "submitted"):
                for question, answer in (given.get("values") or {}).items():
                    yield given.get("user_id"), question, answer.get("value")


def _argilla_ranking(shown: Fields, value: list[Any], where: str) -> list[Fields]:
    """Ranked options are names of the record's fields: in their order, or with ranks and ties."""
    if all(isinstance(option, str) for option in value):
        ranked = [(name, rank) for rank, name in enumerate(value, 1)]
    else:
        ranked = [(option.get("value"), option.get("rank")) for option in value]
    replies = []
    for name, rank in ranked:
        if name not in shown:
            raise InputError(
                f"{where}: the ranking names {name!r}, and the record has the fields "
                f"{', '.join(shown)}; name the options as the fields that they rank"
            )
        replies.append({"text": shown[name], "rank": rank, "model": name})
    return replies


def _prompt(data: Fields, where: str, choice: Choice) -> Any:
    if choice.prompt_field not in data:
        raise InputError(
            f"{where}: there is no field '{choice.prompt_field}' (has: {', '.join(data)}); set "
            "prompt_field to the one that holds the prompt"
        )
    prompt = data[choice.prompt_field]
    return transcript(prompt, where) + ASSISTANT if _is_dialogue(prompt) else prompt


def _the_one(answers: Mapping[str, Fields], question: str | None, where: str) -> Fields | None:
    """The answer to `question`, or the only one; None where there is none."""
    if question is not None:
        return answers.get(question)
    if len(answers) > 1:
        raise InputError(
            f"{where}: several questions could be meant: {', '.join(answers)}; set question to one"
        )
    return next(iter(answers.values()), None)
