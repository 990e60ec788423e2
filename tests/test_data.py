"""Datasets against hand-worked and published counts; images of every kind against NumPy."""

import os
import pickle
import runpy
import shutil
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar as torchvision_cifar
from conftest import tiny_flags, write_lists
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F

import data
import evaluate
import train
from data import InputError, colour_jitter, load, loader, pareto, read_image


def test_pareto_counts_worked_out_by_hand():
    # C = 3, 640 to 10, alpha = 6: x runs over 1, 1.5, 2, so 640, 640 / 1.5^6 = 56.19, 640 / 64
    assert pareto(3, 640, 10).tolist() == [640, 56, 10]
    # alpha = 1: x runs over 1, 2.5, 4
    assert pareto(3, 100, 25, alpha=1).tolist() == [100, 40, 25]
    counts = pareto(200, 480, 5)  # Tiny-ImageNet-LT of the README
    assert (counts.sum(), counts[0], counts[-1]) == (16633, 480, 5)
    assert (np.diff(counts) <= 0).all()


# ------------------------------------------------------------------------------ glyphs
@pytest.fixture(scope="module")
def glyphs():
    return load("glyphs_lt")


def test_glyphs_are_long_tailed_and_balanced_where_they_are_tested(glyphs):
    assert len(set(data.GLYPHS)) == len(data.GLYPHS) == 62
    assert [len(split) for split in glyphs.values()] == [10829, 62 * 20, 62 * 40]
    N_c = glyphs["train"].N_c
    assert N_c.max() == N_c[0] == 1280 and N_c.min() == N_c[-1] == 5
    assert set(glyphs["val"].N_c) == {20} and set(glyphs["test"].N_c) == {40}
    image, label = glyphs["train"][10828]
    assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.uint8, 61)
    assert all(image.float().std() > 10 for image in glyphs["test"].images[::40])  # each shows


def test_glyphs_are_drawn_alike_from_a_seed():
    labels = np.arange(62)
    images, again, others = (
        data.render_glyphs(labels, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert images.shape == (62, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images, again)
    assert len(torch.cat([images, others]).unique(dim=0)) == 124


def test_glyphs_are_the_same_when_only_the_test_split_is_drawn(glyphs):
    one = load("Glyphs_LT", splits=["test"])
    assert one["train"].images is None and one["train"].N_c[0] == 1280
    assert torch.equal(one["test"].images, glyphs["test"].images)


# ------------------------------------------------------------------------------ images
@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Image files of many kinds, all of one picture."""
    folder = tmp_path_factory.mktemp("kinds")
    x = np.linspace(0, 255, 48)
    channels = np.tile(x, (40, 1)), np.tile(x[:40, None], (1, 48)), np.full((40, 48), 99)
    picture = np.stack(channels, 2).astype(np.uint8)
    image = Image.fromarray(picture)
    image.save(folder / "with space.jpg", quality=95)
    for end in ("png", "bmp", "tiff", "ppm"):
        image.save(folder / f"colour.{end}")
    image.save(folder / "colour.webp", lossless=True)
    red = Image.new("RGB", (48, 40), "red")
    image.save(folder / "colour moving.gif", save_all=True, append_images=[red])
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("RGBA").save(folder / "alpha.png")
    shutil.copy(folder / "with space.jpg", folder / "really_a_jpeg.png")
    shutil.copy(folder / "colour.png", folder / "really_a_png.JPEG")
    grey = image.convert("L")
    for name in ("grey.jpg", "grey.png"):
        grey.save(folder / name, quality=95)
    for name in ("grey16.png", "grey16.tiff"):
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / name)
    return folder, picture, np.asarray(grey)[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    "name, tolerance",
    [("with space.jpg", 3), ("cmyk.jpg", 3), ("really_a_jpeg.png", 3), ("grey.jpg", 3)]
    + [("colour moving.gif", 3), ("colour.png", 0), ("colour.bmp", 0), ("colour.tiff", 0)]
    + [("colour.ppm", 0), ("colour.webp", 0), ("alpha.png", 0), ("really_a_png.JPEG", 0)]
    + [("grey.png", 0), ("grey16.png", 0), ("grey16.tiff", 0)],
)
def test_every_kind_of_image_decodes_to_its_picture(kinds, name, tolerance):
    folder, picture, grey = kinds
    image = read_image(str(folder / name))
    assert image.dtype == torch.uint8 and image.shape == (3, 40, 48)
    difference = image.permute(1, 2, 0).numpy().astype(int) - (grey if "grey" in name else picture)
    assert np.abs(difference).mean() <= tolerance


def upright(picture, orientation):
    """What EXIF's orientation says, by NumPy: which edges the first row and column are."""
    turned = [
        picture,  # top, left
        picture[:, ::-1],  # top, right
        picture[::-1, ::-1],  # bottom, right
        picture[::-1],  # bottom, left
        picture.swapaxes(0, 1),  # left, top
        np.rot90(picture, -1),  # right, top
        np.rot90(picture.swapaxes(0, 1), 2),  # right, bottom
        np.rot90(picture),  # left, bottom
    ]
    return turned[orientation - 1]


@pytest.fixture(scope="module")
def lying():
    """A picture that no turn leaves as it was, and none that JPEG spoils."""
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(5, 6, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp"])
def test_a_picture_is_upright_in_whatever_format(tmp_path, lying, name, orientation):
    """The angle of line 9 counts from upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(lying).save(tmp_path / name, exif=exif, quality=95)
    image = read_image(str(tmp_path / name)).permute(1, 2, 0).numpy().astype(int)
    expected = upright(lying, orientation)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 5


@pytest.mark.parametrize(
    "form",
    ['<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>']
    + [
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><tiff:Orientation>6'
        "</tiff:Orientation></rdf:Description>"
    ],
)
@pytest.mark.parametrize("behind", [False, True])  # a comment of 64 KB
def test_a_jpeg_whose_orientation_stands_only_in_xmp_is_upright(tmp_path, lying, form, behind):
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
        f'"http://www.w3.org/1999/02/22-rdf-syntax-ns#">{form}</rdf:RDF></x:xmpmeta>'
    )
    path = tmp_path / "a.jpg"
    Image.fromarray(lying).save(path, xmp=xmp.encode(), quality=95)
    if behind:
        comment = b"\xff\xfe\xff\xff" + bytes(65_533)  # marker, length, text
        path.write_bytes(b"\xff\xd8" + comment + path.read_bytes()[2:])
        assert path.read_bytes().index(b"tiff:Orientation") > 65_536
    image = read_image(str(tmp_path / "a.jpg")).permute(1, 2, 0).numpy().astype(int)
    expected = upright(lying, 6)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 5


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS allows UTF-8 names alone")
@pytest.mark.parametrize("ending", [b".jpg", b".png"])
def test_a_file_whose_name_is_not_utf_8(tmp_path, lying, ending):
    path = os.fsencode(tmp_path) + b"/caf\xe9" + ending
    with open(path, "wb") as file:
        Image.fromarray(lying).save(file, "PNG" if ending == b".png" else "JPEG", quality=95)
    image = read_image(os.fsdecode(path)).permute(1, 2, 0).numpy().astype(int)
    assert image.shape == lying.shape and np.abs(image - lying).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("how", ["png", "tiff lzw", "tiff raw"])
def test_grey_pictures_of_8_and_16_bits_are_turned_and_exact(tmp_path, how, bits, orientation):
    values = np.random.default_rng(0).integers(2**bits, size=(40, 48))
    values.flat[:6] = 0, 1, 255, 2**bits - 1, 2**bits - 256, 2**bits // 2
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / f"a.{how[:4].strip()}")
    compression = {"compression": "tiff_lzw"} if how == "tiff lzw" else {}
    Image.fromarray(values.astype(f"uint{bits}")).save(path, exif=exif, **compression)
    image = read_image(path).numpy()
    expected = upright(values // 2 ** (bits - 8), orientation)
    assert image.shape == (3, *expected.shape) and (image == expected).all()


@pytest.mark.parametrize("values", [[0, 255], [0, 70_000], [-1, 1]])
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_pixels_are_refused_by_path(tmp_path, kind, values):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.linspace(*values, 81).reshape(9, 9).astype(kind)).save(path)
    with pytest.raises(InputError, match=f"^{path}: not a readable image .*32-bit"):
        read_image(str(path))


def test_test_transform_is_that_of_the_reference_within_a_grey_level(kinds, tiny_root):
    path = str(kinds[0] / "with space.jpg")
    theirs = v1.Compose([v1.Resize(256), v1.CenterCrop(224)])(Image.open(path).convert("RGB"))
    ours = load("tiny", str(tiny_root))["test"].transform(read_image(path))
    difference = ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs)
    assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize("seed", range(8))
def test_colour_jitter_is_torchvisions_where_nothing_is_clipped(seed):
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(100, 140, (3, 20, 30), dtype=torch.uint8, generator=g)
    torch.manual_seed(seed)
    ours = colour_jitter(image)
    torch.manual_seed(seed)
    order = torch.randperm(3).tolist()
    factors = torch.empty(3).uniform_(0.6, 1.4).tolist()
    theirs = image / 255
    for step, factor in zip(order, factors, strict=True):
        theirs = (F.adjust_contrast, F.adjust_brightness, F.adjust_saturation)[step](theirs, factor)
    assert theirs.min() > 0 and theirs.max() < 1 and len(set(order)) == 3
    assert (ours - 255 * theirs).abs().max() < 1.01


def test_training_images_are_augmented_anew_each_time_and_the_others_are_not(tiny_root):
    for split, dataset in load("tiny", str(tiny_root), 64).items():
        images = torch.stack([dataset[0][0] for _ in range(50)])
        assert images.shape == (50, 3, 64, 64) and images.dtype == torch.uint8
        assert len(images.unique(dim=0)) == (50 if split == "train" else 1)


# ------------------------------------------------------------------------------ loading
@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_a_function_of_the_seed_and_differs_between_loading_processes(
    tiny_root, workers
):
    dataset = load("tiny", str(tiny_root), 32)["train"]
    batches = [[3, 30, 3]] * 4  # two of each loading process

    def epoch(seed):
        torch.manual_seed(seed)
        images, labels = zip(*loader(dataset, workers, batch_sampler=batches), strict=True)
        assert torch.equal(torch.stack(labels), torch.tensor([[0, 1, 0]] * 4))
        return torch.stack(images)

    first = epoch(5)
    assert torch.equal(first, epoch(5)) and not torch.equal(first, epoch(6))
    assert len(first.flatten(0, 1).unique(dim=0)) == 12


def test_any_dataloader_takes_the_dataset(tiny_root):
    dataset = load("tiny", str(tiny_root), 32)["train"]
    images, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=5, shuffle=True)))
    assert images.shape == (5, 3, 32, 32) and labels.shape == (5,)


def test_paths_are_no_list_that_loading_processes_would_copy(tiny_root):
    paths = load("tiny", str(tiny_root))["train"].images
    assert isinstance(paths, np.ndarray) and not paths.dtype.hasobject


def test_loading_processes_follow_affinity():
    every = os.sched_getaffinity(0)
    try:
        for cores in ({min(every)}, every):
            os.sched_setaffinity(0, cores)
            assert runpy.run_path(data.__file__)["CORES"] == len(cores)
    finally:
        os.sched_setaffinity(0, every)


# ------------------------------------------------------------------------------ lists
def test_lists_with_crlf_tabs_spaces_blank_lines_and_a_bom(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    colours = {"train/a b.jpg": 10, "train/c.jpg": 90, "train/t\tab.jpg": 170, "val/ä  1.jpg": 250}
    for path, red in colours.items():
        Image.new("RGB", (9, 9), (red, 0, 0)).save(tmp_path / path)
    (tmp_path / "my_lt_train.txt").write_bytes(
        b"\xef\xbb\xbftrain/a b.jpg 0\r\ntrain/c.jpg\t1\r\n\r\n  train/t\tab.jpg 01 \n"
    )
    (tmp_path / "my_lt_val.txt").write_text("val/ä  1.jpg 1\n", encoding="utf-8")
    (tmp_path / "my_lt_test.txt").write_text("val/ä  1.jpg  0", encoding="utf-8")
    sets = load("my_lt", str(tmp_path), 32)
    assert [s.labels.tolist() for s in sets.values()] == [[0, 1, 1], [1], [0]]
    assert [s.N_c.tolist() for s in sets.values()] == [[1, 2], [0, 1], [1, 0]]
    raw = [read_image(os.path.join(tmp_path, path)) for path in sets["train"].paths]
    assert [round(image[0].float().mean().item(), -1) for image in raw] == [10, 90, 170]
    assert all(s[i][0].shape == (3, 32, 32) for s in sets.values() for i in range(len(s)))


def copies(root, *names):
    """Lists under other names: of each name another first training image."""
    for i, name in enumerate(names):
        lines = (root / "tiny_train.txt").read_text().splitlines(keepends=True)
        (root / f"{name}_train.txt").write_text("".join(lines[i:] + lines[:i]))
        for split in ("val", "test"):
            shutil.copy(root / f"tiny_{split}.txt", root / f"{name}_{split}.txt")


def test_names_that_differ_by_case(tmp_path):
    write_lists(tmp_path)
    copies(tmp_path, "foo", "Foo", "Bar_LT")
    assert load("foo", str(tmp_path))["train"].paths[0].endswith("/0.JPEG")  # the exact spelling
    assert load("Foo", str(tmp_path))["train"].paths[0].endswith("/1.JPEG")
    assert load("bar_lt", str(tmp_path))["train"].paths[0].endswith("/2.JPEG")  # the only other
    with pytest.raises(InputError, match="FOO_train.txt not found .* there are: Foo, foo "):
        load("FOO", str(tmp_path))
    os.remove(tmp_path / "foo_val.txt")
    with pytest.raises(OSError, match="foo_val.txt"):  # never Foo's
        load("foo", str(tmp_path))
    os.rename(tmp_path / "Bar_LT_test.txt", tmp_path / "bar_lt_test.txt")
    with pytest.raises(OSError, match="Bar_LT_test.txt"):
        load("bar_lt", str(tmp_path))


@pytest.mark.parametrize("name", ["glyphs_lt", "CIFAR100_LT"])
def test_own_lists_with_the_name_of_a_built_in_dataset_are_not_ignored(tmp_path, name):
    write_lists(tmp_path, name)
    with pytest.raises(InputError, match=f"{name}_train.txt: the name of a built-in dataset"):
        load(name, str(tmp_path))


@pytest.mark.parametrize("name", ["glyphs_lt", "cifar10_lt", "CIFAR100_LT"])
def test_size_of_images_in_memory_is_theirs(name, tmp_path):
    with pytest.raises(InputError, match=f"--size 64: {name} has images of 32 pixels"):
        load(name, str(tmp_path), 64)


def test_only_the_images_of_the_asked_splits_are_looked_up(tmp_path):
    write_lists(tmp_path)
    shutil.rmtree(tmp_path / "train")
    assert load("tiny", str(tmp_path), 32, splits=["test"])["test"][0][0].shape == (3, 32, 32)
    with pytest.raises(InputError, match="train list: 62 of 62 images are not in"):
        load("tiny", str(tmp_path), 32)


def test_lists_without_their_images_are_described_but_not_trained(tmp_path, refused, capsys):
    write_lists(tmp_path)
    shutil.rmtree(tmp_path / "train")
    os.remove(tmp_path / "test/n00000001/0.JPEG")
    out = described(capsys, "--data", "tiny", "--root", tmp_path)
    assert "Medium       45 images      2 classes" in out
    assert "62 of 62 train images are not there yet" in out
    assert "1 of 20 test images are not there yet" in out and "val images are not" not in out
    line = refused(train.main, tiny_flags(tmp_path, out=tmp_path / "run"))
    assert "62 of 62 images are not in" in line and "train/n00000000/0.JPEG" in line
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------ CIFAR
def write_cifar(root, n_train, n_test, order=None):
    """Archives laid out as torchvision expects CIFAR, of noise in their first eight pixels."""
    rng = np.random.default_rng(0)

    def archive(folder, names, meta, key, C):
        (root / folder).mkdir(parents=True)
        images = np.zeros((n_train + n_test, 3072), np.uint8)
        images[:, :8] = rng.integers(256, size=(len(images), 8))
        labels = np.arange(len(images)) % C
        if order is not None:
            images[:n_train] = images[order]
            labels[:n_train] = labels[order]
        parts = [
            *np.array_split(np.arange(n_train), len(names) - 1),
            np.arange(n_train, len(images)),
        ]
        for name, part in zip(names, parts, strict=True):
            content = {"data": images[part], key: labels[part].tolist()}
            (root / folder / name).write_bytes(pickle.dumps(content))
        content = {meta[1]: [str(c) for c in range(C)]}
        (root / folder / meta[0]).write_bytes(pickle.dumps(content))

    batches = [f"data_batch_{i}" for i in range(1, 6)]
    meta = "batches.meta", "label_names"
    archive("cifar-10-batches-py", [*batches, "test_batch"], meta, "labels", 10)
    meta = "meta", "fine_label_names"
    archive("cifar-100-python", ["train", "test"], meta, "fine_labels", 100)
    return str(root)


@pytest.fixture
def untested_sums(monkeypatch):
    """Let any archive that is there pass for the real one."""
    monkeypatch.setattr(torchvision_cifar, "check_integrity", lambda path, *_: os.path.isfile(path))


def pictures(split):
    """{label: the pictures of a CIFAR split as bytes}."""
    found = {}
    for image, label in zip(split.images[:, 0, 0, :8].numpy(), split.labels.tolist(), strict=True):
        found.setdefault(label, []).append(image.tobytes())
    return found


def test_cifar_counts_and_splits(tmp_path, untested_sums):
    root = write_cifar(tmp_path, 50000, 10000)
    for name, N, largest, val in (
        ("cifar10_lt", 12406, 5000, 500),
        ("cifar100_lt", 10847, 500, 50),
    ):
        sets = load(name, root)
        C = int(name[5:-3])
        c = np.arange(C)
        N_c = sets["train"].N_c
        assert (N_c == np.floor(largest * 100 ** (-c / (C - 1)) + 1e-9)).all() and N_c.sum() == N
        # what is left, up to a tenth of the largest
        assert (sets["val"].N_c == np.minimum(largest - N_c, val)).all()
        assert len(sets["test"]) == 10000 and (sets["test"].N_c == 10000 // C).all()
        rows = [set(sum(pictures(split).values(), [])) for split in sets.values()]
        assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
        assert len(rows[0]) == N
    image, label = sets["train"][0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and label == 0
    assert load("cifar10_lt", root, imbalance=10)["train"].N_c.tolist()[::9] == [5000, 500]


def test_cifar_lt_does_not_depend_on_the_order_of_the_archive(tmp_path, untested_sums):
    order = np.random.default_rng(3).permutation(500)
    roots = write_cifar(tmp_path / "a", 500, 20), write_cifar(tmp_path / "b", 500, 20, order)
    archives = [torchvision_cifar.CIFAR10(root).data[:, 0, :8, 0] for root in roots]
    assert (archives[1] == archives[0][order]).all() and (archives[1] != archives[0]).any()
    a, b = (load("cifar10_lt", root, imbalance=25) for root in roots)
    for split in data.SPLITS:
        assert pictures(a[split]) == pictures(b[split])
        assert a[split].fingerprint == b[split].fingerprint
    kept = [len(images) for images in pictures(a["train"]).values()]
    assert kept[0] == 50 and kept[-1] == 2
    in_the_archive = [image.tobytes() for image in archives[0]]
    positions = [in_the_archive.index(image) for image in pictures(a["train"])[5]]
    assert positions != sorted(positions)  # drawn at random: not the first of a class, or lowest
    drawn = pictures(a["train"])[5]
    assert sorted(drawn) != sorted(in_the_archive[5::10])[: len(drawn)]


def test_cifar_that_loses_a_class_is_refused_and_a_name_that_begins_alike_is_a_users_own(
    tmp_path, untested_sums
):
    root = write_cifar(tmp_path, 500, 20)
    with pytest.raises(InputError, match="--imbalance 100 leaves a class without an image"):
        load("cifar10_lt", root)
    write_lists(tmp_path, "cifar_mine")
    assert load("cifar_mine", root, 32)["test"][0][0].shape == (3, 32, 32)


def test_cifar_trains_with_the_small_stem_from_the_command_line(tmp_path, untested_sums, capsys):
    root = write_cifar(tmp_path, 500, 20)
    flags = "--data cifar10_lt --imbalance 50 --batch-size 32 --epochs 1 --small-stem --workers 0"
    argv = [*flags.split(), "--lambdas", "0", "1", "0", "--root", root]
    train.main([*argv, "--out", str(tmp_path / "run")])
    assert "RRS-Only on cifar10_lt: 10 classes" in capsys.readouterr().out
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["model"]["phi.resnet.conv1.weight"].shape == (64, 3, 3, 3)
    assert state["N_c"][::9] == [50, 1]
    evaluate.main([str(tmp_path / "run/last.pt"), "--split", "val"])
    assert "val accuracy" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_balanced_cifar_leaves_no_validation_image_and_trains(tmp_path, untested_sums, refused):
    root = write_cifar(tmp_path, 500, 20)
    flags = "--data cifar10_lt --imbalance 1 --batch-size 248 --epochs 1 --lr 0.001 --workers 0"
    train.main([*flags.split(), "--root", root, "--out", str(tmp_path / "run")])
    (row,) = torch.load(tmp_path / "run/last.pt", weights_only=True)["record"]
    assert all(np.isnan(row[f"val_{shot}"]) for shot in ("Many", "Medium", "Low", "Overall"))
    said = refused(evaluate.main, [str(tmp_path / "run/last.pt"), "--split", "val"])
    assert "cifar10_lt has no val image" in said
    evaluate.main([str(tmp_path / "run/last.pt")])


def test_cifar_is_fetched_where_it_is_not_there(
    tmp_path, untested_sums, refused, monkeypatch, capsys
):
    fetched = []

    def offline(url, root, **kwargs):
        raise URLError("no network")

    def online(url, root, **kwargs):
        fetched.append(os.path.basename(url))
        write_cifar(tmp_path / "away", 500, 20)
        shutil.copytree(tmp_path / "away", root, dirs_exist_ok=True)

    argv = ["--data", "cifar10_lt", "--root", str(tmp_path / "here"), "--imbalance", "5"]
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", offline)
    assert "CIFAR10 can't be downloaded (<urlopen error no network>)" in refused(data.main, argv)
    monkeypatch.setattr(torchvision_cifar, "download_and_extract_archive", online)
    out = described(capsys, *argv)
    assert "downloading CIFAR10" in out and "largest: class 0 with 50" in out
    assert "downloading" not in described(capsys, *argv)
    assert fetched == ["cifar-10-python.tar.gz"]


# ------------------------------------------------------------------------------ python data.py
def described(capsys, *argv):
    capsys.readouterr()
    data.main([str(a) for a in argv])
    return capsys.readouterr().out


def test_describe_and_check(tiny_root, capsys):
    out = described(capsys, "--data", "tiny", "--root", tiny_root, "--check").splitlines()
    largest = "largest: class 0 with"
    assert out == [
        f"train        62 images      4 classes   smallest: class 3 with 5, {largest} 24",
        f"val          12 images      4 classes   smallest: class 0 with 3, {largest} 3",
        f"test         20 images      4 classes   smallest: class 0 with 5, {largest} 5",
        "Many          0 images      0 classes",
        "Medium       45 images      2 classes",
        "Low          17 images      2 classes",
        "94 images: 0 broken, 0 repeated, 0 of one colour",
    ]


def test_a_class_that_a_split_lacks_is_said(tmp_path, capsys):
    write_lists(tmp_path, counts=([9, 6, 3], [2, 2, 2], [4, 4, 0]))
    line = described(capsys, "--data", "tiny", "--root", tmp_path).splitlines()[2]
    assert line.split(maxsplit=1)[1] == (
        "8 images      2 classes   smallest: class 2 with 0, largest: class 0 with 4"
    )
    train.main(tiny_flags(tmp_path, out=tmp_path / "run", epochs=1))
    said = "(1 classes have no test image and take no part)"
    assert capsys.readouterr().out.splitlines()[-2] == said
    evaluate.main([str(tmp_path / "run/last.pt"), "--workers", "0"])
    assert capsys.readouterr().out.splitlines()[-1] == said  # and not that it is not balanced


def check(capsys, root):
    """What `--check` prints, and of what it complains, or None."""
    try:
        return described(capsys, "--data", "tiny", "--root", root, "--check"), None
    except InputError as error:
        return capsys.readouterr().out, str(error)


def test_check_names_every_broken_file_and_counts_those_of_one_colour(tmp_path, capsys):
    write_lists(tmp_path)
    (tmp_path / "train/n00000002/3.JPEG").write_bytes(b"no image")
    (tmp_path / "test/n00000001/0.JPEG").write_bytes(b"")
    for name, colour in (("0", (9, 99, 200)), ("1", "black")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"val/n00000003/{name}.JPEG")
    out, complaint = check(capsys, tmp_path)
    assert complaint.startswith("2 images are broken, 0 repeated")
    assert "n00000002/3.JPEG: not a readable image" in out
    assert "n00000001/0.JPEG: not a readable image" in out
    assert "94 images: 2 broken, 0 repeated, 2 of one colour" in out


def test_check_compares_the_order_of_the_classes(tmp_path, capsys):
    write_lists(tmp_path)
    lines = (tmp_path / "tiny_test.txt").read_text().splitlines()
    swapped = {"0": "0", "1": "2", "2": "1", "3": "3"}
    (tmp_path / "tiny_test.txt").write_text(
        "".join(f"{line[:-1]}{swapped[line[-1]]}\n" for line in lines)
    )
    out, complaint = check(capsys, tmp_path)
    assert "0 images are broken, 0 repeated; 2 classes have another label" in complaint
    assert out.splitlines()[-2:] == [
        "n00000001: label 1 in train, label 2 in test",
        "n00000002: label 2 in train, label 1 in test",
    ]


def test_check_is_content_where_a_folder_is_no_class(tmp_path, capsys):
    """Tiny-ImageNet's CLASS/images, and Places' suburb/a/outdoor and suburb/b/outdoor."""
    write_lists(tmp_path)
    for split in data.SPLITS:
        path = tmp_path / f"tiny_{split}.txt"
        text = path.read_text()
        for folder in sorted((tmp_path / split).iterdir()):
            (folder / "outdoor").mkdir()
            for image in folder.glob("*.JPEG"):
                image.rename(folder / "outdoor" / image.name)
            text = text.replace(f"{folder.name}/", f"{folder.name}/outdoor/")
        path.write_text(text)
    (tmp_path / "tiny_val.txt").write_text("val/n00000003/outdoor/0.JPEG 3\n")  # one label here
    assert check(capsys, tmp_path)[1] is None


def test_the_same_file_under_two_names_is_repeated(tmp_path, capsys):
    write_lists(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "val")
    with open(tmp_path / "tiny_test.txt", "a") as lines:
        lines.write("train/n00000000/0.JPEG 0\n./test/n00000001/0.JPEG 1\n")
        lines.write("link/n00000002/1.JPEG 2\ntest/../train/n00000000/1.JPEG 0\n")
        lines.write("test/alias.JPEG 0\n")
    (tmp_path / "test/alias.JPEG").symlink_to("../train/n00000000/2.JPEG")
    out, complaint = check(capsys, tmp_path)
    assert complaint.startswith("0 images are broken, 5 repeated")
    assert "warning: 3 test images are training images, too" in out


def test_check_opens_what_training_opens_below_a_link(tmp_path, capsys):
    """`..` of a link is the folder above its target."""
    root = write_lists(tmp_path / "root")
    (tmp_path / "away/deep").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "away/deep")
    shutil.move(root / "test", tmp_path / "away/test")
    path = root / "tiny_test.txt"
    path.write_text(path.read_text().replace("test/", "link/../test/"))
    assert load("tiny", str(root), 32)["test"][0][0].shape == (3, 32, 32)
    assert check(capsys, root)[1] is None


def test_overlap_of_train_and_test_is_said_wherever_accuracy_is_printed(tmp_path, capsys):
    write_lists(tmp_path, counts=([9, 6, 3], [2, 1, 1], [1] * 3))
    shutil.copy(tmp_path / "tiny_train.txt", tmp_path / "tiny_test.txt")
    with open(tmp_path / "tiny_val.txt", "a") as lines:
        lines.write("train/n00000001/4.JPEG 1\n")
    start = ["warning: 1 val images are training images, too"]
    start += ["warning: 18 test images are training images, too"]
    with_accuracy = ["warning: 18 of these 18 images are training images"]

    def warnings(out):
        return [line for line in out.splitlines() if "warning" in line]

    out, complaint = check(capsys, tmp_path)
    assert warnings(out) == start and "19 repeated" in complaint
    train.main(tiny_flags(tmp_path, out=tmp_path / "run", epochs=1))
    assert warnings(capsys.readouterr().out) == start + with_accuracy
    evaluate.main([str(tmp_path / "run/last.pt"), "--workers", "0"])
    assert warnings(capsys.readouterr().out) == with_accuracy
    evaluate.main([str(tmp_path / "run/last.pt"), "--workers", "0", "--split", "val"])
    out = capsys.readouterr().out
    assert warnings(out) == ["warning: 1 of these 5 images are training images"]


def test_an_image_that_the_train_list_repeats_is_said(tmp_path, capsys):
    write_lists(tmp_path, counts=([9, 6, 3], [2, 1, 1], [1] * 3))
    (tmp_path / "link").symlink_to("train")
    with open(tmp_path / "tiny_train.txt", "a") as lines:
        lines.write("train/n00000001/4.JPEG 1\n./train/n00000001/4.JPEG 1\n")
        lines.write("link/n00000002/0.JPEG 2\n")
    with open(tmp_path / "tiny_test.txt", "a") as lines:
        lines.write("test/n00000001/0.JPEG 1\n")
    said = "warning: 3 lines of the train list repeat an image\n"
    said += "warning: 1 lines of the test list repeat an image\n"
    assert said in described(capsys, "--data", "tiny", "--root", tmp_path)
    flags = tiny_flags(tmp_path, out=tmp_path / "run", epochs=1)
    train.main(flags)
    assert said in capsys.readouterr().out


def test_validation_and_test_may_be_one_list_and_it_is_named(tmp_path, capsys):
    write_lists(tmp_path)
    shutil.copy(tmp_path / "tiny_test.txt", tmp_path / "tiny_val.txt")
    out, complaint = check(capsys, tmp_path)
    assert complaint is None and "val and test are the same list" in out and "warning" not in out
    assert "82 images: 0 broken, 0 repeated, 0 of one colour" in out
    with open(tmp_path / "tiny_val.txt", "a") as lines:
        lines.write("val/n00000001/0.JPEG 1\n")
    out, complaint = check(capsys, tmp_path)
    assert "the same list" not in out and complaint.startswith("0 images are broken, 20 repeated")


# ------------------------------------------------------------------------------ --make
def write_folders(root, sizes, below=""):
    """DIR/CLASS/*.png, each file its own picture."""
    for label, (name, n) in enumerate(sizes.items()):
        folder = root / name / below
        folder.mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (4, 4), (i, i, label)).save(folder / f"{i}.png")
    return root


def made(root, name):
    """The lines of each list, as (path, label)."""
    lists = {}
    for split in data.SPLITS:
        lines = (root / f"{name}_{split}.txt").read_text().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines]
        lists[split] = [(path, int(label)) for path, label in pairs]
    return lists


def counts(lines, C):
    return np.bincount([label for _, label in lines], minlength=C).tolist()


FEW = ["--max", "20", "--min", "2", "--val", "4", "--test", "6"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    sizes = {f"class {c}": 40 for c in "abcde"}
    return write_folders(tmp_path_factory.mktemp("folders"), sizes)


def test_make_writes_disjoint_lists_by_the_pareto_rule(folders, tmp_path, refused, capsys):
    argv = ["--from", folders, "--root", tmp_path, *FEW]
    out = described(capsys, "--make", "my_lt", *argv)
    lists = made(tmp_path, "my_lt")
    assert f"{tmp_path}/my_lt_train.txt: {len(lists['train'])} lines" in out
    assert counts(lists["val"], 5) == [4] * 5 and counts(lists["test"], 5) == [6] * 5
    assert sorted(counts(lists["train"], 5), reverse=True) == pareto(5, 20, 2).tolist()
    everything = [path for lines in lists.values() for path, _ in lines]
    assert len(set(everything)) == len(everything)
    classes = (tmp_path / "my_lt_classes.txt").read_text().splitlines()
    assert classes == [f"class {c}" for c in "abcde"]
    for lines in lists.values():
        assert all(os.path.basename(os.path.dirname(p)) == classes[y] for p, y in lines)
    sets = load("my_lt", str(tmp_path), 32)
    assert [len(split) for split in sets.values()] == [len(lines) for lines in lists.values()]
    assert all(read_image(str(tmp_path / path))[2, 0, 0] == y for path, y in lists["test"])
    out = described(capsys, "--data", "my_lt", "--root", tmp_path, "--check")
    assert "0 broken, 0 repeated" in out

    before = (tmp_path / "my_lt_train.txt").read_text()
    assert "my_lt_train.txt exists" in refused(data.main, ["--make", "my_lt", *argv])
    for split in data.SPLITS:
        os.rename(tmp_path / f"my_lt_{split}.txt", tmp_path / f"kept_{split}.txt")
    assert "my_lt_classes.txt exists" in refused(data.main, ["--make", "my_lt", *argv])
    assert not (tmp_path / "my_lt_train.txt").exists()
    described(capsys, "--make", "again", *argv)  # the same seed chooses the same images
    assert (tmp_path / "again_train.txt").read_text() == before
    described(capsys, "--make", "other", *argv, "--seed", 1)
    assert set(made(tmp_path, "other")["train"]) != set(lists["train"])


def test_make_gives_larger_folders_larger_counts_and_shuffles_equal_ones(tmp_path, capsys):
    sizes = {"a": 12, "b": 40, "c": 14, "d": 40, "e": 100, "f": 40}
    write_folders(tmp_path, sizes)
    write_folders(tmp_path, {".git": 3})
    (tmp_path / "a/._0.png").touch()  # as macOS leaves them
    (tmp_path / "a/notes.txt").touch()
    seen = set()
    for seed in range(8):
        argv = ["--from", tmp_path, "--max", 90, "--min", 2, "--val", 2, "--test", 3]
        described(capsys, "--make", f"x{seed}", *argv, "--seed", seed)
        lists = made(tmp_path, f"x{seed}")
        a, b, c, d, e, f = N_c = counts(lists["train"], 6)
        assert sorted(N_c) == sorted(pareto(6, 90, 2)) and len(set(N_c)) > 4
        assert e >= max(b, d, f) and min(b, d, f) >= c >= a
        seen.add((b, d, f))
        paths = [path for lines in lists.values() for path, _ in lines]
        assert all(path.endswith(".png") and "/." not in path for path in paths)
    assert len(seen) > 2


def test_make_takes_tiny_imagenets_own_layout(tmp_path, capsys):
    """CLASS/images/*.JPEG beside CLASS/boxes.txt."""
    source = write_folders(tmp_path / "tiny-200", dict.fromkeys(("n1", "n2", "n3"), 40), "images")
    for image in source.rglob("*.png"):
        image.rename(image.with_suffix(".JPEG"))
    (source / "n1/n1_boxes.txt").write_text("0 0 4 4\n")
    argv = ["--make", "tin", "--from", source, "--root", tmp_path, *FEW]
    described(capsys, *argv)
    lists = made(tmp_path, "tin")
    assert counts(lists["test"], 3) == [6] * 3
    assert sorted(counts(lists["train"], 3), reverse=True) == pareto(3, 20, 2).tolist()
    for path, label in sum(lists.values(), []):
        assert path.startswith(f"tiny-200/n{label + 1}/images/") and (tmp_path / path).is_file()


def test_make_leaves_hidden_folders_below_a_class_alone(tmp_path, capsys):
    write_folders(tmp_path, {"a": 40, "b": 40})
    shutil.copytree(tmp_path / "a", tmp_path / "a/.ipynb_checkpoints")
    shutil.copytree(tmp_path / "b", tmp_path / "b/.ipynb_checkpoints")
    described(capsys, "--make", "x", "--from", tmp_path, *FEW)
    assert not [p for p, _ in sum(made(tmp_path, "x").values(), []) if "/." in p]


@pytest.mark.parametrize("root", ["link", "link/../beside", "real/deep", "."])
@pytest.mark.parametrize("source", ["folders", "folders link", "link/../beside/folders"])
def test_make_writes_lists_that_open_through_links(tmp_path, monkeypatch, capsys, root, source):
    monkeypatch.chdir(tmp_path)
    for folder in ("folders", "real/beside/folders"):
        write_folders(tmp_path / folder, {"a": 40, "b": 40})
    for folder in ("real/deep", "beside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "folders link").symlink_to("folders")
    described(capsys, "--make", "x", "--from", source, "--root", root, *FEW)
    out = described(capsys, "--data", "x", "--root", root, "--check")
    assert "not there" not in out and " 0 broken, 0 repeated" in out
    assert len(load("x", root, 32)["test"]) == 12


@pytest.mark.parametrize("name", [" a", "a\nb", "a\rb"])
def test_make_refuses_names_that_a_list_cannot_hold(tmp_path, refused, name):
    for folder in "c", name:
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.png").touch()
    line = refused(data.main, ["--make", "mine", "--from", tmp_path, "--max", 1, "--min", 1])
    assert f"{name + '/0.png'!r}: a list can't hold" in line
    assert not list(tmp_path.glob("*.txt"))


def test_make_follows_a_class_folder_that_is_a_link(tmp_path, capsys):
    write_folders(tmp_path / "disk", {"b": 40, "c": 40})
    write_folders(tmp_path / "set", {"a": 40})
    (tmp_path / "set/b").symlink_to(tmp_path / "disk/b")
    described(capsys, "--make", "x", "--from", tmp_path / "set", *FEW)
    assert (tmp_path / "set/x_classes.txt").read_text().split() == ["a", "b"]
    assert len(load("x", str(tmp_path / "set"), 32)["test"]) == 12


def test_make_writes_all_lists_or_none(folders, tmp_path, refused, monkeypatch):
    def full(path, content):
        if path.endswith("test.txt"):
            raise InputError(f"{path} can't be written (No space left on device)")
        write(path, content)

    write = data.write
    monkeypatch.setattr(data, "write", full)
    line = refused(data.main, ["--make", "x", "--from", folders, "--root", tmp_path, *FEW])
    assert f"{tmp_path}/x_test.txt can't be written" in line and not list(tmp_path.iterdir())


def test_make_takes_a_file_of_two_names_once_and_never_in_two_classes(tmp_path, refused, capsys):
    write_folders(tmp_path, {"a": 36, "b": 40})
    for i in range(4):
        (tmp_path / f"a/link{i}.png").symlink_to(f"{i}.png")
        os.link(tmp_path / f"a/{i}.png", tmp_path / f"a/hard{i}.png")
    argv = ["--from", tmp_path, "--val", 4, "--test", 6, "--max", 30, "--min"]
    line = refused(data.main, ["--make", "x", *argv, 30])
    assert "a has 36 images, fewer than the 30 + 4 + 6" in line
    described(capsys, "--make", "x", *argv, 20)
    files = [os.stat(tmp_path / path).st_ino for path, _ in sum(made(tmp_path, "x").values(), [])]
    assert len(files) == len(set(files))
    (tmp_path / "b/a.png").symlink_to("../a/7.png")
    line = refused(data.main, ["--make", "y", *argv, 20])
    assert "b/a.png and " in line and "a/7.png are one file, but of two classes" in line


def test_what_make_can_just_give_and_what_it_cannot(folders, tmp_path, refused, capsys):
    argv = ["--from", folders, "--root", tmp_path, "--val", 4, "--test", 6]
    line = refused(data.main, ["--make", "x", *argv, "--max", 31])
    assert "has 40 images, fewer than the 31 + 4 + 6" in line
    assert not list(tmp_path.iterdir())
    described(capsys, "--make", "x", *argv, "--max", 30)
    assert max(counts(made(tmp_path, "x")["train"], 5)) == 30
