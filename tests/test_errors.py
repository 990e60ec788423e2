"""Bad input in bulk: one line that names what is at fault, no traceback, nothing left behind."""

import copy
import errno
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import tiny_flags, write_lists
from PIL import Image

import data
import evaluate
import model
import train
from data import InputError, read_image


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_lists(tmp_path, counts=([9, 6, 3], [1] * 3, [1] * 3))


# ------------------------------------------------------------------------------ lists
LISTS = {  # split, change of its lines, what the message names
    "no label": (
        "train",
        lambda l: [b"train/a.JPEG\n"] + l,
        "tiny_train.txt:1: 'train/a.JPEG' is not `PATH LABEL`",
    ),
    "no path": ("train", lambda l: l[:4] + [b"7\n"] + l[4:], "tiny_train.txt:5: '7'"),
    "line after blank ones": ("val", lambda l: [b"\n", b" \r\n", b"a\n"], "tiny_val.txt:3: 'a'"),
    "label is a word": (
        "val",
        lambda l: l + [b"val/a.JPEG cat\n"],
        "tiny_val.txt:4: 'val/a.JPEG cat'",
    ),
    "label is a fraction": ("val", lambda l: l + [b"val/a.JPEG 1.5\n"], "tiny_val.txt:4:"),
    "negative label": ("train", lambda l: l + [b"train/a.JPEG -1\n"], "tiny_train.txt:19:"),
    "plus before the label": ("train", lambda l: l + [b"train/a.JPEG +1\n"], "tiny_train.txt:19:"),
    "underscore in the label": ("train", lambda l: l + [b"a.JPEG 1_0\n"], "tiny_train.txt:19:"),
    "comma instead of space": ("test", lambda l: [b"test/a.JPEG,1\n"], "tiny_test.txt:1:"),
    "label first": ("test", lambda l: [b"1 test/a.JPEG\n"], "tiny_test.txt:1:"),
    "NUL in a path": ("train", lambda l: l + [b"tr\0ain/a.JPEG 1\n"], "tiny_train.txt:19:"),
    "superscript digit": ("train", lambda l: l + ["a.JPEG ²\n".encode()], "tiny_train.txt:19:"),
    "Arabic digit": ("train", lambda l: l + ["a.JPEG ٣\n".encode()], "tiny_train.txt:19:"),
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
    "labels from 1": (
        "train",
        lambda l: [x[:-2] + bytes([x[-2] + 1]) + b"\n" for x in l],
        "class 0 has no training image",
    ),
    "large label": (
        "train",
        lambda l: l + [b"train/a.JPEG 999999999\n"],
        "label 999999999, but class 3 has no training image",
    ),
    "label beyond 64 bits": (
        "train",
        lambda l: l + [b"train/a.JPEG 99999999999999999999\n"],
        "tiny_train.txt:19: 'train/a.JPEG 99999999999999999999'",
    ),
    "label of 5,000 digits": (
        "train",
        lambda l: l + [b"train/a.JPEG " + b"7" * 5000 + b"\n"],
        "tiny_train.txt:19: 'train/a.JPEG 777",
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
    "UTF-16": (
        "train",
        lambda l: [b"".join(l).decode().encode("utf-16")],
        "tiny_train.txt:1:",
    ),
    "missing image": (
        "train",
        lambda l: [b"train/none.JPEG 0\n"] * 9 + l[9:],
        "train list: 9 of 18 images are not in",
    ),
    "the first missing image": (
        "train",
        lambda l: l[:4] + [b"train/none.JPEG 0\n"] + l[5:],
        "the first is train/none.JPEG",
    ),
    "folder as image": (
        "train",
        lambda l: [b"train/n00000000 0\n"] * 9 + l[9:],
        "9 of 18 images are not in",
    ),
    "missing val image": (
        "val",
        lambda l: [b"val/none.JPEG 0\n"] + l[1:],
        "tiny val list: 1 of 3 images are not in",
    ),
    "missing test image": (
        "test",
        lambda l: [b"test/none.JPEG 0\n"] + l[1:],
        "tiny test list: 1 of 3 images are not in",
    ),
    "paths from the root of the machine": (
        "train",
        lambda l: [b"/" + x for x in l],
        "the first is /train/n00000000/0.JPEG; paths are relative to --root",
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_list_files(root, refused, case):
    split, change, named = LISTS[case]
    path = root / f"tiny_{split}.txt"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    line = refused(train.main, tiny_flags(root, out="run", epochs=1))
    assert named in line and len(line) < 400
    assert not (root / "run").exists()


@pytest.mark.parametrize("split", data.SPLITS)
def test_list_that_is_not_there_or_a_folder(root, refused, split):
    os.remove(root / f"tiny_{split}.txt")
    assert f"tiny_{split}.txt" in refused(train.main, tiny_flags(root, out="run"))
    (root / f"tiny_{split}.txt").mkdir()
    assert f"tiny_{split}.txt" in refused(train.main, tiny_flags(root, out="run"))


# ------------------------------------------------------------------------------ images
IMAGES = {  # the content in place of a good JPEG's
    "empty": lambda b: b"",
    "text": lambda b: b"hello",
    "html": lambda b: b"<!DOCTYPE html><html>404</html>",
    "zeros": lambda b: bytes(5000),
    "truncated JPEG": lambda b: b[: len(b) // 2],
    "JPEG without its end": lambda b: b[:-40],
    "header only": lambda b: b[:20],
    "garbage after header": lambda b: b[:200] + bytes(800),
    "git LFS pointer": lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "gzipped": lambda b: b"\x1f\x8b\x08\x00" + b,
}


@pytest.mark.parametrize("name", ["bad.JPEG", "bad.jpg", "bad.png", "bad"])
@pytest.mark.parametrize("case", IMAGES)
def test_image_files(tiny_root, tmp_path, case, name):
    good = (tiny_root / "train/n00000001/0.JPEG").read_bytes()
    (tmp_path / "good.JPEG").write_bytes(good)
    assert read_image(str(tmp_path / "good.JPEG")).shape == (3, 40, 48)
    (tmp_path / name).write_bytes(IMAGES[case](good))
    with pytest.raises(InputError) as error:
        read_image(str(tmp_path / name))
    assert str(error.value).startswith(f"{tmp_path / name}: not a readable image (")
    assert "\n" not in str(error.value) and "()" not in str(error.value)


@pytest.mark.parametrize("name", ["none.jpg", "none.png", "folder", "folder.jpg", "half.png"])
def test_what_is_no_image_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.png")
    half = (tmp_path / "half.png").read_bytes()[:-1500]
    (tmp_path / "half.png").write_bytes(half)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: not a readable image"):
        read_image(str(tmp_path / name))


def test_an_image_above_pillows_limit_is_refused(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "huge.png")
    content = (tmp_path / "huge.png").read_bytes()
    size = struct.pack(">II", 20_000, 20_000)
    header = content[12:16] + size + content[24:29]
    header += struct.pack(">I", zlib.crc32(header))
    (tmp_path / "huge.png").write_bytes(content[:12] + header + content[33:])
    with pytest.raises(InputError, match="huge.png: .*exceeds limit"):
        read_image(str(tmp_path / "huge.png"))


# ------------------------------------------------------------------------------ flags of train.py
FLAGS = {
    "S not a multiple of Z": ({"Z": 3}, "Z = 3 does not divide S = 8; take S = 6 or 9"),
    "Z above S": ({"Z": 9}, "Z = 9"),
    "S above N": ({"batch_size": 20}, "S = 20 is more than the 18 training images"),
    "S is 0": ({"batch_size": 0}, "--batch-size 0: must be 2 or more"),
    "S is 1": ({"batch_size": 1, "Z": 1}, "--batch-size 1: must be 2 or more"),
    "S is a word": ({"batch_size": "many"}, "--batch-size: invalid int value: 'many'"),
    "S is a fraction": ({"batch_size": 1.5}, "--batch-size"),
    "Z is 0": ({"Z": 0}, "--Z 0: must be 1 or more"),
    "negative Z": ({"Z": -4}, "--Z"),
    "no epochs": ({"epochs": 0}, "--epochs"),
    "lr below 0": ({"lr": -0.1}, "--lr"),
    "lr is nan": ({"lr": "nan"}, "--lr nan"),
    "lr is inf": ({"lr": "inf"}, "--lr inf"),
    "lr beyond a float": ({"lr": "1e400"}, "--lr inf"),
    "momentum is a word": ({"momentum": "x"}, "--momentum"),
    "momentum is nan": ({"momentum": "nan"}, "--momentum"),
    "weight decay below 0": ({"weight_decay": -1}, "--weight-decay"),
    "size too small": ({"size": 31}, "--size 31: must be 32 to 4096"),
    "size beyond memory": ({"size": 10**8}, "--size 100000000: must be 32 to 4096"),
    "negative workers": ({"workers": -1}, "--workers"),
    "negative seed": ({"seed": -1}, "--seed"),
    "seed beyond 32 bits": ({"seed": 2**32}, "--seed"),
    "seed beyond 64 bits": ({"seed": 2**64}, "--seed"),
    "imbalance below 1": ({"imbalance": 0.5}, "--imbalance"),
    "unknown arch": ({"arch": "vgg16"}, "resnet10"),
    "unknown dataset": ({"data": "nosuch"}, "nosuch_train.txt not found in"),
    "unknown dataset lists what there is": (
        {"data": "nosuch"},
        "there are: glyphs_lt, cifar10_lt, cifar100_lt, tiny ",
    ),
    "dataset without a name": ({"data": ""}, "--data: must not be empty"),
    "init of an empty path": ({"init": ""}, "--init: must not be empty"),
    "out is empty": ({"out": ""}, "--out: must not be empty"),
    "root is empty": ({"root": ""}, "--root: must not be empty"),
    "lists in another folder": ({"data": "../tiny"}, "../tiny_train.txt not found in"),
    "root is not there": ({"root": "/nosuch/folder"}, "/nosuch/folder: no such folder"),
    "root is a file": ({"root": "tiny_val.txt"}, "tiny_val.txt: no such folder"),
    "init of nothing": ({"init": "none.pt"}, "none.pt: no such file"),
    "init of a folder": ({"init": "train"}, "train: no such file"),
    "out is a file": ({"out": "tiny_val.txt"}, "tiny_val.txt exists"),
    "out below a file": ({"out": "tiny_val.txt/run"}, "tiny_val.txt/run"),
    "out is a folder": ({"out": "train"}, "train exists: --resume goes on, --out DIR starts anew"),
    "size of the built-in set": (
        {"data": "glyphs_lt", "root": None, "size": 64},
        "--size 64: glyphs_lt has images of 32 pixels",
    ),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags(root, refused, case):
    flags, named = FLAGS[case]
    before = sorted(root.rglob("*"))
    assert named in refused(train.main, tiny_flags(**{"root": root, "out": "run"} | flags))
    assert sorted(root.rglob("*")) == before


LAMBDAS = {
    "all zero": (0, 0, 0),
    "only rotation": (0, 0, 1),
    "negative": (-1, 1, 1),
    "nan": ("nan", 1, 1),
    "two": (1, 1),
    "four": (1, 1, 1, 1),
    "word": ("a", 1, 1),
    "infinite": (1, "inf", 0),
}


@pytest.mark.parametrize("case", LAMBDAS)
def test_lambdas(refused, case):
    line = refused(train.parse, ["--lambdas", *LAMBDAS[case]])
    assert "--lambdas" in line or "unrecognized arguments: 1" in line


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--nosuch"], "--nosuch"),
        (["--epoch", 3], "--epoch"),  # no abbreviations: --resume compares what was given
        (["--pretrained"], "resnet10 has no pre-trained weights"),
        (["--resume", "x.pt"], "unrecognized arguments: x.pt"),
        (["stray"], "stray"),
        (["--save-every", 3], "--save-every"),
        (["--rotation-augmentation", "--lambdas", 1, 1, 1], "its lambda must be 0"),
    ],
)
def test_other_flags(refused, argv, named):
    assert named in refused(train.parse, argv)


NO_EFFECT = {
    "--imbalance of glyphs": "--imbalance 1000",
    "--imbalance of lists": "--data mine --imbalance 1000",
    "--imbalance as it is by itself": "--data mine --imbalance 100",
    "--root of what is drawn": "--root data",
    "--lr-pretrained of new layers": "--data mine --lr-pretrained 0.1",
    "--lr-pretrained, not pre-trained": "--data places_lt --arch resnet152 --no-pretrained "
    "--lr-pretrained 0.1",
    "--Z without CBS": "--lambdas 0 1 0 --Z 2",
    "--Z without CBS, with SS": "--lambdas 0 1 1 --Z 4",
}


@pytest.mark.parametrize("case", NO_EFFECT)
def test_flag_without_effect_is_refused(refused, case):
    flag = case.split()[0].rstrip(",")
    assert f"{flag} has no effect" in refused(train.parse, NO_EFFECT[case].split())


@pytest.mark.parametrize(
    "flags, key, value",
    [
        ("--data CIFAR10_LT --imbalance 50", "imbalance", 50),
        ("--data cifar100_lt --root here", "root", os.path.abspath("here")),
        ("--data mine --arch resnet18 --pretrained --lr-pretrained 0.1", "lr_pretrained", 0.1),
        ("--data places_lt --arch resnet152 --lr-pretrained 0.1", "lr_pretrained", 0.1),
        ("--lambdas 1 0 0 --Z 2", "Z", 2),
        ("--rotation-augmentation --lambdas 1 1 0", "lambdas", [1, 1, 0]),
        (f"--seed {2**32 - 1}", "seed", 2**32 - 1),
    ],
)
def test_the_same_flags_are_taken_where_they_have_an_effect(flags, key, value):
    assert getattr(train.parse(flags.split()), key) == value


def test_pretrained_weights_without_a_network(root, refused, monkeypatch):
    def offline(arch, weights):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(model, "get_model", offline)
    argv = [*tiny_flags(root, out="run", arch="resnet18"), "--pretrained"]
    assert "<urlopen error no network>" in refused(train.main, argv)


def test_the_same_command_can_be_given_again_when_the_network_is_back(root, refused, monkeypatch):
    def offline(arch, weights):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(model, "get_model", offline)
    argv = [*tiny_flags(root, out="run", arch="resnet18"), "--pretrained"]
    refused(train.main, argv)
    assert "no network" in refused(train.main, argv)


# ------------------------------------------------------------------------------ checkpoints
@pytest.fixture(scope="module")
def checkpoint(tiny_root, tmp_path_factory):
    """A finished run's."""
    path = tmp_path_factory.mktemp("checkpoint") / "run"
    train.main(tiny_flags(tiny_root, out=path, epochs=1))
    return path / "last.pt"


@pytest.fixture
def use(tiny_root, tmp_path, refused, monkeypatch):
    """use("resume", checkpoint): what is printed of a checkpoint that must be refused."""
    monkeypatch.chdir(tmp_path)

    def refused_use(how, checkpoint):
        (tmp_path / "run").mkdir()
        bad = tmp_path / "run/last.pt"
        if isinstance(checkpoint, bytes):
            bad.write_bytes(checkpoint)
        else:
            torch.save(checkpoint, bad)
        before = bad.read_bytes()
        flags = tiny_flags(tiny_root, epochs=1)
        main, argv = {
            "evaluate": (evaluate.main, ["run/last.pt", "--workers", 0]),
            "resume": (train.main, [*flags, "--out", "run", "--resume"]),
            "init": (train.main, [*flags, "--out", "new", "--init", "run/last.pt"]),
        }[how]
        line = refused(main, argv)
        assert bad.read_bytes() == before and not (tmp_path / "new").exists()
        return line

    return refused_use


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


USES = "evaluate", "resume", "init"
NO_CHECKPOINTS = {
    "text": lambda good: b"hello",
    "empty": lambda good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "without its end": lambda good: good[:-100],
    "an image": lambda good: b"\xff\xd8\xff\xe0" + bytes(1000),
    "a flipped bit in a tensor": lambda good: flip(good, good.index(b"data/2") + 3000),
    "changed at its start": lambda good: bytes(200) + good[200:],
    "another project's": lambda good: {"epoch": 3, "state_dict": {}},
    "a bare tensor": lambda good: torch.zeros(3),
    "a list": lambda good: ["layout"],
    "a module": lambda good: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("case", NO_CHECKPOINTS)
@pytest.mark.parametrize("how", USES)
def test_what_is_no_checkpoint(use, checkpoint, how, case):
    content = NO_CHECKPOINTS[case](checkpoint.read_bytes())
    assert "run/last.pt: not a checkpoint" in use(how, content)


@pytest.mark.parametrize("layout", ["to-balance-or-not-to-balance 2", None, 3])
@pytest.mark.parametrize("how", USES)
def test_checkpoint_of_another_layout(use, how, layout):
    line = use(how, {"layout": layout})
    assert f"run/last.pt: layout {layout!r}; only the version that wrote it reads it" in line


def changed(checkpoint, change):
    state = copy.deepcopy(torch.load(checkpoint, weights_only=True))
    change(state)
    return state


READ = {
    "evaluate": ("method", "settings", "root", "lists", "N_c", "epoch", "model"),
    "resume": ("method", "settings", "lists", "epoch", "record", "schedule"),
    "init": ("method", "settings", "epoch"),
}
MISSING = [(how, field) for how, fields in READ.items() for field in fields]


@pytest.mark.parametrize("how, field", MISSING)
def test_checkpoint_without_a_field_that_is_read(use, checkpoint, how, field):
    state = changed(checkpoint, lambda state: state.pop(field))
    assert "run/last.pt: not a checkpoint, or damaged" in use(how, state)


@pytest.mark.parametrize("field", ["epochs", "arch", "small_stem"])
def test_checkpoint_without_a_setting_that_init_reads(use, checkpoint, field):
    state = changed(checkpoint, lambda state: state["settings"].pop(field))
    assert "run/last.pt: not a checkpoint, or damaged" in use("init", state)


ABSURD = {
    "arch": lambda state: state["settings"].update(arch="vgg16"),
    "lambdas": lambda state: state["settings"].update(lambdas=None),
    "settings": lambda state: state.update(settings=3),
    "dataset": lambda state: state["settings"].update(data=3),
    "size": lambda state: state["settings"].update(size="32"),
    "number of classes": lambda state: state.update(N_c=[1]),
    "classes": lambda state: state.update(N_c=7),
    "a layer": lambda state: state["model"].pop("h.weight"),
    "a shape": lambda state: state["model"].update({"h.weight": torch.zeros(4, 511)}),
    "the model": lambda state: state.update(model=[]),
    "no lists": lambda state: state.update(lists={}),
    "lists": lambda state: state.update(lists=3),
    "no lambdas": lambda state: state["settings"].update(lambdas=[]),
    "root": lambda state: state.update(root=None),
}


@pytest.mark.parametrize("case", ABSURD)
def test_checkpoint_with_an_absurd_field(use, checkpoint, case):
    state = changed(checkpoint, ABSURD[case])
    assert "run/last.pt: not a checkpoint, or damaged" in use("evaluate", state)


@pytest.mark.parametrize(
    "where, value", [("h.weight", "nan"), ("h.weight", "inf"), ("phi.resnet.conv1.weight", "nan")]
)
def test_damaged_weights_give_no_row(use, checkpoint, where, value):
    state = changed(checkpoint, lambda state: state["model"][where][1].fill_(float(value)))
    assert "logits are not finite" in use("evaluate", state)


def test_data_that_changed_since_is_refused(root, refused, checkpoint):
    line = refused(evaluate.main, [checkpoint, "--root", root])
    assert f"tiny in {root}: its train list is not the one trained with" in line
    argv = [*tiny_flags(root, out=checkpoint.parent, epochs=1), "--resume"]
    line = refused(train.main, argv)
    assert line.startswith("train list ") and "differs from the checkpoint's" in line


def test_accuracy_on_the_training_split_is_the_same_each_time(checkpoint, tmp_path):
    features = []
    for i in range(2):
        file = str(tmp_path / f"{i}.npz")
        evaluate.main([str(checkpoint), "--split", "train", "--workers", "0", "--export", file])
        features.append(np.load(file)["features"])
    np.testing.assert_array_equal(*features)


# ------------------------------------------------------------------------------ the other commands
@pytest.mark.parametrize(
    "argv, named",
    [
        (["--make", "x"], "--make needs --from DIR"),
        (["--make", "x", "--from", "/nosuch"], "/nosuch"),
        (["--make", "x", "--from", "tiny_val.txt"], "tiny_val.txt"),
        (["--make", "x", "--from", "train", "--max", 3, "--min", 5], "--min must be"),
        (["--make", "x", "--from", "train", "--min", 0], "--min must be"),
        (["--make", "x", "--from", "train", "--val", 0], "must be"),
        (["--make", "x", "--from", "train", "--val", 10**20], "must be"),
        (["--make", "x", "--from", "train", "--root", ""], "--root must not be empty"),
        (["--data", "tiny", "--root", ""], "--root must not be empty"),
        (["--make", "", "--from", "train"], "--make '': a name is needed, without folders"),
        (["--make", "../x", "--from", "train"], "--make '../x': a name is needed"),
        (["--make", "train/x", "--from", "train"], "--make 'train/x': a name is needed"),
        (["--make", "x", "--from", "train", "--test", -1], "must be"),
        (["--make", "x", "--from", "train", "--alpha", 0], "--alpha must be"),
        (["--make", "x", "--from", "train", "--seed", -1], "must be"),
        (["--make", "x", "--from", "train/n00000000"], "two or more classes"),
        (["--make", "x", "--from", "train"], "n00000000 has 9 images, fewer than the 1280 + 20"),
        (["--make", "x", "--from", "train", "--root", "/nosuch", "--max", 1, "--min", 1]
         + ["--val", 1, "--test", 1], "/nosuch/x_train.txt"),
        (["--make", "tiny", "--from", "train", "--root", "."], "tiny_train.txt exists"),
        (["--make", "glyphs_lt", "--from", "train"], "glyphs_lt: the name of a built-in dataset"),
        (["--make", "CIFAR10_LT", "--from", "train"], "CIFAR10_LT: the name of a built-in"),
        (["--data", "tiny"], "data: no such folder"),
        (["--data", "tiny", "--root", "tiny_val.txt"], "tiny_val.txt: no such folder"),
        (["--data", "tiny", "--root", ".", "stray"], "stray"),
        (["--data", "cifar10_lt", "--imbalance", 0], "--imbalance must be 1 or more"),
        (["--data", "cifar10_lt", "--imbalance", "nan"], "--imbalance must be 1 or more"),
        (["--check"], "--check has no effect on glyphs_lt"),
    ],
)  # fmt: skip
def test_data_command(root, refused, argv, named):
    before = sorted(root.rglob("*"))
    assert named in refused(data.main, argv)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("alpha", ["0.001", "nan", "inf"])
def test_alpha_without_a_rule(root, refused, alpha):
    argv = ["--make", "x", "--from", "train", "--max", 2, "--min", 1, "--val", 1, "--test", 1]
    with np.errstate(all="ignore"):
        assert "--alpha" in refused(data.main, [*argv, "--alpha", alpha])


@pytest.mark.parametrize(
    "argv", [["--imbalance", 9], ["--max", 9], ["--from", "train"], ["--seed", 1]]
)
def test_flag_of_data_py_without_effect(root, refused, argv):
    assert argv[0] in refused(data.main, ["--data", "tiny", "--root", ".", *argv])


@pytest.mark.parametrize(
    "argv, named",
    [
        ([], "checkpoint"),
        (["none.pt"], "none.pt: no such file"),
        (["--split", "all", "x.pt"], "--split"),
        ([".", "--split", "val"], ".: no such file"),
        (["x.pt", "--workers", -1], "--workers must be 0 to 256"),
        (["x.pt", "--workers", "x"], "--workers"),
        (["x.pt", "--root", ""], "--root must not be empty"),
        (["x.pt", "--export", ""], "must end in .npz"),
        (["x.pt", "--export", "train/"], "--export train/: must end in .npz"),
        (["x.pt", "--export", "none/x.npz"], "--export none/x.npz: no such folder"),
    ],
)
def test_evaluate_command(root, refused, argv, named):
    assert named in refused(evaluate.main, argv)


def test_evaluate_where_the_images_are_not_there(tiny_root, root, refused, checkpoint):
    argv = [checkpoint, "--workers", 0, "--root"]
    assert "/nosuch: no such folder" in refused(evaluate.main, [*argv, "/nosuch"])
    for split in data.SPLITS:
        shutil.copy(tiny_root / f"tiny_{split}.txt", root / f"tiny_{split}.txt")
    line = refused(evaluate.main, [*argv, root])
    assert "tiny test list: 17 of 20 images are not in" in line


def test_export_that_cannot_be_written_leaves_the_earlier_file(
    checkpoint, tmp_path, refused, monkeypatch
):
    (tmp_path / "x.npz").write_bytes(b"earlier")
    monkeypatch.setattr(os, "fsync", full)
    argv = [checkpoint, "--workers", 0, "--export", tmp_path / "x.npz"]
    assert f"{tmp_path}/x.npz can't be written (No space left" in refused(evaluate.main, argv)
    assert os.listdir(tmp_path) == ["x.npz"] and (tmp_path / "x.npz").read_bytes() == b"earlier"


def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
