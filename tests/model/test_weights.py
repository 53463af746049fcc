"""Weights of other programs: each format from a generated file into the model, and files that do not fit."""

from __future__ import annotations

import hashlib
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.mask_rcnn import mask_rcnn_resnet_fpn
from maskrcnn.model.weights import load_weights, trained_aligned, transfer_weights

DETECTRON2_BGR_MEAN = torch.tensor([103.53, 116.28, 123.675])


def model(norm: str = "frozen_batch", depth: int = 50, **options: object) -> MaskRCNN:
    return mask_rcnn_resnet_fpn(depth, 4, norm=norm, **options)  # type: ignore[arg-type]


def resnet_state(depth: int = 50, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of torchvision's ResNet, made by torchvision."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(seed)
    state = getattr(models, f"resnet{depth}")(weights=None).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def holds(network: MaskRCNN, state: dict[str, Tensor]) -> bool:
    own = network.backbone.state_dict()
    wanted = {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    return all(torch.equal(own[key], value) for key, value in wanted.items()) and len(wanted) >= 100


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_a_torchvision_resnet(tmp_path: Path, suffix: str, norm: str) -> None:
    state, path = resnet_state(), tmp_path / f"resnet50{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    network = model(norm)
    message = load_weights(network, path)
    assert holds(network, state)
    assert "ResNet of torchvision or timm" in message
    assert "2 of its tensors not used" in message  # the classifier


def test_a_resnet_inside_a_checkpoint_of_a_trainer(tmp_path: Path) -> None:
    """timm's training script writes {"state_dict": ..., "epoch": ...}; its names are torchvision's."""
    state = resnet_state()
    torch.save({"state_dict": state, "epoch": 3, "arch": "resnet50"}, tmp_path / "model_best.pth")
    network = model()
    load_weights(network, tmp_path / "model_best.pth")
    assert holds(network, state)


def test_another_depth(tmp_path: Path) -> None:
    state = resnet_state(18)
    torch.save(state, tmp_path / "r18.pth")
    network = model(depth=18)
    load_weights(network, tmp_path / "r18.pth")
    assert holds(network, state)
    with pytest.raises(
        InputError, match=r"r18\.pth: weights that do not fit the model: .*layer1\.0\.conv3\.weight \(missing"
    ):
        load_weights(model(), tmp_path / "r18.pth")


def detectron2_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network under detectron2's names, for pictures in BGR."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        parts = key.split(".")
        block = f"res{int(parts[0][-1]) + 1}.{parts[1]}." if parts[0].startswith("layer") else "stem."
        inner = parts[2:] if parts[0].startswith("layer") else parts
        if inner[0] == "downsample":
            name = "shortcut." + ("norm." if inner[1] == "1" else "") + inner[2]
        else:
            name = inner[0].replace("bn", "conv") + (".norm." if inner[0].startswith("bn") else ".") + inner[1]
        renamed[block + name] = value.flip(1) if key == "conv1.weight" else value
    return renamed


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_detectron2(tmp_path: Path, prefix: str) -> None:
    """The pickle of numpy arrays that detectron2 publishes; and the model then sees pixels as detectron2 shows them."""
    state = resnet_state()
    arrays = {prefix + key: value.numpy() for key, value in detectron2_state(state).items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True}))
    network = model(stride_in_1x1=True)
    assert "ResNet of detectron2" in load_weights(network, path)
    assert holds(network, state)
    pixel = torch.tensor([10.0, 20.0, 30.0])  # RGB
    seen = (pixel / 255 - network.pixel_mean.flatten()) / network.pixel_std.flatten()
    torch.testing.assert_close(seen.flip(0), pixel.flip(0) - DETECTRON2_BGR_MEAN, rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="--stride-in-1x1"):
        load_weights(model(), path)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "was-run",))

    for name in ("R-50.pkl", "R-50.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": {"stem.conv1.weight": Evil()}}))
        with pytest.raises(InputError, match=rf"{name}: not a weights file that can be read"):
            load_weights(model(), tmp_path / name)
    assert not (tmp_path / "was-run").exists()


def test_a_whole_torchvision_mask_rcnn(tmp_path: Path) -> None:
    """Loaded by names; tests/model/test_parity.py shows that the loaded network computes the same."""
    detection = pytest.importorskip("torchvision.models.detection")
    theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    path = tmp_path / "maskrcnn.pth"
    torch.save(theirs.state_dict(), path)
    fits = {"anchor_sizes": ((32,), (64,), (128,), (256,), (512,)), "anchor_ratios": (0.5, 1.0, 2.0)}
    network = model("batch", **fits)
    assert "torchvision Mask R-CNN" in load_weights(network, path)
    assert not trained_aligned(path)
    state = theirs.state_dict()
    pairs = {
        "backbone.layer4.2.conv3.weight": "backbone.body.layer4.2.conv3.weight",
        "neck.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "box_head.fc6.weight": "roi_heads.box_head.fc6.weight",
        "mask_head.conv5_mask.weight": "roi_heads.mask_predictor.conv5_mask.weight",
    }
    for ours, name in pairs.items():
        assert torch.equal(network.state_dict()[ours], state[name])
    with pytest.raises(InputError, match=r"cls_logits\.weight \(\(3, 256, 1, 1\), the model has \(8, 256, 1, 1\)\)"):
        load_weights(model("batch"), path)
    other = mask_rcnn_resnet_fpn(50, 7, norm="batch")  # other classes, other anchors
    before = {key: value.clone() for key, value in other.state_dict().items()}
    message = load_weights(other, path, adapt=True)
    assert "10 of its tensors not used (rpn.head.cls_logits" in message
    assert torch.equal(other.state_dict()["box_head.fc7.weight"], state["roi_heads.box_head.fc7.weight"])
    for layer in ("rpn.head.bbox_pred", "box_head.cls_score", "mask_head.mask_fcn_logits"):
        assert torch.equal(other.state_dict()[f"{layer}.weight"], before[f"{layer}.weight"])


def test_batch_statistics_need_batch_norm(tmp_path: Path) -> None:
    torch.save(resnet_state(), tmp_path / "r50.pth")
    with pytest.raises(InputError, match="choose --norm frozen_batch or batch"):
        load_weights(model("group"), tmp_path / "r50.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "neither a ResNet.*its keys begin with a"),
        ({}, "neither a ResNet.*begin with none"),
        ([1, 2], "holds a list"),
    ],
)
def test_files_of_no_known_format(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"x\.pth: {message}"):
        load_weights(model(depth=18), tmp_path / "x.pth")


def _renamed_as_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "backbone.": "backbone.body.",
        "neck.": "backbone.fpn.",
        "box_head.fc": "roi_heads.box_head.fc",
        "box_head.": "roi_heads.box_predictor.",
        "mask_head.convs.": "roi_heads.mask_head.",
        "mask_head.": "roi_heads.mask_predictor.",
    }
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        renamed[key if prefix is None else names[prefix] + key.removeprefix(prefix)] = value
    return renamed


@pytest.mark.parametrize("format", ["ours", "torchvision", "a ResNet", "detectron2"])
def test_odd_tensors_are_refused_or_loaded(tmp_path: Path, format: str) -> None:
    """Any tensor gone, of another shape or type, or beside the others: one line, or a model that holds its weights."""
    size = {"width": 32, "channels": 32, "box_hidden": 16, "stages": 2, "anchor_sizes": ((8,), (16,), (32,))}
    network = mask_rcnn_resnet_fpn(18, 2, norm="frozen_batch", **size)  # type: ignore[arg-type]
    state = network.state_dict()
    if format == "torchvision":
        state = _renamed_as_torchvision({key: value for key, value in state.items() if not key.startswith("pixel")})
    elif format != "ours":
        state = network.backbone.state_dict()
        state = detectron2_state(state) if format == "detectron2" else state
    path, rng = tmp_path / "x.pth", random.Random(0)
    torch.save(state, path)
    load_weights(network, path, adapt=True)
    refused = 0
    odd = (torch.tensor(1.0), torch.ones(3), torch.ones(2, 0), torch.ones(1, dtype=torch.complex64), None, [1], "x")
    odd += (torch.empty(64, device="meta"), torch.eye(3).to_sparse(), np.ones(3, np.longdouble))
    for _ in range(60):
        changed = dict(state)
        key = rng.choice(list(changed))
        value = rng.choice(odd)
        if rng.random() < 0.2:
            del changed[key]
        elif rng.random() < 0.2:
            changed[rng.choice([key + "x", key + ".extra", "y", 7])] = value  # type: ignore[index]
        else:
            changed[key] = value  # type: ignore[assignment]
        torch.save(changed, path)
        try:
            load_weights(network, path, adapt=True)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error), error  # noqa: PT017
    assert refused > 20


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.pth: no such weights file"):
        load_weights(model(depth=18), tmp_path / "nothing.pth")
    for name in ("x.pth", "x.safetensors", "x.pkl"):
        (tmp_path / name).write_bytes(b"hello")
        with pytest.raises(InputError, match=rf"{name}: not a weights file that can be read"):
            load_weights(model(depth=18), tmp_path / name)


def test_a_url_is_kept_and_its_hash_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    state = resnet_state(18)
    torch.save(state, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    source, wrong = tmp_path / f"resnet18-{digest}.pth", tmp_path / "resnet18-00000000.pth"
    source.write_bytes(content)
    wrong.write_bytes(content)
    network = model(depth=18)
    load_weights(network, source.as_uri())
    assert holds(network, state)
    source.unlink()
    load_weights(model(depth=18), source.as_uri())  # from the kept file
    with pytest.raises(InputError, match=r"resnet18-00000000\.pth: cannot be downloaded: .*hash"):
        load_weights(model(depth=18), wrong.as_uri())
    assert not (tmp_path / "hub" / "checkpoints" / wrong.name).exists()
    kept = tmp_path / "hub" / "checkpoints" / source.name
    kept.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match="its hash does not match its name"):
        load_weights(model(depth=18), source.as_uri())
    with pytest.raises(InputError, match=r"gone\.pth: cannot be downloaded"):
        load_weights(model(depth=18), (tmp_path / "gone.pth").as_uri())


def _network(classes: int) -> MaskRCNN:
    torch.manual_seed(classes)
    model = mask_rcnn_resnet_fpn(18, classes, channels=32, box_hidden=16, stages=2, anchor_sizes=((8,), (16,), (32,)))
    return model.eval()


@torch.no_grad()
def test_new_classes_begin_as_copies_of_the_one_class() -> None:
    """Each is found where the one class was, with the same box and mask, and a share of its score."""
    one, three = _network(1), _network(3)
    assert "3 classes start as copies" in transfer_weights(three, one.state_dict())
    images = torch.rand(1, 3, 64, 64) * 255
    features = one.features(images, [(64, 64)])
    rois = torch.tensor([[0.0, 5, 5, 30, 40], [0, 20, 10, 50, 60]])
    (logits, deltas), (own_logits, own_deltas) = (m.box_head(features, rois, (64, 64)) for m in (one, three))
    scores, own_scores = logits.softmax(1), own_logits.softmax(1)
    for k in (1, 2, 3):
        torch.testing.assert_close(own_scores[:, k], scores[:, 1] / 3)
        torch.testing.assert_close(own_deltas[:, k], deltas[:, 1])
        classes = torch.tensor([k, k])
        torch.testing.assert_close(
            three.mask_head(features, rois, classes, (64, 64)), one.mask_head(features, rois, classes * 0 + 1, (64, 64))
        )


def test_transferred_weights_of_as_many_classes_are_the_same() -> None:
    source, target = (
        _network(2),
        mask_rcnn_resnet_fpn(18, 2, channels=32, box_hidden=16, stages=2, anchor_sizes=((8,), (16,), (32,))),
    )
    transfer_weights(target, source.state_dict())
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_other_classes_of_several_start_anew() -> None:
    source, target = _network(2), _network(3)
    before = target.box_head.cls_score.weight.clone()
    assert "3 classes start with random weights" in transfer_weights(target, source.state_dict())
    assert torch.equal(target.box_head.cls_score.weight, before)
    assert torch.equal(target.box_head.fc6.weight, source.box_head.fc6.weight)


def test_transferred_weights_of_another_architecture() -> None:
    other = mask_rcnn_resnet_fpn(18, 1, channels=64, box_hidden=16, stages=2, anchor_sizes=((8,), (16,), (32,)))
    with pytest.raises(InputError, match=r"weights that do not fit the model: .*the model has"):
        transfer_weights(other, _network(1).state_dict())
