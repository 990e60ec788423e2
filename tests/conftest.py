"""Fixtures: a small set of real JPEG files, and scripts run as real processes, each forked from one
that has torch loaded."""

import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train"])

TINY_TRAIN = [24, 21, 12, 5]  # images per class


def write_lists(root, name="tiny", counts=(TINY_TRAIN, [3] * 4, [5] * 4), seed=0):
    """Class-coloured noise as JPEG files under `root`, and their three lists."""
    rng = np.random.default_rng(seed)
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        lines = []
        for label, count in enumerate(n):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                tint = 60 + 50 * np.array([label & 1, label >> 1 & 1, 1])
                image = np.clip(tint + rng.normal(0, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / f"{i}.JPEG")
                lines.append(f"{split}/n{label:08}/{i}.JPEG {label}\n")
        (root / f"{name}_{split}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    return write_lists(tmp_path_factory.mktemp("tiny"))


def tiny_flags(root, **extra):
    """Flags of a training of a second or two."""
    flags = {"data": "tiny", "root": root, "size": 32, "batch_size": 8, "Z": 2, "epochs": 2}
    flags |= {"lr": 0.02, "workers": 0} | extra
    argv = ["--no-amp"]
    for key, value in flags.items():
        if value is not None:
            argv += [f"--{key.replace('_', '-')}", str(value)]
    return argv


def child(script, argv, folder, env, setup):
    os.setsid()  # a group of its own, so that a test can signal all of it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(env)
    multiprocessing.set_start_method("fork", force=True)  # forkserver would be handed down
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [f"{script}.py", *map(str, argv)]
    if setup:
        setup()
    status = 0
    try:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as exit:
        status = exit.code
    sys.exit(status)  # only now, when no frame holds loading workers, as at the end of a script


def start(script, argv, folder, env=(), setup=None):
    """Start `script argv` in `folder`, which gets files stdout and stderr; a Process."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr"):
        (Path(folder) / name).unlink(missing_ok=True)
    process = context.Process(target=child, args=(script, argv, str(folder), dict(env), setup))
    process.start()
    return process


def finish(process, folder):
    """Wait for a started script: its exit status, stdout and stderr."""
    process.join(120)
    out, err = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return process.exitcode, out, err


@pytest.fixture
def script(tmp_path):
    """script("train", "--seed", 1): run to its end in tmp_path; exit status, stdout, stderr."""
    return lambda name, *argv: finish(start(name, argv, tmp_path), tmp_path)


@pytest.fixture
def refused(capsys):
    """refused(main, argv): a call that must fail by the user's mistake; what is printed of it."""
    import data

    def check(main, argv):
        with pytest.raises((data.InputError, OSError, SystemExit)) as error:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        if error.type is SystemExit:  # argparse: usage and one line
            assert error.value.code == 2
            return err.strip().splitlines()[-1]
        assert "\n" not in str(error.value)
        return str(error.value)

    return check
