"""Datasets against hand-worked and published counts; images of every kind against NumPy."""

import io
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar as torchvision_cifar
from conftest import tiny_flags, write_lists
from PIL import Image, PngImagePlugin
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F

import data
from data import InputError, augment, load, loader, pareto, read_image


def test_pareto_counts_worked_out_by_hand():
    # C = 3, 640 to 10, alpha = 6: x runs over 1, 1.5, 2, so 640, 640 / 1.5^6 = 56.19, 640 / 64
    assert pareto(3, 640, 10).tolist() == [640, 56, 10]
    # alpha = 1: x runs over 1, 2.5, 4
    assert pareto(3, 100, 25, alpha=1).tolist() == [100, 40, 25]


# ------------------------------------------------------------------------------ glyphs
def test_glyphs_are_long_tailed_balanced_where_they_are_tested_and_the_same_each_time():
    sets = load("glyphs_lt")
    assert len(set(data.GLYPHS)) == len(data.GLYPHS) == 62
    assert sets["train"].N_c.tolist() == pareto(62, 1000, 5).tolist()
    assert set(sets["val"].N_c) == {20} and set(sets["test"].N_c) == {40}
    image, label = sets["train"][len(sets["train"]) - 1]
    assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.uint8, 61)
    assert all(image[0].float().std() > 12 for image in sets["test"].images[::40])  # each shows
    assert torch.equal(load("glyphs_lt", splits=["test"])["test"].images, sets["test"].images)
    first = [sets[split].images[0] for split in data.SPLITS]
    assert len(torch.stack(first).unique(dim=0)) == 3


# ------------------------------------------------------------------------------ images
@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Image files of many kinds, all of one picture."""
    folder = tmp_path_factory.mktemp("kinds")
    x = np.linspace(0, 255, 48)
    channels = np.tile(x, (40, 1)), np.tile(x[:40, None], (1, 48)), np.full((40, 48), 99)
    picture = np.stack(channels, 2).astype(np.uint8)
    image = Image.fromarray(picture)
    grey = image.convert("L")
    for kind in "jpg", "png", "bmp", "tiff":
        image.save(folder / f"colour.{kind}", quality=95)
    image.save(folder / "colour.webp", lossless=True)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P", palette=Image.ADAPTIVE, colors=256).save(folder / "palette.png")
    shutil.copy(folder / "colour.jpg", folder / "really_a_jpeg.png")
    for kind in "jpg", "png":
        grey.save(folder / f"grey.{kind}", quality=95)
    return folder, picture, np.asarray(grey)[..., None].repeat(3, 2)


@pytest.mark.parametrize("decoder", ["torchvision", "Pillow"])
@pytest.mark.parametrize(
    "name, tolerance",
    [("colour.jpg", 3), ("cmyk.jpg", 3), ("really_a_jpeg.png", 3), ("grey.jpg", 3)]
    + [("palette.png", 8), ("colour.png", 0), ("colour.bmp", 0), ("colour.tiff", 0)]
    + [("colour.webp", 0), ("alpha.png", 0), ("grey.png", 0)],
)
def test_every_kind_of_image_decodes_to_its_picture(kinds, monkeypatch, name, tolerance, decoder):
    """Also by a torchvision that has no decode_jpeg."""
    if decoder == "Pillow":
        monkeypatch.delattr(data.torchvision.io, "decode_jpeg")
    folder, picture, grey = kinds
    image = read_image(str(folder / name))
    assert image.dtype == torch.uint8 and image.shape == (3, 40, 48)
    difference = image.permute(1, 2, 0).numpy().astype(int) - (grey if "grey" in name else picture)
    assert np.abs(difference).mean() <= tolerance


@pytest.fixture(scope="module")
def lying():
    """A picture that no turn leaves as it was, and that JPEG does not spoil."""
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(5, 6, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)


def assert_is(path, expected):
    image = read_image(str(path)).permute(1, 2, 0).numpy().astype(int)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_images_are_upright(tmp_path, lying, name, orientation):
    """The angle of line 9 counts from upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(lying).save(tmp_path / name, exif=exif, quality=95)
    turned = [  # which edges the first row and column are
        lying,  # top, left
        lying[:, ::-1],  # top, right
        lying[::-1, ::-1],  # bottom, right
        lying[::-1],  # bottom, left
        lying.swapaxes(0, 1),  # left, top
        np.rot90(lying, -1),  # right, top
        np.rot90(lying.swapaxes(0, 1), 2),  # right, bottom
        np.rot90(lying),  # left, bottom
    ]
    assert_is(tmp_path / name, turned[orientation - 1])


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
XMP += b'"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff='
XMP += b'"http://ns.adobe.com/tiff/1.0/"%s/></rdf:RDF></x:xmpmeta>'
EXIF = b"Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # big-endian, orientation 6


@pytest.mark.parametrize(
    "segments",
    [[EXIF], [XMP % b"", EXIF], [XMP % b' tiff:Orientation="6"']],
    ids=["big-endian EXIF", "XMP before EXIF, as Pixel phones write it", "XMP alone"],
)
def test_a_jpeg_is_upright_whatever_tells_its_orientation(tmp_path, lying, segments):
    Image.fromarray(lying).save(tmp_path / "a.jpg", quality=95)
    plain = (tmp_path / "a.jpg").read_bytes()
    for segment in reversed(segments):  # behind the first marker; each has its length
        length = (len(segment) + 2).to_bytes(2, "big")
        plain = plain[:2] + b"\xff\xe1" + length + segment + plain[2:]
    (tmp_path / "a.jpg").write_bytes(plain)
    assert_is(tmp_path / "a.jpg", np.rot90(lying, -1))


def photograph(pointer, tag, value):
    """EXIF with orientation 6, and in a further part one tag that is a fraction."""
    ifd = struct.pack("<HHHIHHHHIII", 2, 0x112, 3, 1, 6, 0, pointer, 4, 1, 38, 0)
    part = struct.pack("<HHHIIIii", 1, tag, 10, 1, 56, 0, *value)
    return b"Exif\0\0II*\0\x08\0\0\0" + ifd + part


@pytest.mark.parametrize(
    "segment",
    [photograph(0x8825, 6, (-10, 1)), photograph(0x8769, 0x9204, (-2, 0))],
    ids=["below sea level", "an exposure bias of -2/0, as Samsung phones write it"],
)
def test_a_photograph_is_upright_if_pillow_cannot_write_its_exif_anew(tmp_path, lying, segment):
    Image.fromarray(lying).save(tmp_path / "a.jpg", quality=95)
    plain = (tmp_path / "a.jpg").read_bytes()
    length = (len(segment) + 2).to_bytes(2, "big")
    (tmp_path / "a.jpg").write_bytes(plain[:2] + b"\xff\xe1" + length + segment + plain[2:])
    assert_is(tmp_path / "a.jpg", np.rot90(lying, -1))
    # The same as ImageMagick writes it into PNG.
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(segment):8}\n{segment.hex()}\n")
    Image.fromarray(lying).save(tmp_path / "a.png", pnginfo=text)
    assert_is(tmp_path / "a.png", np.rot90(lying, -1))


def png_of_16_bits(kind, channels):
    """A PNG file by its specification; Pillow does not write 16-bit colour."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    rows = b"".join(b"\0" + bytes(9 * 2 * channels) for _ in range(9))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, kind, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + end


def tiff_of_16_bit_colour():
    tags = [(256, 9), (257, 9), (258, 134), (259, 1), (262, 2), (273, 140), (277, 3), (278, 9)]
    tags += [(279, 486), (284, 1)]
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in tags]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    return head + struct.pack("<HHH", 16, 16, 16) + bytes(9 * 9 * 6)


def tiff(kind):
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), kind)).save(file, "tiff")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [tiff(np.uint16), tiff(np.int32), tiff(np.float32)]
    + [png_of_16_bits(*kind) for kind in ((0, 1), (2, 3), (4, 2), (6, 4))]
    + [tiff_of_16_bit_colour(), b"P6 9 9 4095\n" + bytes(486), b"P5 9 9 4095\n" + bytes(162)],
)
def test_images_of_more_than_8_bits_are_refused_by_name(tmp_path, content):
    path = tmp_path / "deep"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: .*more than 8 bits"):
        read_image(str(path))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """Black ink on a transparent page, in one column half transparent."""
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:, :2] = 255
    alpha[:, 2] = 128 if mode != "P" else 0
    image = Image.fromarray(np.zeros((4, 6), np.uint8)).convert(mode)
    if mode == "P":
        image = Image.fromarray(alpha // 255, "P")
        image.putpalette([90, 0, 0, 0, 0, 0])
        image.info["transparency"] = 0
    else:
        image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    read = read_image(str(tmp_path / "a.png"))
    assert np.abs(read.numpy().astype(int) - (255 - alpha)).max() <= 1


def test_other_numbers_in_a_file_are_no_depth(tmp_path):
    """A BMP file with 16 bits a pixel: 5, 6 and 5."""
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    bmp = b"BM" + struct.pack("<IHHI", 98, 0, 0, 66) + header + masks + b"\xff" * 32
    (tmp_path / "a.bmp").write_bytes(bmp)
    assert (read_image(str(tmp_path / "a.bmp")) > 240).all()


def test_a_broken_image_is_refused_by_name(kinds, tmp_path):
    for content in (kinds[0] / "colour.jpg").read_bytes()[:500], b"text", b"":
        (tmp_path / "broken.jpg").write_bytes(content)
        with pytest.raises(InputError, match="broken.jpg: not a readable image"):
            read_image(str(tmp_path / "broken.jpg"))


def test_test_transform_is_that_of_the_reference_within_a_grey_level(kinds, tiny_root):
    path = str(kinds[0] / "colour.jpg")
    theirs = v1.Compose([v1.Resize(256), v1.CenterCrop(224)])(Image.open(path).convert("RGB"))
    ours = load("tiny", str(tiny_root))["test"].transform(read_image(path))
    difference = ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs)
    assert np.abs(difference).mean() < 1.5
    resize, _ = data.centre_crop("tiny", 224).transforms
    assert resize(torch.zeros(3, 300, 400)).shape == (3, 256, 341)


# ------------------------------------------------------------------------------ augmentation
@pytest.mark.parametrize("seed", range(4))
def test_augment_is_torchvisions_flip_and_adjustments_for_each_image(seed):
    B = torch.randint(256, (20, 3, 8, 9), dtype=torch.uint8)
    torch.manual_seed(seed)
    ours = augment(B)
    torch.manual_seed(seed)
    flip = torch.rand(20) < 0.5
    order = torch.randperm(3).tolist()
    factors = [torch.empty(20).uniform_(0.6, 1.4) for _ in order]
    for i, image in enumerate(B):
        x = F.horizontal_flip(image) if flip[i] else image
        x = x / 255
        for adjustment, factor in zip(order, factors, strict=True):
            adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[adjustment]
            x = adjust(x, factor[i].item())
        assert (ours[i] - 255 * x).abs().max() < 1.1
    assert ours.dtype == torch.uint8 and 0 < flip.sum() < 20 and len(set(factors[0].tolist())) == 20


def test_training_images_are_cropped_anew_each_time_and_the_others_are_not(tiny_root):
    for split, dataset in load("tiny", str(tiny_root), 64).items():
        images = torch.stack([dataset[0][0] for _ in range(20)])
        assert images.shape == (20, 3, 64, 64) and images.dtype == torch.uint8
        assert len(images.unique(dim=0)) == (20 if split == "train" else 1)
        assert dataset.augmented == (split == "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_a_function_of_the_seed_and_differ_between_workers(tiny_root, workers):
    dataset = load("tiny", str(tiny_root), 32)["train"]

    def epoch(seed):
        torch.manual_seed(seed)
        images, labels = zip(*loader(dataset, workers, batch_sampler=[[3, 30, 3]] * 4), strict=True)
        assert torch.equal(torch.stack(labels), torch.tensor([[0, 1, 0]] * 4))
        return torch.stack(images)

    first = epoch(5)
    assert torch.equal(first, epoch(5)) and not torch.equal(first, epoch(6))
    assert len(first.flatten(0, 1).unique(dim=0)) == 12


# ------------------------------------------------------------------------------ lists
def test_lists_with_crlf_tabs_spaces_blank_lines_and_a_bom(tmp_path):
    (tmp_path / "My_LT_train.txt").write_bytes(
        b"\xef\xbb\xbfa b.jpg 0\r\nc/d.jpg\t1\r\n\r\nt\tab.jpg 01 \n"
    )
    (tmp_path / "my_lt_val.txt").write_text("ä  1.jpg 1\n", encoding="utf-8")
    (tmp_path / "my_lt_test.txt").write_text("e.jpg 0", encoding="utf-8")
    sets = load("my_lt", str(tmp_path), 32)
    assert sets["train"].images.tolist() == ["a b.jpg", "c/d.jpg", "t\tab.jpg"]
    assert [s.labels.tolist() for s in sets.values()] == [[0, 1, 1], [1], [0]]
    assert sets["val"].images.tolist() == ["ä  1.jpg"] and sets["train"].N_c.tolist() == [1, 2]
    assert not sets["train"].images.dtype.hasobject  # workers would copy a list of str


@pytest.mark.parametrize(
    "split, line, said",
    [("train", "a.jpg", "tiny_train.txt:2: 'a.jpg' is not `PATH LABEL`")]
    + [("test", "a.jpg -1", "tiny_test.txt:2: 'a.jpg -1' is not `PATH LABEL`")]
    + [("val", "7", "tiny_val.txt:2: '7' is not `PATH LABEL`")]
    + [("train", "a.jpg 5", "class 4 has no training image")]
    + [("val", "a.jpg 4", "class 4 has no training image")]
    + [("test", "nosuch.jpg 3", "has no nosuch.jpg")],
)
def test_a_bad_line_is_one_line_before_training(tmp_path, refused, split, line, said):
    write_lists(tmp_path, ([2] * 4, [1] * 4, [1] * 4))
    path = tmp_path / f"tiny_{split}.txt"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first}\n{line}\n{rest}")
    assert said in refused("train.py", *tiny_flags(tmp_path, out="run"))
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_not_there_is_one_line(tmp_path, refused):
    said = refused("train.py", "--data", "imagenet_lt", "--root", tmp_path)
    assert said == f"error: {tmp_path} has no imagenet_lt_train.txt (see --data and --root)"
    said = refused("train.py", "--data", "x", "--root", tmp_path / "nosuch")
    assert said == f"error: {tmp_path}/nosuch has no x_train.txt (see --data and --root)"
    for name in "glyphs_lt", "cifar10_lt":
        said = refused("train.py", "--data", name, "--size", "64")
        assert said == f"error: {name} has images of 32 pixels, not of 64"


@pytest.mark.parametrize("spelling", ["train/", "./train/", "train//", "test/../train/"])
def test_test_images_that_are_training_images_are_one_warning(tmp_path, capsys, spelling):
    write_lists(tmp_path)
    load("tiny", str(tmp_path), 32)
    assert "warning" not in capsys.readouterr().out
    lines = (tmp_path / "tiny_train.txt").read_text().splitlines(keepends=True)
    other = [line.replace("train/", spelling) for line in lines[:7]]
    (tmp_path / "tiny_test.txt").write_text("".join(other))
    load("tiny", str(tmp_path), 32)
    assert capsys.readouterr().out == "warning: 7 test images are also training images\n"


def test_an_image_that_a_list_names_again_is_one_warning(tmp_path, capsys):
    """Since N_c counts lines."""
    write_lists(tmp_path)
    for split, again in ("train", 3), ("val", 1):
        path = tmp_path / f"tiny_{split}.txt"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines, *[f"./{line}" for line in lines[:again]]]))
    assert load("tiny", str(tmp_path), 32)["train"].N_c[0] == 27
    assert capsys.readouterr().out.splitlines() == [
        "warning: 3 lines of the train list repeat an image",
        "warning: 1 lines of the val list repeat an image",
    ]


def test_data_py_describes_lists_also_without_their_images(tmp_path, capsys):
    write_lists(tmp_path, ([120, 21, 5], [2] * 3, [3, 3, 4]))
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(InputError) as error:
        data.main(["--data", "Tiny", "--root", str(tmp_path)])
    assert str(error.value) == f"{tmp_path} has no test/class0/0.JPEG"
    out = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert out[:3] == [
        "train 146 images 3 classes of 5 to 120",
        "val 6 images 3 classes of 2 to 2",
        "test 10 images 3 classes of 3 to 4",
    ]
    assert out[3:] == [
        "Many 120 images 1 classes (training)",
        "Medium 21 images 1 classes (training)",
        "Low 5 images 1 classes (training)",
        "largest class: 0, class0, 120 training images",
        "smallest class: 2, class2, 5 training images",
    ]


def test_classes_whose_folders_differ_between_splits_are_named(tmp_path, capsys):
    write_lists(tmp_path)
    lines = (tmp_path / "tiny_test.txt").read_text()
    swapped = lines.replace(".JPEG 0", ".JPEG x").replace(".JPEG 1", ".JPEG 0")
    (tmp_path / "tiny_test.txt").write_text(swapped.replace(".JPEG x", ".JPEG 1"))
    shutil.rmtree(tmp_path / "test")  # also without the images
    with pytest.raises(InputError, match="has no test/class0/0.JPEG"):
        data.main(["--data", "tiny", "--root", str(tmp_path)])
    warnings = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning")]
    assert warnings == [
        "warning: class 0 is class0 in train, class1 in test",
        "warning: class 1 is class1 in train, class0 in test",
    ]


def test_folders_that_are_no_classes_are_no_warning(tmp_path, capsys):
    for split, year in zip(data.SPLITS, (2019, 2020, 2020), strict=True):
        lines = "".join(f"{year}/{y}.jpg {y}\n2020/{split}{y}.jpg {y}\n" for y in range(3))
        (tmp_path / f"x_{split}.txt").write_text(lines)
    with pytest.raises(InputError):
        data.main(["--data", "x", "--root", str(tmp_path)])
    assert "warning" not in capsys.readouterr().out


# ------------------------------------------------------------------------------ CIFAR
def write_cifar(root, n_train, n_test, order=slice(None)):
    """Archives laid out as torchvision expects CIFAR, of noise in their first eight pixels."""
    rng = np.random.default_rng(0)
    for folder, names, meta, key, C in (
        ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"])
        + (("batches.meta", "label_names"), "labels", 10),
        ("cifar-100-python", ["train", "test"], ("meta", "fine_label_names"), "fine_labels", 100),
    ):
        (root / folder).mkdir(parents=True)
        images = np.zeros((n_train + n_test, 3072), np.uint8)
        images[:, :8] = rng.integers(256, size=(len(images), 8))
        labels = np.arange(len(images)) % C
        images[:n_train] = images[:n_train][order]
        labels[:n_train] = labels[:n_train][order]
        parts = np.array_split(np.arange(n_train), len(names) - 1)
        for name, part in zip(names, [*parts, np.arange(n_train, len(images))], strict=True):
            content = {"data": images[part], key: labels[part].tolist()}
            (root / folder / name).write_bytes(pickle.dumps(content))
        content = {meta[1]: [str(c) for c in range(C)]}
        (root / folder / meta[0]).write_bytes(pickle.dumps(content))
    return str(root)


@pytest.fixture
def no_checksums(monkeypatch):
    """Let any archive that is there pass for the real one."""
    monkeypatch.setattr(torchvision_cifar, "check_integrity", lambda path, *_: os.path.isfile(path))


def pictures(split):
    """(label, picture as bytes) of each image of a CIFAR split."""
    images = split.images[:, 0, 0, :8].numpy()
    return [(y, x.tobytes()) for x, y in zip(images, split.labels.tolist(), strict=True)]


def test_cifar_counts_and_splits(tmp_path, no_checksums):
    root = write_cifar(tmp_path, 50000, 10000)
    for name, N, largest, val in ("cifar10_lt", 12406, 5000, 500), ("cifar100_lt", 10847, 500, 50):
        sets = load(name, root)
        C = int(name[5:-3])
        c = np.arange(C)
        N_c = sets["train"].N_c
        assert (N_c == np.floor(largest * 100 ** (-c / (C - 1)) + 1e-9)).all() and N_c.sum() == N
        # what is left, up to a tenth of the largest
        assert (sets["val"].N_c == np.minimum(largest - N_c, val)).all()
        assert len(sets["test"]) == 10000 and (sets["test"].N_c == 10000 // C).all()
        train, validation, test = (set(pictures(sets[split])) for split in data.SPLITS)
        assert not (train & validation or train & test or validation & test) and len(train) == N
    image, label = sets["train"][0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and label == 0
    assert load("cifar10_lt10", root)["train"].N_c.tolist()[::9] == [5000, 500]


def test_cifar_lt_does_not_depend_on_the_order_of_the_archive(tmp_path, no_checksums):
    order = np.random.default_rng(3).permutation(500)
    roots = write_cifar(tmp_path / "a", 500, 20), write_cifar(tmp_path / "b", 500, 20, order)
    a, b = (load("cifar10_lt25", root) for root in roots)
    for split in data.SPLITS:
        assert pictures(a[split]) == pictures(b[split])
        assert a[split].checksum == b[split].checksum
    archive = torchvision_cifar.CIFAR10(roots[0])
    in_order = [x[0, :8, 0].tobytes() for x in archive.data[np.array(archive.targets) == 5]]
    drawn = [picture for y, picture in pictures(a["train"]) if y == 5]
    assert drawn != in_order[: len(drawn)] and sorted(drawn) != sorted(in_order)[: len(drawn)]


# ------------------------------------------------------------------------------ --make
def made(root, name):
    """{split: [(path, label)]} of the lists."""
    lists = {}
    for split in data.SPLITS:
        lines = (root / f"{name}_{split}.txt").read_text().splitlines()
        lists[split] = [(p, int(y)) for p, y in (line.rsplit(" ", 1) for line in lines)]
    return lists


def write_folders(root, sizes):
    """Images in the folders `sizes` {folder: number}, each of another grey."""
    for folder, n in sizes.items():
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (4, 4), i).save(root / folder / f"{i}.png")


def counts(lists):
    """Images per class of each split."""
    return [np.bincount([y for _, y in lists[split]]).tolist() for split in data.SPLITS]


def test_make_draws_disjoint_lists_by_the_pareto_rule(tmp_path, capsys):
    """Larger folders get larger counts, equal ones are ordered at random."""
    sizes = {"a": 12, "b": 40, "c": 14, "d": 40, "f": 100, "d e": 40}
    names = sorted(sizes)
    write_folders(
        tmp_path, {f"{name}/images": n for name, n in sizes.items()}
    )  # as in Tiny-ImageNet
    (tmp_path / "a/notes.txt").touch()
    flags = ["--root", str(tmp_path), "--max", "90", "--min", "2", "--val", "2", "--test", "3"]
    orders = set()
    for seed in range(8):
        data.main([*flags, "--make", f"x{seed}", "--seed", str(seed)])
        lists = made(tmp_path, f"x{seed}")
        every = [path for lines in lists.values() for path, _ in lines]
        assert len(set(every)) == len(every) and all((tmp_path / path).is_file() for path in every)
        assert all(path.split("/")[0] == names[y] for x in lists.values() for path, y in x)
        N_c, val, test = counts(lists)
        a, b, c, d, de, f = N_c
        assert sorted(N_c, reverse=True) == pareto(6, 90, 2).tolist()
        assert f >= max(b, d, de) and min(b, d, de) >= c >= a
        assert (val, test) == ([2] * 6, [3] * 6)
        orders.add((b, d, de))
    assert len(orders) > 2
    assert "18 images      6 classes of 3 to 3" in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        data.main([*flags, "--make", "x0"])


def test_make_holds_out_at_most_a_fifth_of_each_folder_and_trains_with_the_rest(tmp_path, capsys):
    write_folders(tmp_path, {"cat": 30, "dog": 14, "eel": 4, "train": 9})  # train: a class, too
    data.main(["--make", "own", "--root", str(tmp_path), "--val", "2", "--test", "5"])
    lists = made(tmp_path, "own")
    assert counts(lists) == [[23, 10, 4, 7], [2, 2, 0, 1], [5, 2, 0, 1]]
    every = [path for lines in lists.values() for path, _ in lines]
    assert len(set(every)) == len(every) == 57
    assert load("own", str(tmp_path))["train"].names == ["cat", "dog", "eel", "train"]
    assert "largest class: 0, cat, 23 training images" in capsys.readouterr().out


def test_make_takes_the_splits_that_are_there(tmp_path, capsys):
    sizes = {"train/cat": 5, "train/dog": 3, "train/eel": 1, "val/dog": 2, "val/eel": 1}
    write_folders(tmp_path, sizes | {"test/cat": 1, "test/eel": 2})
    data.main(["--make", "own", "--root", str(tmp_path)])
    lists = made(tmp_path, "own")
    assert counts(lists) == [[5, 3, 1], [0, 2, 1], [1, 0, 2]]
    for split, lines in lists.items():
        assert all(path.startswith(f"{split}/{['cat', 'dog', 'eel'][y]}/") for path, y in lines)
    assert "warning" not in capsys.readouterr().out
    # With --max, N(x) = 4 x^-6 at three x from 1 to 4^(1/6): 4, 1.9 and 1 of the training images.
    data.main(["--make", "drawn", "--root", str(tmp_path), "--max", "4", "--min", "1"])
    assert counts(made(tmp_path, "drawn")) == [[4, 2, 1], [0, 2, 1], [1, 0, 2]]


def test_make_leaves_out_hidden_files_and_folders(tmp_path):
    sizes = {"cat": 5, "cat/.ipynb_checkpoints": 5, ".cache/x": 5, "dog": 5}
    write_folders(tmp_path, sizes)
    (tmp_path / "cat/._0.png").touch()
    data.main(["--make", "own", "--root", str(tmp_path)])
    assert counts(made(tmp_path, "own")) == [[3, 3], [1, 1], [1, 1]]


SPLIT_FOLDERS = {f"{split}/{name}": 5 for split in data.SPLITS for name in ("cat", "dog")}


@pytest.mark.parametrize(
    "sizes, flags, said",
    [
        (
            {"cat": 40, "newt": 9},
            "--max 20 --val 2 --test 3",
            "newt has 9 images, but it needs 5 for training (--max)",
        )
    ]
    + [(SPLIT_FOLDERS | {"val/new": 1}, "", ": val has new, but train has not")]
    + [
        (
            {"train/cat": 5, "train/dog": 5, "val/cat": 5, "val/dog": 5},
            "",
            "/test does not have two",
        )
    ]
    + [({"train/cat": 5, "train/dog": 5}, "", " does not have two folders of images (see --root)")]
    + [({}, "", " does not have two folders of images")],
)
def test_what_make_cannot_take_is_one_line_and_leaves_nothing(
    tmp_path, refused, sizes, flags, said
):
    write_folders(tmp_path, sizes)
    line = refused("data.py", "--make", "own", "--root", tmp_path, *flags.split())
    assert said in line.replace(str(tmp_path), "") and not list(tmp_path.glob("*.txt"))


# ------------------------------------------------------------------------------ names
def test_classes_have_the_names_of_their_folders(tmp_path):
    (tmp_path / "x_train.txt").write_text("train/a/cat/1.jpg 1\ntrain/ox/2.jpg 0\ntrain/3.jpg 1\n")
    for split in "val", "test":
        (tmp_path / f"x_{split}.txt").write_text("val/elsewhere/4.jpg 1\n")
    sets = load("x", str(tmp_path))
    assert sets["train"].names == ["ox", "a/cat"]


def test_classes_of_glyphs_and_cifar_have_names(tmp_path, no_checksums):
    assert load("glyphs_lt", splits=["val"])["val"].names == list(data.GLYPHS)
    root = write_cifar(tmp_path, 500, 100)
    for split in load("cifar100_lt5", root).values():
        assert split.names == [str(c) for c in range(100)]
