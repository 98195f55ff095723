"""What a person sees of PPO: a table that grows, and pages of sample texts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from tercet.rollout.experience import Experience, Replies

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("score", "score", "{:7.2f}"),
    ("gold", "gold*", "{:7.2f}"),
    ("kl", "KL", "{:7.2f}"),
    ("entropy", "entropy", "{:8.2f}"),
    ("length", "length", "{:7.1f}"),
    ("frac_no_eos", "no EOS", "{:7.1%}"),
    ("clip_fraction", "clipped", "{:8.1%}"),
    ("approx_kl", "step KL", "{:8.4f}"),
    ("explained_variance", "V expl.", "{:8.2f}"),
    ("ptx_loss", "ptx", "{:6.3f}"),
)


class Table:
    """One line an iteration, aligned, on stderr; alarms below the line they belong to."""

    def __init__(self, show: bool, gold: bool, ptx: bool) -> None:
        self.show = show
        self.gold = gold
        # Known later than the first row, when only the value model trains at first.
        self.later = {"clip_fraction", "approx_kl"} | ({"ptx_loss"} if ptx else set())
        self.columns: list[tuple[str, str, str]] = []

    def line(self, text: str) -> None:
        """Any line, from the main rank only."""
        if self.show:
            print(text, file=sys.stderr, flush=True)

    def row(self, iteration: int, metrics: Mapping[str, float], alarms: Sequence[str]) -> None:
        """The numbers that matter of one iteration."""
        if not self.columns:
            self.columns = [c for c in COLUMNS if c[0] in metrics or c[0] in self.later]
            widths = [len(form.format(0.0)) for _, _, form in self.columns]
            heads = [
                head.rjust(width) for (_, head, _), width in zip(self.columns, widths, strict=True)
            ]
            note = (
                "   (* the world's gold utility, simulated; training never sees it)"
                if self.gold
                else ""
            )
            self.line("iter " + " ".join(heads) + note)
        cells = [
            form.format(metrics[name]) if name in metrics else " " * len(form.format(0.0))
            for name, _, form in self.columns
        ]
        self.line(f"{iteration:4d} " + " ".join(cells))
        for alarm in alarms:
            self.line(f"     ! {alarm}")


def sample_page(batch: Experience, prompts: int, alarms: Sequence[str]) -> str:
    """The first prompts of a batch with their replies, scores, sequence KL and lengths."""
    kl_B, length_B = batch.kl_B.tolist(), batch.mask_BT.sum(1).tolist()
    lines = [f"! {alarm}\n" for alarm in alarms]
    for group, rows in list(zip(batch.groups, batch.episodes, strict=True))[:prompts]:
        lines.append(f"=== {group.prompt}")
        for k, row in enumerate(rows):
            end = "" if group.stopped[k] else "  [no EOS]"
            lines.append(
                f"--- score {group.scores[k]:.2f}  KL {kl_B[row]:.2f}  "
                f"{length_B[row]} tokens{end}\n{group.texts[k]}"
            )
        lines.append("")
    return "\n".join(lines)


def before_and_after(before: Sequence[Replies], after: Sequence[Replies]) -> str:
    """The same prompts answered by the start and by the trained policy, with the same noise."""
    lines = []
    for old, new in zip(before, after, strict=True):
        lines += [
            f"=== {old.prompt}",
            f"--- before, score {old.scores[0]:.2f}\n{old.texts[0]}",
            f"--- after, score {new.scores[0]:.2f}\n{new.texts[0]}",
            "",
        ]
    return "\n".join(lines)
