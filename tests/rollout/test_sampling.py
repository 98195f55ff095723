"""Noise, filters and choice on numbers worked by hand."""

import math

import pytest
import torch

from tercet.rollout.sampling import choose, keep_likely, stream, uniforms

# Probabilities 0.5, 0.25, 0.125, 0.125.
LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def drawn(logits: torch.Tensor, count: int, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` draws at evenly spread noise: the counts are then exact shares."""
    noise = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return choose(logits.expand(count, -1), noise, **options)  # type: ignore[arg-type]


def shares(logits: torch.Tensor, **options: float) -> list[float]:
    tokens, _ = drawn(logits, 1000, **options)
    return (torch.bincount(tokens, minlength=logits.shape[-1]) / 1000).tolist()


def test_noise_inverts_the_cumulative_distribution() -> None:
    noise = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = choose(LOGITS.expand(7, -1), noise)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 3, 3]
    expected = [math.log(p) for p in (0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125)]
    torch.testing.assert_close(logprobs, torch.tensor(expected), atol=1e-6, rtol=0)


def test_temperature_divides_the_logits() -> None:
    # At 0.5 probabilities square: 16 : 4 : 1 : 1 of 22. At 2 they become square roots.
    assert shares(LOGITS, temperature=0.5) == pytest.approx(
        [16 / 22, 4 / 22, 1 / 22, 1 / 22], abs=2e-3
    )
    root = [math.sqrt(p) for p in (0.5, 0.25, 0.125, 0.125)]
    expected = [p / sum(root) for p in root]
    assert shares(LOGITS, temperature=2.0) == pytest.approx(expected, abs=2e-3)
    _, logprobs = drawn(LOGITS, 1, temperature=0.5)
    assert logprobs.item() == pytest.approx(math.log(16 / 22), abs=1e-6)


def test_greedy_takes_the_best_with_its_sampling_logprob() -> None:
    tokens, logprobs = choose(LOGITS, torch.tensor([0.99]).double(), temperature=0.5, greedy=True)
    assert tokens.tolist() == [0]
    assert logprobs.item() == pytest.approx(math.log(16 / 22), abs=1e-6)


def test_top_k_keeps_the_k_best_and_renormalises() -> None:
    assert shares(LOGITS, top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=2e-3)
    _, logprobs = drawn(LOGITS, 1, top_k=2)
    assert logprobs.item() == pytest.approx(math.log(2 / 3), abs=1e-6)


def test_top_k_keeps_ties_and_more_than_all_is_all() -> None:
    assert shares(LOGITS, top_k=3) == shares(LOGITS)
    assert shares(LOGITS, top_k=99) == shares(LOGITS)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.9, 4), (1.0, 4)]
)
def test_top_p_keeps_the_smallest_set_of_that_mass(top_p: float, kept: int) -> None:
    assert int(keep_likely(LOGITS, 0, top_p).isfinite().sum()) == kept


def test_top_p_works_on_unsorted_logits_and_after_top_k() -> None:
    logits = LOGITS[:, [3, 1, 0, 2]]
    # Top-2 leaves 2/3 and 1/3; a nucleus of 0.6 is then the best alone.
    assert keep_likely(logits, 2, 0.6).isfinite().tolist() == [[False, False, True, False]]
    assert keep_likely(logits, 0, 0.6).isfinite().tolist() == [[False, True, True, False]]


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 300), -math.inf)
    logits[0, [17, 290]] = 0.0
    tokens, logprobs = drawn(logits, 1000)
    assert torch.bincount(tokens).nonzero().flatten().tolist() == [17, 290]
    assert shares(logits)[17] == 0.5
    torch.testing.assert_close(logprobs, torch.full((1000,), -math.log(2)))
    extremes = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits.expand(2, -1), extremes)[0].tolist() == [17, 290]


@pytest.mark.parametrize("vocabulary", [2, 3, 61, 300, 4096, 50257])
def test_two_levels_equal_one_running_sum(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(40, vocabulary, generator=generator, dtype=torch.float64)
    noise = torch.rand(40, generator=generator, dtype=torch.float64)
    expected = (logits.softmax(-1).cumsum(-1) <= noise[:, None]).sum(-1)
    assert choose(logits, noise)[0].tolist() == expected.tolist()


def test_rare_tokens_of_a_large_vocabulary_keep_their_mass() -> None:
    """A float32 running sum gives each token of a flat 128k vocabulary 0 or 2 x its share."""
    logits = torch.zeros(1, 128_256)
    noise = torch.arange(128_256 - 500, 128_256, dtype=torch.float64).add(0.5) / 128_256
    tokens, _ = choose(logits.expand(500, -1), noise)
    assert tokens.tolist() == list(range(128_256 - 500, 128_256))


def test_bf16_logits_are_read_in_float32() -> None:
    _, logprobs = choose(torch.zeros(1, 1000, dtype=torch.bfloat16), torch.zeros(1).double())
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-math.log(1000), abs=1e-6)


def test_noise_is_uniform_and_differs_between_streams_and_positions() -> None:
    streams = torch.tensor([stream(s, k, n) for s in range(4) for k in range(8) for n in range(4)])
    noise = torch.stack([uniforms(streams, torch.full((128,), t)) for t in range(200)])
    counts = torch.histc(noise.float(), bins=50, min=0, max=1)
    expected = noise.numel() / 50
    assert ((counts - expected) ** 2 / expected).sum() < 85.4  # 49 degrees of freedom, p = 0.001
    assert noise.unique().numel() == noise.numel()
    neighbours = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(noise.numel())


def test_noise_is_splitmix64() -> None:
    """The published generator's first outputs for seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    noise = uniforms(torch.full((3,), 1234567), torch.arange(3))
    assert noise.tolist() == [(word >> 11) * 2.0**-53 for word in expected]


def test_seed_key_and_sample_name_different_streams() -> None:
    names = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (-1, 0, 0), (0, 2**63, 0)]
    assert len({stream(*name) for name in names}) == 6
