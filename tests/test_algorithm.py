"""Lines 9-12 of Algorithm 1 and Eq. 2 against a direct transcription, NumPy and PyTorch's own pieces."""
import ast
import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train
from model import ARCHS, Model
from train import algorithm_1, losses, rotate

ROOT = Path(__file__).parent.parent
LAMBDAS = [0.5, 1.0, 1.0]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Model("resnet10", C=5)
    model(torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8))  # running statistics that are not 0 and 1
    return model.eval()


@pytest.fixture
def batch():
    """B_CBS, Y_CBS, B_RRS, Y_RRS, theta with S = 6."""
    g = torch.Generator().manual_seed(1)
    images = [torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=g) for _ in range(2)]
    labels = [torch.randint(5, (6,), generator=g) for _ in range(2)]
    return images[0], labels[0], images[1], labels[1], torch.randint(4, (12,), generator=g)


def heads(model):
    return model.phi, model.h, model.h_a, model.h_s


def transcription(model, batch, lambdas):
    """Algorithm 1 as it is printed: three forward passes, one image rotated at a time."""
    B_CBS, Y_CBS, B_RRS, Y_RRS, theta = batch
    B_theta = torch.stack([torch.from_numpy(np.rot90(image.numpy(), int(k), (1, 2)).copy())
                           for image, k in zip(torch.cat([B_CBS, B_RRS]), theta)])
    l_CBS = F.cross_entropy(model.h(model.phi(B_CBS)), Y_CBS)
    l_RRS = F.cross_entropy(model.h_a(model.phi(B_RRS)), Y_RRS)
    l_SS = F.cross_entropy(model.h_s(model.phi(B_theta)), theta)
    return lambdas[0] * l_CBS + lambdas[1] * l_RRS + lambdas[2] * l_SS, l_CBS, l_RRS, l_SS


@pytest.mark.parametrize("quarter", range(4))
def test_rotation_is_numpys(quarter):
    B = torch.randint(256, (3, 3, 5, 5), dtype=torch.uint8)
    turned = rotate(B, torch.full((3,), quarter))
    assert (turned.numpy() == np.rot90(B.numpy(), quarter, (2, 3))).all()


def test_each_image_is_turned_by_its_own_angle():
    B, theta = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8), torch.arange(40) % 4
    for image, turned, k in zip(B.numpy(), rotate(B, theta).numpy(), theta.tolist()):
        assert (turned == np.rot90(image, k, (1, 2))).all()


def test_images_that_are_not_square_are_refused():
    with pytest.raises(RuntimeError, match="equal size"):
        rotate(torch.zeros(2, 3, 4, 5), torch.tensor([0, 1]))


@pytest.mark.parametrize("lambdas", [(0.5, 1, 1), (1, 0.5, 0.25), (3, 2, 1)])
def test_losses_equal_the_transcription(model, batch, lambdas):
    L_Final, *l = losses(*heads(model), *batch, lambdas)
    expected = transcription(model, batch, lambdas)
    torch.testing.assert_close([L_Final] + [x.mean() for x in l], list(expected), rtol=1e-5, atol=1e-6)


def test_iterations_equal_the_transcription_with_plain_sgd(model, batch):
    """Three iterations of the real loop, in eval mode, against SGD and cosine written out by hand."""
    ours, theirs, M = copy.deepcopy(model), copy.deepcopy(model), 4
    B_CBS, Y_CBS, B_RRS, Y_RRS, theta = batch
    batches = [(torch.cat([B_CBS, B_RRS]), torch.cat([Y_CBS, Y_RRS]), theta)] * 3
    groups = [dict(params=ours.parameters(), base_lr=0.1)]
    optimizer = torch.optim.SGD(groups, 0, momentum=0.9, weight_decay=0.01, fused=True)
    velocity = [torch.zeros_like(p) for p in theirs.parameters()]
    for m, l, Y in algorithm_1(heads(ours), optimizer, batches, LAMBDAS, False, 0, M, False):
        L_Final, *expected = transcription(theirs, batch, LAMBDAS)
        torch.testing.assert_close([x.mean() for x in l], expected, rtol=1e-4, atol=1e-5)
        gradients = torch.autograd.grad(L_Final, list(theirs.parameters()))
        with torch.no_grad():
            for p, g, v in zip(theirs.parameters(), gradients, velocity):
                v.mul_(0.9).add_(g + 0.01 * p)
                p -= 0.05 * (1 + math.cos(math.pi * (m - 1) / M)) * v
    assert m == 3
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-3, atol=1e-5)


def gradients(model, batch, lambdas):
    model = copy.deepcopy(model)
    losses(*heads(model), *batch, lambdas)[0].backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_a_lambda_of_0_leaves_its_head_alone(model, batch):
    for off, head in enumerate(("h.", "h_a.", "h_s.")):
        lambdas = [float(i != off) for i in range(3)]
        for name, gradient in gradients(model, batch, lambdas).items():
            assert (gradient is None) == name.startswith(head), name


def test_each_head_learns_from_its_own_batch_and_phi_from_all(model, batch):
    before = gradients(model, batch, (1, 1, 1))
    for place, reached in ((0, {"h", "h_s", "phi"}), (2, {"h_a", "h_s", "phi"})):
        other = list(batch)
        other[place] = 255 - other[place]
        after = gradients(model, other, (1, 1, 1))
        assert {name.partition(".")[0] for name in after if not torch.equal(before[name], after[name])} == reached
    turned = gradients(model, (*batch[:4], (batch[4] + 1) % 4), (1, 1, 1))
    assert {n.partition(".")[0] for n in turned if not torch.equal(before[n], turned[n])} == {"h_s", "phi"}


@pytest.mark.parametrize("lambdas", [(1, 0, 0), (0, 1, 0), (1, 0, 2), (0, 1, 2)])
def test_a_branch_that_is_off_may_be_empty(model, batch, lambdas):
    B_CBS, Y_CBS, B_RRS, Y_RRS, theta = batch
    if lambdas[0]:
        L, *l = losses(*heads(model), B_CBS, Y_CBS, B_RRS[:0], Y_RRS[:0], theta[:6], lambdas)
        expected = F.cross_entropy(model(B_CBS), Y_CBS)
    else:
        L, *l = losses(*heads(model), B_CBS[:0], Y_CBS[:0], B_RRS, Y_RRS, theta[6:], lambdas)
        expected = F.cross_entropy(model.h_a(model.phi(B_RRS)), Y_RRS)
    torch.testing.assert_close(L - lambdas[2] * l[2].mean(), expected, rtol=1e-4, atol=1e-5)


def test_rotation_augmentation_adds_the_rotated_twins_to_the_class_losses(model, batch):
    B_CBS, Y_CBS, B_RRS, Y_RRS, theta = batch
    ours = copy.deepcopy(model)
    optimizer = torch.optim.SGD([dict(params=ours.parameters(), base_lr=0.0)], 0, fused=True)
    batches = [(torch.cat([B_CBS, B_RRS]), torch.cat([Y_CBS, Y_RRS]), theta)]
    (_, l, Y), = algorithm_1(heads(ours), optimizer, batches, [0.5, 1.0, 0.0], True, 0, 1, False)
    assert Y[0].tolist() == Y_CBS.tolist() * 2 and Y[1].tolist() == Y_RRS.tolist() * 2
    turned = rotate(torch.cat([B_CBS, B_RRS]), theta)
    for x, head, plain, twin, y in ((l[0], model.h, B_CBS, turned[:6], Y_CBS), (l[1], model.h_a, B_RRS, turned[6:], Y_RRS)):
        expected = [F.cross_entropy(head(model.phi(images)), y) for images in (plain, twin)]
        torch.testing.assert_close(x.mean(), sum(expected) / 2, rtol=1e-4, atol=1e-5)
    assert not l[2].any()


@pytest.mark.parametrize("arch", ARCHS)
def test_phi_has_the_published_number_of_parameters(arch):
    """torchvision's documented counts, less its 1000-way layer, plus the 512-d layer; ResNet-10 counted by hand."""
    backbone = {"resnet10": 9408 + 128 + sum(9 * i * o + 9 * o * o + 4 * o + (i != o) * (i * o + 2 * o)
                                             for i, o in ((64, 64), (64, 128), (128, 256), (256, 512))),
                "resnet18": 11689512 - 513000, "resnet34": 21797672 - 513000, "resnet50": 25557032 - 2049000,
                "resnet101": 44549160 - 2049000, "resnet152": 60192808 - 2049000}[arch]
    width = 512 if arch in ("resnet10", "resnet18", "resnet34") else 2048
    with torch.device("meta"):
        model = Model(arch, C=7)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == dict(phi=backbone + 512 * width + 512, h=512 * 7 + 7, h_a=512 * 7 + 7, h_s=512 * 4 + 4)


def test_phi_is_torchvisions_resnet_average_pooling_512d_and_relu(model):
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.transforms.functional import normalize
    resnet = ResNet(BasicBlock, [1, 1, 1, 1]).eval()
    resnet.fc = nn.Linear(512, 512)
    state = {k.removeprefix("phi.1.").replace("fc.0.", "fc."): v for k, v in model.state_dict().items() if k.startswith("phi.")}
    resnet.load_state_dict(state)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = F.relu(resnet(normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])))
    torch.testing.assert_close(model.phi(images), expected, rtol=1e-4, atol=1e-4)
    assert (expected > 0).any() and (expected == 0).any()


def test_prediction_uses_phi_and_h_alone_and_h_a_for_rrs_only(model):
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(images), model.h(model.phi(images)))
    rrs_only = Model("resnet10", 5, predict_with="h_a").eval()
    torch.testing.assert_close(rrs_only(images), rrs_only.h_a(rrs_only.phi(images)))


def test_small_stem_keeps_32_pixels_until_the_first_stride():
    sizes = []
    phi = Model("resnet18", 2, small_stem=True).phi
    phi[1].layer1.register_forward_hook(lambda module, x, y: sizes.append(tuple(y.shape[1:])))
    phi(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert sizes == [(64, 32, 32)]


def test_every_line_of_algorithm_1_is_marked():
    text = "".join((ROOT / f"{name}.py").read_text() for name in ("sampler", "train"))
    marked = set()
    for first, last in re.findall(r"# lines? (\d+)(?:-(\d+))?", text):
        marked |= set(range(int(first), int(last or first) + 1))
    assert marked == set(range(1, 14))
    assert {int(n) for n in re.findall(r"# line (\d+)", text)} >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}


def test_losses_stand_alone_in_coursework(model, batch):
    """rotate and losses, copied out of train.py, need torch and F alone."""
    tree = ast.parse((ROOT / "train.py").read_text())
    copied = ast.Module([n for n in tree.body if getattr(n, "name", "") in ("rotate", "losses")], [])
    names = {"torch": torch, "F": F}
    exec(compile(copied, "coursework", "exec"), names)
    torch.testing.assert_close(names["losses"](*heads(model), *batch, (0.5, 1, 1)), losses(*heads(model), *batch, (0.5, 1, 1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_synchronisation_inside_an_iteration_on_cuda(batch):
    model = Model("resnet10", 5).cuda()
    optimizer = torch.optim.SGD([dict(params=model.parameters(), base_lr=0.1)], 0, 0.9, fused=True)
    B_CBS, Y_CBS, B_RRS, Y_RRS, theta = batch
    pinned = [x.pin_memory() for x in (torch.cat([B_CBS, B_RRS]), torch.cat([Y_CBS, Y_RRS]), theta)]
    iterations = algorithm_1(heads(model), optimizer, [pinned] * 6, LAMBDAS, False, 0, 6, True)
    next(iterations)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert [m for m, *_ in iterations] == [2, 3, 4, 5, 6]
    finally:
        torch.cuda.set_sync_debug_mode("default")
