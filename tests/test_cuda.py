"""Training on a GPU, where there is one. pytest's process does not see it (conftest.py); each check
runs this file as a script that does:

    python tests/test_cuda.py losses
"""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


# ------------------------------------------------------------------------------ in the script
def available():
    import torch

    return torch.cuda.is_available()


def losses():
    """The losses of one iteration on the GPU, relative to those on the CPU in float32."""
    import torch

    from model import Model
    from train import cross_entropy, rotate

    torch.backends.cudnn.allow_tf32 = False
    g = torch.Generator().manual_seed(1)
    B = torch.randint(256, (256, 3, 64, 64), dtype=torch.uint8, generator=g)
    Y, theta = torch.randint(100, (256,), generator=g), torch.randint(4, (256,), generator=g)

    def each(device, precision):
        torch.manual_seed(0)
        model = Model("resnet10", 100, precision=precision).to(device)
        y, angle = Y.to(device), theta.to(device)
        images = B.to(device)
        f = model.phi(torch.cat([images, rotate(images, angle)]))
        tasks = (model.h(f[:128]), y[:128]), (model.h_a(f[128:256]), y[128:])
        tasks += ((model.h_s(f[256:]), angle),)
        return torch.stack([cross_entropy(*task)[0] for task in tasks]).double().cpu()

    device = "cuda" if available() else "cpu"
    reference = each("cpu", "float32")
    precisions = "float32", "bfloat16"
    return {x: (each(device, x) / reference - 1).abs().max().item() for x in precisions}


def waits(*flags):
    """Train; from the second iteration of an epoch to its end, waiting for the GPU is an error."""
    import torch

    import train

    line = train.Progress.line
    record_row = train.record_row

    def no_more_waiting(progress, m):
        line(progress, m)
        torch.cuda.set_sync_debug_mode("error")

    def may_wait(*args):
        torch.cuda.set_sync_debug_mode("default")
        return record_row(*args)

    if available():
        train.Progress.line = no_more_waiting
        train.record_row = may_wait
    train.main(flags)


def gloo(*flags):
    """One of several processes of train.py on one GPU, which nccl refuses."""
    import torch.distributed as dist

    import train

    init = dist.init_process_group
    dist.init_process_group = lambda *_: init("gloo")
    os.environ["LOCAL_RANK"] = "0"
    train.main(flags)


# ------------------------------------------------------------------------------ the tests
def with_gpu():
    """The environment of a script that sees the GPU."""
    from conftest import GPU  # not in the script: conftest hides the GPU

    return os.environ | {"CUDA_VISIBLE_DEVICES": GPU}


def run(*argv, cwd=None):
    command = [sys.executable, *map(str, argv)]
    how = {"env": with_gpu(), "cwd": cwd, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchrun(n, *argv, cwd):
    return run(
        "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", *argv, cwd=cwd
    )


@pytest.fixture(scope="module", autouse=True)
def gpu():
    if run(__file__, "available").strip() != "true":
        pytest.skip("no GPU here")


def test_losses_are_those_of_the_cpu():
    errors = json.loads(run(__file__, "losses"))
    assert errors["float32"] < 1e-5 and errors["bfloat16"] < 1e-3


def test_an_iteration_does_not_wait_for_the_gpu(tiny_root, tmp_path):
    from conftest import tiny_flags

    assert "test accuracy" in run(__file__, "waits", *tiny_flags(tiny_root), cwd=tmp_path)


def test_a_run_that_is_killed_is_resumed_to_its_end(tmp_path):
    flags = ["--lambdas", "0.5", "1", "0", "--out", "run"]
    command = [sys.executable, ROOT / "train.py", *flags]
    process = subprocess.Popen(command, cwd=tmp_path, env=with_gpu())
    record = tmp_path / "run/record.csv"
    while not record.exists() or record.read_text().count("\n") < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    out = run(ROOT / "train.py", "--resume", "run", cwd=tmp_path)
    assert "test accuracy" in out and record.read_text().count("\n") == 3


def test_many_processes_train_as_one(tmp_path):
    """Six iterations of glyphs_lt: alone, by torchrun with nccl, and two on one GPU by gloo."""
    flags = "--epochs 1 --batch-size 1500 --lr 0.001 --lambdas 0.5 1 0 --precision float32 --out"
    run(ROOT / "train.py", *flags.split(), "one", cwd=tmp_path)
    torchrun(1, ROOT / "train.py", *flags.split(), "nccl", cwd=tmp_path)
    torchrun(2, __file__, "gloo", *flags.split(), "two", cwd=tmp_path)
    found = {}
    for name in "one", "nccl", "two":
        with open(tmp_path / name / "record.csv") as file:
            (row,) = csv.DictReader(file)
        found[name] = float(row["l_CBS"]), float(row["l_RRS"])
    assert found["nccl"] == pytest.approx(found["one"], rel=1e-4)
    assert found["two"] == pytest.approx(found["one"], rel=1e-4)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
