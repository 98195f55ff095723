"""Loading and saving: what survives, what is refused, what a new head looks like."""

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tercet.model import support
from tercet.model.load import (
    check_context,
    fingerprint,
    load_policy,
    load_scalar,
    load_tokenizer,
    new_policy,
    parameter_hash,
    residual_dropout,
    save_model,
    scalar_head,
    set_bias,
)
from tercet.model.tree import Document, logprobs, pack, scalars
from tercet.records import InputError
from tests.model.architectures import ARCHITECTURES, CONFIGS, VOCABULARY, saved, tiny

WORDS = ["<eos>", "<pad>", "a", "b", "c"]
DOCUMENTS = [Document([3, 4, 5], [[6, 7, 2], [8, 2]])]


def tokenizer(words: list[str] = WORDS, **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": "<eos>", "pad_token": "<pad>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


NEW = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scalar_bias_and_head_survive_saving(name: str, tmp_path: Any) -> None:
    model = load_scalar(saved(name, tmp_path), init="normal", seed=3)
    set_bias(model, -1.25)
    save_model(model, None, tmp_path / "scalar")
    again = load_scalar(tmp_path / "scalar")
    head = scalar_head(again)
    assert head.bias.tolist() == [-1.25] and head.out_features == 1
    assert torch.equal(head.weight, scalar_head(model).weight)
    assert parameter_hash(again) == parameter_hash(model)
    tree = pack(DOCUMENTS)
    with torch.no_grad():
        assert torch.equal(scalars(again, tree), scalars(model, tree))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_dropout_is_left_in_training_mode(name: str, tmp_path: Any) -> None:
    rates = {"attention_dropout": 0.5, "classifier_dropout": 0.5, "hidden_dropout": 0.5}
    if name == "gpt2":
        rates = {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
    if name == "opt":
        rates |= {"dropout": 0.5, "layerdrop": 0.5}
    path = saved(name, tmp_path, **rates)
    tree = pack(DOCUMENTS)
    for model, read in (
        (load_policy(path), logprobs),
        (load_scalar(path, init="normal"), scalars),
    ):
        with torch.no_grad():
            quiet = read(model, tree)
            assert torch.equal(read(model.train(), tree), quiet)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residual_dropout_changes_the_loss_with_p_and_only_in_training(
    name: str, tmp_path: Any
) -> None:
    policy = load_policy(saved(name, tmp_path)).train()
    tree = pack(DOCUMENTS)

    @torch.no_grad()
    def loss(p: float) -> float:
        torch.manual_seed(0)
        with residual_dropout(policy, p):
            return float(logprobs(policy, tree).sum())

    exact = loss(0.0)
    assert len({exact, loss(0.1), loss(0.2)}) == 3
    assert loss(0.2) == loss(0.2)
    assert loss(0.0) == exact
    policy.eval()
    assert loss(0.2) == exact


def test_residual_dropout_of_one_or_more_is_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="below 1"):
        residual_dropout(load_policy(saved("llama", tmp_path)), 1.0)


def test_a_normal_head_has_variance_one_over_d_plus_one(tmp_path: Any) -> None:
    path = saved("llama", tmp_path, hidden_size=1024, num_hidden_layers=1, layer_types=None)
    heads = [scalar_head(load_scalar(path, init="normal", seed=s)) for s in range(3)]
    weight = torch.cat([head.weight.flatten() for head in heads])
    assert float(weight.detach().std()) * 1025**0.5 == pytest.approx(1.0, abs=0.05)
    assert all(float(head.bias.detach()) == 0.0 for head in heads)
    assert not torch.equal(heads[0].weight, heads[1].weight)
    zero = scalar_head(load_scalar(path, init="zero"))
    assert not zero.weight.any() and not zero.bias.any()


@pytest.mark.parametrize("name", ["gpt2", "gemma", "opt"])
def test_input_embeddings_outlive_a_tied_unembedding(name: str, tmp_path: Any) -> None:
    reference = tiny(name, torch.float32)
    model = load_scalar(saved(name, tmp_path), init="normal")
    expected = reference.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert not any("lm_head" in key for key, _ in model.named_parameters())


def test_a_bfloat16_scalar_model_keeps_a_float32_head(tmp_path: Any) -> None:
    model = load_scalar(saved("llama", tmp_path), dtype=torch.bfloat16, init="normal")
    set_bias(model, 0.123456789)
    save_model(model, None, tmp_path / "scalar")
    again = load_scalar(tmp_path / "scalar", dtype=torch.bfloat16)
    assert again.model.embed_tokens.weight.dtype == torch.bfloat16
    assert scalar_head(again).weight.dtype == torch.float32
    assert float(scalar_head(again).bias.detach()) == pytest.approx(0.123456789, abs=1e-8)


def test_the_head_stays_float32_under_autocast(tmp_path: Any) -> None:
    model = load_scalar(saved("llama", tmp_path), init="zero")
    set_bias(model, 0.123456789)
    tree = pack(DOCUMENTS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = scalars(model, tree)
    assert values.dtype == torch.float32
    assert float(values[0, 0]) == pytest.approx(0.123456789, abs=1e-8)


def test_a_policy_is_no_scalar_model_without_an_initialisation(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="no scalar model"):
        load_scalar(saved("llama", tmp_path))


def test_a_scalar_model_is_no_policy(tmp_path: Any) -> None:
    save_model(load_scalar(saved("llama", tmp_path), init="zero"), None, tmp_path / "scalar")
    with pytest.raises(InputError, match="weights are missing"):
        load_policy(tmp_path / "scalar")


def test_new_policy_fits_the_tokenizer_and_the_seed(tmp_path: Any) -> None:
    first, same, other = (new_policy(NEW, tokenizer(), seed=s) for s in (0, 0, 1))
    assert first.config.vocab_size == first.lm_head.out_features == 5
    ids = (first.config.eos_token_id, first.config.pad_token_id, first.config.bos_token_id)
    assert ids == (0, 1, None)
    assert parameter_hash(first) == parameter_hash(same) != parameter_hash(other)
    save_model(first, tokenizer(), tmp_path / "new")
    tree = pack([Document([2, 3], [[4, 0]])])
    with torch.no_grad():
        assert torch.equal(logprobs(load_policy(tmp_path / "new"), tree), logprobs(first, tree))


def test_an_eos_that_serves_as_pad_is_trained_as_an_input() -> None:
    policy = new_policy(NEW, tokenizer(pad_token="<eos>"), seed=0)
    logprobs(policy, pack([Document([0, 2, 3], prompt_weight=1.0)])).sum().backward()
    embedding = policy.get_input_embeddings().weight
    assert embedding[0].any() and embedding.grad[0].any()


def test_two_loads_give_the_same_bits(tmp_path: Any) -> None:
    """I26, I40: reference and policy agree exactly before the first step."""
    path = saved("llama", tmp_path)
    policy, reference = load_policy(path), load_policy(path)
    tree = pack(DOCUMENTS * 3)
    with torch.no_grad():
        assert torch.equal(logprobs(policy, tree), logprobs(reference, tree))
    assert torch.equal(logprobs(policy, tree).detach(), logprobs(reference, tree).detach())
    assert parameter_hash(policy) == parameter_hash(reference)


def test_saving_replaces_a_folder_whole_and_leaves_nothing_beside_it(tmp_path: Any) -> None:
    path = saved("llama", tmp_path)
    (path / "stale.txt").write_text("x")
    policy = load_policy(path)
    save_model(policy, tokenizer(), path)
    assert not (path / "stale.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["llama"]
    assert not [f for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]


def test_a_saved_model_loads_with_plain_transformers(tmp_path: Any) -> None:
    path = saved("llama", tmp_path)
    save_model(load_policy(path), None, path)
    assert "tercet" not in (path / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, VOCABULARY)


def test_state_replaces_the_weights_on_disk(tmp_path: Any) -> None:
    policy = load_policy(saved("gpt2", tmp_path))
    average = {name: tensor * 0.5 for name, tensor in policy.state_dict().items()}
    save_model(policy, None, tmp_path / "average", state=average)
    half = load_policy(tmp_path / "average")
    assert torch.equal(half.lm_head.weight, policy.lm_head.weight * 0.5)


def write_config(path: Any, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def break_folder(path: Any, how: str) -> None:
    weights = path / "model.safetensors"
    if how == "no config.json":
        (path / "config.json").unlink()
    elif how == "no \\*.safetensors":
        weights.unlink()
    elif how == "cannot be loaded":
        weights.write_bytes(b"not a safetensors file")
    elif how == "model_type|architecture":
        write_config(path, model_type="unheard-of")
    elif how == "encoder-decoder":
        write_config(path, is_encoder_decoder=True)
    elif how == "layers of type linear_attention":
        write_config(path, layer_types=["linear_attention", "full_attention"])
    elif how == "ids up to 60000":
        content = {"model": {"vocab": {"a": 60_000}}, "added_tokens": []}
        (path / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "how",
    [
        "no config.json",
        "no \\*.safetensors",
        "cannot be loaded",
        "model_type|architecture",
        "encoder-decoder",
        "layers of type linear_attention",
        "ids up to 60000",
    ],
)
def test_a_folder_that_cannot_serve_is_named_with_the_reason(how: str, tmp_path: Any) -> None:
    path = saved("qwen2", tmp_path)
    break_folder(path, how)
    with pytest.raises(InputError, match=f"(?s)({path}|model type).*({how})"):
        load_policy(path)


@pytest.mark.parametrize("load", [load_policy, load_scalar, load_tokenizer])
def test_a_missing_folder_is_named(load: Any, tmp_path: Any) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_a_tokenizer_without_eos_is_refused(tmp_path: Any) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no EOS token"):
        load_tokenizer(tmp_path)


def test_sequences_beyond_the_positions_are_refused(tmp_path: Any) -> None:
    policy = load_policy(saved("gpt2", tmp_path))
    check_context(policy, 64)
    with pytest.raises(InputError, match=r"65 tokens .* 64 positions"):
        check_context(policy, 65)


def test_fingerprint_follows_the_vocabulary_and_not_the_copy(tmp_path: Any) -> None:
    original = tokenizer()
    original.save_pretrained(tmp_path)
    assert fingerprint(load_tokenizer(tmp_path)) == fingerprint(original)
    assert fingerprint(tokenizer(["<eos>", "<pad>", "b", "a", "c"])) != fingerprint(original)
    assert fingerprint(tokenizer(eos_token="<pad>")) != fingerprint(original)


def unverified(kind: str, folder: Any, **settings: Any) -> Any:
    common = CONFIGS["llama"] | {"initializer_range": 0.05} | settings
    config = AutoConfig.for_model(kind, **common)
    torch.manual_seed(0)
    save_model(AutoModelForCausalLM.from_config(config), None, folder / kind)
    return folder / kind


@pytest.mark.parametrize("kind", ["granite", "cohere", "olmo"])
def test_an_unlisted_architecture_that_agrees_is_accepted(kind: str, tmp_path: Any) -> None:
    assert kind not in support.VERIFIED
    extra = {"logits_scaling": 4.0} if kind == "granite" else {}
    load_policy(unverified(kind, tmp_path, **extra))


def test_an_unlisted_architecture_that_differs_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "VERIFIED", set())
    path = saved("gemma2", tmp_path)
    load_policy(path)
    monkeypatch.setattr("tercet.model.head.Transform.forward", lambda self, raw: raw)
    with pytest.raises(InputError, match="other log-probabilities"):
        load_policy(path)


def test_a_window_that_attention_is_not_told_of_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unverified("olmo", tmp_path)
    write_config(path, sliding_window=4096)
    with pytest.raises(InputError, match="sliding window of 4096"):
        load_policy(path)
