"""Processes that torchrun starts train the same Algorithm 1 as one process alone."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, finish, start, tiny_flags, write_lists
from test_run import assert_same_bits, state_of


def freeze():
    """BatchNorm uses its running statistics (gloo has no SyncBatchNorm); nothing is random."""
    from torch import nn

    import data
    import train

    def forward(bn, x):
        return nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    def plain(*args):
        sets = load(*args)
        sets["train"].transform = sets["test"].transform
        sets["train"].augmented = False
        return sets

    nn.BatchNorm2d.forward = forward
    load = data.load
    data.load = train.load = plain


def torchrun(world, folder, *argv):
    """`torchrun train.py ARGV` in `folder`, as a user starts it; a Popen."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", str(ROOT / "train.py"), *map(str, argv)]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=env)


def processes(folder, flags_of_each, setup=None):
    """train.py in the processes that torchrun would start, which takes longer; their output is in
    folders below `folder`. The exit statuses, stdouts and stderrs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = len(flags_of_each)
    started = []
    for rank, flags in enumerate(flags_of_each):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        env = {key: str(value) for key, value in env.items()} | {"GLOO_SOCKET_IFNAME": "lo"}
        started.append(start("train.py", flags, folder / f"rank{rank}", env, setup))
    ended = [finish(process, folder / f"rank{rank}") for rank, process in enumerate(started)]
    return list(zip(*ended, strict=True))


@pytest.mark.parametrize("world, lambdas", [(2, (0.5, 1, 0)), (3, (0, 1, 0))])
def test_many_processes_train_and_evaluate_as_one(tiny_root, tmp_path, world, lambdas):
    flags = tiny_flags(tiny_root, batch_size=24, lr=0.002)
    flags += ["--lambdas", *lambdas, "--out"]
    status, outs, errs = processes(tmp_path, [[*flags, tmp_path / "many"]] * world, freeze)
    assert not any(status), errs
    process = start("train.py", [*flags, "one"], tmp_path, setup=freeze)
    assert finish(process, tmp_path)[0] == 0
    one, many = state_of(tmp_path / "one"), state_of(tmp_path / "many")
    for a, b in zip(one["record"], many["record"], strict=True):
        np.testing.assert_allclose([*a.values()], [*b.values()], atol=1e-4, rtol=0)
    torch.testing.assert_close(many["model"], one["model"], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "one/test.csv").read_text() == (tmp_path / "many/test.csv").read_text()
    assert "test accuracy" in outs[0] and not any(outs[1:])  # one process prints


def test_torchrun_is_stopped_and_resumed_to_the_same_bits(tiny_root, tmp_path, script):
    """With BatchNorm as it is: all processes predict with the statistics that are saved."""
    flags = tiny_flags(tiny_root, epochs=3)
    whole = torchrun(2, tmp_path, *flags, "--out", "whole")
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0 and "Traceback" not in err, err
    evaluated = script("evaluate.py", "whole/last.pt", "--workers", 0)[1]
    assert evaluated.splitlines()[-1] == out.splitlines()[-2]

    stopped = torchrun(2, tmp_path, *flags, "--out", "run")
    for line in stopped.stdout:
        if line.startswith("    1 "):
            break
    stopped.terminate()
    stopped.communicate(timeout=120)
    assert not (tmp_path / "run/test.csv").exists()
    argv = ["--resume", tmp_path / "run"]
    status, _, errs = processes(tmp_path, [argv] * 2)
    assert not any(status), errs
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_all_processes_train_with_the_settings_of_the_first(tiny_root, tmp_path):
    argv = [tiny_flags(tiny_root, out=tmp_path / "run", lr=lr) for lr in (0.02, 0.5)]
    status, outs, errs = processes(tmp_path, argv)
    assert not any(status), errs
    assert state_of(tmp_path / "run")["settings"]["lr"] == 0.02


def test_a_process_with_other_lists_ends_the_run(tmp_path):
    """Both read the same --root, but not the same files there."""
    roots = [write_lists(tmp_path / name) for name in ("a", "b")]
    path = roots[1] / "tiny_train.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    for rank, root in enumerate(roots):
        (tmp_path / f"rank{rank}").mkdir()
        (tmp_path / f"rank{rank}/set").symlink_to(root)
    flags = tiny_flags("set", out=tmp_path / "run")
    status, _, errs = processes(tmp_path, [flags] * 2, root_in_the_folder)
    assert status[1] == 1 and "is not the dataset of this run" in errs[1]


def root_in_the_folder():
    """Each process finds the lists in its own working folder."""
    import data
    import train

    load = data.load
    train.load = data.load = lambda name, root, *args: load(name, "set", *args)


def test_only_torchruns_launch_counts(tiny_root, tmp_path):
    env = {"RANK": "1", "WORLD_SIZE": "2"}
    process = start("train.py", tiny_flags(tiny_root, out="run", epochs=1), tmp_path, env)
    status, out, _ = finish(process, tmp_path)
    assert status == 0 and "test accuracy" in out
