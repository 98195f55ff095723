import os
from typing import TYPE_CHECKING

import pytest

# One thread a test process: the suite runs in parallel, and threads change the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Imported where needed: torch and the models take five seconds, which most tests can do without.
if TYPE_CHECKING:
    from tests.toy import Toy


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> "Toy":
    """Files and models of the toy language."""
    from tests import toy as toy_language

    return toy_language.make(tmp_path_factory.mktemp("toy"))
