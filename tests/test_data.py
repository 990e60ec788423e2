"""Datasets against hand-worked and published counts; images of every kind against Pillow and NumPy."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F

import data
import train
from conftest import TINY_TRAIN, write_lists
from data import InputError, colour_jitter, load, loader, pareto, read_image


def test_pareto_counts_worked_out_by_hand():
    # C = 3, N_max = 640, N_min = 10, alpha = 6: x runs over 1, 1.5, 2, so 640, 640 / 1.5^6 = 56.19, 640 / 64
    assert pareto(3, 640, 10).tolist() == [640, 56, 10]
    counts = pareto(200, 480, 5)
    assert (
        counts.sum() == 16633 and counts[0] == 480 and counts[-1] == 5
    )  # Tiny-ImageNet-LT of the README


@pytest.fixture(scope="module")
def glyphs():
    return load("glyphs_lt")


def test_glyphs_are_drawn_alike_from_a_seed_and_balanced_where_they_are_tested(glyphs):
    labels = np.arange(62)
    images, again = (data.draw_glyphs(labels, np.random.default_rng(7)) for _ in range(2))
    assert (
        images.shape == (62, 3, 32, 32)
        and images.dtype == torch.uint8
        and torch.equal(images, again)
    )
    assert len(set(data.GLYPHS)) == len(data.GLYPHS) == 62
    assert [len(s) for s in glyphs.values()] == [10829, 62 * 20, 62 * 40]
    assert set(glyphs["val"].N_c) == {20} and set(glyphs["test"].N_c) == {40}
    assert (
        glyphs["train"].N_c[0] == 1280 and glyphs["train"].N_c[-1] == glyphs["train"].N_c.min() == 5
    )
    assert all(
        image.float().std() > 10 for image in glyphs["test"].images[::40]
    )  # every character shows


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Image files of many kinds, all of one picture."""
    folder, x = tmp_path_factory.mktemp("kinds"), np.linspace(0, 255, 48)
    picture = np.stack(
        [np.tile(x, (40, 1)), np.tile(x[:40, None], (1, 48)), np.full((40, 48), 99)], 2
    ).astype(np.uint8)
    image = Image.fromarray(picture)
    image.save(folder / "with space.jpg", quality=95)
    image.save(folder / "colour.png")
    image.save(folder / "colour.bmp")
    image.save(folder / "colour.tiff")
    image.save(folder / "colour.webp", lossless=True)
    image.save(
        folder / "colour moving.gif",
        save_all=True,
        append_images=[Image.new("RGB", (48, 40), "red")],
    )
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "really.jpg", quality=95)
    os.replace(folder / "really.jpg", folder / "really_a_jpeg.png")
    image.convert("L").save(folder / "grey.jpg", quality=95)
    image.convert("L").save(folder / "grey.png")
    for name in ("grey16.png", "grey16.tiff"):
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / name)
    return folder, picture, np.asarray(image.convert("L"))[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    "name",
    [
        "with space.jpg",
        "colour.png",
        "colour.bmp",
        "colour.tiff",
        "colour.webp",
        "cmyk.jpg",
        "colour moving.gif",
        "alpha.png",
        "really_a_jpeg.png",
        "grey.jpg",
        "grey.png",
        "grey16.png",
        "grey16.tiff",
    ],
)
def test_every_kind_of_image_decodes_to_its_picture(kinds, name):
    folder, picture, grey = kinds
    image = read_image(str(folder / name))
    assert image.dtype == torch.uint8 and image.shape == (3, 40, 48)
    difference = image.permute(1, 2, 0).numpy().astype(int) - (grey if "grey" in name else picture)
    assert np.abs(difference).mean() < 3


def test_test_transform_is_that_of_the_reference_within_a_grey_level(kinds, tiny_root):
    path = str(kinds[0] / "with space.jpg")
    theirs = v1.Compose([v1.Resize(256), v1.CenterCrop(224)])(Image.open(path).convert("RGB"))
    ours = load("tiny", str(tiny_root))["test"].transform(read_image(path))
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs)).mean() < 1.5


@pytest.mark.parametrize("seed", range(8))
def test_colour_jitter_is_torchvisions_where_nothing_is_clipped(seed):
    image = torch.randint(100, 140, (3, 20, 30), dtype=torch.uint8)
    torch.manual_seed(seed)
    ours = colour_jitter(image)
    torch.manual_seed(seed)
    order, factors = torch.randperm(3).tolist(), torch.empty(3).uniform_(0.6, 1.4).tolist()
    theirs = image / 255
    for step, factor in zip(order, factors):
        theirs = (F.adjust_contrast, F.adjust_brightness, F.adjust_saturation)[step](theirs, factor)
    assert 0 < theirs.min() and theirs.max() < 1 and len(set(order)) == 3
    assert (ours - 255 * theirs).abs().max() < 1.01


def test_training_transform_is_random_and_in_range(kinds, tiny_root):
    transform = load("tiny", str(tiny_root), 64)["train"].transform
    images = torch.stack([transform(read_image(str(kinds[0] / "colour.png"))) for _ in range(50)])
    assert (
        images.shape == (50, 3, 64, 64)
        and images.dtype == torch.uint8
        and len(images.unique(dim=0)) == 50
    )


def test_lists_with_crlf_tabs_spaces_blank_lines_and_mixed_case(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    for path in ("train/a b.jpg", "train/c.jpg", "train/t\tab.jpg", "val/ä.jpg"):
        Image.new("RGB", (9, 9), (200, 0, 0)).save(tmp_path / path)
    (tmp_path / "My_LT_train.txt").write_bytes(
        b"\xef\xbb\xbftrain/a b.jpg 0\r\ntrain/c.jpg\t1\r\n\r\ntrain/t\tab.jpg 1\n"
    )
    (tmp_path / "my_lt_VAL.txt").write_text("val/ä.jpg 1\n")
    (tmp_path / "my_lt_test.txt").write_text("val/ä.jpg  0")
    sets = load("MY_lt", str(tmp_path), 32)
    assert [s.labels.tolist() for s in sets.values()] == [[0, 1, 1], [1], [0]]
    assert all(
        image.shape == (3, 32, 32)
        for s in sets.values()
        for image, _ in (s[i] for i in range(len(s)))
    )


def test_augmentation_depends_on_the_key_alone_not_on_workers(tiny_root):
    dataset = load("tiny", str(tiny_root), 32)["train"]
    batches = [[(i, 1000 * b + i) for i in (3, 5, 3, 60)] for b in range(4)]
    runs = [[x[0] for x in loader(dataset, batches, workers, False)] for workers in (0, 1, 2)]
    for others in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], others))
    assert torch.equal(runs[0][0][0], runs[0][0][2]) and not torch.equal(
        runs[0][0][0], runs[0][1][0]
    )


def test_index_of_paths_is_small_and_shared(tiny_root):
    images = load("tiny", str(tiny_root))["train"].images
    assert images.dtype.kind == "S" and images.nbytes == len(images) * max(map(len, images))


def test_val_and_test_are_not_touched_by_training(tmp_path, script):
    """A run completes although val and test are full of the wrong pictures, with the same weights."""
    from conftest import tiny_flags

    roots = [
        write_lists(tmp_path / name, counts=(TINY_TRAIN, held_out, held_out), seed=1)
        for name, held_out in (("a", [3] * 4), ("b", [2] * 4))
    ]
    weights = []
    for root in roots:
        assert (
            script("train", *tiny_flags(root, out=tmp_path / f"run{root.name}", epochs=1))[0] == 0
        )
        weights.append(torch.load(tmp_path / f"run{root.name}" / "last.pt")["model"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_describe_and_check(tiny_root, script):
    code, out, err = script("data", "--data", "tiny", "--root", tiny_root, "--check")
    assert code == 0 and not err
    assert (
        "train        78 images      4 classes   smallest: class 3 with 5, largest: class 0 with 40"
        in out
    )
    assert (
        "Many          0 images      0 classes\nMedium       61 images      2 classes\nLow          17 images"
        in out
    )
    assert "0 of 110 files do not decode" in out


def test_check_names_every_broken_file(tmp_path, script):
    write_lists(tmp_path)
    (tmp_path / "train/n00000002/3.JPEG").write_bytes(b"no image")
    (tmp_path / "test/n00000001/0.JPEG").write_bytes(b"")
    code, out, err = script("data", "--data", "tiny", "--root", tmp_path, "--check")
    assert code == 1 and err.count("\n") == 1 and "2 images are broken, 0 repeated" in err
    assert (
        "n00000002/3.JPEG: not a readable image" in out
        and "n00000001/0.JPEG: not a readable image" in out
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """DIR/CLASS/*.png with 40 images in each of 5 classes."""
    root = tmp_path_factory.mktemp("folders")
    for c in "abcde":
        (root / f"class {c}").mkdir()
        for i in range(40):
            Image.new("RGB", (4, 4), (i, i, ord(c))).save(root / f"class {c}" / f"{i}.png")
    return root


def test_make_writes_disjoint_lists_by_the_pareto_rule(folders, tmp_path, script):
    flags = [
        "--from",
        folders,
        "--root",
        tmp_path,
        "--max",
        20,
        "--min",
        2,
        "--val",
        4,
        "--test",
        6,
    ]
    assert script("data", "--make", "my_lt", *flags)[0] == 0
    lists = {s: (tmp_path / f"my_lt_{s}.txt").read_text().splitlines() for s in data.SPLITS}
    count = {
        s: np.bincount([int(line.rsplit(" ", 1)[1]) for line in lines]).tolist()
        for s, lines in lists.items()
    }
    assert count["val"] == [4] * 5 and count["test"] == [6] * 5
    assert sorted(count["train"], reverse=True) == pareto(5, 20, 2).tolist()
    everything = sum(lists.values(), [])
    assert len(set(everything)) == len(everything)
    assert [len(s) for s in load("my_lt", str(tmp_path), 32).values()] == [
        sum(c) for c in count.values()
    ]
    assert script("data", "--data", "my_lt", "--root", tmp_path, "--check")[0] == 0
    before = (tmp_path / "my_lt_train.txt").read_text()
    code, _, err = script("data", "--make", "my_lt", *flags)
    assert code == 1 and "exists" in err and (tmp_path / "my_lt_train.txt").read_text() == before
    (tmp_path / "again").mkdir()
    flags[3] = tmp_path / "again"
    assert script("data", "--make", "my_lt", *flags)[0] == 0
    assert [
        line.rsplit("/", 1)
        for line in (tmp_path / "again" / "my_lt_train.txt").read_text().splitlines()
    ][0][1] == lists["train"][0].rsplit("/", 1)[1]  # the same seed chooses the same images


def test_make_refuses_a_class_that_cannot_give_what_is_asked(folders, tmp_path, script):
    code, _, err = script(
        "data",
        "--make",
        "x",
        "--from",
        folders,
        "--root",
        tmp_path,
        "--max",
        35,
        "--val",
        4,
        "--test",
        6,
    )
    assert (
        code == 1
        and "has 40 images, fewer than the 35 + 4 + 6" in err
        and not list(tmp_path.glob("x_*"))
    )


def make_cifar(tmp_path, monkeypatch, n_train=50000, n_test=10000):
    """Archives laid out as torchvision expects CIFAR, of noise."""
    import torchvision.datasets.cifar as module

    monkeypatch.setattr(module, "check_integrity", lambda *args: True)
    rng = np.random.default_rng(0)

    def archive(folder, names, meta, key, C):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(names):
            n = n_train // (len(names) - 1) if i < len(names) - 1 else n_test
            images = np.zeros((n, 3072), np.uint8)
            images[:, :8] = rng.integers(256, size=(n, 8))  # enough to tell images apart
            labels = (np.arange(n) % C).tolist()
            (tmp_path / folder / name).write_bytes(pickle.dumps({"data": images, key: labels}))
        (tmp_path / folder / meta[0]).write_bytes(
            pickle.dumps({meta[1]: [str(c) for c in range(C)]})
        )

    archive(
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"],
        ("batches.meta", "label_names"),
        "labels",
        10,
    )
    archive("cifar-100-python", ["train", "test"], ("meta", "fine_label_names"), "fine_labels", 100)
    return str(tmp_path)


def test_cifar_counts_splits_and_crops(tmp_path, monkeypatch):
    cifar = make_cifar(tmp_path, monkeypatch)
    for name, N, largest, val in (
        ("cifar10_lt", 12406, 5000, 500),
        ("cifar100_lt", 10847, 500, 50),
    ):
        sets = load(name, cifar, 32)
        train, held_out, test = (s.images.flatten(1)[:, :1024].numpy() for s in sets.values())
        assert len(train) == N and sets["train"].N_c[0] == largest and len(test) == 10000
        assert held_out.shape[0] > 0 and sets["val"].N_c.max() == val and sets["val"].N_c[0] == 0
        rows = [set(map(bytes, split[:, :8])) for split in (train, held_out, test)]
        assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])  # nothing shared
    assert sets["train"][0][0].shape == (3, 32, 32)
    assert load("cifar10_lt", cifar, 32, imbalance=10)["train"].N_c.tolist()[::9] == [5000, 500]


def test_cifar_trains_with_the_small_stem_from_the_command_line(tmp_path, monkeypatch, capsys):
    root = make_cifar(tmp_path, monkeypatch, 500, 20)
    train.main(
        [
            "--data",
            "cifar10_lt",
            "--root",
            root,
            "--imbalance",
            "10",
            "--batch-size",
            "16",
            "--epochs",
            "1",
            "--small-stem",
            "--out",
            str(tmp_path / "run"),
            "--workers",
            "0",
        ]
    )
    assert "Overall" in capsys.readouterr().out
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["model"]["phi.1.conv1.weight"].shape == (64, 3, 3, 3) and state["N_c"][::9] == [
        50,
        5,
    ]


def test_cifar_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="CIFAR10 is not in .*--download"):
        load("cifar10_lt", str(tmp_path), 32)


def test_a_picture_is_upright_in_whatever_format(tmp_path):
    """EXIF says that the picture lies on its side: the angle of line 9 must count from upright."""
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)
    ).resize((480, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for name in ("a.jpg", "a.png", "a.tiff", "a.webp"):
        image.save(tmp_path / name, exif=exif, quality=95)
        upright = read_image(str(tmp_path / name)).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(upright - np.rot90(np.asarray(image), -1)).mean() < 4, name


def test_what_is_no_picture_or_a_huge_one_is_refused_by_its_path(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.fromarray(np.random.rand(9, 9).astype(np.float32)).save(tmp_path / "float.tiff")
    for name, reason in (
        ("fifo.jpg", "no such image file"),
        ("huge.png", "exceeds limit"),
        ("float.tiff", "floating-point"),
    ):
        with pytest.raises(InputError, match=f"{name}: .*{reason}"):
            read_image(str(tmp_path / name))


def test_an_image_in_two_splits_is_said_and_an_error_under_check(tmp_path, script):
    write_lists(tmp_path)
    with open(tmp_path / "tiny_test.txt", "a") as lines:
        lines.write("train/n00000000/0.JPEG 0\n./test/n00000001/0.JPEG 1\n")
    code, out, err = script("data", "--data", "tiny", "--root", tmp_path)
    assert code == 0 and "2 lines list an image that an earlier line, of any split, lists" in out
    code, out, err = script("data", "--data", "tiny", "--root", tmp_path, "--check")
    assert code == 1 and "0 images are broken, 2 repeated" in err


def test_make_gives_larger_folders_larger_counts_where_shuffling_cannot_work(tmp_path, script):
    sizes = dict(a=12, b=40, c=14, d=25, e=100)
    for name, n in sizes.items():
        (tmp_path / name).mkdir()
        for i in range(n):
            (tmp_path / name / f"{i}.png").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "a/._0.png").touch()  # as macOS leaves them
    for seed in range(10):
        flags = [
            "--from",
            tmp_path,
            "--max",
            90,
            "--min",
            2,
            "--val",
            2,
            "--test",
            3,
            "--seed",
            seed,
        ]
        assert script("data", "--make", f"x{seed}", *flags)[0] == 0
        labels = [
            int(line.split()[1])
            for line in (tmp_path / f"x{seed}_train.txt").read_text().splitlines()
        ]
        assert (
            sorted(np.bincount(labels)) == sorted(pareto(5, 90, 2))
            and np.bincount(labels).argmax() == 4
        )
        assert not any(
            "._" in (tmp_path / f"x{seed}_{split}.txt").read_text() for split in data.SPLITS
        )


@pytest.mark.parametrize("name", ["glyphs_lt", "cifar10_lt"])
def test_size_of_images_in_memory_is_theirs(name, tmp_path):
    with pytest.raises(InputError, match=f"--size 64: {name} has images of 32 pixels"):
        load(name, str(tmp_path), 64)


def test_cifar_that_loses_a_class_is_refused_and_a_name_that_begins_alike_is_a_users_own(
    tmp_path, monkeypatch
):
    root = make_cifar(tmp_path, monkeypatch, 500, 20)
    with pytest.raises(InputError, match="--imbalance 100 leaves a class without an image"):
        load("cifar10_lt", root)
    write_lists(tmp_path, "cifar_mine")
    assert load("cifar_mine", root, 32)["test"][0][0].shape == (3, 32, 32)


def test_glyphs_are_the_same_when_only_the_test_split_is_drawn(glyphs):
    one = load("glyphs_lt", splits=["test"])
    assert one["train"].images is None and one["train"].N_c[0] == 1280
    assert torch.equal(one["test"].images, glyphs["test"].images)


def test_any_dataloader_takes_the_dataset(tiny_root):
    dataset = load("tiny", str(tiny_root), 32)["train"]
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True)))
    assert images.shape == (5, 3, 32, 32) and labels.shape == (5,)


def test_a_seed_decides_the_angle_uniformly():
    dataset = data.LongTailed(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [0])
    seeds = np.random.default_rng(0).integers(2**32, size=8000).tolist()
    angles = np.bincount([dataset[0, seed][2] for seed in seeds])
    assert len(angles) == 4 and np.abs(angles - 2000).max() < 5 * (8000 * 3 / 16) ** 0.5


def test_loading_processes_follow_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import data; print(data.WORKERS)"
    import subprocess
    import sys

    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=train.__file__[:-9]
        ).stdout
        == "1\n"
    )


def test_a_class_that_a_split_lacks_is_said(tmp_path, script):
    write_lists(tmp_path, counts=([9, 6, 3], [2, 2, 2], [4, 4, 0]))
    code, out, _ = script("data", "--data", "tiny", "--root", tmp_path)
    assert (
        code == 0
        and "test          8 images      2 classes   smallest: class 2 with 0, largest: class 0 with 4"
        in out
    )
