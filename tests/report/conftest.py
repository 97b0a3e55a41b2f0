import pytest
from fake_runs import write_demo


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
