import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A prepared folder of byte tokens."""
    return write_data(tmp_path_factory.mktemp("data") / "prepared")
