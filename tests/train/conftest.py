import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_runs import write_data

from widestream.train import folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A prepared folder of byte tokens."""
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    """Half a second saved for every run that begins."""
    monkeypatch.setattr(folder, "matmul_peak", lambda device, precision: 1e11)
