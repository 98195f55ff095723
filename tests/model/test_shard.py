import pytest
import torch

from tercet.model.shard import Ranks
from tercet.records import InputError


def test_one_rank_has_everything_and_adds_nothing():
    ranks = Ranks()
    assert ranks.main
    assert ranks.share([1, 2, 3]) == ranks.gather([1, 2, 3]) == [1, 2, 3]
    assert ranks.broadcast("x") == "x"
    assert ranks.any(True)
    assert not ranks.any(False)
    parameter = torch.nn.Parameter(torch.ones(2))
    ranks.sum_gradients([parameter])
    assert parameter.grad is None


def test_a_sum_is_a_new_tensor_outside_the_graph():
    x = torch.ones(2, requires_grad=True)
    total = Ranks().sum(x)
    assert not total.requires_grad
    total += 1
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_disjoint_and_differ_in_length_by_one_at_most(n, size):
    items = list(range(n))
    shares = [Ranks(rank, size).share(items) for rank in range(size)]
    assert sorted(i for share in shares for i in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_an_environment_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.start("cpu") == Ranks()


@pytest.mark.parametrize("device", ["tpu", "gpu", ""])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        Ranks.start(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu_is_refused(device):
    with pytest.raises(InputError, match=r'use device = "cpu"'):
        Ranks.start(device)
