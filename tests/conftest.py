import os

import pytest

# One thread a test process: the suite runs in parallel, and threads change the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests import toy as toy_language


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> toy_language.Toy:
    """Files and models of the toy language."""
    return toy_language.make(tmp_path_factory.mktemp("toy"))
