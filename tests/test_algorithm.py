"""Algorithm 1 and Eq. 2: the real training function against the printed algorithm by hand."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import data
import train
from model import ARCHS, Model
from sampler import ClassBalancedSampler, RegularRandomSampler
from train import cross_entropy, rotate

ROOT = Path(__file__).parent.parent
S, Z, LR, EPOCHS = 8, 4, 0.05, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Model("resnet10", C=5)
    model(torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8))  # running statistics
    return model.eval()


@pytest.fixture
def sets():
    """26 training images of 4 classes: three iterations an epoch, two images left over."""
    g = torch.Generator().manual_seed(1)
    sets = {}
    for split, n in (("train", [12, 8, 4, 2]), ("val", [1] * 4), ("test", [1] * 4)):
        labels = np.repeat(np.arange(4), n)
        images = torch.randint(256, (len(labels), 3, 32, 32), dtype=torch.uint8, generator=g)
        sets[split] = data.LongTailed(images, labels)
    return sets


def run(sets, tmp_path, monkeypatch, *flags):
    """Run train.train in eval mode: the initial model, the checkpoint, each iteration's theta. (In
    training mode the three printed passes through phi would each have BatchNorm statistics of their
    own, where the code's one pass has common ones.)"""
    thetas = []
    initial = []
    build = train.build

    def build_in_eval_mode(*args):
        model, optimizer, schedule = build(*args)
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
    how = f"--batch-size {S} --lr {LR} --epochs {EPOCHS} --weight-decay 0.01 --no-amp --seed 3"
    train.main([*how.split(), *flags, "--out", str(tmp_path / "run")])
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    return initial[0], state, thetas


def printed_algorithm(model, sets, lambdas, thetas):
    """Lines 9-12 as they are printed, on the samplers' batches (test_sampler.py has lines 2-8) and
    the recorded theta, with SGD and cosine written out; yields the losses."""
    labels = sets["train"].labels
    images = sets["train"].images
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    M = EPOCHS * (len(labels) // S)
    m = 0
    for epoch in range(EPOCHS):
        cbs = ClassBalancedSampler(labels, S, Z, seed=3)
        rrs = RegularRandomSampler(len(labels), S, seed=3)
        cbs.set_epoch(epoch)
        rrs.set_epoch(epoch)
        for B_CBS, B_RRS in zip(cbs, rrs, strict=True):
            l_CBS = l_RRS = l_SS = torch.zeros(())
            if lambdas[0]:
                l_CBS = F.cross_entropy(
                    model.h(model.phi(images[B_CBS])), torch.tensor(labels[B_CBS])
                )
            if lambdas[1]:
                l_RRS = F.cross_entropy(
                    model.h_a(model.phi(images[B_RRS])), torch.tensor(labels[B_RRS])
                )
            if lambdas[2]:
                both = (B_CBS if lambdas[0] else []) + (B_RRS if lambdas[1] else [])
                turned = [
                    np.rot90(images[i].numpy(), int(k), (1, 2))
                    for i, k in zip(both, thetas[m], strict=True)
                ]
                l_SS = F.cross_entropy(
                    model.h_s(model.phi(torch.from_numpy(np.stack(turned)))), thetas[m]
                )
            L_Final = lambdas[0] * l_CBS + lambdas[1] * l_RRS + lambdas[2] * l_SS
            gradients = torch.autograd.grad(L_Final, parameters, allow_unused=True)
            rate = LR * (1 + math.cos(math.pi * m / M)) / 2
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocity, strict=True):
                    g = 0 if g is None else g  # of an unused head, which decays
                    v.mul_(0.9).add_(g + 0.01 * p)
                    p -= rate * v
            m += 1
            yield l_CBS.item(), l_RRS.item(), l_SS.item(), L_Final.item()


@pytest.mark.parametrize("lambdas", [(0.5, 1, 1), (2, 0, 3), (0, 1, 0), (1, 0.5, 0)])
def test_two_epochs_of_the_training_function_equal_the_printed_algorithm(
    sets, tmp_path, monkeypatch, lambdas
):
    model, state, thetas = run(sets, tmp_path, monkeypatch, "--lambdas", *map(str, lambdas))
    losses = np.array(list(printed_algorithm(model, sets, lambdas, thetas)))  # which trains it
    assert len(losses) == 6
    for epoch, row in enumerate(state["record"]):
        ours = [row[k] for k in ("l_CBS", "l_RRS", "l_SS", "L_Final")]
        np.testing.assert_allclose(
            np.nan_to_num(ours), losses[3 * epoch : 3 * epoch + 3].mean(0), rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(dict(model.state_dict()), dict(state["model"]), rtol=1e-3, atol=1e-4)


def test_rotation_augmentation_adds_the_rotated_twins_to_the_class_losses(
    sets, tmp_path, monkeypatch
):
    """Table 5, the first iteration's losses: the mean of those of the images and of their twins."""
    first = []
    add = train.Losses.add

    def recorded(self, tasks, *batches):
        first.extend(loss.item() for loss in tasks)
        add(self, tasks, *batches)

    monkeypatch.setattr(train.Losses, "add", recorded)
    model, _, thetas = run(sets, tmp_path, monkeypatch, "--rotation-augmentation")
    labels = torch.from_numpy(sets["train"].labels)
    B_CBS = next(iter(ClassBalancedSampler(labels.numpy(), S, Z, seed=3)))
    B_RRS = next(iter(RegularRandomSampler(len(labels), S, seed=3)))
    expected = []
    for head, B, theta in ((model.h, B_CBS, thetas[0][:S]), (model.h_a, B_RRS, thetas[0][S:])):
        plain = sets["train"].images[B]
        twins = [
            np.rot90(image.numpy(), int(k), (1, 2)) for image, k in zip(plain, theta, strict=True)
        ]
        both = torch.cat([plain, torch.from_numpy(np.stack(twins))])
        expected.append(F.cross_entropy(head(model.phi(both)), labels[B].repeat(2)).item())
    np.testing.assert_allclose(first[:3], [*expected, 0], rtol=1e-4)


def test_theta_has_every_angle_and_is_another_in_each_iteration_and_of_each_seed(
    sets, tmp_path, monkeypatch
):
    _, _, thetas = run(sets, tmp_path, monkeypatch)
    drawn = torch.cat(thetas)
    assert len(thetas) == 6 and len({tuple(theta.tolist()) for theta in thetas}) == 6
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    seeds = {
        train.seed_of(seed, epoch, rank)
        for seed in range(9)
        for epoch in range(9)
        for rank in range(9)
    }
    assert len(seeds) == 9**3


@pytest.mark.parametrize("quarter", range(4))
def test_rotation_is_numpys(quarter):
    B = torch.randint(256, (3, 3, 5, 5), dtype=torch.uint8)
    turned = rotate(B, torch.full((3,), quarter))
    assert (turned.numpy() == np.rot90(B.numpy(), quarter, (2, 3))).all()


def test_each_image_is_turned_by_its_own_angle():
    B = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8)
    theta = torch.arange(40) % 4
    for image, turned, k in zip(B.numpy(), rotate(B, theta).numpy(), theta.tolist(), strict=True):
        assert (turned == np.rot90(image, k, (1, 2))).all()


def test_images_that_are_not_square_are_refused():
    with pytest.raises(RuntimeError, match="equal size"):
        rotate(torch.zeros(2, 3, 4, 5), torch.tensor([0, 1]))


def test_cross_entropy_is_pytorchs_and_0_with_a_gradient_for_an_empty_batch():
    logits = torch.randn(7, 4, requires_grad=True)
    Y = torch.arange(7) % 4
    mean, each = cross_entropy(logits, Y)
    torch.testing.assert_close(mean, F.cross_entropy(logits, Y))
    torch.testing.assert_close(
        each,
        torch.stack([F.cross_entropy(x[None], y[None]) for x, y in zip(logits, Y, strict=True)]),
    )
    mean, each = cross_entropy(logits[:0], Y[:0])
    mean.backward()
    assert mean == 0 and each.shape == (0,) and not logits.grad.any()


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
        model = Model(arch, C=7)
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    heads = {"h": 512 * 7 + 7, "h_a": 512 * 7 + 7, "h_s": 512 * 4 + 4}
    assert count == {"phi": backbone + 512 * width + 512, **heads}


def test_phi_is_torchvisions_resnet_average_pooling_512d_and_relu(model):
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.transforms.functional import normalize

    resnet = ResNet(BasicBlock, [1, 1, 1, 1]).eval()
    resnet.fc = nn.Linear(512, 512)
    state = {k.replace("fc.0.", "fc."): v for k, v in model.phi.resnet.state_dict().items()}
    resnet.load_state_dict(state)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    plain = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = F.relu(resnet(plain))
    torch.testing.assert_close(model.phi(images), expected, rtol=1e-4, atol=1e-4)
    assert (expected > 0).any() and (expected == 0).any()


def test_prediction_uses_phi_and_h_alone(model):
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(images), model.h(model.phi(images)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_images_are_normalised_in_a_copy(model, kind, layout):
    x = torch.full((2, 3, 32, 32), 100).to(kind, memory_format=layout)
    model.phi(x)
    assert (x == 100).all()


def test_logits_are_float32_where_phi_computes_in_bfloat16():
    torch.manual_seed(0)
    model = Model("resnet10", C=5, amp=True).eval()
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    features = model.phi(images)
    assert (features == features.bfloat16().float()).all()  # phi's are
    logits = model(images)
    assert logits.dtype == torch.float32 and (logits != logits.bfloat16().float()).any()


def test_small_stem_keeps_32_pixels_until_the_first_stride():
    sizes = []
    phi = Model("resnet18", 2, small_stem=True).phi
    phi.resnet.layer1.register_forward_hook(lambda module, x, y: sizes.append(tuple(y.shape[1:])))
    phi(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert sizes == [(64, 32, 32)]


def test_every_line_of_algorithm_1_is_marked():
    text = "".join((ROOT / f"{name}.py").read_text() for name in ("sampler", "train"))
    assert {int(n) for n in re.findall(r"# line (\d+)", text)} == set(range(1, 14))


def test_what_a_lecturer_copies_stands_alone():
    """rotate and cross_entropy, copied out of train.py, need torch and F alone."""
    text = (ROOT / "train.py").read_text()
    copied = "".join(re.findall(r"^def (?:rotate|cross_entropy)\(.*?\n\n\n", text, re.M | re.S))
    names = {"torch": torch, "F": F}
    exec(copied, names)
    B = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(names["rotate"](B, torch.arange(4)), rotate(B, torch.arange(4)))
    assert names["cross_entropy"](torch.zeros(2, 4), torch.tensor([0, 1]))[0] == pytest.approx(
        math.log(4)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_synchronisation_inside_an_iteration_on_cuda(sets, tmp_path, monkeypatch):
    """From the second iteration of an epoch on nothing waits for the device."""
    add = train.Losses.add

    def guarded(self, *args):
        add(self, *args)
        last = self.iterations == len(sets["train"]) // S
        torch.cuda.set_sync_debug_mode("default" if last else "error")

    monkeypatch.setattr(train.Losses, "add", guarded)
    try:
        run(sets, tmp_path, monkeypatch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
