"""Kernels that read numbers at an address refuse tensors that have none, or another's."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import widestream.kernels
from widestream.errors import UserError
from widestream.kernels.compiled import address


@pytest.fixture
def mesh(monkeypatch, tmp_path):
    """A mesh of this process alone."""
    for name in [name for name in os.environ if name.startswith(("MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))]:
        monkeypatch.delenv(name)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_plain_tensors_have_an_address():
    x = torch.zeros(3)
    assert address(x) == x.data_ptr()
    assert address(torch.nn.Parameter(x)) == x.data_ptr()
    assert address(None) is None


def test_a_kernel_refuses_a_tensor_that_is_shared_out(mesh):
    """The compiled GELU, handed a DTensor, would read at an address that is no tensor's."""
    x = distribute_tensor(torch.randn(4, 16), mesh, [Shard(0)])
    with pytest.raises(UserError, match=r"A kernel was given a DTensor .*full_tensor\(\) or to_local\(\)"):
        address(x)


def test_no_kernel_takes_an_address_by_another_way():
    folder = Path(widestream.kernels.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "data_ptr()" in path.read_text()] == ["compiled.py"]
