"""A backbone in fewer bits: its weights stay, its features are near, a CPU has no float16."""

import pytest
import torch
from torch import nn

from monai_dpmm.errors import InputError
from monai_dpmm.network.backbones.registry import Backbone


class Network(nn.Sequential):
    patch_size, embedding_dim = 4, 32

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 64, 4, stride=4), nn.GELU(), nn.Conv2d(64, 32, 1))


ABSENT = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, ABSENT])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_bfloat16_is_near_float32(device):
    images = torch.randn(2, 3, 16, 16, device=device)
    full, fewer = (Backbone(Network(), p).to(device) for p in ("float32", "bfloat16"))
    one, other = full(images), fewer(images)
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0, atol=0.02)
    for name, weight in full.state_dict().items():
        assert torch.equal(weight, fewer.state_dict()[name])


def test_float16_needs_a_gpu():
    with pytest.raises(InputError, match="must be float32 or bfloat16 on a CPU, got 'float16'"):
        Backbone(Network(), "float16")(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match="must be one of float32, bfloat16, float16, got 'int8'"):
        Backbone(Network(), "int8")
