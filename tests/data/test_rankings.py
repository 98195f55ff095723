from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.rankings import (
    as_pairs,
    batches,
    distinct_replies,
    has_pairs,
    labeler_group,
    pair_count,
)
from tercet.records import RankedReply, Ranking


def ranked(*replies: tuple[str, int], prompt: str = "p", id_: str = "r") -> Ranking:
    return Ranking(
        id=id_,
        prompt_id=prompt,
        prompt="say:",
        replies=tuple(
            RankedReply(id=str(k), text=text, rank=rank) for k, (text, rank) in enumerate(replies)
        ),
        judge="person",
    )


def order(ranking: Ranking) -> list[tuple[str, int]]:
    return [(reply.text, reply.rank) for reply in ranking.replies]


def test_different_replies_stay_as_they_are():
    given_ = ranked(("a", 1), ("b", 3), ("c", 3))
    cleaned = distinct_replies([given_])
    assert cleaned.rankings == [given_]
    assert (cleaned.all_tied, cleaned.duplicate_replies, cleaned.contradictions) == (0, 0, 0)


def test_copies_of_equal_rank_become_one_reply():
    cleaned = distinct_replies([ranked(("a", 1), (" a ", 1), ("b", 2))])
    assert order(cleaned.rankings[0]) == [("a", 1), ("b", 2)]
    assert (cleaned.duplicate_replies, cleaned.contradictions) == (1, 0)


def test_contradicting_copies_are_counted_and_take_their_mean_rank():
    cleaned = distinct_replies([ranked(("a", 1), ("b", 2), ("a", 3))])
    assert order(cleaned.rankings[0]) == [("a", 1), ("b", 1)]  # a: (1 + 3) / 2, tied with b
    assert cleaned.contradictions == 1
    assert cleaned.all_tied == 1


def test_only_the_order_of_ranks_decides_a_contradiction():
    small = distinct_replies([ranked(("a", 1), ("b", 2), ("a", 3), ("c", 4))])
    large = distinct_replies([ranked(("a", 1), ("b", 2), ("a", 50), ("c", 90))])
    assert order(small.rankings[0]) == order(large.rankings[0])


def test_a_ranking_of_one_text_is_dropped():
    assert distinct_replies([ranked(("a", 1), ("a", 2))]).rankings == []


def test_all_tied_rankings_are_kept_and_counted():
    cleaned = distinct_replies([ranked(("a", 2), ("b", 2))])
    assert len(cleaned.rankings) == 1
    assert cleaned.all_tied == 1
    assert not has_pairs(cleaned.rankings[0])


def test_pairs_are_derived_and_ties_give_none():
    ranking = ranked(("a", 1), ("b", 2), ("c", 2), ("d", 3))
    pairs = as_pairs(ranking)
    assert [tuple(r.text for r in pair.replies) for pair in pairs] == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert pair_count(ranking) == len(pairs) == 5
    assert len({pair.id for pair in pairs}) == 5


rankings_of_prompts = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(
    lambda prompts: [
        ranked(("a", 1), ("b", 2), prompt=f"p{p}", id_=str(i)) for i, p in enumerate(prompts)
    ]
)


@settings(max_examples=60, deadline=None)
@given(rankings_of_prompts, st.integers(1, 9), st.integers(0, 5))
def test_a_pass_holds_every_ranking_once_and_no_prompt_twice_in_a_batch(rankings, size, seed):
    passed = batches(rankings, size, seed)
    assert sorted(i for batch in passed for i in batch) == list(range(len(rankings)))
    for batch in passed:
        assert len(batch) <= size
        prompts = Counter(rankings[i].prompt_id for i in batch)
        assert max(prompts.values()) == 1
    assert max(map(len, passed)) - min(map(len, passed)) <= 1


def test_pair_shuffled_batches_may_repeat_a_prompt():
    rankings = [ranked(("a", 1), ("b", 2), id_=str(i)) for i in range(8)]
    assert [len(b) for b in batches(rankings, 4, seed=0, distinct=False)] == [4, 4]
    assert len(batches(rankings, 4, seed=0)) == 8


def test_the_order_of_a_pass_depends_on_the_seed_alone():
    rankings = [ranked(("a", 1), ("b", 2), prompt=str(i), id_=str(i)) for i in range(20)]
    assert batches(rankings, 4, 1) == batches(rankings, 4, 1)
    assert batches(rankings, 4, 1) != batches(rankings, 4, 2)


def test_labelers_keep_their_group_and_all_groups_are_used():
    groups = [labeler_group(f"labeler-{i}", 5) for i in range(60)]
    assert groups == [labeler_group(f"labeler-{i}", 5) for i in range(60)]
    assert set(groups) == set(range(5))
