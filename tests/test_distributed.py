"""torchrun's processes train the same Algorithm 1 as one alone: launched as a user does, in one folder."""
import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import train
from conftest import ROOT, finish, start, tiny_flags
from data import InputError
from sampler import JointBatchSampler

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 21, 12, 5]))


def freeze():
    """BatchNorm kept to its running statistics, since gloo has no SyncBatchNorm."""
    from torch import nn
    nn.BatchNorm2d.forward = lambda bn, x: nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def torchrun(world, folder, *argv, program=None, **kwargs):
    """Start `torchrun train.py ARGV` (or another program) in `folder`: a Popen in a group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}",
               str(program or ROOT / "train.py"), *map(str, argv)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"})


def losses(folder):
    return np.array([[float(row[k]) for k in ("l_CBS", "l_RRS", "l_SS", "L_Final", "val_Overall")]
                     for row in csv.DictReader(open(folder / "record.csv"))])


def test_many_processes_train_and_evaluate_as_one(tiny_root, tmp_path):
    flags = tiny_flags(tiny_root, batch_size=24, epochs=3, lr=0.002)
    alone = start("train", [*flags, "--out", "run1"], tmp_path, setup=freeze)
    program = tmp_path / "frozen.py"
    program.write_text(f"import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]}\n"
                       "import data, test_distributed, train\ntest_distributed.freeze()\ndata.run(train.main)\n")
    process = torchrun(3, tmp_path, *flags, "--out", "run3", program=program)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and finish(alone, tmp_path)[0] == 0, err
    alone, many = (torch.load(tmp_path / f"run{world}/last.pt", weights_only=True) for world in (1, 3))
    np.testing.assert_allclose(losses(tmp_path / "run3"), losses(tmp_path / "run1"), atol=1e-5, rtol=0)
    assert (tmp_path / "run1/test.csv").read_text() == (tmp_path / "run3/test.csv").read_text()  # 20 images, over 3
    assert out.count("test accuracy") == 1 and out.count("epoch 3/3") == 1  # one process speaks
    torch.testing.assert_close(many["model"], alone["model"], rtol=1e-4, atol=1e-5)
    a, b = (np.genfromtxt(x["record"].splitlines(), delimiter=",", names=True) for x in (alone, many))
    for column in (f"l_{sampler}_{y}" for sampler in ("CBS", "RRS") for y in range(4)):
        np.testing.assert_allclose(a[column], b[column], atol=2e-4)


def test_processes_in_one_folder_save_without_a_race_and_the_row_is_that_of_the_checkpoint(tiny_root, tmp_path, script):
    """With BatchNorm as it is: all processes predict with the statistics that are saved."""
    process = torchrun(3, tmp_path, *tiny_flags(tiny_root, batch_size=12, epochs=1, lr=0.1, save_every=1), "--out", "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err and "cannot be saved" not in err, err
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"recipe.json", "record.csv", "last.pt", "test.csv", "lock"}
    code, evaluated, err = script("evaluate", "run/last.pt", "--workers", 0)
    assert code == 0 and evaluated.splitlines()[-1] == out.splitlines()[-1]
    code, evaluated, err = script("evaluate", "run/last.pt", "--split", "val", "--workers", 0)
    assert f"Overall {evaluated.split()[-1]}" in out


@pytest.mark.parametrize("mistake, line", [
    (dict(Z=3), "--batch-size 8 --Z 3 (Z = 3 does not divide S = 8; take S = 6 or 9)"),
    (dict(lr=-1), "--lr")])
def test_a_mistake_is_said_once(tiny_root, tmp_path, mistake, line):
    process = torchrun(2, tmp_path, *tiny_flags(tiny_root, **mistake), "--out", "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and err.count("train.py: ") == 1 and line in err
    assert 'train.py", line' not in err and not (tmp_path / "run").exists()  # no traceback of ours


def test_a_run_of_two_is_stopped_by_a_signal_and_goes_on_alone(tiny_root, tmp_path, script):
    flags = tiny_flags(tiny_root, epochs=60, save_every=5)
    process = torchrun(2, tmp_path, *flags, "--out", "run")
    for line in process.stdout:
        if "epoch 2/60" in line:
            break
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert err.count("stopped at iteration") == 1 and "go on with --resume 'run/last.pt'" in err
    m = torch.load(tmp_path / "run/last.pt", weights_only=True)["m"]
    assert m % 10 == 0 and f"iteration {m}/540" in err
    process = start("train", ["--resume", "run/last.pt", "--workers", 0], tmp_path)
    while not (tmp_path / "stdout").exists() or f"epoch {m // 9 + 2}/60" not in (tmp_path / "stdout").read_text():
        assert process.is_alive()
    process.terminate()
    code, out, err = finish(process, tmp_path)
    assert code == 128 + 15 and "go on with --resume" in err


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("lambdas", [[0.5, 1, 1], [1, 0, 0], [0, 1, 0]])
def test_slices_together_are_the_global_batch(world, lambdas, monkeypatch):
    monkeypatch.setattr(train, "loader", lambda dataset, batches, *args: list(batches))
    monkeypatch.setattr(train, "WORLD", world)
    args = train.flags().parse_args(["--batch-size", "48", "--lambdas", *map(str, lambdas)])
    dataset = type("Labels", (), dict(labels=LABELS))
    batches = list(JointBatchSampler(LABELS, 48, 4, 6, 0, 0, lambdas[0] > 0, lambdas[1] > 0))
    ranks = []
    for rank in range(world):
        monkeypatch.setattr(train, "RANK", rank)
        ranks.append(train.training_batches(args, dataset, 0, 6))
    for B, *parts in zip(batches, *ranks):
        assert sorted(index for part in parts for index, _ in part) == sorted(B)
        assert len({seed for part in parts for _, seed in part}) == len(B)
        for part in parts:  # half of each slice is of B_CBS, in the order of the whole
            n = len(part) // (2 if all(lambdas[:2]) else 1)
            assert {i for i, _ in part[:n]} <= set(B[:48]) and {i for i, _ in part[-n:]} <= set(B[-48:])


@pytest.mark.parametrize("world, S", [(3, 32), (5, 12), (8, 44)])
def test_S_that_does_not_divide_over_the_processes_is_refused(world, S, monkeypatch):
    monkeypatch.setattr(train, "WORLD", world)
    args = train.flags().parse_args(["--batch-size", str(S)])
    with pytest.raises(InputError, match=f"--batch-size {S}: .* a multiple of {world}"):
        train.training_batches(args, type("Labels", (), dict(labels=LABELS)), 0, 1)


def test_equal_slices_suffice(monkeypatch):
    """S = 48 on 8 processes: 6 images each, no whole classes of Z = 4."""
    monkeypatch.setattr(train, "loader", lambda dataset, batches, *args: list(batches))
    monkeypatch.setattr(train, "WORLD", 8)
    args = train.flags().parse_args(["--batch-size", "48"])
    assert len(train.training_batches(args, type("Labels", (), dict(labels=LABELS)), 0, 1)[0]) == 12
