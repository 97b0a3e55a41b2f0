"""Every test computes with one thread, so that parallel workers do not fight over the cores, and draws the same numbers
whatever ran before it in its worker."""

import pytest
import torch

from fake_runs import write_demo
from tiny_runs import write_data
from widestream.train import begin

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Weights that a test does not seed itself."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    """Half a second saved for every run that begins."""
    monkeypatch.setattr(begin, "matmul_peak", lambda device, precision: 1e11)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A prepared folder of byte tokens."""
    return write_data(tmp_path_factory.mktemp("data") / "prepared")


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder with two models of two seeds, read only."""
    root = tmp_path_factory.mktemp("work") / "runs"
    write_demo(root)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
