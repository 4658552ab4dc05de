"""The correlation loss of a network whose parameters FSDP2 shards over two processes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from linearconv import LinearConv2d, convert, model_correlation_loss

PROCESSES = 2


def in_one_of_the_processes(rank, meeting_point):
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=PROCESSES
    )
    torch.manual_seed(0)
    model = nn.Sequential(LinearConv2d(3, 8, 3), nn.ReLU(), LinearConv2d(8, 6, 3, rank=2))
    images = torch.randn(2, 3, 8, 8)

    def loss():
        return model(images).square().sum() + 0.01 * model_correlation_loss(model)

    loss().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh)
    with pytest.raises(ValueError, match="convert the model before sharding"):
        convert(fully_shard(nn.Sequential(nn.Conv2d(8, 8, 3)), mesh=mesh))
    with pytest.raises(ValueError, match="before DistributedDataParallel"):
        convert(nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv2d(8, 8, 3))))
    loss().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), gradient, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.long
def test_the_gradients_are_those_of_one_process(tmp_path):
    torch.multiprocessing.spawn(in_one_of_the_processes, (tmp_path / "meet",), PROCESSES)
