import os

import pytest

# One thread a test process: the suite runs in parallel, and threads change the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import toy as toy_language


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> toy_language.Toy:
    """Files and models of the toy language."""
    return toy_language.make(tmp_path_factory.mktemp("toy"))
