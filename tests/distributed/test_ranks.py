import torch

from tercet.model.checkpoint import Checkpoints
from tests.distributed.processes import in_processes


def exchange(ranks):
    items = list(range(7))
    mine = [10 * i for i in ranks.share(items)]
    a, b, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    frozen.requires_grad_(False)
    a.grad = torch.full((2,), float(ranks.rank + 1))
    if ranks.rank == 1:
        b.grad = torch.ones(2)  # rank 0's share did not touch it
    ranks.sum_gradients([a, b, frozen])
    return {
        "gathered": ranks.gather(mine),
        "few": ranks.gather(ranks.share([5])),
        "broadcast": ranks.broadcast({"from": ranks.rank}),
        "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
        "sum": ranks.sum(torch.tensor([1.0, ranks.rank])).tolist(),
        "gradients": [a.grad.tolist(), b.grad.tolist(), frozen.grad],
    }


def test_exchanges_give_every_rank_the_same(tmp_path):
    first, second = in_processes(exchange, folder=tmp_path)
    assert first == second
    assert first["gathered"] == [0, 10, 20, 30, 40, 50, 60]  # in the order of the whole batch
    assert first["few"] == [5]  # a rank may have no share
    assert first["broadcast"] == {"from": 0}
    assert first["any"] == [True, False]
    assert first["sum"] == [2.0, 1.0]
    assert first["gradients"] == [[3.0, 3.0], [1.0, 1.0], None]


def interrupted(ranks, folder):
    steps = 0
    try:
        with Checkpoints(folder, ranks, "x", last=100, every_s=1e9) as kept:
            for step in range(1, 10):
                steps = step
                kept.interrupted = ranks.rank == 1 and step == 3
                kept.offer(step, lambda: {"rank": ranks.rank})
    except KeyboardInterrupt:
        pass
    with Checkpoints(folder, ranks, "x", last=100) as kept:
        state = kept.load()
    return steps, state["step"], state["rank"]


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step(tmp_path):
    results = in_processes(interrupted, tmp_path / "checkpoints", folder=tmp_path)
    assert results == [(3, 3, 0), (3, 3, 1)]
