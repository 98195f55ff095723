"""Tables of an evaluation, for the terminal (rich) and for a page (markdown), from report.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from tercet.report.style import display_name

Report = Mapping[str, Any]


FOOTNOTE = (
    "Ties count half. Intervals: 95%, bootstrap over prompts.\n"
    "Tax: held-out pretraining loss minus the base model's, nats a token."
)


def all_tables(report: Report) -> list[Table]:
    """Win rates, what the replies contain, and the reward model, each at most 80 columns wide."""
    baseline = display_name(report["baseline"]["name"])
    tables = [
        _table(f"Win rate against {baseline}\n{headline(report)}", *win_rows(report), FOOTNOTE),
        _table("What the replies contain, a reply", *text_rows(report)),
    ]
    if rows := reward_rows(report):
        tables.append(_table("Reward model on held-out rankings", ["", ""], rows))
    return tables


def headline(report: Report) -> str:
    """Who judged how much: "Judge: simulated gold utility, 400 prompts"."""
    return f"Judge: {report['judge']}, {report['prompts']['n']:,} prompts"


def win_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """(header, rows): win rate, interval, n, mean scores and alignment tax of each arm."""
    arms: Mapping[str, Report] = report["arms"]
    tax: Mapping[str, float | None] = report.get("tax", {})
    return _columns(
        ("arm", [_arm_name(name) for name in arms]),
        ("win rate", [_number(arm["win_rate"], 3) for arm in arms.values()]),
        ("95% interval", [f"[{arm['low']:.3f}, {arm['high']:.3f}]" for arm in arms.values()]),
        ("n", [f"{arm['n']:,}" for arm in arms.values()]),
        ("gold", [_number(arm.get("gold"), 2) for arm in arms.values()]),
        ("reward", [_number(arm.get("reward"), 2) for arm in arms.values()]),
        ("tax", [_signed(tax.get(name)) for name in arms]),
    )


def text_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """(header, rows): length and, in the embedded world, what is right and wrong in a reply."""
    arms: Mapping[str, Report] = report["arms"]
    counts = {
        "answered": "answered",
        "right": "right",
        "wrong": "wrong",
        "rude": "rude",
        "garbled": "outside_grammar",
    }
    return _columns(
        ("arm", [_arm_name(name) for name in arms]),
        ("words", [_number(arm["words"], 1) for arm in arms.values()]),
        ("finished", [_number(arm["finished"], 2) for arm in arms.values()]),
        *(
            (title, [_number(arm.get("world", {}).get(key), 2) for arm in arms.values()])
            for title, key in counts.items()
        ),
    )


def reward_rows(report: Report) -> list[tuple[str, str]]:
    """The reward model's numbers as (name, value); [] without a reward-model section."""
    model = report.get("reward_model")
    if not model or model.get("accuracy") is None:
        return []
    who = judges(model["judge"])
    length = model["length"]
    rows = [
        (f"held-out accuracy ({who})", _interval(model)),
        ("mean log loss (chance: 0.693)", f"{model['log_loss']:.3f}"),
        ("calibration error (ECE)", f"{model['calibration']['ece']:.3f}"),
        ("temperature that would calibrate", f"{model['calibration']['temperature']:.2f}"),
        ("baseline: the longer reply wins", _interval(length["longer_wins"])),
        ("baseline: the shorter reply wins", _interval(length["shorter_wins"])),
    ]
    if length["accuracy_where_longer_loses"]:
        rows.append(
            ("accuracy where the longer loses", _interval(length["accuracy_where_longer_loses"]))
        )
    if model.get("labeler_agreement") is not None:
        rows.append(
            (f"agreement of two {who}", _interval(_with_prefix(model, "labeler_agreement")))
        )
    if model.get("labeler_ceiling") is not None:
        rows.append(
            (
                "ceiling: simulated gold, same rankings",
                _interval(_with_prefix(model, "labeler_ceiling")),
            )
        )
    rows.append(("pairs, prompts", f"{model['pairs']:,}, {model['prompts']:,}"))
    return rows


def report_markdown(report: Report, figures: Sequence[tuple[str, str]]) -> str:
    """The whole report as a markdown page. figures: (caption, file name beside the page)."""
    baseline = display_name(report["baseline"]["name"])
    parts = [
        f"# Win rate against {baseline}",
        f"{headline(report)}. {FOOTNOTE}",
        markdown_table(*win_rows(report)),
        markdown_table(*text_rows(report)),
        *(f"![{caption}]({file})" for caption, file in figures),
    ]
    if model := reward_rows(report):
        parts += ["## Reward model on held-out rankings", markdown_table(["", ""], model)]
    parts.append(
        "All arms on the same prompts: [samples/side_by_side.md](samples/side_by_side.md)."
    )
    return "\n\n".join(parts) + "\n"


def side_by_side(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Replies of all arms to the same prompts as markdown.

    rows: {prompt, replies: [{arm, text, finish, scores: {name: number}}]}; texts are fenced, so
    that a reply cannot break the page.
    """
    parts = [f"# {title}\n"]
    for number, row in enumerate(rows, start=1):
        parts.append(f"## {number}\n\n{_fenced(row['prompt'])}\n")
        for reply in row["replies"]:
            scores = ", ".join(
                f"{name} {_number(value, 2)}" for name, value in reply["scores"].items()
            )
            cut = ", cut" if reply["finish"] == "length" else ""
            detail = f" ({scores}{cut})" if scores or cut else ""
            parts.append(f"**{_arm_name(reply['arm'])}**{detail}\n\n{_fenced(reply['text'])}\n")
    return "\n".join(parts)


def sample_table(sample: Mapping[str, Any], longest: int = 160) -> Table:
    """One prompt with every arm's reply and its scores; texts are cut at `longest` characters."""
    prompt = " ".join(sample["prompt"].split())
    table = Table(
        title=escape(_cut(prompt, longest)),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    judges = next((" ".join(reply["scores"]) for reply in sample["replies"]), "")
    table.add_column("arm", no_wrap=True)
    table.add_column(judges, justify="right", no_wrap=True)
    table.add_column("reply")
    for reply in sample["replies"]:
        scores = " ".join(f"{value:.1f}" for value in reply["scores"].values())
        text = _cut(" ".join(reply["text"].split()), longest)
        table.add_row(_arm_name(reply["arm"]), scores, escape(text))
    return table


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-flavoured table; the first column left, the others right."""
    lines = [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _columns(*columns: tuple[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; columns that no arm has are left out."""
    kept = [(title, cells) for title, cells in columns if any(cells)]
    rows = zip(*(cells for _, cells in kept), strict=True)
    return [title for title, _ in kept], [list(row) for row in rows]


def _table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None
) -> Table:
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(header),
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _arm_name(name: str) -> str:
    family, at, size = name.partition("@")
    return display_name(family) + (f" {size}" if at else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['accuracy']:.3f}  [{found['low']:.3f}, {found['high']:.3f}]"


def _with_prefix(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"accuracy": model[name], "low": model[f"{name}_low"], "high": model[f"{name}_high"]}


def judges(judge: str) -> str:
    """Who ranked, in words: "person" -> "people"."""
    return {"person": "people", "simulated": "simulated labelers"}.get(judge, f"judges: {judge}")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip()}\n{fence}"
