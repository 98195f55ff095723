"""Rankings written by hand: `ranking("p", ("text", rank), ...)`."""

from tercet.records import Judge, RankedReply, Ranking


def ranking(
    prompt: str,
    *replies: tuple[str, int],
    labeler: str = "ann",
    judge: Judge = "person",
    policies: tuple[str, ...] = (),
) -> Ranking:
    return Ranking(
        id=f"{prompt}/{labeler}",
        prompt_id=prompt,
        prompt=f"Say {prompt}.",
        judge=judge,
        labeler=labeler,
        replies=tuple(
            RankedReply(
                id=str(place),
                text=text,
                rank=rank,
                policy=policies[place] if policies else None,
            )
            for place, (text, rank) in enumerate(replies)
        ),
    )
