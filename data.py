"""Long-tailed datasets, transforms and loading. Sec. 4.1; the augmentation of reference [19].

    sets = load("glyphs_lt")              # {"train", "val", "test": LongTailed}
    image, label = sets["train"][0]       # uint8 [3, 32, 32], int

    python data.py --data imagenet_lt --root DIR [--check]     # look at a dataset before a long run
    python data.py --make my_lt --from DIR                     # a long-tailed set of DIR/CLASS/*

A dataset is one of BUILT_IN, or any NAME with three lists ROOT/NAME_{train,val,test}.txt:
one `PATH LABEL` a line, paths relative to ROOT.
"""

import argparse
import functools
import os
import re
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import io
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2

SPLITS = "train", "val", "test"
BUILT_IN = "glyphs_lt", "cifar10_lt", "cifar100_lt"  # 32 pixels square
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # most frequent first
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class InputError(ValueError):
    """A user's mistake; its text is the one line to print. Where a loading process raises it, the
    DataLoader raises it again with a whole traceback as its text: str() keeps the last line."""

    def __str__(self):
        return super().__str__().strip().splitlines()[-1].removeprefix("data.InputError: ")


def load(name, root="data", size=None, imbalance=100, splits=SPLITS):
    """{"train", "val", "test": LongTailed} of dataset `name`, images `size` pixels square (224; 32
    of BUILT_IN). All three splits have their labels; only those in `splits` are sure to have their
    images. Raises InputError."""
    built_in = name.lower() in BUILT_IN
    size = size or (32 if built_in else 224)
    if built_in and size != 32:
        raise InputError(f"--size {size}: {name} has images of 32 pixels")
    if built_in and os.path.exists(own := os.path.join(root, f"{name}_train.txt")):
        raise InputError(f"{own}: the name of a built-in dataset; rename your lists")
    train = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), colour_jitter])
    test = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
    if name.lower() == "glyphs_lt":
        parts = glyphs_lt(splits)
        train = test = None  # each image has random looks of its own
    elif built_in:
        parts = cifar_lt(name.lower(), root, imbalance)
        test = None
    else:
        parts = image_lists(name, root)
    C = max(parts[0][1]) + 1
    sets = {}
    for split, (images, labels), transform in zip(SPLITS, parts, (train, test, test), strict=True):
        sets[split] = LongTailed(images, labels, transform, root, C)
    files = {split: dataset.files() for split, dataset in sets.items()}
    trained = set(files["train"])
    for split in SPLITS:
        sets[split].repeated = len(files[split]) - len(set(files[split]))
    for split in "val", "test":
        sets[split].overlap = sum(file in trained for file in files[split])
    for split in splits:
        if missing := sets[split].missing():
            absolute = "; paths are relative to --root" if missing[0].startswith("/") else ""
            raise InputError(
                f"{name} {split} list: {len(missing):,} of {len(sets[split]):,} images are not in "
                f"{root}, the first is {missing[0]}{absolute}"
            )
    return sets


class LongTailed(Dataset):
    """A split. images: uint8 [N, 3, H, W], or paths below `root`, None where not rendered; labels:
    int [N]; N_c: int [C], images per class. An item is (image uint8 [3, size, size], label)."""

    def __init__(self, images, labels, transform=None, root="", C=0):
        self.images = images
        self.labels = np.asarray(labels)
        self.transform = transform
        self.root = root
        self.N_c = np.bincount(self.labels, minlength=C)
        # An array: worker processes would copy a list of str (pytorch issue 13246).
        self.paths = images if isinstance(images, np.ndarray) else np.array([], str)
        # Of the list, not of the images' content; of images in memory, of their labels.
        self.fingerprint = zlib.crc32(self.paths.tobytes() + self.labels.tobytes())
        self.overlap = 0  # images that are training images, too
        self.repeated = 0  # lines whose image an earlier line has

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if isinstance(image, str):
            image = read_image(os.path.join(self.root, image))
        return self.transform(image) if self.transform else image, int(self.labels[i])

    def files(self):
        """The images' real paths: two names of one file give one path. Not by realpath of each
        image, which would look up its folders again each time."""
        real = functools.cache(os.path.realpath)
        parts = [os.path.split(os.path.join(self.root, path)) for path in self.paths.tolist()]
        files = [os.path.join(real(folder), name) for folder, name in parts]
        return [os.path.realpath(file) if os.path.islink(file) else file for file in files]

    def missing(self):
        """The listed images that are no files."""
        return [i for i in self.paths.tolist() if not os.path.isfile(os.path.join(self.root, i))]


def loader(dataset, workers, **kwargs):
    """A DataLoader of the split; images in memory that need no transform need no workers."""
    cuda = torch.cuda.is_available()
    workers = workers if dataset.transform else 0
    return DataLoader(dataset, num_workers=workers, pin_memory=cuda, **kwargs)


def oddities(sets):
    """What to be told of a dataset before a run, a line each."""
    lines = []
    for split, dataset in sets.items():
        if repeated := dataset.repeated:
            lines.append(f"warning: {repeated:,} lines of the {split} list repeat an image")
    if same_list(sets):
        lines.append("val and test are the same list: a choice of this dataset")
    for split in "val", "test":
        if absent := (sets[split].N_c == 0).sum():
            lines.append(
                f"{absent} classes have no {split} image and take no part in {split} accuracy"
            )
        if overlap := sets[split].overlap:
            lines.append(f"warning: {overlap:,} {split} images are training images, too")
    return lines


def same_list(sets):
    return len(sets["val"].paths) > 0 and sets["val"].fingerprint == sets["test"].fingerprint


# ------------------------------------------------------------------------------ images
def read_image(path):
    """Decode an image file to uint8 [3, H, W], upright. Raises InputError with its path."""
    try:
        if path.lower().endswith((".jpg", ".jpeg")):
            file = np.fromfile(path, np.uint8)
            # Pillow, below, takes what torchvision can't decode, and images whose orientation only
            # XMP states, which torchvision does not read.
            if b"tiff:Orientation" not in file.tobytes():
                try:
                    file = torch.from_numpy(file)
                    return io.decode_jpeg(file, "RGB", apply_exif_orientation=True)
                except RuntimeError:
                    pass
        # A file object, not the path: by its path Pillow 13 memory-maps an uncompressed grey TIFF,
        # and where the orientation exchanges height and width, it exchanges them too early.
        with open(path, "rb") as file:
            image = ImageOps.exif_transpose(Image.open(file))
            image.load()
        if image.mode.startswith("I;16"):  # 16 bits, which convert() would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels, of no known range; save it with 8 or 16 bits")
        return v2.functional.pil_to_tensor(image.convert("RGB"))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: not a readable image ({reason[0]})") from None


def colour_jitter(image, strength=0.4):
    """[19]'s ColorJitter(0.4, 0.4, 0.4) in a third of v2's time: brightness, contrast, saturation
    by random factors in random order, as one affine map of the colours, clipped once. uint8
    [3, H, W] to the same."""
    x = image.reshape(3, -1).float()
    to_grey = torch.tensor([[0.2989, 0.587, 0.114]])  # [1, 3]
    A = torch.eye(3)
    b = torch.zeros(3, 1)
    order = torch.randperm(3)
    factors = torch.empty(3).uniform_(1 - strength, 1 + strength)
    for step, factor in zip(order.tolist(), factors.tolist(), strict=True):  # x becomes A x + b
        if step == 0:  # contrast: towards the image's mean grey
            mean = A @ x.mean(1, keepdim=True) + b  # [3, 1], of the image so far
            A, b = factor * A, factor * b + (1 - factor) * to_grey @ mean
        elif step == 1:  # brightness: towards black
            A, b = factor * A, factor * b
        else:  # saturation: towards each pixel's grey
            blend = factor * torch.eye(3) + (1 - factor) * to_grey  # [3, 3]
            A, b = blend @ A, blend @ b
    return torch.addmm(b, A, x).clamp_(0, 255).to(torch.uint8).view(image.shape)


# ------------------------------------------------------------------------------ datasets
def pareto(C, N_max, N_min, alpha=6):
    """Images per class, int [C]. Sec. 4.1 names a Pareto distribution of alpha 6 and no formula;
    N(x) = N_max x^-alpha at C even steps of x is our choice. The paper's sets are steeper: this
    gives 167,243 images for ImageNet-LT's C, N_max and N_min, where Sec. 4.1 has 115,846."""
    x = np.linspace(1, (N_max / N_min) ** (1 / alpha), C)
    return np.rint(N_max * x**-alpha).astype(int)


def glyphs_lt(splits):
    """The built-in default: 62 characters, 1,280 to 5 training images each by `pareto`."""
    C = len(GLYPHS)
    parts = []
    for i, N_c in enumerate((pareto(C, 1280, 5), [20] * C, [40] * C)):
        labels = np.repeat(np.arange(C), N_c)
        rng = np.random.default_rng([0, i])
        parts.append((render_glyphs(labels, rng) if SPLITS[i] in splits else None, labels))
    return parts


def render_glyphs(labels, rng):
    """Pictures of the characters `labels`, of random looks: uint8 [N, 3, 32, 32]. Each is a glyph
    in black and white, sheared, scaled, turned and shifted, then coloured, with a disc and noise.
    """
    N = len(labels)
    angle = np.deg2rad(rng.uniform(-20, 20, N))
    shear = rng.uniform(-0.3, 0.3, N)
    scale = rng.uniform(0.8, 1.25, N)
    x, y = 48 + 96 * rng.uniform(-0.12, 0.12, (2, N))  # where the glyph's centre, (48, 48), goes
    # Pillow asks for the way back, from a pixel p of the result to one of the glyph:
    # rotation(angle) shear / scale (p - (x, y)) + (48, 48), as a p_x + b p_y + c, d p_x + e p_y + f
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos
    maps = np.stack([a, b, 48 - a * x - b * y, d, e, 48 - d * x - e * y], 1)
    shapes = []  # of 96 pixels, to be reduced to 32
    for glyph in GLYPHS:
        shapes.append(Image.new("L", (96, 96)))
        font = ImageFont.load_default(60)
        ImageDraw.Draw(shapes[-1]).text((48, 48), glyph, fill=255, font=font, anchor="mm")
    ink = []
    for label, affine in zip(labels, maps, strict=True):
        shape = shapes[label].transform((96, 96), Image.AFFINE, affine, Image.BILINEAR)
        ink.append(np.asarray(shape.reduce(3)))
    ink = np.stack(ink)[:, None] / np.float32(255)

    colours = np.zeros((N, 2, 3))  # of each image's paper and glyph
    too_close = np.full(N, True)
    while too_close.any():
        colours[too_close] = rng.uniform(0, 255, (too_close.sum(), 2, 3))
        grey = colours.mean(2)
        too_close = np.abs(grey[:, 0] - grey[:, 1]) < 90
    colours = colours.astype(np.float32)[..., None, None]
    paper, tint = colours[:, 0], colours[:, 1]  # [N, 3, 1, 1]
    discs = rng.uniform([[0], [0], [4], [-50]], [[32], [32], [10], [50]], (4, N))
    disc_x, disc_y, radius, shade = discs[..., None, None, None]  # [N, 1, 1, 1]; faint clutter
    column = np.arange(32)
    row = column[:, None]
    disc = (column - disc_x) ** 2 + (row - disc_y) ** 2 < radius * radius  # [N, 1, 32, 32]
    noise = rng.normal(0, 8, (N, 1, 32, 32))
    images = paper + ink * (tint - paper) + shade * disc + noise
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))


def cifar_lt(name, root, imbalance):
    """Long-tailed CIFAR; val: of the training images not taken, at most N_max / 10 a class, and
    none of the largest, which is taken whole. Fetches the archive to `root` where it is not there.
    Raises InputError."""
    archive = getattr(torchvision.datasets, name.removesuffix("_lt").upper())
    try:
        train = archive(root, train=True)
    except RuntimeError:  # not there, or not whole
        print(f"downloading {archive.__name__} (170 MB) to {root}")
        try:
            train = archive(root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{archive.__name__} can't be downloaded ({error})") from None
    test = archive(root, train=False)
    y = np.array(train.targets)
    C = len(train.classes)
    N_max = len(y) // C
    N_c = (N_max * (1 / imbalance) ** (np.arange(C) / (C - 1))).astype(int)  # the field's rule
    if not N_c.all():
        raise InputError(f"--imbalance {imbalance:g} leaves a class without an image")
    rng = np.random.default_rng(0)
    drawn = []
    held_out = []
    for c, n in enumerate(N_c):
        # Sorted by their bytes: repacked copies of CIFAR have other orders, but give the same draw.
        images = sorted(np.flatnonzero(y == c).tolist(), key=lambda i: train.data[i].tobytes())
        images = rng.permutation(images).tolist()
        drawn += images[:n]
        held_out += images[n : n + N_max // 10]
    splits = (train.data[drawn], y[drawn]), (train.data[held_out], y[held_out])
    splits += ((test.data, test.targets),)
    return [(torch.from_numpy(images).permute(0, 3, 1, 2), labels) for images, labels in splits]


def image_lists(name, root):
    """Paths and labels of ROOT/NAME_{train,val,test}.txt. Raises InputError."""
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder (name the dataset's by --root DIR)")
    known = [f.removesuffix("_train.txt") for f in os.listdir(root) if f.endswith("_train.txt")]
    if name not in known:  # in another spelling?
        alike = sorted(other for other in known if other.lower() == name.lower())
        if len(alike) != 1:
            there = ", ".join(alike or [*BUILT_IN, *sorted(known)])
            raise InputError(
                f"{name}_train.txt not found in {root}; there are: {there} "
                "(see README, Data, or pass --root DIR)"
            )
        name = alike[0]
    lists = [os.path.join(root, f"{name}_{split}.txt") for split in SPLITS]
    parts = [read_list(path) for path in lists]
    trained = set(parts[0][1])
    # The labels must be 0..C-1. absent is the first class that training lacks: then it is C.
    absent = min(set(range(len(trained) + 1)) - trained)
    for path, (_, labels) in zip(lists, parts, strict=True):
        if max(labels) >= absent:
            raise InputError(
                f"{path}: label {max(labels)}, but class {absent} has no training image"
            )
    return [(np.array(paths), labels) for paths, labels in parts]


def read_list(path):
    """Paths and labels of a list. Raises InputError with the line."""
    paths = []
    labels = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            *image, label = line.strip().rsplit(None, 1)
            if not image or "\0" in line or not re.fullmatch("[0-9]{1,9}", label):
                raise InputError(f"{path}:{n}: {line.strip()[:60]!r} is not `PATH LABEL`")
            paths += image
            labels.append(int(label))
    if not paths:
        raise InputError(f"{path}: the list is empty")
    return paths, labels


def write(path, content):
    """Write a file whole or not at all. Raises InputError."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if os.path.exists(beside):
            os.remove(beside)  # the disk may be full
        raise InputError(f"{path} can't be written ({error.strerror})") from None


# ------------------------------------------------------------------------------ python data.py
def describe(sets):
    """What to look at before a long run: the splits, the shots, what lacks or repeats."""
    from evaluate import shots  # which imports this file

    for split, dataset in sets.items():
        n = dataset.N_c
        print(
            f"{split:6}{len(dataset):9,} images{(n > 0).sum():7,} classes   smallest: class "
            f"{n.argmin()} with {n.min():,}, largest: class {n.argmax()} with {n.max():,}"
        )
    N_c = sets["train"].N_c
    for shot, mask in shots(N_c).items():
        print(f"{shot:6}{N_c[mask].sum():9,} images{mask.sum():7,} classes")
    for split, dataset in sets.items():
        if missing := len(dataset.missing()):
            print(f"{missing:,} of {len(dataset):,} {split} images are not there yet")
    for line in oddities(sets):
        print(line)


def check(sets):
    """Compare the class order of the splits, look for repeated files, decode every image.
    Raises InputError where anything is wrong."""
    faults = disagreeing_classes(sets)
    if same_list(sets):
        sets = {"train": sets["train"], "test": sets["test"]}
    files = [os.path.join(d.root, path) for d in sets.values() for path in d.paths.tolist()]
    repeated = len(files) - len({file for d in sets.values() for file in d.files()})
    broken = 0
    plain = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), 1000):
            for fault, constant in pool.map(look_at, files[start : start + 1000]):
                broken += fault is not None
                plain += constant
                if fault and broken <= 20:
                    print(f"\033[K{fault}" if sys.stdout.isatty() else fault)
            if sys.stdout.isatty():
                print(f"\r{start:,} of {len(files):,} images", end="\r", flush=True)
    print(
        f"{len(files):,} images: {broken:,} broken, {repeated:,} repeated, {plain:,} of one colour"
    )
    print(*faults[:20], sep="\n", end="\n" if faults else "")
    if broken or repeated or faults:
        raise InputError(
            f"{broken:,} images are broken, {repeated:,} repeated; "
            f"{len(faults):,} classes have another label in another split"
        )


def look_at(file):
    """An image file's fault or None, and whether it is of one colour throughout."""
    try:
        pixels = read_image(file).flatten(1)
    except InputError as error:
        return str(error), False
    return None, bool((pixels == pixels[:, :1]).all())


def disagreeing_classes(sets):
    """Folders whose images have one label in each of two splits, but not the same one: as where
    two lists number the classes in different orders."""
    faults = []
    label_of = {}  # folder: its first (split, label)
    for split, dataset in sets.items():
        labels = {}
        for path, label in zip(dataset.paths.tolist(), dataset.labels.tolist(), strict=True):
            labels.setdefault(os.path.basename(os.path.dirname(path)), set()).add(label)
        for folder, found in labels.items():
            if len(found) == 1:
                label = min(found)
                other, theirs = label_of.setdefault(folder, (split, label))
                if theirs != label:
                    faults.append(f"{folder}: label {theirs} in {other}, label {label} in {split}")
    return faults


def make(args, source, root):
    """Sec. 4.1: write ROOT/NAME_{train,val,test}.txt of --from's CLASS/*, nothing shared between
    them: training images by the Pareto rule, a balanced val and test. The largest folders get
    the largest counts, in random order where they are equal. NAME_classes.txt has the
    classes' names in the order of their labels."""
    files = [f"{root}/{args.make}_{what}.txt" for what in (*SPLITS, "classes")]
    for file in files:
        if os.path.exists(file):
            raise InputError(f"{file} exists; take another name or remove it")
    classes, images = class_folders(source, root)
    rng = np.random.default_rng(args.seed)
    size = np.array([len(paths) for paths in images])
    by_size = np.lexsort([rng.permutation(len(size)), -size])  # ties in random order
    N_c = np.empty_like(size)
    N_c[by_size] = pareto(len(size), args.max, args.min, args.alpha)
    too_small = np.flatnonzero(N_c + args.val + args.test > size)
    if len(too_small):
        label = too_small[0]
        raise InputError(
            f"{classes[label]} has {size[label]} images, fewer than the {N_c[label]} + {args.val} "
            f"+ {args.test} asked of it; lower --max, --val or --test"
        )
    lines = [[], [], [], [f"{name}\n" for name in classes]]
    for label, paths in enumerate(images):
        cuts = np.cumsum([N_c[label], args.val, args.test])
        for part, chosen in zip(lines[:3], np.split(rng.permutation(paths), cuts)[:3], strict=True):
            part += [f"{path} {label}\n" for path in chosen]
    write_all(files, ["".join(part).encode(errors="surrogateescape") for part in lines])
    for file, part in zip(files, lines, strict=True):
        print(f"{file}: {len(part):,} lines")


def write_all(files, contents):
    """Write new files, all or none. Raises InputError."""
    try:
        for file, content in zip(files, contents, strict=True):
            write(file, content)
    except InputError:
        for file in files:
            if os.path.exists(file):
                os.remove(file)
        raise


def class_folders(source, root):
    """The classes below `source`, and the images of each at any depth, as paths from `root`.
    Hidden folders and files are left out, and other names of one file. Raises InputError."""
    top = os.path.realpath(source)
    base = os.path.realpath(root)
    classes = sorted(f.name for f in os.scandir(top) if f.is_dir() and f.name[0] != ".")
    if len(classes) < 2:
        raise InputError(f"{source}: needs folders of images of two or more classes")
    label_of = {name: label for label, name in enumerate(classes)}
    images = [[] for _ in classes]
    first = {}  # of each file, its first path and label
    for path, label in make_dataset(top, label_of, IMG_EXTENSIONS, allow_empty=True):
        if "/." in path[len(top) :]:
            continue
        stat = os.stat(path)  # of what a link points to
        first_path, first_label = first.setdefault((stat.st_dev, stat.st_ino), (path, label))
        if label != first_label:
            raise InputError(f"{path} and {first_path} are one file, but of two classes")
        if path != first_path:
            continue
        path = os.path.relpath(path, base)
        if path != path.strip() or "\n" in path or "\r" in path:
            raise InputError(f"{path!r}: a list can't hold a leading space or a line break")
        images[label].append(path)
    return classes, images


def check_counts(args, parser):
    """Refuse what --make cannot use, as argparse does."""
    if not 1 <= args.min <= args.max:
        parser.error("--min must be 1 or more, and not above --max")
    if not 0.1 <= args.alpha <= 100:
        parser.error("--alpha must be 0.1 to 100")
    if min(args.val, args.test) < 1 or max(args.max, args.val, args.test) >= 10**9:
        parser.error("--max, --val and --test must be 1 to 999999999")
    if args.seed < 0:
        parser.error("--seed must be 0 or more")
    if os.path.basename(args.make) != args.make or args.make.strip() in ("", ".", ".."):
        parser.error(f"--make {args.make!r}: a name is needed, without folders")
    if args.make.lower() in BUILT_IN:
        parser.error(f"--make {args.make}: the name of a built-in dataset")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Describe a dataset, or make a long-tailed one of a folder of images.",
        epilog="""examples:
  python data.py --data imagenet_lt --root DIR --check
  python data.py --make my_lt --from DIR --max 500 --min 5""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("describe").add_argument
    add("--data", metavar="NAME", help="dataset (default: glyphs_lt)")
    add("--root", metavar="DIR", help="dataset folder (default: data; with --make, its --from)")
    add("--check", action="store_true", help="decode every image, compare classes across splits")
    add("--imbalance", type=float, metavar="F", help="N_max / N_min of CIFAR-LT (default: 100)")
    add = parser.add_argument_group("make").add_argument
    add("--make", metavar="NAME", help="write lists ROOT/NAME_{train,val,test}.txt")
    add("--from", metavar="DIR", help="folder with one folder of images a class")
    add("--max", type=int, metavar="N", help="largest training class (default: 1280)")
    add("--min", type=int, metavar="N", help="smallest training class (default: 5)")
    add("--alpha", type=float, metavar="A", help="exponent of the Pareto rule (default: 6)")
    add("--val", type=int, metavar="N", help="validation images of a class (default: 20)")
    add("--test", type=int, metavar="N", help="test images of a class (default: 50)")
    add("--seed", type=int, metavar="N", help="random seed of the choice of images (default: 0)")
    args = parser.parse_args(argv)
    made = {"max": 1280, "min": 5, "alpha": 6.0, "val": 20, "test": 50, "seed": 0}
    given = {k for k, v in vars(args).items() if v is not None and v is not False}
    making = args.make is not None
    useless = given & ({"data", "check", "imbalance"} if making else {*made, "from"})
    if args.data is None or not args.data.lower().startswith("cifar"):
        useless |= given & {"imbalance"}
    if useless:
        parser.error(f"--{min(useless)} has no effect here")
    if args.root == "":
        parser.error("--root must not be empty")
    if making:
        source = vars(args)["from"]
        vars(args).update({key: made[key] for key in made.keys() - given})
        if not source:
            parser.error("--make needs --from DIR")
        check_counts(args, parser)
        return make(args, source, args.root or source)
    name = "glyphs_lt" if args.data is None else args.data
    imbalance = 100 if args.imbalance is None else args.imbalance
    if not imbalance >= 1:
        parser.error("--imbalance must be 1 or more")
    if args.check and name.lower() in BUILT_IN:
        parser.error(f"--check has no effect on {name}, which has no image files")
    sets = load(name, args.root or "data", None, imbalance, splits=())
    describe(sets)
    if args.check:
        check(sets)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names in any encoding
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("data.py: interrupted")
    except (InputError, OSError) as error:
        sys.exit(f"data.py: {error}")
