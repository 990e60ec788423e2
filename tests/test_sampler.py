"""Lines 2-8 of Algorithm 1 against counting by hand and chi-squared tests."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, TensorDataset
import torch

from sampler import (
    ClassBalancedSampler,
    JointBatchSampler,
    RegularRandomSampler,
    without_replacement,
)

N_c = np.array([50, 30, 20, 8, 4])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), N_c))


def chi_squared(counts, expected):
    """The statistic's distance from its mean in standard deviations (a normal approximation)."""
    dof = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - dof) / (2 * dof) ** 0.5


def test_cbs_batch_has_k_classes_of_Z_images_none_twice():
    sampler = ClassBalancedSampler(LABELS, S=12, Z=4)
    for m in range(1, 200):
        batch = sampler.batch(m)
        classes, counts = np.unique(LABELS[batch], return_counts=True)
        assert len(batch) == 12 and len(classes) == 3 and (counts == 4).all()
        assert len(set(batch.tolist())) == 12
        assert all(len(set(LABELS[batch[i : i + 4]])) == 1 for i in (0, 4, 8))


def test_cbs_draws_classes_and_images_within_a_class_uniformly():
    sampler, M = ClassBalancedSampler(LABELS, S=8, Z=4, seed=3), 5000
    drawn = np.bincount(
        np.concatenate([sampler.batch(m) for m in range(1, M + 1)]), minlength=len(LABELS)
    )
    per_class = np.bincount(LABELS, drawn) / 4
    assert np.abs(per_class - M * 2 / 5).max() < 5 * (M * 0.4 * 0.6) ** 0.5
    for y in range(4):  # without replacement the spread is below chi-squared's, never above
        assert chi_squared(drawn[LABELS == y], drawn[LABELS == y].mean()) < 4
    assert len(set(drawn[LABELS == 4])) == 1  # N_y = Z: every image each time


def test_cbs_draws_every_pair_of_images_equally_often():
    sampler = ClassBalancedSampler(np.array([0] * 5 + [1] * 5), S=4, Z=2)
    pairs = [
        tuple(sorted(p)) for m in range(1, 4001) for p in sampler.batch(m).reshape(2, 2).tolist()
    ]
    for first in (0, 5):
        counts = np.array(
            [pairs.count(p) for p in itertools.combinations(range(first, first + 5), 2)]
        )
        assert counts.sum() == 4000 and chi_squared(counts, 400.0) < 4


@pytest.mark.parametrize("N_y, Z", [(1, 4), (3, 4), (4, 4), (3, 8), (5, 16)])
def test_class_smaller_than_Z_uses_each_image_floor_or_ceil_times(N_y, Z):
    labels = np.array([0] * N_y + [1] * 40)
    sampler = ClassBalancedSampler(labels, S=2 * Z, Z=Z)
    total = np.zeros(N_y)
    for m in range(1, 400):
        counts = np.bincount(sampler.batch(m), minlength=len(labels))[:N_y]
        assert set(counts) <= {Z // N_y, -(-Z // N_y)} and counts.sum() == Z
        total += counts
    assert np.ptp(total) < 0.15 * total.mean()


def test_more_classes_asked_than_there_are_uses_whole_permutations():
    sampler = ClassBalancedSampler(LABELS, S=48, Z=4)  # k = 12 of C = 5
    for m in range(1, 100):
        Y_k = LABELS[sampler.batch(m).reshape(12, 4)[:, 0]]
        assert set(Y_k[:5]) == set(Y_k[5:10]) == set(range(5)) and len(set(Y_k[10:])) == 2


def test_without_replacement_equals_every_arrangement_equally_often():
    rng = np.random.default_rng(0)
    drawn = [tuple(without_replacement(rng, 4, 2).tolist()) for _ in range(6000)]
    counts = np.array([drawn.count(p) for p in itertools.permutations(range(4), 2)])
    assert counts.sum() == 6000 and chi_squared(counts, 500.0) < 4


def test_rrs_epoch_is_a_permutation_cut_into_batches():
    sampler = RegularRandomSampler(len(LABELS), S=12)
    steps = len(LABELS) // 12
    epochs = [
        np.concatenate([sampler.batch(m) for m in range(1 + e * steps, 1 + (e + 1) * steps)])
        for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == len(epoch) == steps * 12
    assert not (epochs[0] == epochs[1]).all()
    firsts = np.bincount(
        [RegularRandomSampler(len(LABELS), 1, seed).batch(1)[0] for seed in range(5000)],
        minlength=112,
    )
    assert chi_squared(firsts, 5000 / 112) < 4


def test_same_seed_and_iteration_same_batch_whatever_came_before():
    whole = list(JointBatchSampler(LABELS, S=12, Z=4, M=30, seed=5))
    assert len(whole) == 30 and all(len(batch) == 24 for batch in whole)
    for start in (0, 1, 8, 9, 10, 29):
        resumed = JointBatchSampler(LABELS, S=12, Z=4, M=30, seed=5, start=start)
        assert list(resumed) == whole[start:] and len(resumed) == 30 - start
    assert list(JointBatchSampler(LABELS, S=12, Z=4, M=30, seed=6))[0] != whole[0]


def test_joint_batch_is_cbs_then_rrs_and_a_branch_can_be_off():
    cbs, rrs = (
        ClassBalancedSampler(LABELS, 12, 4, seed=1),
        RegularRandomSampler(len(LABELS), 12, seed=1),
    )
    both, only_cbs, only_rrs = (
        list(JointBatchSampler(LABELS, 12, 4, 20, 1, 0, *on)) for on in ((1, 1), (1, 0), (0, 1))
    )
    for m in range(1, 21):
        assert only_cbs[m - 1] == cbs.batch(m).tolist() and only_rrs[m - 1] == rrs.batch(m).tolist()
        assert both[m - 1] == only_cbs[m - 1] + only_rrs[m - 1]


def test_works_with_any_dataset_through_a_dataloader():
    dataset = TensorDataset(torch.arange(len(LABELS)), torch.from_numpy(LABELS))
    for images, labels in DataLoader(
        dataset, batch_sampler=JointBatchSampler(LABELS, S=12, Z=4, M=3)
    ):
        assert (LABELS[images] == labels.numpy()).all() and (
            labels[:12].view(3, 4).diff(dim=1) == 0
        ).all()


@pytest.mark.parametrize(
    "S, Z, near", [(128, 5, "125 or 130"), (10, 4, "8 or 12"), (6, 9, "9 or 18"), (7, 2, "6 or 8")]
)
def test_Z_that_does_not_divide_S_names_the_nearest(S, Z, near):
    with pytest.raises(ValueError, match=f"take S = {near}"):
        ClassBalancedSampler(LABELS, S, Z)


def test_batch_larger_than_the_set_and_empty_class_are_refused():
    with pytest.raises(ValueError, match="S = 113 is more than the 112"):
        RegularRandomSampler(112, 113)
    with pytest.raises(ValueError, match="class 1 has no image"):
        ClassBalancedSampler(np.array([0, 2, 2, 0]), 2, 1)


def test_sampler_stands_alone_in_coursework():
    tree = ast.parse((Path(__file__).parent.parent / "sampler.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert [alias.name for n in imports for alias in n.names] == ["numpy"]
