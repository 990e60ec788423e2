"""Lines 2-8 of Algorithm 1 against counting by hand and chi-squared tests."""

import itertools
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sampler import (
    ClassBalancedSampler,
    JointBatchSampler,
    RegularRandomSampler,
    without_replacement,
)

SCRIPT = Path(__file__).parent.parent / "sampler.py"
N_c = np.array([50, 30, 20, 8, 4])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), N_c))


def batches(sampler, n):
    """The first n batches of as many passes as it takes."""
    passes = itertools.chain.from_iterable(sampler for _ in itertools.count())
    return np.array(list(itertools.islice(passes, n)))


def chi_squared(counts, expected):
    """The statistic's distance from its mean in standard deviations (a normal approximation)."""
    dof = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - dof) / (2 * dof) ** 0.5


def test_cbs_batch_has_k_classes_of_Z_images_none_twice():
    for batch in batches(ClassBalancedSampler(LABELS, S=12, Z=4), 200):
        classes, counts = np.unique(LABELS[batch], return_counts=True)
        assert len(batch) == 12 and len(classes) == 3 and (counts == 4).all()
        assert len(set(batch)) == 12
        assert all(len(set(LABELS[batch[i : i + 4]])) == 1 for i in (0, 4, 8))


def test_cbs_draws_classes_and_images_within_a_class_uniformly():
    M = 5000
    drawn = batches(ClassBalancedSampler(LABELS, S=8, Z=4, seed=3), M)
    drawn = np.bincount(drawn.ravel(), minlength=len(LABELS))
    per_class = np.bincount(LABELS, drawn) / 4
    assert np.abs(per_class - M * 2 / 5).max() < 5 * (M * 0.4 * 0.6) ** 0.5
    by_class = [drawn[np.equal(LABELS, y)] for y in range(5)]
    for images in by_class[:4]:  # without replacement the spread is below chi-squared's
        assert chi_squared(images, images.mean()) < 4
    assert len(set(by_class[4])) == 1  # N_y = Z: every image each time


def test_cbs_draws_every_pair_of_classes_equally_often():
    drawn = LABELS[batches(ClassBalancedSampler(LABELS, S=8, Z=4), 4000)[:, ::4]]
    pairs = [tuple(pair) for pair in np.sort(drawn).tolist()]
    counts = np.array([pairs.count(pair) for pair in itertools.combinations(range(5), 2)])
    assert counts.sum() == 4000 and chi_squared(counts, 400.0) < 4


@pytest.mark.parametrize("N_y, Z", [(1, 4), (3, 4), (4, 4), (3, 8), (5, 16)])
def test_class_smaller_than_Z_uses_each_image_floor_or_ceil_times(N_y, Z):
    labels = np.array([0] * N_y + [1] * 40)
    total = np.zeros(N_y)
    for batch in batches(ClassBalancedSampler(labels, S=2 * Z, Z=Z), 400):
        counts = np.bincount(batch, minlength=len(labels))[:N_y]
        assert set(counts) <= {Z // N_y, -(-Z // N_y)} and counts.sum() == Z
        total += counts
    assert np.ptp(total) < 0.15 * total.mean()


def test_more_classes_asked_than_there_are_uses_whole_permutations():
    drawn = batches(ClassBalancedSampler(LABELS, S=48, Z=4), 100)  # k = 12 of C = 5
    for Y_k in LABELS[drawn[:, ::4]]:
        assert set(Y_k[:5]) == set(Y_k[5:10]) == set(range(5)) and len(set(Y_k[10:])) == 2


def test_without_replacement_gives_every_arrangement_equally_often():
    rng = np.random.default_rng(0)
    drawn = [tuple(without_replacement(rng, 4, 2).tolist()) for _ in range(6000)]
    counts = np.array([drawn.count(p) for p in itertools.permutations(range(4), 2)])
    assert counts.sum() == 6000 and chi_squared(counts, 500.0) < 4


def test_rrs_epoch_is_a_permutation_cut_into_batches():
    sampler = RegularRandomSampler(len(LABELS), S=12)
    epochs = [np.array(list(sampler)) for _ in range(3)]
    for epoch in epochs:
        assert epoch.shape == (9, 12)  # of 112 images: four are left over
        assert len(np.unique(epoch)) == 9 * 12 and epoch.max() < 112
    assert not (epochs[0] == epochs[1]).all()
    firsts = [next(iter(RegularRandomSampler(112, 1, seed)))[0] for seed in range(5000)]
    assert chi_squared(np.bincount(firsts, minlength=112), 5000 / 112) < 4


def test_an_epoch_is_as_long_for_both_samplers():
    for N, S, length in ((112, 12, 9), (112, 56, 2), (112, 112, 1), (111, 56, 1)):
        for sampler in ClassBalancedSampler(LABELS[:N], S), RegularRandomSampler(N, S):
            assert len(sampler) == len(list(sampler)) == length


SAMPLERS = {
    "CBS": lambda seed: ClassBalancedSampler(LABELS, 12, 4, seed),
    "RRS": lambda seed: RegularRandomSampler(len(LABELS), 12, seed),
    "joint": lambda seed: JointBatchSampler(SAMPLERS["CBS"](seed), SAMPLERS["RRS"](seed)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_are_a_function_of_seed_and_epoch_and_each_pass_is_a_new_epoch(name):
    sampler = SAMPLERS[name](5)
    epochs = [list(sampler) for _ in range(4)]
    assert len({str(epoch) for epoch in epochs}) == 4
    for epoch in (2, 0, 3):
        for other in sampler, SAMPLERS[name](5):  # whatever was drawn before
            other.set_epoch(epoch)
            assert list(other) == epochs[epoch]
            if epoch < 3:
                assert list(other) == epochs[epoch + 1]
    for left_early in range(3):
        assert next(iter(SAMPLERS[name](5))) == epochs[0][0]
        sampler.set_epoch(left_early)
        next(iter(sampler))
        assert list(sampler) == epochs[left_early + 1]
    assert list(SAMPLERS[name](6)) not in epochs


def test_the_two_samplers_of_one_seed_draw_independently():
    labels = range(50)  # one image per class: with Z = 1, both draw a permutation
    assert list(ClassBalancedSampler(labels, 50, Z=1)) != list(RegularRandomSampler(50, 50))


def test_joint_batch_is_cbs_then_rrs_and_a_branch_can_be_off():
    cbs = list(SAMPLERS["CBS"](1))
    rrs = list(SAMPLERS["RRS"](1))
    both = JointBatchSampler(SAMPLERS["CBS"](1), SAMPLERS["RRS"](1))
    assert len(both) == 9
    assert list(both) == [B_CBS + B_RRS for B_CBS, B_RRS in zip(cbs, rrs, strict=True)]
    assert list(JointBatchSampler(SAMPLERS["CBS"](1))) == cbs
    assert list(JointBatchSampler(SAMPLERS["RRS"](1))) == rrs


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_shares_of_all_processes_make_up_every_batch(world):
    whole = list(SAMPLERS["joint"](1))
    ranks = [
        list(JointBatchSampler(SAMPLERS["CBS"](1), SAMPLERS["RRS"](1), rank=rank, world=world))
        for rank in range(world)
    ]
    half = 12 // world
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert all(len(share) == 2 * half for share in shares)
        B_CBS = [i for share in shares for i in share[:half]]
        B_RRS = [i for share in shares for i in share[half:]]
        assert sorted(B_CBS) == sorted(batch[:12]) and sorted(B_RRS) == sorted(batch[12:])
        if 4 % world == 0:  # of Z = 4 images each process has as many of every class
            classes = [sorted(LABELS[share[:half]]) for share in shares]
            assert classes == classes[:1] * world


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_dataloader_takes_each_sampler(name, workers):
    dataset = TensorDataset(torch.arange(len(LABELS)), torch.from_numpy(LABELS))
    loader = DataLoader(dataset, batch_sampler=SAMPLERS[name](2), num_workers=workers)
    alone = SAMPLERS[name](2)
    assert len(loader) == 9
    for _ in range(2):  # a plain `for` sees new batches in each epoch
        expected = list(alone)
        loaded = list(loader)
        assert [images.tolist() for images, _ in loaded] == expected
        for images, labels in loaded:
            assert (LABELS[images] == labels.numpy()).all()
            if name != "RRS":
                assert (labels[:12].view(3, 4).diff(dim=1) == 0).all()
    loader.batch_sampler.set_epoch(1)
    assert [images.tolist() for images, _ in loader] == expected


def test_Z_that_does_not_divide_S_is_refused_and_so_are_unequal_shares():
    with pytest.raises(ValueError, match="Z = 5 does not divide S = 12"):
        ClassBalancedSampler(LABELS, 12, 5)
    with pytest.raises(ValueError, match="5 processes do not divide S = 12"):
        JointBatchSampler(RegularRandomSampler(112, 12), world=5)


def test_a_class_without_an_image_is_refused_by_name():
    with pytest.raises(ValueError, match="class 1 has no image"):
        ClassBalancedSampler([0, 0, 2, 2], S=4, Z=2)


def test_batch_larger_than_the_set_is_refused():
    for sampler in (
        lambda: RegularRandomSampler(112, 113),
        lambda: ClassBalancedSampler(LABELS, 113, 1),
    ):
        with pytest.raises(ValueError, match="S = 113 is more than the 112 training images"):
            sampler()


def test_the_demonstration_shows_what_is_drawn(capsys):
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    cbs, rrs = (np.array([int(row[i].replace(",", "")) for row in rows]) for i in (4, 5))
    assert cbs.sum() == rrs.sum() == 1645 // 12 * 12
    # k = 3 of 6 classes, 4 images of each: 274 images a class, within five deviations.
    assert (cbs % 4 == 0).all() and (np.abs(cbs - 274) < 5 * 4 * np.sqrt(137 / 4)).all()
    assert (rrs <= [1000, 400, 160, 60, 20, 5]).all() and rrs[0] > 900
