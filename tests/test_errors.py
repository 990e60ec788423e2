"""Bad input in bulk: exit status, one line on stderr that names what is at fault, no traceback."""

import os

import pytest
import torch
from PIL import Image

import data
import evaluate
import train
from conftest import tiny_flags, write_lists


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_lists(tmp_path, counts=([9, 6, 3], [1] * 3, [1] * 3))


def edit(root, split, change):
    """Put the list's lines through `change` and write them back as bytes."""
    path = root / f"tiny_{split}.txt"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


LISTS = {  # split, change of its lines, what the message names
    "no label": (
        "train",
        lambda l: [b"train/a.JPEG\n"] + l,
        "tiny_train.txt:1: 'train/a.JPEG' is not `PATH LABEL`",
    ),
    "no path": ("train", lambda l: l[:4] + [b"7\n"] + l[4:], "tiny_train.txt:5: '7'"),
    "label is a word": (
        "val",
        lambda l: l + [b"val/a.JPEG cat\n"],
        "tiny_val.txt:4: 'val/a.JPEG cat'",
    ),
    "label is a fraction": ("val", lambda l: l + [b"val/a.JPEG 1.5\n"], "tiny_val.txt:4:"),
    "negative label": ("train", lambda l: l + [b"train/a.JPEG -1\n"], "tiny_train.txt:19:"),
    "comma instead of space": ("test", lambda l: [b"test/a.JPEG,1\n"], "tiny_test.txt:1:"),
    "label first": ("test", lambda l: [b"1 test/a.JPEG\n"], "tiny_test.txt:1:"),
    "superscript digit": (
        "train",
        lambda l: l + ["train/a.JPEG ²\n".encode()],
        "tiny_train.txt:19:",
    ),
    "empty train": ("train", lambda l: [], "tiny_train.txt: the list is empty"),
    "empty val": ("val", lambda l: [b"\r\n", b"\n"], "tiny_val.txt: the list is empty"),
    "gap": (
        "train",
        lambda l: [x for x in l if not x.endswith(b" 1\n")],
        "tiny_train.txt: label 2, but class 1 has no training image",
    ),
    "class 0 missing": (
        "train",
        lambda l: [x for x in l if not x.endswith(b" 0\n")],
        "class 0 has no training image",
    ),
    "huge label": (
        "train",
        lambda l: l + [b"train/a.JPEG 99999999999999999999\n"],
        "class 3 has no training image",
    ),
    "labels from 1": (
        "train",
        lambda l: [x[:-2] + bytes([x[-2] + 1]) + b"\n" for x in l],
        "class 0 has no training image",
    ),
    "test label never trained": (
        "test",
        lambda l: l + [b"test/a.JPEG 3\n"],
        "tiny_test.txt: label 3, but class 3 has no training image",
    ),
    "val label never trained": (
        "val",
        lambda l: [b"val/a.JPEG 40\n"] + l,
        "tiny_val.txt: label 40, but class 3 has no training image",
    ),
    "binary file": ("train", lambda l: [b"\x00\xff\xfe\x00PNG\n"], "tiny_train.txt:1:"),
    "missing image": (
        "train",
        lambda l: [b"train/none.JPEG 0\n"] * 9 + l[9:],
        "9 listed images are no files: ['train/none.JPEG']",
    ),
    "folder as image": (
        "train",
        lambda l: [b"train/n00000000 0\n"] * 9 + l[9:],
        "images are no files",
    ),
    "missing val image": (
        "val",
        lambda l: [b"val/none.JPEG 0\n"] + l[1:],
        "tiny_val.txt: 1 listed images are no files: ['val/none.JPEG']",
    ),
    "missing test image": (
        "test",
        lambda l: [b"test/none.JPEG 0\n"] + l[1:],
        "tiny_test.txt: 1 listed images are no files: ['test/none.JPEG']",
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_list_files(root, refused, case):
    split, change, named = LISTS[case]
    edit(root, split, change)
    assert named in refused(train.main, tiny_flags(root, out="run", epochs=1))


IMAGES = {
    "empty": b"",
    "text": b"hello",
    "html": b"<!DOCTYPE html><html>404</html>",
    "zeros": bytes(5000),
    "truncated JPEG": lambda b: b[: len(b) // 2],
    "header only": lambda b: b[:20],
    "garbage after header": lambda b: b[:200] + bytes(800),
    "truncated PNG": "png",
    "git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_image_files(root, refused, split, case):
    path, content = root / split / "n00000001" / "0.JPEG", IMAGES[case]
    if content == "png":
        Image.effect_noise((64, 64), 50).save(root / "x.png")
        content = (root / "x.png").read_bytes()[:-1500]
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    line = refused(train.main, tiny_flags(root, out="run", epochs=1))
    assert f"{path}: not a readable image" in line


FLAGS = {
    "S not a multiple of Z": (dict(Z=3), "Z = 3 does not divide S = 8; take S = 6 or 9"),
    "Z above S": (dict(Z=9), "Z = 9"),
    "S above N": (dict(batch_size=20), "S = 20 is more than the 18 training images"),
    "S is 0": (dict(batch_size=0), "--batch-size"),
    "S is a word": (dict(batch_size="many"), "--batch-size: invalid int value: 'many'"),
    "S is a fraction": (dict(batch_size=1.5), "--batch-size"),
    "Z is 0": (dict(Z=0), "--Z"),
    "negative Z": (dict(Z=-4), "--Z"),
    "no epochs": (dict(epochs=0), "--epochs"),
    "lr below 0": (dict(lr=-0.1), "--lr"),
    "lr is nan": (dict(lr="nan"), "--lr"),
    "lr is inf": (dict(lr="inf"), "--lr"),
    "momentum is a word": (dict(momentum="x"), "--momentum"),
    "weight decay below 0": (dict(weight_decay=-1), "--weight-decay"),
    "size too small": (dict(size=8), "--size"),
    "negative workers": (dict(workers=-1), "--workers"),
    "seed beyond 64 bits": (dict(seed=2**64), "--seed"),
    "size beyond memory": (dict(size=10**6, epochs=1), "take a smaller --batch-size or --size"),
    "S is 1": (dict(batch_size=1, Z=1), "--batch-size"),
    "negative seed": (dict(seed=-1), "--seed"),
    "imbalance below 1": (dict(imbalance=0.5), "--imbalance"),
    "save-every 0": (dict(save_every=0), "--save-every"),
    "unknown arch": (dict(arch="vgg16"), "resnet10"),
    "unknown dataset": (dict(data="nosuch"), "unknown dataset 'nosuch'"),
    "unknown dataset lists what there is": (
        dict(data="nosuch"),
        "there are ['glyphs_lt', 'cifar10_lt', 'cifar100_lt', 'tiny']",
    ),
    "root is not there": (dict(root="/nosuch/folder"), "/nosuch/folder: not a folder"),
    "resume of nothing": (
        dict(resume="none.pt"),
        "none.pt: not a checkpoint of this project, or damaged (No such file or directory)",
    ),
    "init of nothing": (
        dict(init="none.pt"),
        "none.pt: not a checkpoint of this project, or damaged (No such file or directory)",
    ),
    "cifar not there": (dict(data="cifar10_lt"), "CIFAR10 is not in"),
    "out is a file": (dict(out="tiny_val.txt"), "--out tiny_val.txt"),
    "out below a file": (dict(out="tiny_val.txt/run"), "--out tiny_val.txt/run"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags(root, refused, case):
    flags, named = FLAGS[case]
    assert named in refused(train.main, tiny_flags(**dict(root=root, out="run") | flags))


LAMBDAS = {
    "all zero": (0, 0, 0),
    "only rotation": (0, 0, 1),
    "negative": (-1, 1, 1),
    "nan": ("nan", 1, 1),
    "two": (1, 1),
    "word": ("a", 1, 1),
    "infinite": (1, "inf", 0),
}


@pytest.mark.parametrize("case", LAMBDAS)
def test_lambdas(root, refused, case):
    assert "--lambdas" in refused(
        train.main, [*tiny_flags(root, out="run"), "--lambdas", *LAMBDAS[case]]
    )


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--nosuch"], "--nosuch"),
        (["--pretrained"], "resnet10 has no pre-trained weights"),
        (["--resume"], "--resume"),
        (["stray"], "stray"),
    ],
)
def test_other_flags(root, refused, argv, named):
    assert named in refused(train.main, [*tiny_flags(root, out="run"), *argv])


def test_pretrained_weights_without_a_network(root, refused, monkeypatch):
    import model

    def offline(arch, weights):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(model, "get_model", offline)
    line = refused(train.main, [*tiny_flags(root, out="run", arch="resnet18"), "--pretrained"])
    assert "--arch resnet18 --pretrained (<urlopen error no network>)" in line


@pytest.fixture(scope="module")
def checkpoint(tiny_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    train.main([str(x) for x in tiny_flags(tiny_root, out=path, epochs=1)])
    return path / "last.pt"


CHECKPOINTS = {
    "text": lambda good: b"hello",
    "empty": lambda good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "another project's": dict(epoch=3, state_dict={}),
    "a bare tensor": torch.zeros(3),
    "an older layout": dict(layout="to-balance-or-not-to-balance 0"),
    "changed in the middle": lambda good: good[:1000] + bytes(200) + good[1200:],
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("use", ["evaluate", "resume", "init"])
def test_checkpoints(root, refused, checkpoint, use, case):
    content = CHECKPOINTS[case]
    if callable(content):
        (root / "bad.pt").write_bytes(content(checkpoint.read_bytes()))
    else:
        torch.save(content, root / "bad.pt")
    main, argv = {
        "evaluate": (evaluate.main, ["bad.pt"]),
        "resume": (train.main, ["--resume", "bad.pt"]),
        "init": (train.main, tiny_flags(root, out="run", init="bad.pt")),
    }[use]
    line = refused(main, argv)
    assert (
        "bad.pt: layout" in line
        if "layout" in case
        else "bad.pt: not a checkpoint of this project" in line
    )


@pytest.mark.parametrize(
    "flag, value",
    [
        ("lr", 0.5),
        ("Z", 4),
        ("data", "glyphs_lt"),
        ("arch", "resnet18"),
        ("seed", 3),
        ("epochs", 9),
        ("batch-size", 16),
        ("size", 64),
        ("init", "x.pt"),
        ("out", "y"),
    ],
)
def test_flag_that_contradicts_the_checkpoint_is_refused_by_name(
    root, refused, checkpoint, flag, value
):
    assert f"--{flag}" in refused(train.main, ["--resume", checkpoint, f"--{flag}", value])


def test_flags_that_agree_with_the_checkpoint_are_fine_and_a_finished_run_is_not_written_again(
    tiny_root, checkpoint, capsys
):
    before = checkpoint.stat().st_mtime_ns
    train.main(
        [
            "--resume",
            str(checkpoint),
            "--lr",
            "0.02",
            "--Z",
            "2",
            "--root",
            str(tiny_root),
            "--workers",
            "0",
        ]
    )
    assert "Overall" in capsys.readouterr().out and checkpoint.stat().st_mtime_ns == before


def test_data_that_changed_since_is_refused(root, refused, checkpoint):
    for main, argv in (
        (evaluate.main, [checkpoint, "--root", root]),
        (train.main, ["--resume", checkpoint, "--root", root]),
    ):
        assert "its train list is not the one trained with" in refused(main, argv)


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--make", "x"], "--from"),
        (["--make", "x", "--from", "/nosuch"], "/nosuch"),
        (["--make", "x", "--from", "train", "--max", 3, "--min", 5], "--min"),
        (["--make", "x", "--from", "train", "--alpha", 0], "--alpha"),
        (["--make", "x", "--from", "train/n00000000"], "two or more classes"),
        (["--make", "x", "--from", "train"], "has "),
        (["--make", "tiny", "--from", "train", "--root", "."], "tiny_train.txt exists"),
        (["--data", "tiny"], "data: not a folder"),
        (["--data", "cifar10_lt", "--imbalance", 0], "--imbalance"),
        (["--data", "tiny", "--root", "tiny_val.txt"], "tiny_val.txt: not a folder"),
    ],
)
def test_data_command(root, refused, argv, named):
    assert named in refused(data.main, argv)


@pytest.mark.parametrize(
    "argv, named",
    [
        ([], "checkpoint"),
        (
            ["none.pt"],
            "none.pt: not a checkpoint of this project, or damaged (No such file or directory)",
        ),
        (["--split", "all", "x.pt"], "--split"),
        ([".", "--split", "val"], ".: "),
    ],
)
def test_evaluate_command(root, refused, argv, named):
    assert named in refused(evaluate.main, argv)


def test_export_that_cannot_be_written(tiny_root, refused, checkpoint):
    assert "/nosuch/x.npz" in refused(evaluate.main, [checkpoint, "--export", "/nosuch/x.npz"])


def test_nothing_but_the_asked_files_is_left_by_a_refused_start(root, refused):
    before = set(os.listdir(root))
    refused(train.main, tiny_flags(root, out="run", Z=3))
    assert set(os.listdir(root)) == before


def test_shared_memory_that_runs_out_is_one_line_with_advice(refused):
    """As PyTorch words it, in a loading process and in the training one."""
    import data

    for text in (
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback …\nRuntimeError: unable to allocate shared "
        "memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid(s) 12) is killed by signal: Bus error. insufficient shared memory (shm).",
        "Too many open files. Communication with the workers is no longer possible.",
    ):

        def main(argv):
            raise RuntimeError(text)

        assert "--workers 0" in refused(main, []) and "--shm-size" in refused(main, [])
    with pytest.raises(RuntimeError, match="shape"):  # a student's own mistake keeps its traceback
        data.run(lambda: torch.zeros(2).view(3))
