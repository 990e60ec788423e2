"""Algorithm 1 and Eq. 2: the real training function against the printed algorithm by hand."""

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.functional import normalize

import data
import train
from model import ARCHS, Model
from sampler import ClassBalancedSampler, RegularRandomSampler
from train import cross_entropy, rotate

S, Z, LR, EPOCHS = 8, 4, 0.05, 2


@pytest.fixture
def sets():
    """26 training images of 4 classes: three iterations an epoch, two images left over."""
    g = torch.Generator().manual_seed(1)
    sets = {}
    for split, n in (("train", [12, 8, 4, 2]), ("val", [1] * 4), ("test", [1] * 4)):
        labels = np.repeat(np.arange(4), n)
        images = torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=g)
        sets[split] = data.LongTailed(images, labels, names="abcd")
    return sets


def run(sets, tmp_path, monkeypatch, *flags):
    """Run train.train in eval mode: the initial model, the checkpoint, each iteration's theta. (In
    training mode the three printed passes through phi would each have BatchNorm statistics of their
    own, where the code's one pass has common ones.)"""
    thetas = []
    initial = []
    build = train.build

    def build_in_eval_mode(*args, **kwargs):
        model, optimizer, schedule = build(*args, **kwargs)
        for module in model.modules():
            module.training = False
        initial.append(copy.deepcopy(model))
        return model, optimizer, schedule

    def recorded(B, theta):
        thetas.append(theta)
        return rotate(B, theta)

    monkeypatch.setattr(train, "load", lambda *args: sets)
    monkeypatch.setattr(train, "build", build_in_eval_mode)
    monkeypatch.setattr(train, "rotate", recorded)
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: self)
    how = f"--batch-size {S} --lr {LR} --epochs {EPOCHS} --weight-decay 0.01 --seed 3"
    how += " --precision float32"
    train.main([*how.split(), *flags, "--out", str(tmp_path / "run")])
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    return initial[0], state, thetas


def printed_algorithm(model, sets, lambdas, thetas):
    """Lines 9-12 as they are printed, on the samplers' batches (test_sampler.py has lines 2-8) and
    the recorded theta, with SGD and cosine written out; yields the losses."""
    labels = torch.from_numpy(sets["train"].labels)
    images = sets["train"].images
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    M = EPOCHS * (len(labels) // S)
    cbs = ClassBalancedSampler(labels.numpy(), S, Z, seed=3)
    rrs = RegularRandomSampler(len(labels), S, seed=3)
    batches = [pair for _ in range(EPOCHS) for pair in zip(cbs, rrs, strict=True)]
    for m, (B_CBS, B_RRS) in enumerate(batches):
        l_CBS = l_RRS = l_SS = torch.zeros(())
        if lambdas[0]:
            l_CBS = F.cross_entropy(model.h(model.phi(images[B_CBS])), labels[B_CBS])
        if lambdas[1]:
            l_RRS = F.cross_entropy(model.h_a(model.phi(images[B_RRS])), labels[B_RRS])
        if lambdas[2]:
            both = (B_CBS if lambdas[0] else []) + (B_RRS if lambdas[1] else [])
            pairs = zip(images[both].numpy(), thetas[m].tolist(), strict=True)
            turned = np.stack([np.rot90(image, k, (1, 2)) for image, k in pairs])
            l_SS = F.cross_entropy(model.h_s(model.phi(torch.from_numpy(turned))), thetas[m])
        L_Final = lambdas[0] * l_CBS + lambdas[1] * l_RRS + lambdas[2] * l_SS
        gradients = torch.autograd.grad(L_Final, parameters, allow_unused=True)
        rate = LR * (1 + math.cos(math.pi * m / M)) / 2
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, velocity, strict=True):
                v.mul_(0.9).add_((0 if g is None else g) + 0.01 * p)
                p -= rate * v
        yield l_CBS.item(), l_RRS.item(), l_SS.item(), L_Final.item()


@pytest.mark.parametrize("lambdas", [(0.5, 1, 1), (2, 0, 3), (0, 1, 0), (1, 0.5, 0)])
def test_two_epochs_of_the_training_function_equal_the_printed_algorithm(
    sets, tmp_path, monkeypatch, lambdas
):
    model, state, thetas = run(sets, tmp_path, monkeypatch, "--lambdas", *map(str, lambdas))
    losses = np.array(list(printed_algorithm(model, sets, lambdas, thetas)))  # which trains it
    assert losses.shape == (6, 4) and len(state["record"]) == 2
    for epoch, row in enumerate(state["record"]):
        ours = [row[k] for k in ("l_CBS", "l_RRS", "l_SS", "L_Final")]
        theirs = losses[3 * epoch : 3 * epoch + 3].mean(0)
        np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dict(model.state_dict()), dict(state["model"]), rtol=1e-3, atol=1e-4)
    if not lambdas[0]:  # RRS-Only predicts by its one classifier
        assert torch.equal(state["model"]["h.weight"], state["model"]["h_a.weight"])


def test_rotation_augmentation_adds_the_rotated_images_to_the_class_losses(
    sets, tmp_path, monkeypatch
):
    """Table 5: the losses of the first iteration, over the images and their rotated twins."""
    first = []
    monkeypatch.setattr(
        train, "cross_entropy", lambda *x: first.append(cross_entropy(*x)) or first[-1]
    )
    model, state, thetas = run(
        sets, tmp_path, monkeypatch, "--lambdas", "0.5", "1", "0", "--rotation-augmentation"
    )
    labels = torch.from_numpy(sets["train"].labels)
    B_CBS = next(iter(ClassBalancedSampler(labels.numpy(), S, Z, seed=3)))
    B_RRS = next(iter(RegularRandomSampler(len(labels), S, seed=3)))
    expected = []
    for head, B, theta in ((model.h, B_CBS, thetas[0][:S]), (model.h_a, B_RRS, thetas[0][S:])):
        plain = sets["train"].images[B]
        pairs = zip(plain.numpy(), theta.tolist(), strict=True)
        twins = torch.from_numpy(np.stack([np.rot90(image, k, (1, 2)) for image, k in pairs]))
        logits = head(model.phi(torch.cat([plain, twins])))
        expected.append(F.cross_entropy(logits, labels[B].repeat(2)).item())
    assert [loss.item() for loss, _ in first[:2]] == pytest.approx(expected, rel=1e-4)
    assert all(math.isnan(row["l_SS"]) for row in state["record"])  # h_s is not trained


def test_speed_counts_both_batches_and_time_left_is_that_of_the_rest(
    sets, tmp_path, monkeypatch, capsys
):
    calls = []
    clock = SimpleNamespace(perf_counter=lambda: len(calls))
    monkeypatch.setattr(train, "time", clock)
    # three calls, so three seconds, in each of six iterations of 2 S = 16 images
    monkeypatch.setattr(train, "cross_entropy", lambda *x: calls.append(x) or cross_entropy(*x))
    run(sets, tmp_path, monkeypatch)
    said = re.findall(r"[\d,]+ images/s, \S+ left", capsys.readouterr().out)
    assert said == ["5 images/s, 0:00:09 left", "5 images/s, 0:00:00 left"]


def test_theta_has_every_angle_and_is_drawn_anew_in_each_iteration(sets, tmp_path, monkeypatch):
    _, _, thetas = run(sets, tmp_path, monkeypatch)
    assert len({tuple(theta.tolist()) for theta in thetas}) == len(thetas) == 6
    assert set(torch.cat(thetas).tolist()) == {0, 1, 2, 3} and len(thetas[0]) == 2 * S


def test_each_image_is_rotated_by_its_own_angle_as_numpy_does():
    B = torch.randint(256, (40, 3, 5, 5), dtype=torch.uint8)
    theta = torch.arange(40) % 4
    for image, turned, k in zip(B.numpy(), rotate(B, theta).numpy(), theta.tolist(), strict=True):
        assert (turned == np.rot90(image, k, (1, 2))).all()


def test_cross_entropy_is_pytorchs_and_0_for_an_empty_batch():
    logits = torch.randn(7, 4, requires_grad=True)
    Y = torch.arange(7) % 4
    mean, each = cross_entropy(logits, Y)
    torch.testing.assert_close(mean, F.cross_entropy(logits, Y))
    torch.testing.assert_close(each, F.cross_entropy(logits, Y, reduction="none").detach())
    mean, each = cross_entropy(logits[:0], Y[:0])
    mean.backward()
    assert mean == 0 and len(each) == 0 and not logits.grad.any()


@pytest.mark.parametrize("arch", ARCHS)
def test_phi_has_the_published_number_of_parameters(arch):
    """torchvision's counts less its 1000-way layer, plus the 512-d layer; ResNet-10 by hand."""
    blocks = ((64, 64), (64, 128), (128, 256), (256, 512))
    ten = sum(9 * i * o + 9 * o * o + 4 * o + (i != o) * (i * o + 2 * o) for i, o in blocks)
    backbone = {
        "resnet10": 9408 + 128 + ten,
        "resnet18": 11689512 - 513000,
        "resnet34": 21797672 - 513000,
        "resnet50": 25557032 - 2049000,
        "resnet101": 44549160 - 2049000,
        "resnet152": 60192808 - 2049000,
    }[arch]
    width = 512 if arch in ("resnet10", "resnet18", "resnet34") else 2048
    with torch.device("meta"):
        parts = dict(Model(arch, C=7).named_children())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    heads = {"h": 512 * 7 + 7, "h_a": 512 * 7 + 7, "h_s": 512 * 4 + 4}
    assert count == {"phi": backbone + 512 * width + 512, **heads}


def test_phi_is_torchvisions_resnet_with_a_512d_layer_and_relu_and_h_predicts():
    torch.manual_seed(0)
    model = Model("resnet10", C=5)
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8)
    before = images.clone()
    model(images)  # running statistics
    model.eval()
    resnet = ResNet(BasicBlock, [1, 1, 1, 1]).eval()
    resnet.fc = nn.Linear(512, 512)
    state = {k.replace("fc.0.", "fc."): v for k, v in model.phi.resnet.state_dict().items()}
    resnet.load_state_dict(state)
    expected = F.relu(resnet(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])))
    torch.testing.assert_close(model.phi(images), expected, rtol=1e-4, atol=1e-4)
    assert (expected > 0).any() and (expected == 0).any() and torch.equal(images, before)
    torch.testing.assert_close(model(images), model.h(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_images_that_are_not_uint8_are_refused(dtype):
    """ToTensor's images are 0 to 1: without a word, all would get the same class."""
    images = torch.rand(2, 3, 32, 32).to(dtype)
    for refuses in Model("resnet10", C=2), data.augment:
        with pytest.raises(ValueError, match="images must be uint8, 0 to 255: PILToTensor"):
            refuses(images)


def test_small_stem_keeps_the_size_of_the_image():
    phi = Model("resnet10", C=2, small_stem=True).phi
    features = phi.resnet.maxpool(phi.resnet.conv1(torch.zeros(1, 3, 32, 32)))
    assert features.shape == (1, 64, 32, 32)


def test_features_and_losses_are_float32_in_bfloat16_too():
    model = Model("resnet10", C=5, precision="bfloat16")
    f = model.phi(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8))
    mean, each = cross_entropy(model.h(f), torch.arange(8) % 5)
    assert f.dtype == mean.dtype == each.dtype == torch.float32
    assert (f.bfloat16().float() == f).all()  # phi itself was in bfloat16


def test_pretrained_layers_have_the_small_rate_and_new_ones_the_large(monkeypatch):
    """Column B. The weights would be downloaded; here none are."""
    import model

    get_model = model.get_model
    asked = []
    monkeypatch.setattr(
        model, "get_model", lambda arch, weights: asked.append(weights) or get_model(arch)
    )
    args = train.parse(["--data", "places_lt", "--arch", "resnet152"])[0]
    built, optimizer, schedule = train.build(args, 7, 100, "cpu")
    assert asked == ["IMAGENET1K_V1"]
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in built.named_parameters():
        new = name.split(".")[0] in ("h", "h_a", "h_s") or name.startswith("phi.resnet.fc")
        assert rates.pop(id(p)) == (0.1 if new else 0.001)
    assert not rates
    parts = {"model": built, "optimizer": optimizer, "schedule": schedule}
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    train.build(args, 7, 100, "cpu", checkpoint=checkpoint)
    assert asked == ["IMAGENET1K_V1", None]  # a resumed run downloads nothing
    args = train.parse(["--data", "places_lt", "--arch", "resnet50"])[0]
    _, optimizer, _ = train.build(args, 7, 100, "cpu")
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
