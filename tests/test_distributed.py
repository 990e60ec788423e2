"""torchrun's processes train the same Algorithm 1 as one alone, launched as a user does."""

import os
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


def torchrun(world, folder, *argv, program=None, env=()):
    """Start `torchrun train.py ARGV` (or another program) in `folder`; a Popen."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", str(program or ROOT / "train.py"), *map(str, argv)]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo"} | dict(env)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=env)


def output(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("world, lambdas", [(2, (0.5, 1, 0)), (3, (0, 1, 0))])
def test_many_processes_train_and_evaluate_as_one(tiny_root, tmp_path, script, world, lambdas):
    """Where BatchNorm is frozen, nothing is augmented and lambda_3 is 0; S = 24."""
    flags = tiny_flags(tiny_root, batch_size=24, epochs=3, lr=0.002, Z=2 if lambdas[0] else None)
    flags += ["--lambdas", *lambdas]
    alone = start("train", [*flags, "--out", "run1"], tmp_path, setup=freeze)
    program = tmp_path / "frozen.py"
    program.write_text(
        f"import sys\nsys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]}\n"
        "import test_distributed\ntest_distributed.freeze()\nimport train\ntrain.main()\n"
    )
    code, out, err = output(torchrun(world, tmp_path, *flags, "--out", "many", program=program))
    assert code == 0 and finish(alone, tmp_path)[0] == 0, err
    one, many = (
        torch.load(tmp_path / f"{run}/last.pt", weights_only=True) for run in ("run1", "many")
    )
    for a, b in zip(one["record"], many["record"], strict=True):
        np.testing.assert_allclose([*a.values()], [*b.values()], atol=1e-4, rtol=0)
    torch.testing.assert_close(many["model"], one["model"], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "run1/test.csv").read_text() == (tmp_path / "many/test.csv").read_text()
    assert out.count("test accuracy") == 1 and out.count("  3/3") == 1  # one process speaks


def test_the_row_is_that_of_the_checkpoint_and_resuming_needs_as_many_processes(
    tiny_root, tmp_path, script
):
    """With BatchNorm as it is: all processes predict with the statistics that are saved."""
    flags = tiny_flags(tiny_root, batch_size=12, epochs=1, lr=0.1)
    code, out, err = output(torchrun(3, tmp_path, *flags, "--out", "run"))
    assert code == 0 and "Traceback" not in err, err
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"last.pt", "record.csv", "test.csv"}
    assert "BatchNorm is not synchronised on CPUs" in out
    code, evaluated, err = script("evaluate", "run/last.pt", "--workers", 0)
    assert code == 0 and evaluated.splitlines()[-1] == out.splitlines()[-2]
    code, evaluated, err = script("evaluate", "run/last.pt", "--split", "val", "--workers", 0)
    row = next(line.split() for line in out.splitlines() if line.startswith("  1/1"))
    assert row[7] == evaluated.split()[-1]
    code, out, err = script("train", *flags, "--out", "run", "--resume")
    assert code == 1 and "processes 1 differs from the checkpoint's (3)" in err


def test_interrupted_processes_go_on_with_the_same_bits(tiny_root, tmp_path):
    flags = tiny_flags(tiny_root, epochs=3)
    whole = torchrun(2, tmp_path, *flags, "--out", "whole")
    process = torchrun(2, tmp_path, *flags, "--out", "run", env={"PYTHONUNBUFFERED": "1"})
    for line in process.stdout:
        if line.startswith("  1/3"):
            break
    process.terminate()
    process.communicate(timeout=120)
    assert output(whole)[0] == 0
    assert output(torchrun(2, tmp_path, *flags, "--out", "run", "--resume"))[0] == 0
    for name in ("record.csv", "test.csv"):
        ours, theirs = tmp_path / "run" / name, tmp_path / "whole" / name
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    "mistake, line",
    [
        ({"Z": 3}, "--batch-size 8 --Z 3: Z = 3 does not divide S = 8; take S = 6 or 9"),
    ],
)
def test_a_mistake_is_said_once(tiny_root, tmp_path, mistake, line):
    process = torchrun(2, tmp_path, *tiny_flags(tiny_root, **mistake), "--out", "run")
    code, out, err = output(process)
    assert code != 0 and err.count("train.py: ") == 1 and line in err
    assert 'train.py", line' not in err and not (tmp_path / "run").exists()


OTHER = {
    "order of the list": "differs from the first process's",
    "lr": "lr 0.5 differs from the first process's (0.02)",
    "no images": "images are not in",
}


@pytest.mark.parametrize("what", OTHER)
def test_processes_that_disagree_all_end_with_one_line(tiny_root, tmp_path, what):
    """As two nodes do, each with its own flags and files."""
    root = write_lists(tmp_path / "other")
    flags = {"order of the list": {"root": root}, "no images": {"root": root}}
    flags = tiny_flags(**{"root": tiny_root} | flags.get(what, {"root": tiny_root, what: 1}))
    if what == "lr":
        flags = tiny_flags(tiny_root, lr=0.5)
    if what == "order of the list":
        lines = (root / "tiny_train.txt").read_text().splitlines(keepends=True)
        (root / "tiny_train.txt").write_text("".join(reversed(lines)))
    if what == "no images":
        (root / "test/n00000000/0.JPEG").unlink()
    program = tmp_path / "node.py"
    program.write_text(
        f"import os, sys\nsys.path[:0] = {[str(ROOT)]}\nimport train\n"
        f"argv = {flags} if os.environ['RANK'] == '1' else {tiny_flags(tiny_root)}\n"
        "try:\n    train.main([*argv, '--out', 'run'])\n"
        "except train.InputError as error:\n    sys.exit(f'train.py: {error}')\n"
    )
    code, out, err = output(torchrun(2, tmp_path, program=program))
    assert code != 0 and err.count("train.py: ") == 1 and OTHER[what] in err, err
    assert 'train.py", line' not in err  # torchrun has a traceback of its own
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


@pytest.mark.parametrize("world, S", [(3, 32), (5, 12), (8, 44)])
def test_S_that_does_not_divide_over_the_processes_is_refused(world, S):
    args = train.parse(["--batch-size", str(S)])
    with pytest.raises(InputError, match=f"--batch-size {S}: .* a multiple of {world}"):
        train.training_batches(args, LongTailed(None, LABELS), 0, world)
