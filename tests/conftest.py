"""Fixtures: a small dataset of JPEG files, and scripts run as processes of their own.

The suite tests the CPU: it hides a GPU from itself and from the scripts that it starts. Only
test_cuda.py uses it.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

GPU = os.environ.get("CUDA_VISIBLE_DEVICES", "0")  # for test_cuda.py
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the scripts
# Scripts are forked from one process that has imported torch, which takes seconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train"])

COUNTS = [24, 21, 12, 5], [3] * 4, [5] * 4  # images per class of train, val and test


def write_lists(root, counts=COUNTS):
    """Noise with a colour for each class, as JPEG files, and the three lists of dataset `tiny`."""
    rng = np.random.default_rng(0)
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        lines = []
        for label, count in enumerate(n):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                tint = 60 + 50 * np.array([label & 1, label >> 1 & 1, 1])
                image = np.clip(tint + rng.normal(0, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / f"{i}.JPEG")
                lines.append(f"{split}/class{label}/{i}.JPEG {label}\n")
        (root / f"tiny_{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    return write_lists(tmp_path_factory.mktemp("tiny"))


def tiny_flags(root, **other):
    """Flags of a training run of a second or two."""
    flags = {"data": "tiny", "root": root, "size": 32, "batch_size": 8, "Z": 2, "epochs": 2}
    flags |= {"lr": 0.02, "workers": 0, "precision": "float32"} | other
    return [x for k, v in flags.items() for x in (f"--{k.replace('_', '-')}", str(v))]


def child(script, argv, folder, env, setup):
    os.setsid()  # a group of its own, so that a test can signal all of it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(env)
    os.chdir(folder)
    for number, name in (1, "stdout"), (2, "stderr"):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [script, *map(str, argv)]
    if setup:
        setup()
    status = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as exit:
        status = exit.code
    sys.exit(status)  # here no frame holds loading workers any more


def start(script, argv, folder, env=(), setup=None):
    """Start `script argv` in `folder`, where its output goes to files; a Process."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in "stdout", "stderr":
        (folder / name).unlink(missing_ok=True)
    process = context.Process(target=child, args=(script, argv, str(folder), dict(env), setup))
    process.start()
    return process


def finish(process, folder):
    """Wait for a started script: its exit status, stdout and stderr."""
    process.join(120)
    assert process.exitcode is not None, "it has not ended"
    return process.exitcode, (folder / "stdout").read_text(), (folder / "stderr").read_text()


@pytest.fixture
def script(tmp_path):
    """script("train.py", "--seed", 1): run it in tmp_path; exit status, stdout, stderr."""
    return lambda name, *argv: finish(start(name, argv, tmp_path), tmp_path)


@pytest.fixture
def refused(script):
    """refused("train.py", ...): run a command that must fail; the one line that it prints."""

    def check(name, *argv):
        status, _, err = script(name, *argv)
        assert status in (1, 2) and "Traceback" not in err, err
        lines = err.strip().splitlines()
        assert len(lines) == 1 or lines[0].startswith("usage:"), err
        return lines[-1]

    return check
