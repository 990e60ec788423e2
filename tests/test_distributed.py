"""torchrun's processes, here two and three with gloo on the CPU, train the same Algorithm 1 as one alone."""
import csv
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import finish, start, tiny_flags
from data import InputError
from sampler import JointBatchSampler
from train import DEFAULTS, draws, share

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 21, 12, 5]))


def freeze_and_keep_counts():
    """In each process: BatchNorm keeps to its running statistics (gloo has no SyncBatchNorm); evaluation counts go to a file."""
    import train
    nn.BatchNorm2d.forward = lambda bn, x: F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    evaluate, counts = train.evaluate, []

    def kept(*args):
        counts.append(evaluate(*args))
        np.save("counts.npy", counts)
        return counts[-1]
    train.evaluate = kept


def run(world, flags, folder):
    """Train with `world` processes; their exit statuses, standard errors and the folder of rank 0."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = dict(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    ranks = [(start("train", flags, folder / f"rank{r}", env | dict(RANK=str(r), LOCAL_RANK=str(r)), freeze_and_keep_counts),
              folder / f"rank{r}") for r in range(world)]
    return [finish(*rank) for rank in ranks], folder / "rank0"


def losses(folder):
    return np.array([[float(row[k]) for k in ("l_CBS", "l_RRS", "l_SS", "L_Final")]
                     for row in csv.DictReader(open(folder / "run" / "record.csv"))])


@pytest.fixture(scope="module")
def alone(tiny_root, tmp_path_factory):
    flags = tiny_flags(tiny_root, out="run", batch_size=24, epochs=4, lr=0.002)
    (result,), folder = run(1, flags, tmp_path_factory.mktemp("alone"))
    assert result[0] == 0, result[2]
    return flags, folder


@pytest.mark.parametrize("world", [2, 3])
def test_many_processes_train_and_evaluate_as_one(alone, tmp_path, world):
    flags, folder = alone
    results, many = run(world, flags, tmp_path)
    assert all(code == 0 and not err for code, _, err in results), results
    np.testing.assert_allclose(losses(many), losses(folder), atol=1e-5, rtol=0)
    assert (np.load(many / "counts.npy") == np.load(folder / "counts.npy")).all()  # 12 and 20 images, over 3
    assert results[0][1].splitlines()[-1] == (folder / "stdout").read_text().splitlines()[-1]
    assert [out for _, out, _ in results[1:]] == [""] * (world - 1)  # one rank speaks and writes
    assert [(tmp_path / f"rank{r}" / "run" / "last.pt").exists() for r in range(world)] == [True] + [False] * (world - 1)
    a, b = (torch.load(f / "run" / "last.pt", weights_only=True) for f in (folder, many))
    torch.testing.assert_close(b["model"], a["model"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b["class_loss"], a["class_loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("lambdas", [[0.5, 1, 1], [1, 0, 0], [0, 1, 0]])
def test_slices_together_are_the_global_batch(world, lambdas):
    recipe = DEFAULTS | dict(batch_size=48, Z=4, lambdas=lambdas)
    batches = list(JointBatchSampler(LABELS, 48, 4, 6, 0, 0, lambdas[0] > 0, lambdas[1] > 0))
    ranks = [list(draws(*share(recipe, LABELS, 0, 6, world, r), 0)) for r in range(world)]
    alone = list(draws(*share(recipe, LABELS, 0, 6, 1, 0), 0))
    for B, whole, *parts in zip(batches, alone, *ranks):
        assert [i for i, _ in whole] == B and len({key for _, key in whole}) == len(B)
        assert sorted(sum(parts, [])) == sorted(whole)
        for part in parts:  # half of each slice is of B_CBS, in whole classes
            n = len(part) // (2 if all(lambdas[:2]) else 1)
            assert {i for i, _ in part[:n]} <= set(B[:48]) and {i for i, _ in part[-n:]} <= set(B[-48:])
            if lambdas[0]:
                assert (np.diff(LABELS[[i for i, _ in part[:n]]].reshape(-1, 4)) == 0).all()


@pytest.mark.parametrize("world, S, Z", [(3, 32, 4), (2, 12, 4), (8, 48, 4)])
def test_S_that_does_not_divide_over_the_processes_is_refused(world, S, Z):
    with pytest.raises(InputError, match=f"--batch-size {S} .* a multiple of {world * Z}:"):
        share(DEFAULTS | dict(batch_size=S, Z=Z), LABELS, 0, 1, world, 0)


def test_S_of_rrs_only_need_not_be_whole_classes():
    assert len(share(DEFAULTS | dict(batch_size=26, lambdas=[0, 1, 0]), LABELS, 0, 1, 2, 0)[1]) == 13
