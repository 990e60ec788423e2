"""torchrun's processes train the same Algorithm 1 as one alone, launched as a user does."""

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, finish, start, tiny_flags, write_lists

import train
from data import InputError, LongTailed
from sampler import ClassBalancedSampler, JointBatchSampler, RegularRandomSampler

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 21, 12, 5]))


def freeze():
    """BatchNorm kept to its running statistics (gloo has no SyncBatchNorm), no augmentation."""
    from torch import nn

    import data

    def forward(bn, x):
        return nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    nn.BatchNorm2d.forward = forward
    load = data.load

    def plain(*args, **kwargs):
        sets = load(*args, **kwargs)
        sets["train"].transform = sets["test"].transform
        return sets

    data.load = train.load = plain  # by runpy, by import


def torchrun(world, folder, *argv):
    """`torchrun train.py ARGV` in `folder`, as a user starts it; a Popen."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", str(ROOT / "train.py"), *map(str, argv)]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=env)


def processes(folder, flags_of_each, setup=None):
    """train.py in the processes that torchrun would start (which takes far longer), each in a
    folder of its own below `folder`: the exit statuses, stdouts and stderrs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank, flags in enumerate(flags_of_each):
        env = {"RANK": rank, "LOCAL_RANK": rank, "GLOO_SOCKET_IFNAME": "lo"}
        env |= {"WORLD_SIZE": len(flags_of_each), "LOCAL_WORLD_SIZE": len(flags_of_each)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        env = {key: str(value) for key, value in env.items()}
        started.append(start("train", flags, folder / f"rank{rank}", env, setup))
    ended = [finish(process, folder / f"rank{rank}") for rank, process in enumerate(started)]
    return list(zip(*ended, strict=True))


@pytest.mark.parametrize("world, lambdas", [(2, (0.5, 1, 0)), (3, (0, 1, 0))])
def test_many_processes_train_and_evaluate_as_one(tiny_root, tmp_path, script, world, lambdas):
    """Where BatchNorm is frozen, nothing is augmented and lambda_3 is 0; S = 24."""
    flags = tiny_flags(tiny_root, batch_size=24, epochs=2, lr=0.002, Z=2 if lambdas[0] else None)
    flags += ["--lambdas", *lambdas, "--out"]
    codes, outs, errs = processes(tmp_path, [[*flags, tmp_path / "many"]] * world, freeze)
    assert not any(codes), errs
    assert finish(start("train", [*flags, "one"], tmp_path, setup=freeze), tmp_path)[0] == 0
    runs = tmp_path / "one", tmp_path / "many"
    one, many = (torch.load(run / "last.pt", weights_only=True) for run in runs)
    for a, b in zip(one["record"], many["record"], strict=True):
        np.testing.assert_allclose([*a.values()], [*b.values()], atol=1e-4, rtol=0)
    torch.testing.assert_close(many["model"], one["model"], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "one/test.csv").read_text() == (tmp_path / "many/test.csv").read_text()
    assert "test accuracy" in outs[0] and not any(outs[1:])  # one process speaks


@pytest.fixture(scope="module")
def undisturbed(tiny_root, tmp_path_factory):
    """Folder, flags and output of a torchrun of two processes, 3 epochs, never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    flags = tiny_flags(tiny_root, epochs=3)
    process = torchrun(2, folder, *flags, "--out", "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    return folder / "run", flags, out


def test_the_row_is_that_of_the_checkpoint_and_resuming_needs_as_many_processes(
    undisturbed, script
):
    """With BatchNorm as it is: all processes predict with the statistics that are saved."""
    run, flags, out = undisturbed
    assert {f.name for f in run.iterdir()} == {"last.pt", "record.csv", "test.csv"}
    assert "BatchNorm is not synchronised on CPUs" in out and out.count("test accuracy") == 1
    code, evaluated, err = script("evaluate", run / "last.pt", "--workers", 0)
    assert code == 0 and evaluated.splitlines()[-1] == out.splitlines()[-2]
    code, evaluated, err = script("evaluate", run / "last.pt", "--split", "val", "--workers", 0)
    row = next(line.split() for line in out.splitlines() if line.startswith("  3/3"))
    assert row[7] == evaluated.split()[-1]
    code, out, err = script("train", *flags, "--out", run, "--resume")
    assert code == 1 and "processes 1 differs from the checkpoint's (2)" in err


def test_interrupted_processes_go_on_with_the_same_bits(undisturbed, tmp_path):
    whole, flags, _ = undisturbed
    process = torchrun(2, tmp_path, *flags, "--out", "run")
    for line in process.stdout:
        if line.startswith("  1/3"):
            break
    process.terminate()
    process.communicate(timeout=120)
    assert not (tmp_path / "run/test.csv").exists()
    codes, _, errs = processes(tmp_path, [[*flags, "--out", tmp_path / "run", "--resume"]] * 2)
    assert not any(codes), errs
    for name in ("record.csv", "test.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_finished_run_is_finished_for_all_where_only_the_first_has_the_row(undisturbed, tmp_path):
    """As on two nodes that share no folder, and the checkpoint was copied to the second."""
    run, flags, _ = undisturbed
    (tmp_path / "copy").mkdir()
    shutil.copy(run / "last.pt", tmp_path / "copy")
    folders = run, tmp_path / "copy"
    each = [[*flags, "--out", folder, "--resume"] for folder in folders]
    codes, outs, errs = processes(tmp_path, each)
    assert codes == (0, 0) and "already finished" in outs[0] and not any(errs)


def test_a_mistake_is_said_once(tiny_root, tmp_path):
    flags = [*tiny_flags(tiny_root, Z=3), "--out", tmp_path / "run"]
    codes, _, errs = processes(tmp_path, [flags] * 2)
    assert codes == (1, 1) and errs[0].count("\n") == 1 and not errs[1]
    assert "--batch-size 8 --Z 3: Z = 3 does not divide S = 8; take S = 6 or 9" in errs[0]
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_said_once(tiny_root, tmp_path):
    flags = [*tiny_flags(tiny_root, lr=1e20), "--out", tmp_path / "run"]
    codes, _, errs = processes(tmp_path, [flags] * 2)
    assert codes == (1, 1) and errs[0].count("\n") == 1 and not errs[1]
    assert "the loss is not finite in epoch 1" in errs[0]


OTHER = {
    "order of the list": "differs from the first process's",
    "lr": "lr 0.5 differs from the first process's (0.02)",
    "no images": "images are not in",
}


@pytest.mark.parametrize("what", OTHER)
def test_processes_that_disagree_all_end_with_one_line(tiny_root, tmp_path, what):
    """As two nodes do, each with its own flags and files."""
    root = write_lists(tmp_path / "other")
    theirs = tiny_flags(tiny_root, lr=0.5) if what == "lr" else tiny_flags(root)
    if what == "order of the list":
        lines = (root / "tiny_train.txt").read_text().splitlines(keepends=True)
        (root / "tiny_train.txt").write_text("".join(reversed(lines)))
    if what == "no images":
        (root / "test/n00000000/0.JPEG").unlink()
    out = ["--out", tmp_path / "run"]
    codes, _, errs = processes(tmp_path, [[*tiny_flags(tiny_root), *out], [*theirs, *out]])
    assert codes == (1, 1) and errs[0].count("\n") == 1 and not errs[1]
    assert errs[0].startswith("train.py: ") and OTHER[what] in errs[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""}])
def test_only_torchruns_launch_counts(tiny_root, tmp_path, env):
    flags = tiny_flags(tiny_root, epochs=1, out="run")
    code, out, err = finish(start("train", flags, tmp_path, env=env), tmp_path)
    assert code == 0 and not err and "1 x " in out


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("cbs, rrs", [(True, True), (True, False), (False, True)])
def test_slices_together_are_the_global_batch(world, cbs, rrs):
    def samplers():
        return [ClassBalancedSampler(LABELS, 48, 4)] * cbs + [RegularRandomSampler(78, 48)] * rrs

    whole = list(JointBatchSampler(*samplers()))
    shares = [list(JointBatchSampler(*samplers(), rank=r, world=world)) for r in range(world)]
    assert len(whole) == 1
    for B, *parts in zip(whole, *shares, strict=True):
        assert sorted(i for part in parts for i in part) == sorted(B)
        for part in parts:  # half of each is of B_CBS
            n = len(part) // (cbs + rrs)
            assert (
                n == 48 // world and set(part[:n]) <= set(B[:48]) and set(part[-n:]) <= set(B[-48:])
            )


@pytest.mark.parametrize("world, S", [(3, 32), (5, 12), (8, 44), (4, 4)])  # 4: BatchNorm
def test_S_that_does_not_divide_over_the_processes_is_refused(world, S):
    args = train.parse(["--batch-size", str(S)])
    with pytest.raises(InputError, match=f"--batch-size {S}: .* a multiple of {world}"):
        train.training_batches(args, LongTailed(None, LABELS), 0, world)
