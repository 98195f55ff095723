"""The whole ppo stage on the toy language."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tercet.data.tokens import train_tokenizer
from tercet.model.load import load_policy, load_scalar, new_policy, save_model, scalar_head
from tercet.model.shard import Ranks
from tercet.model.train import held_out_nll, read_windows
from tercet.records import InputError, Prompt, RunFailed, read_records, write_records
from tercet.rollout import experience
from tercet.stages import ppo, sft
from tercet.stages.ppo import PRESETS, Config, main
from tests.toy import LLAMA, distance, same, stage, weights


@pytest.fixture(scope="module")
def config(toy):
    return Config(
        policy=toy.policy,
        reward=toy.reward,
        prompts=toy.prompts,
        split="ppo",
        episodes=48,
        rollout_batch=16,
        minibatch=8,
        max_new_tokens=6,
        lr=2e-3,
        value_lr=2e-3,
        context=8,
    )


@pytest.fixture(scope="module")
def trained(config, toy, tmp_path_factory):
    options = replace(config, held_out_text=toy.held_out)
    return stage(main, options, tmp_path_factory.mktemp("ppo") / "run")


def test_kl_is_zero_at_the_start_and_the_ratio_one_in_every_iteration(trained):
    """I26, I27."""
    rows = trained.metrics()
    assert [rows[0][f"kl_{kind}"] for kind in ("k1", "k2", "k3")] == [0, 0, 0]
    assert rows[0]["rlhf_reward"] < rows[0]["score"]  # the missing-EOS penalty
    assert rows[-1]["kl_k3"] > 0
    for row in rows:
        assert row["ratio_first_minibatch"] == pytest.approx(1, abs=1e-5)
        assert row["logp_gap_generated"] < 1e-4


def test_what_a_run_leaves(trained, toy):
    done = trained.done()
    assert done["iterations"] == 3
    assert done["skipped_steps"] == {"policy": 0, "value": 0}
    before = held_out_nll(
        load_policy(toy.policy), read_windows(toy.held_out, toy.tokenizer, 8), Ranks(),
        token_budget=1000,
    )  # fmt: skip
    assert done["held_out_nll_before"] == pytest.approx(before, abs=1e-6)
    assert done["held_out_nll"] != pytest.approx(before, abs=1e-6)
    samples = sorted(path.name for path in (trained.path / "samples").iterdir())
    assert samples == ["before-and-after.txt", *(f"iteration-000{i}.txt" for i in range(3))]
    page = (trained.path / "samples" / "iteration-0000.txt").read_text()
    assert page.count("=== say ") == 6
    assert page.count("--- score ") == 6
    load_scalar(trained.path / "value")
    assert not same(weights(trained.model), weights(toy.policy))


def test_the_learning_rate_warms_up(trained):
    """I42."""
    assert [row["lr"] / 2e-3 for row in trained.metrics()] == pytest.approx([0.1, 0.19, 0.28])


def test_one_seed_gives_one_policy(trained, config, toy, tmp_path):
    """I13."""
    again = stage(main, replace(config, held_out_text=toy.held_out), tmp_path / "again")
    other = stage(main, replace(config, seed=1), tmp_path / "other")
    assert same(weights(trained.model), weights(again.model))
    assert not same(weights(trained.model), weights(other.model))


def test_text_without_a_coefficient_changes_nothing(trained, config, toy, tmp_path):
    """I36: ptx_coef = 0 is PPO to the bit."""
    with_text = stage(main, replace(config, ptx_text=toy.text), tmp_path / "text")
    assert same(weights(trained.model), weights(with_text.model))
    assert "ptx_loss" not in with_text.metrics()[0]
    mixed = stage(
        main, replace(config, ptx_text=toy.text, ptx_coef=1.0, ptx_ratio=1), tmp_path / "ptx"
    )
    assert not same(weights(trained.model), weights(mixed.model))
    assert mixed.metrics()[0]["ptx_loss"] > 1


def test_micro_batches_do_not_change_the_policy(trained, config, tmp_path):
    """I37."""
    small = stage(main, replace(config, token_budget=30), tmp_path / "small")
    assert distance(weights(trained.model), weights(small.model)) < 1e-5
    assert distance(weights(trained.path / "value"), weights(small.path / "value")) < 1e-5


def test_dropout_in_the_configuration_has_no_effect(config, toy, tmp_path):
    """I44, for the policy, its reference, the reward model and the value model."""
    results = []
    for p in (0.0, 0.5):
        root = tmp_path / str(p)
        gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
        save_model(new_policy(gpt2, toy.tokenizer, seed=0), toy.tokenizer, root / "policy")
        reward = load_scalar(root / "policy", init="normal", seed=1)
        save_model(reward, toy.tokenizer, root / "reward")
        for folder in ("policy", "reward"):
            path = root / folder / "config.json"
            content = json.loads(path.read_text())
            content |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), p)
            path.write_text(json.dumps(content))
        options = replace(config, policy=root / "policy", reward=root / "reward")
        results.append(stage(main, options, root / "run"))
    assert same(weights(results[0].model), weights(results[1].model))


@pytest.mark.parametrize("changes", [{"offload": True}, {"checkpoint_activations": True}])
def test_memory_options_do_not_change_the_policy(config, tmp_path, changes):
    """bf16, so that the frozen models are halved; offloaded ones also make the last sample page."""
    plain = replace(config, precision="bf16")
    runs = [
        stage(main, options, tmp_path / name)
        for name, options in (("plain", plain), ("saving", replace(plain, **changes)))
    ]
    assert same(weights(runs[0].model), weights(runs[1].model))
    pages = [(run.path / "samples" / "before-and-after.txt").read_text() for run in runs]
    assert pages[0] == pages[1]


def test_phases_are_timed_and_filler_is_logged(config, tmp_path):
    rows = stage(main, config, tmp_path / "run").metrics()
    for row in rows:
        assert all(row[f"seconds/{phase}"] > 0 for phase in ("rollout", "score", "update"))
        assert 0 <= row["filler"] < 1


def test_a_changed_reference_stops_the_run(config, tmp_path, monkeypatch):
    """I40."""
    measure = ppo.measure

    def tamper(policy, reference, *rest):
        reference.lm_head.weight.data[0, 0] += 1e-7
        return measure(policy, reference, *rest)

    monkeypatch.setattr(ppo, "measure", tamper)
    with pytest.raises(RunFailed, match=r"KL to the reference|frozen reference changed"):
        stage(main, config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "done.json").exists()


@pytest.mark.parametrize("which", ["reference", "reward model"])
def test_a_frozen_model_that_changed_late_is_found_at_the_end(config, tmp_path, monkeypatch, which):
    """I40: after the checks of the first iteration."""
    update = ppo.update
    frozen = {}
    measure = ppo.measure

    def remember(policy, reference, value, scorer, *rest):
        frozen.update({"reference": reference, "reward model": scorer.model})
        return measure(policy, reference, value, scorer, *rest)

    def tamper(*arguments):
        next(frozen[which].parameters()).data[0, 0] += 1.0
        return update(*arguments)

    monkeypatch.setattr(ppo, "measure", remember)
    monkeypatch.setattr(ppo, "update", tamper)
    with pytest.raises(RunFailed, match=f"the frozen {which} changed during training"):
        stage(main, config, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_the_papers_profile_takes_4000_steps_and_2048000_windows(toy):
    """I43: counted through the functions that the stage counts with."""
    options = Config(
        policy=toy.policy, reward=toy.reward, prompts=toy.prompts, ptx_text=toy.text,
        ptx_coef=27.8, **PRESETS["instructgpt"],
    )  # fmt: skip
    assert options.iterations == 500
    minibatches = options.rollout_batch // options.minibatch * options.inner_epochs
    assert options.iterations * minibatches == 4000
    assert 4000 * round(options.ptx_ratio * options.minibatch) == 2_048_000
    assert (options.beta, options.ptx_coef, options.ema, options.lam) == (0.02, 27.8, 0.992, 0.95)
    assert (options.clip, options.value_clip, options.temperature) == (0.2, 0.2, 1.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(toy, preset):
    Config(
        policy=toy.policy, reward=toy.reward, prompts=toy.prompts, ptx_text=toy.text,
        **PRESETS[preset],
    )  # fmt: skip


@pytest.fixture(scope="module")
def polite(toy, tmp_path_factory):
    """A policy that has learned to stop."""
    options = sft.Config(
        model=toy.policy, demonstrations=toy.demonstrations, batch=8, epochs=20, lr=3e-2,
        dropout=0.0,
    )  # fmt: skip
    return stage(sft.main, options, tmp_path_factory.mktemp("polite") / "sft").model


def test_a_reward_for_length_makes_replies_grow_and_the_alarm_fires(
    config, polite, tmp_path, monkeypatch, capsys
):
    """I46."""

    def length(model, documents, **_):
        return torch.tensor([float(len(r)) for d in documents for r in d.replies])

    monkeypatch.setattr(experience, "score_documents", length)
    options = replace(
        config, policy=polite, episodes=64 * 12, rollout_batch=64, minibatch=16, samples=2, lr=3e-2,
        max_new_tokens=20, beta=0.01, warmup_iterations=0, inner_epochs=2, missing_eos="none",
        value_init="policy",
    )  # fmt: skip
    run = stage(main, options, tmp_path / "run")
    rows = run.metrics()
    assert rows[-1]["length"] > 1.5 * rows[0]["length"]
    assert rows[-1]["kl"] > 0.5 > rows[0]["kl"]
    assert "! length hacking: replies grew" in capsys.readouterr().err
    assert "! length hacking" in (run.path / "samples" / "iteration-0011.txt").read_text()


def test_a_reward_model_with_another_tokenizer(config, toy, tmp_path, capsys):
    texts = ["say red blue: gold.", "say pink teal plum gray: rust."]
    bytes_ = train_tokenizer(texts, kind="bpe", vocab_size=280)
    save_model(new_policy(LLAMA, bytes_, seed=3), bytes_, tmp_path / "base")
    save_model(load_scalar(tmp_path / "base", init="normal"), bytes_, tmp_path / "reward")
    other = replace(config, reward=tmp_path / "reward")
    with pytest.raises(InputError, match=r'another tokenizer .* use value_init = "policy"'):
        stage(main, other, tmp_path / "refused")
    run = stage(main, replace(other, value_init="policy", value_warmup=1), tmp_path / "run")
    rows = run.metrics()
    assert "another tokenizer: texts are re-encoded" in capsys.readouterr().err
    assert "policy_loss" not in rows[0]
    assert "policy_loss" in rows[1]
    assert rows[0]["value_mean"] == 0  # a zero head
    assert rows[1]["kl_k2"] == 0  # the policy has not moved in the warm-up


def test_leave_one_out_has_no_value_model(config, tmp_path):
    run = stage(main, replace(config, algorithm="rloo", samples=4), tmp_path / "run")
    assert not (run.path / "value").exists()
    assert "value_loss" not in run.metrics()[0]
    assert run.metrics()[-1]["kl_k3"] > 0


def test_several_samples_a_prompt(config, tmp_path):
    run = stage(main, replace(config, samples=4), tmp_path / "run")
    page = (run.path / "samples" / "iteration-0000.txt").read_text()
    assert page.count("=== say ") == 4  # 16 episodes
    assert page.count("--- score ") == 16


def test_beta_follows_the_controller(config, tmp_path):
    """KL is 0 at the start: the lower limit of the factor, 1 - 0.2 * n / H."""
    run = stage(main, replace(config, beta=0.1, kl_target=6.0, kl_horizon=100.0), tmp_path / "run")
    betas = [row["beta"] for row in run.metrics()]
    factor = 1 - 0.2 * 16 / 100
    assert betas == pytest.approx([0.1, 0.1 * factor, 0.1 * factor**2])


def test_a_beta_at_its_bound_is_said(config, tmp_path, capsys):
    options = replace(config, beta=0.1, kl_target=6.0, beta_low=0.1)
    stage(main, options, tmp_path / "run")
    assert "beta 0.1 is at its bound" in capsys.readouterr().err


def test_a_fixed_beta_stays(trained):
    assert {row["beta"] for row in trained.metrics()} == {0.02}


def test_a_kl_beyond_its_limit_stops_the_run(config, tmp_path):
    options = replace(config, kl_abort=0.05, lr=0.1, warmup_iterations=0)
    with pytest.raises(RunFailed, match=r"passed kl_abort 0.05 at iteration [12]; raise beta"):
        stage(main, options, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kl"] > 0.05  # what stopped it can be read and looked at
    assert (tmp_path / "run" / "samples" / f"iteration-000{last['step']}.txt").exists()


@pytest.fixture(scope="module")
def last(config, tmp_path_factory):
    """Without an average."""
    return stage(main, replace(config, ema=None), tmp_path_factory.mktemp("last") / "run")


@pytest.mark.parametrize(("ema", "equal_to"), [(1.0, "start"), (0.0, "last"), (0.5, "neither")])
def test_the_average_is_what_is_saved(config, toy, last, tmp_path, ema, equal_to):
    run = stage(main, replace(config, ema=ema), tmp_path / "run")
    expected = {"start": toy.policy, "last": last.model}
    for name, folder in expected.items():
        assert same(weights(run.model), weights(folder)) == (name == equal_to)


def test_an_adapter_trains_alone_and_is_merged(config, toy, tmp_path):
    """Its own dropout is off, too, or the first ratio would not be 1."""
    run = stage(main, replace(config, adapt="lora:2,dropout=0.5"), tmp_path / "run")
    assert run.metrics()[0]["kl_k2"] == 0  # the adapter starts as the identity
    before, after = weights(toy.policy), weights(run.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("_proj" in name for name in changed)


def test_cut_lengths_and_options_of_ziegler(config, tmp_path):
    options = replace(
        config, truncate_after=3, missing_eos="replace", adam_style="tf", whiten_rewards=True,
        lr_schedule="linear", temperature=0.7, score_clip=1.0, kl_estimator="k3",
    )  # fmt: skip
    rows = stage(main, options, tmp_path / "run").metrics()
    assert rows[0]["length"] > 3
    assert rows[2]["lr"] == pytest.approx(2e-3 * 0.28 / 3)


def test_each_iteration_draws_its_own_replies(config, tmp_path):
    still = replace(config, rollout_batch=32, episodes=64, show=32, lr=0.0, value_lr=0.0)
    run = stage(main, still, tmp_path / "run")
    pages = [
        set((run.path / "samples" / f"iteration-000{i}.txt").read_text().split("=== "))
        for i in (0, 1)
    ]
    assert len(pages[0]) == len(pages[1]) == 33
    assert len(pages[0] & pages[1]) < 5  # the same prompts and policy, other noise


def test_an_empty_stop_and_a_long_one_are_told_apart(config, toy):
    eos = toy.tokenizer.eos_token_id
    assert ppo.stop_ids(toy.tokenizer, config) == (eos,)
    dot = toy.tokenizer.encode(".")[0]
    assert ppo.stop_ids(toy.tokenizer, replace(config, stop_text=".")) == (eos, dot)
    with pytest.raises(InputError, match="is 2 tokens of this tokenizer, not one"):
        ppo.stop_ids(toy.tokenizer, replace(config, stop_text=" red."))


def test_nan_scores_stop_the_run_in_one_line(config, toy, tmp_path):
    model = load_scalar(toy.reward)
    scalar_head(model).weight.data.fill_(float("nan"))
    save_model(model, toy.tokenizer, tmp_path / "nan")
    with pytest.raises(RunFailed, match="NaN or Inf to 16 of 16 replies"):
        stage(main, replace(config, reward=tmp_path / "nan"), tmp_path / "run")


def test_long_prompts_are_dropped_and_counted(config, toy, tmp_path):
    prompts = read_records(toy.prompts, Prompt)
    prompts[0] = prompts[0].model_copy(update={"text": "say" + " red" * 20 + ":"})
    write_records(tmp_path / "prompts.jsonl", prompts)
    options = replace(config, prompts=tmp_path / "prompts.jsonl", max_prompt_tokens=10)
    assert stage(main, options, tmp_path / "run").done()["dropped_long_prompts"] == 1
    with pytest.raises(InputError, match=r"31 prompts of split 'ppo'.* needs 32"):
        stage(main, replace(options, rollout_batch=32, episodes=32), tmp_path / "more")


def test_a_prompt_that_leaves_no_room_is_refused_before_training(config, tmp_path):
    with pytest.raises(InputError, match="64 positions"):
        stage(main, replace(config, max_new_tokens=62), tmp_path / "run")


def test_a_reward_model_of_fewer_positions_is_refused_before_training(config, toy, tmp_path):
    small = new_policy(LLAMA | {"max_position_embeddings": 8}, toy.tokenizer, seed=1)
    save_model(small, toy.tokenizer, tmp_path / "small")
    reward = load_scalar(tmp_path / "small", init="normal")
    save_model(reward, toy.tokenizer, tmp_path / "reward")
    with pytest.raises(InputError, match="8 positions"):
        stage(main, replace(config, reward=tmp_path / "reward"), tmp_path / "run")


def test_an_empty_prompt_is_named(config, toy, tmp_path):
    prompts = read_records(toy.prompts, Prompt)
    prompts[2] = prompts[2].model_copy(update={"text": ""})
    write_records(tmp_path / "prompts.jsonl", prompts)
    with pytest.raises(InputError, match=r"prompts\.jsonl: prompt 'p2': an empty prompt"):
        stage(main, replace(config, prompts=tmp_path / "prompts.jsonl"), tmp_path / "run")


def test_a_model_that_is_no_reward_model_is_refused(config, toy, tmp_path):
    with pytest.raises(InputError, match="no scalar model"):
        stage(main, replace(config, reward=toy.policy), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_batch": 20}, r"rollout_batch \(20\) must be a multiple of minibatch \(8\)"),
        ({"samples": 3}, r"minibatch \(8\) must be a multiple of samples \(3\)"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"minibatch": 0}, "minibatch must be at least 1"),
        ({"episodes": 15}, r"episodes \(15\) must be at least rollout_batch \(16\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"ptx_coef": 1.0}, "ptx_coef above 0 needs ptx_text"),
        ({"algorithm": "rloo"}, "rloo needs samples of at least 2"),
        ({"kl_target": 6.0, "kl_horizon": 3.0}, "kl_horizon must be above"),
    ],
)
def test_options_that_contradict_each_other_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_metrics_of_an_earlier_run_do_not_stay(config, tmp_path):
    stage(main, config, tmp_path / "run")
    run = stage(main, replace(config, episodes=32, seed=5), tmp_path / "run")
    assert [row["step"] for row in run.metrics()] == [0, 1]
    assert not (run.path / "samples" / "iteration-0002.txt").exists()


def test_gold_is_logged_and_never_trained_on(trained, config, tmp_path, monkeypatch):
    judge = SimpleNamespace(gold=lambda *_: SimpleNamespace(utility=2.5))
    monkeypatch.setattr(ppo.World, "load", lambda path: judge)
    run = stage(main, replace(config, world=tmp_path / "world.json"), tmp_path / "run")
    assert {row["gold"] for row in run.metrics()} == {2.5}
    assert {row["gold_se"] for row in run.metrics()} == {0}
    assert same(weights(run.model), weights(trained.model))


def test_a_probe_that_fails_stops_the_run_at_once(config, toy, tmp_path):
    shutil.copytree(toy.reward, tmp_path / "rm")
    rows = [{"prompt": "say red:", "reply": " red.", "score": 99.0}]
    (tmp_path / "rm" / "probe.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"probe\.json"):
        stage(main, replace(config, reward=tmp_path / "rm"), tmp_path / "run")
