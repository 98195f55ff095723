from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from tercet.data.rankings import labeler_group
from tercet.judge.accuracy import reward_report
from tercet.model.load import load_scalar, scalar_head, set_bias
from tercet.model.reward import check_probe, encode_replies, gather_scores, score_documents
from tercet.model.shard import Ranks
from tercet.model.tree import Document
from tercet.records import (
    Demonstration,
    InputError,
    RankedReply,
    Ranking,
    read_records,
    write_records,
)
from tercet.stages.rm import Config, backward, divide, document, main, normalise, overfit
from tests.model.architectures import saved
from tests.toy import distance, gradients, stage, weights

RANKS = Ranks()


@pytest.fixture(scope="module")
def config(toy):
    return Config(
        model=toy.policy,
        rankings=toy.rankings,
        demonstrations=toy.demonstrations,
        batch=8,
        lr=1e-2,
    )


# --- the gradient of one batch ------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A float64 scalar gpt2: llama-family norms compute in float32 inside."""
    folder = saved("gpt2", tmp_path_factory.mktemp("rm"))
    return load_scalar(folder, dtype=torch.float64, init="normal", seed=0)


def example(prompt, replies, ranks):
    """A ranking whose documents are the ids given; the text is never read."""
    ranking = Ranking(
        id="same for all",
        prompt_id=str(prompt),
        prompt="p",
        replies=tuple(
            RankedReply(id=str(k), text=str(k), rank=rank) for k, rank in enumerate(ranks)
        ),
        judge="person",
    )
    return ranking, Document(prompt, replies)


NINE = example(
    [3, 4], [[5 + k, 20 + k, *[30 + k] * (k % 3), 2] for k in range(9)], [1, 2, 2, 3, 4, 4, 5, 6, 7]
)
FOUR = example([7, 8, 9], [[10, 2], [11, 12, 2], [13], [14, 15, 16, 2]], [2, 1, 4, 2])
BATCH = [NINE, FOUR]


def k_wise(model, batch, config, budget=1000):
    model.zero_grad()
    sums = backward(model, batch, RANKS, replace(config, token_budget=budget))
    return sums.tolist(), gradients(model)


def own_score(model, prompt, reply):
    """By the model's own attention, one sequence alone."""
    ids = torch.tensor([[*prompt, *reply]])
    return model(input_ids=ids, use_cache=False).logits[0, -1, 0]


def pair_wise(model, batch, denominator="pairs", weighting="prompt"):
    """2 * C(K, 2) forward passes, one loss a pair, averaged as Eq. 1 says."""
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    parts = []
    for ranking, ids in batch:
        ranks = [reply.rank for reply in ranking.replies]
        losses = []
        for a, b in combinations(range(len(ranks)), 2):
            if ranks[a] != ranks[b]:
                winner, loser = (a, b) if ranks[a] < ranks[b] else (b, a)
                margin = own_score(model, ids.prompt, ids.replies[winner]) - own_score(
                    model, ids.prompt, ids.replies[loser]
                )
                losses.append(-F.logsigmoid(margin))
        count = len(losses) if denominator == "pairs" else len(ranks) * (len(ranks) - 1) // 2
        parts.append((torch.stack(losses).sum(), count))
    if weighting == "prompt":
        loss = sum(total / count for total, count in parts) / len(parts)
    else:
        loss = sum(total for total, _ in parts) / sum(count for _, count in parts)
    loss.backward()
    model.set_attn_implementation("tercet")
    return loss.item(), gradients(model)


@pytest.mark.parametrize("denominator", ["pairs", "combinations"])
@pytest.mark.parametrize("weighting", ["prompt", "pair"])
def test_k_forwards_give_the_mean_of_the_pairwise_gradients(gpt2, config, denominator, weighting):
    """I16, through the backbone and the packed prompt."""
    options = replace(config, denominator=denominator, weighting=weighting)
    (loss, right, pairs), packed = k_wise(gpt2, BATCH, options)
    expected, separate = pair_wise(gpt2, BATCH, denominator, weighting)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert pairs == (36 - 2) + (6 - 1)
    assert 0 <= right <= pairs
    assert distance(packed, separate) < 1e-10


@pytest.mark.parametrize("budget", [1, 30])
def test_micro_batches_do_not_change_the_gradient(gpt2, config, budget):
    for weighting in ("prompt", "pair"):
        options = replace(config, weighting=weighting)
        whole, packed = k_wise(gpt2, BATCH, options)
        parts, split = k_wise(gpt2, BATCH, options, budget)
        assert parts == pytest.approx(whole, rel=1e-6)
        assert distance(packed, split) < 1e-12


def test_a_batch_with_every_prompt_twice_is_the_same_batch(gpt2, config):
    """I21."""
    once, gradient = k_wise(gpt2, BATCH, config)
    twice, doubled = k_wise(gpt2, BATCH * 2, config)
    assert twice[0] == pytest.approx(once[0], rel=1e-6)
    assert distance(gradient, doubled) < 1e-12


def test_prompts_of_nine_and_of_four_replies_weigh_the_same(gpt2, config):
    """I23."""
    _, both = k_wise(gpt2, BATCH, config)
    _, nine = k_wise(gpt2, [NINE], config)
    _, four = k_wise(gpt2, [FOUR], config)
    assert distance(both, {name: (nine[name] + four[name]) / 2 for name in both}) < 1e-12


def test_rankings_of_one_id_keep_their_own_replies(gpt2, config):
    """Public files number their rows from 1, each; both examples here share an id."""
    assert NINE[0].id == FOUR[0].id
    first, _ = k_wise(gpt2, [NINE], config)
    second, _ = k_wise(gpt2, [FOUR], config)
    assert first[0] != pytest.approx(second[0], rel=1e-3)


def test_counts_of_right_pairs_by_hand(gpt2, config):
    scores = score_documents(gpt2, [FOUR[1]], token_budget=100).tolist()
    ranks = [reply.rank for reply in FOUR[0].replies]
    right = sum(scores[a] > scores[b] for a in range(4) for b in range(4) if ranks[a] < ranks[b])
    assert k_wise(gpt2, [FOUR], config)[0][1:] == [right, 5]


def test_the_heads_bias_gets_no_gradient(gpt2, config):
    """I15: exactly, in float64; in training it is frozen besides."""
    _, gradient = k_wise(gpt2, BATCH, config)
    assert float(gradient["classifier.bias"].abs()) < 1e-12


# --- the stage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    return stage(main, replace(config, epochs=8), tmp_path_factory.mktemp("rm") / "run")


def test_it_learns_that_longer_is_better(trained):
    rows = trained.metrics()
    assert rows[-1]["accuracy"] > 0.85 > rows[0]["accuracy"]
    assert trained.done()["valid"]["accuracy"] > 0.7


def test_demonstrations_score_zero_and_the_bias_is_all_that_says_so(trained, config, toy):
    """I24; the bias was frozen while training, so it is exactly minus the mean."""
    model = load_scalar(trained.model)
    done = trained.done()
    assert scalar_head(model).bias.item() == pytest.approx(-done["demonstration_mean"], rel=1e-6)
    bias = scalar_head(model).bias.item()
    finished = [
        encode_replies(toy.tokenizer, d.prompt, [d.response], [True])
        for d in read_records(toy.demonstrations, Demonstration)
        if d.split == "train"
    ]
    scores = score_documents(model, finished, token_budget=1000)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    mean, deviation = normalise(model, toy.tokenizer, config, RANKS)
    assert abs(mean) <= 1e-4 * max(1, deviation)
    assert scalar_head(model).bias.item() == pytest.approx(bias, abs=1e-6)  # idempotent
    set_bias(model, 5.0)
    normalise(model, toy.tokenizer, config, RANKS)
    assert scalar_head(model).bias.item() == pytest.approx(bias, abs=1e-5)


def test_normalising_leaves_accuracy_and_loss_unchanged(trained, config, toy):
    """I24."""
    model = load_scalar(trained.model)
    held_out = [r for r in read_records(toy.rankings, Ranking) if r.split == "valid"]
    documents = [document(r, toy.tokenizer, toy.rankings) for r in held_out]
    reports = []
    for bias in (0.0, scalar_head(model).bias.item()):
        set_bias(model, bias)
        scores = gather_scores(model, documents, RANKS, token_budget=1000)
        reports.append(reward_report(scores, held_out))
    assert reports[0]["accuracy"] == reports[1]["accuracy"] == trained.done()["valid"]["accuracy"]
    assert reports[0]["log_loss"] == pytest.approx(reports[1]["log_loss"], rel=1e-5)


def test_the_saved_model_carries_its_probe(trained, toy):
    assert check_probe(load_scalar(trained.model), toy.tokenizer, trained.model) < 1e-5


def test_one_seed_gives_one_model(config, tmp_path):
    """I13."""
    runs = [
        stage(main, replace(config, seed=seed), tmp_path / name)
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    ]
    first, second, other = (weights(run.model) for run in runs)
    assert distance(first, second) == 0
    assert distance(first, other) > 0


def test_micro_batches_do_not_change_the_model(config, tmp_path):
    big = stage(main, config, tmp_path / "big")
    small = stage(main, replace(config, token_budget=30), tmp_path / "small")
    assert distance(weights(big.model), weights(small.model)) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"pair_shuffled": True},
        {"adapt": "lora:2"},
        {"weighting": "pair", "denominator": "combinations", "head_init": "zero"},
    ],
)
def test_options_run_and_the_saved_model_loads(config, tmp_path, changes):
    run = stage(main, replace(config, **changes), tmp_path / "run")
    assert load_scalar(run.model)
    assert len(run.metrics()) == 3  # pair_shuffled too: batches of as many pairs


def test_a_zero_head_starts_at_ln_two_and_learns(config, tmp_path):
    run = stage(main, replace(config, head_init="zero"), tmp_path / "run")
    losses = [row["loss"] for row in run.metrics()]
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)
    assert losses[-1] < losses[0]


def test_splits_are_reported_apart(config, toy, tmp_path):
    records = read_records(toy.rankings, Ranking)
    records = [
        r.model_copy(update={"split": "test"}) if i >= 27 else r for i, r in enumerate(records)
    ]
    write_records(tmp_path / "rankings.jsonl", records)
    options = replace(config, rankings=tmp_path / "rankings.jsonl")
    done = stage(main, options, tmp_path / "run").done()
    assert (done["valid"]["rankings"], done["test"]["rankings"]) == (3, 3)


def test_a_group_of_labelers_can_be_held_out(config, toy, tmp_path):
    done = stage(main, replace(config, hold_out_group=0, labeler_groups=2), tmp_path / "run").done()
    held_out = done["held_out_labelers"]["rankings"]
    assert held_out > 0
    assert done["trained_rankings"] == 24 - held_out


def test_a_group_without_labelers_is_refused(config, toy, tmp_path):
    path = rewritten(toy, tmp_path, lambda i, r: r.model_copy(update={"labeler": None}))
    options = replace(config, hold_out_group=0, labeler_groups=1)
    with pytest.raises(InputError, match=r"group 0 of 1; groups with labelers: none"):
        stage(main, replace(options, rankings=path), tmp_path / "a")
    path = rewritten(toy, tmp_path, lambda i, r: r.model_copy(update={"labeler": "one"}))
    group = labeler_group("one", 5)
    options = replace(config, rankings=path, hold_out_group=(group + 1) % 5)
    with pytest.raises(InputError, match=rf"groups with labelers: {group}; choose"):
        stage(main, options, tmp_path / "b")


def rewritten(toy, tmp_path, change):
    records = [change(i, r) for i, r in enumerate(read_records(toy.rankings, Ranking))]
    write_records(tmp_path / "changed.jsonl", records)
    return tmp_path / "changed.jsonl"


def tie(ranking):
    replies = tuple(reply.model_copy(update={"rank": 1}) for reply in ranking.replies)
    return ranking.model_copy(update={"replies": replies})


def test_rankings_that_decide_nothing_are_refused(config, toy, tmp_path):
    path = rewritten(toy, tmp_path, lambda i, r: tie(r))
    with pytest.raises(InputError, match=r"changed\.jsonl: .*30 all tied"):
        stage(main, replace(config, rankings=path), tmp_path / "run")


def test_tied_copied_and_long_rankings_are_left_out_and_counted(config, toy, tmp_path):
    def change(i, r):
        if i == 0:
            return tie(r)
        if i == 1:  # one text only
            copies = tuple(x.model_copy(update={"text": " red."}) for x in r.replies)
            return r.model_copy(update={"replies": copies})
        if i == 2:
            return r.model_copy(update={"prompt": "say" + " red" * 40 + ":"})
        return r

    options = replace(config, rankings=rewritten(toy, tmp_path, change), max_tokens=30)
    done = stage(main, options, tmp_path / "run").done()
    assert done["trained_rankings"] == 21
    assert (done["all_tied"], done["dropped_one_text"], done["dropped_long"]) == (1, 1, 1)


def test_a_prompt_in_two_splits_is_refused(config, toy, tmp_path):
    path = rewritten(toy, tmp_path, lambda i, r: r.model_copy(update={"prompt_id": f"q{i % 24}"}))
    with pytest.raises(InputError, match=r"6 prompts are both in split train and held out.*'q0'"):
        stage(main, replace(config, rankings=path), tmp_path / "run")


def test_an_empty_prompt_is_named(config, toy, tmp_path):
    path = rewritten(
        toy, tmp_path, lambda i, r: r.model_copy(update={"prompt": ""}) if i == 5 else r
    )
    with pytest.raises(InputError, match=r"changed\.jsonl: ranking 'r5': an empty prompt"):
        stage(main, replace(config, rankings=path), tmp_path / "run")


def test_without_demonstrations_there_is_no_zero(config, toy, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match=r"none\.jsonl: no demonstration"):
        stage(main, replace(config, demonstrations=tmp_path / "none.jsonl"), tmp_path / "run")


def test_only_rankings_of_the_criterion_train(config, toy, tmp_path):
    path = rewritten(
        toy, tmp_path, lambda i, r: r.model_copy(update={"criterion": "a" if i % 2 else "b"})
    )
    options = replace(config, rankings=path, criterion="a")
    assert stage(main, options, tmp_path / "run").done()["trained_rankings"] == 12


def test_a_tied_ranking_trains_nothing_but_may_be_held_out(config):
    held = tie(FOUR[0]).model_copy(update={"split": "valid", "prompt_id": "other"})
    train, held_out = divide([(tie(FOUR[0]), FOUR[1]), (held, FOUR[1]), NINE], config)
    assert [r.prompt_id for r, _ in train] == [NINE[0].prompt_id]
    assert len(held_out["valid"]) == 1


def test_a_gap_between_seen_and_held_out_rankings_is_said():
    def summary(seen, valid):
        return {"train_sample": {"accuracy": seen}, "valid": {"accuracy": valid}}

    assert overfit(summary(0.80, 0.73), ["valid"]) == []
    (line,) = overfit(summary(0.90, 0.75), ["valid", "test"])
    assert "0.900" in line and "0.750 on valid" in line
