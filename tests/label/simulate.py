"""Labelers whose faults are known, so that tests can ask for them back."""

import numpy as np

from tercet.label.answers import Answer


def dense(scores):
    """Highest score first -> rank 1; equal scores tie."""
    best_first = sorted(set(scores), reverse=True)
    return [best_first.index(score) + 1 for score in scores]


def rankings(items, replies, labelers, each, noise=0.5, seed=0, position=0.0, length=0.0, ties=0.0):
    """Answers to `items` items by `each` of the labelers, in turn.

    labelers: name -> None (uses `noise`) or its own noise; infinite noise ranks at random.
    A labeler ranks by true quality (standard normal) + normal noise + position for the first shown
    falling to 0 for the last + length for the longest; with probability `ties` two neighbours tie.
    """
    generator = np.random.default_rng(seed)
    names = list(labelers)
    found = []
    for item in range(items):
        quality = generator.normal(size=replies)
        lengths = generator.integers(50, 500, size=replies)
        for turn in range(each):
            name = names[(item * each + turn) % len(names)]
            own = labelers[name] if labelers[name] is not None else noise
            shown = generator.permutation(replies)
            score = generator.normal(size=replies) * (1 if own == np.inf else own)
            if own != np.inf:
                score += quality
            score += position * (1 - shown / max(replies - 1, 1))
            score += length * (lengths - 50) / 450
            order = sorted(range(replies), key=lambda n: -score[n])
            ranks, rank = [0] * replies, 0
            for place, reply in enumerate(order):
                rank += place == 0 or generator.random() >= ties
                ranks[reply] = rank
            found.append(
                Answer(
                    item=item,
                    labeler=name,
                    ranks=ranks,
                    ratings=[int(np.clip(round(4 + s), 1, 7)) for s in quality],
                    shown=shown.tolist(),
                    lengths=lengths.tolist(),
                    seconds=float(np.exp(generator.normal(4, 0.4))),
                    at=len(found),
                )
            )
    return found
