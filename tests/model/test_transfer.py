"""Many tensors in one buffer."""

import torch

from tercet.model.transfer import ALIGNMENT, joined, parted, together


def test_tensors_come_back_from_one_aligned_buffer() -> None:
    tensors = [
        torch.arange(6).view(2, 3),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([0.5], dtype=torch.float32),
        torch.arange(300, dtype=torch.int32),
    ]
    buffer, starts = joined(tensors, pin=False)
    assert all(start % ALIGNMENT == 0 for start in starts)
    for got, expected in zip(parted(buffer, starts, tensors), tensors, strict=True):
        assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_without_a_gpu_tensors_move_by_themselves() -> None:
    tensor = torch.arange(3)
    assert together([tensor], torch.device("cpu"))[0] is tensor
