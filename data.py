"""Long-tailed datasets (Sec. 4.1), and the augmentation of reference [19].

    sets = load("glyphs_lt")              # {"train", "val", "test": LongTailed}
    image, label = sets["train"][0]       # uint8 [3, 32, 32], int

    python data.py --data imagenet_lt --root DIR     # describe a dataset before a long run
    python data.py --make my_lt --root DIR           # make a dataset of the images in DIR

Datasets:
    glyphs_lt                  characters, drawn here
    cifar10_lt, cifar100_lt    imbalance 100; cifar100_lt10 has imbalance 10
    any other NAME             three lists ROOT/NAME_{train,val,test}.txt. A line is `PATH LABEL`,
                               where PATH is relative to ROOT.
"""

import argparse
import contextlib
import glob
import io
import multiprocessing
import os
import re
import sys
import zlib

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from sampler import InputError

SPLITS = "train", "val", "test"
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # most frequent first
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
WORKERS = min(16, CORES)  # loading processes, by default


def run(main):
    """Run a command. InputError and OSError end it with one line instead of a traceback."""
    try:
        main()
    except (InputError, OSError) as error:
        # The message of an error in a DataLoader worker is a whole traceback. Show its last line.
        sys.exit(f"error: {str(error).strip().splitlines()[-1]}")


def load(name, root="data", size=None, splits=SPLITS):
    """The splits of dataset `name`: {"train", "val", "test": LongTailed}. Raises InputError.

    Reads lists without looking for their images; `look_up_images` does that. size: side of an image
    in pixels, 224 by default; always 32 for glyphs_lt and CIFAR.
    """
    size = size or (32 if in_memory(name) else 224)
    if in_memory(name) and size != 32:
        raise InputError(f"{name} has images of 32 pixels, not of {size}")
    if name == "glyphs_lt":
        parts = {split: glyphs_lt(split) for split in splits}
    elif in_memory(name):
        parts = cifar_lt(name, root)
    else:
        parts = {split: image_list(name, root, split) for split in splits}
    sets = {}
    for split in splits:
        transform = None if in_memory(name) else centre_crop(name, size)
        augmented = split == "train" and name != "glyphs_lt"  # glyphs vary already
        if augmented:
            transform = v2.RandomResizedCrop(size)
        sets[split] = LongTailed(*parts[split], transform, augmented, root)
    if "train" in sets:
        check(name, sets)
    return sets


def in_memory(name):
    """Whether dataset `name` is glyphs_lt or CIFAR; the others are lists of image files."""
    return name == "glyphs_lt" or name.rstrip("0123456789") in ("cifar10_lt", "cifar100_lt")


def centre_crop(name, size):
    """The test transform: for lists that of [19]. For glyphs_lt and CIFAR, it makes a photograph as
    small as their own images, which it would not change."""
    resized = size if in_memory(name) else size * 256 // 224
    return v2.Compose([v2.Resize(resized), v2.CenterCrop(size)])


def check(name, sets):
    """Raises InputError if a class has no training image. Warns of images that a list names more
    than once, and of val and test images that are also training images."""
    train = sets["train"]
    C = max(len(dataset.N_c) for dataset in sets.values())
    N_c = np.bincount(train.labels, minlength=C)
    if not N_c.all():
        raise InputError(f"{name}: class {N_c.argmin()} has no training image")
    if in_memory(name):
        return
    for split, dataset in sets.items():
        if repeated := len(dataset) - len(np.unique(dataset.images)):
            print(f"warning: {repeated:,} lines of the {split} list repeat an image")
        if split != "train" and len(overlap := np.intersect1d(dataset.images, train.images)):
            print(f"warning: {len(overlap):,} {split} images are also training images")


class LongTailed(Dataset):
    """A split. An item is (image uint8 [3, size, size], label int).

    images: uint8 [N, 3, H, W], or an array of N paths relative to `root`. labels: int [N].
    names: of the classes. N_c: images per class. augmented: whether train.py applies `augment` to
    the batches. checksum: of the labels and the images; for a list, of the labels and the paths.
    """

    def __init__(self, images, labels, names=(), transform=None, augmented=False, root=""):
        self.images = images
        self.labels = np.array(labels, dtype=np.int64)
        self.names = list(names)
        self.N_c = np.bincount(self.labels)
        self.transform = transform
        self.augmented = augmented
        self.root = root
        self.checksum = zlib.crc32(np.asarray(images).tobytes() + self.labels.tobytes())

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if isinstance(image, str):
            image = read_image(os.path.join(self.root, image))
        if self.transform:
            image = self.transform(image)
        return image, int(self.labels[i])


def look_up_images(*sets):
    """Raises InputError if an image of a list is missing."""
    for dataset in sets:
        for image in dataset.images:
            if isinstance(image, str) and not os.path.isfile(os.path.join(dataset.root, image)):
                raise InputError(f"{dataset.root} has no {image}")


def loader(dataset, workers, **kwargs):
    """A DataLoader of the split. In-memory images without a transform need no workers."""
    workers = workers if dataset.transform else 0
    if workers and os.name == "posix" and multiprocessing.get_start_method() != "fork":
        # Each epoch starts new workers. A fork server imports PyTorch once for all of them.
        multiprocessing.set_forkserver_preload(["torchvision.transforms.v2"])
        kwargs["multiprocessing_context"] = "forkserver"
    return DataLoader(dataset, num_workers=workers, pin_memory=torch.cuda.is_available(), **kwargs)


def shots(N_c):
    """Sec. 4.2: {"Many", "Medium", "Low": bool [C]}, by training images per class, int [C]."""
    return {"Many": N_c >= 100, "Medium": (N_c > 20) & (N_c < 100), "Low": N_c <= 20}


# ------------------------------------------------------------------------------ images
def read_image(path):
    """Decode an image file to uint8 [3, H, W], upright, on white where it is transparent. Raises
    InputError with the path."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        # torchvision decodes JPEG files faster than Pillow, but it ignores an orientation tag. If
        # decode_jpeg, which is deprecated, fails or does not exist, Pillow decodes the file.
        if b"Exif" not in data and b"tiff:Orientation" not in data:
            with contextlib.suppress(Exception):
                buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return torchvision.io.decode_jpeg(buffer, torchvision.io.ImageReadMode.RGB)
        image = Image.open(io.BytesIO(data))
        deep = image.mode[0] in "IF"
        for codec, _, _, how in image.tile:  # Pillow would read 16-bit colour as 8 bits
            deep = deep or re.search(";16[BLN]", str(how)) or (codec == "ppm" and how[1] > 255)
        if deep:
            raise ValueError("it has more than 8 bits a channel")
        # exif_transpose needs the orientation, which getexif keeps. The rest it would write anew,
        # which can fail.
        image.getexif()
        for key in "exif", "Raw profile type exif":
            image.info.pop(key, None)
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return v2.functional.pil_to_tensor(image.convert("RGB"))
    except Exception as error:
        raise InputError(f"{path}: not a readable image ({error})") from None


def augment(B):
    """Random flip and ColorJitter(0.4, 0.4, 0.4), as in [19]. uint8 [n, 3, H, W] to the same.

    Each image has its own flip and its own factors, and is clipped after each adjustment. The order
    of the adjustments is drawn once per batch (our choice); [19] draws it for each image. Raises
    ValueError if B is not uint8.
    """
    if B.dtype != torch.uint8:
        raise ValueError("images must be uint8, 0 to 255: PILToTensor, not ToTensor")
    shape = len(B), 1, 1, 1
    flip = torch.rand(shape, device=B.device) < 0.5
    x = torch.where(flip, B.flip(3), B).float()
    for adjustment in torch.randperm(3).tolist():
        factor = torch.empty(shape, device=B.device).uniform_(0.6, 1.4)
        grey = 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
        black = torch.zeros_like(grey)
        mean_grey = grey.mean((2, 3), keepdim=True)
        towards = [black, mean_grey, grey][adjustment]  # brightness, contrast, saturation
        x = (factor * x + (1 - factor) * towards).clamp_(0, 255)
    return x.to(torch.uint8)


# ------------------------------------------------------------------------------ datasets
def pareto(C, N_max, N_min, alpha=6):
    """Images per class, int [C], from N_max to N_min. Sec. 4.1 names a Pareto distribution with
    alpha = 6, but gives no formula. Our choice: N(x) = N_max x^-alpha, x evenly spaced. The paper's
    sets are steeper: with the C, N_max and N_min of ImageNet-LT, this gives 167,243 images, and
    Sec. 4.1 has 115,846."""
    x = np.linspace(1, (N_max / N_min) ** (1 / alpha), C)
    return np.rint(N_max * x**-alpha).astype(int)


def glyphs_lt(split):
    """Images, labels and names of 62 characters: 1,000 to 5 training images each, by `pareto`, 20
    validation images and 40 test images."""
    C = len(GLYPHS)
    N_c = {"train": pareto(C, 1000, 5), "val": [20] * C, "test": [40] * C}[split]
    labels = np.repeat(np.arange(C), N_c)
    return render_glyphs(labels, seed=SPLITS.index(split)), labels, GLYPHS


def render_glyphs(labels, seed):
    """Pictures of the characters `labels`, uint8 [N, 3, 32, 32]: each turned, sheared, scaled and
    shifted at random, in a dark colour on a light one, with a faint disc and noise.
    """
    font = ImageFont.load_default(60)
    glyphs = []
    for glyph in GLYPHS:
        glyphs.append(Image.new("L", (96, 96)))
        ImageDraw.Draw(glyphs[-1]).text((48, 48), glyph, fill=255, font=font, anchor="mm")
    distort = v2.RandomAffine(
        10, translate=(0.12, 0.12), scale=(0.65, 1.35), shear=17, interpolation=Image.BILINEAR
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ink = [v2.functional.pil_to_tensor(distort(glyphs[y]).reduce(3)) for y in labels]
        ink = torch.stack(ink) / 255  # [N, 1, 32, 32]
        N = len(labels)
        dark, light = 100 * torch.rand(N, 3, 1, 1), 155 + 100 * torch.rand(N, 3, 1, 1)
        x, y = 32 * torch.rand(2, N, 1, 1, 1)
        radius = 4 + 6 * torch.rand(N, 1, 1, 1)
        shade = 100 * torch.rand(N, 1, 1, 1) - 50
        column = torch.arange(32)
        disc = (column - x) ** 2 + (column[:, None] - y) ** 2 < radius**2  # faint clutter
        noise = 8 * torch.randn(N, 1, 32, 32)
        return (light + ink * (dark - light) + shade * disc + noise).clamp_(0, 255).to(torch.uint8)


def cifar_lt(name, root):
    """Long-tailed CIFAR, downloaded to `root` if it is not there. cifar100_lt10: CIFAR-100 with an
    imbalance N_max / N_min of 10; the default is 100.

    Validation images are drawn from the unused training images, at most N_max / 10 per class. The
    largest class has none.
    """
    name, _, imbalance = name.partition("_lt")
    archive = getattr(torchvision.datasets, name.upper())
    train = archive(root, train=True, download=True)
    test = archive(root, train=False)
    y = np.array(train.targets)
    C = len(train.classes)
    N_max = len(y) // C
    mu = 1 / int(imbalance or 100)
    N_c = (N_max * mu ** (np.arange(C) / (C - 1))).astype(int)  # the usual rule
    rng = np.random.default_rng(0)
    drawn = []
    held_out = []
    for c, n in enumerate(N_c):
        # Sort by content, because copies of CIFAR differ in order.
        images = sorted(np.flatnonzero(y == c).tolist(), key=lambda i: train.data[i].tobytes())
        images = rng.permutation(images).tolist()
        drawn += images[:n]
        held_out += images[n : n + N_max // 10]
    pool = torch.from_numpy(train.data).permute(0, 3, 1, 2)
    return {
        "train": (pool[drawn], y[drawn], train.classes),
        "val": (pool[held_out], y[held_out], train.classes),
        "test": (torch.from_numpy(test.data).permute(0, 3, 1, 2), test.targets, train.classes),
    }


def image_list(name, root, split):
    """Paths, labels and class names of the list ROOT/NAME_SPLIT.txt. A class has the name of the
    folder of its first image, below what all folders share. Raises InputError; the message names a
    bad line."""
    # Letter case does not matter, because [19] has ImageNet_LT_train.txt.
    files = {file.lower(): file for file in sorted(glob.glob("*.txt", root_dir=root))}
    file = files.get(f"{name}_{split}.txt".lower())
    if file is None:
        raise InputError(f"{root} has no {name}_{split}.txt (see --data and --root)")
    paths = []
    labels = []
    first = {}  # the first image of each class
    with open(os.path.join(root, file), encoding="utf-8-sig") as lines:
        for n, line in enumerate(lines, 1):
            fields = line.rsplit(maxsplit=1)
            if not fields:
                continue
            if len(fields) != 2 or not fields[1].isdecimal():
                raise InputError(f"{file}:{n}: {line.strip()!r} is not `PATH LABEL`")
            path = os.path.normpath(fields[0])  # a/x.jpg and ./a//x.jpg are one image
            paths.append(path)
            labels.append(int(fields[1]))
            first.setdefault(labels[-1], path)
    folders = {y: os.path.dirname(os.path.abspath(f"{root}/{x}")) for y, x in first.items()}
    shared = os.path.commonpath([*folders.values()] or ["."])
    C = max(folders, default=-1) + 1
    names = [os.path.relpath(folders[y], shared) if y in folders else "" for y in range(C)]
    # An array, because every loading process would copy a list of str (pytorch issue 13246).
    return np.array(paths, dtype=str), labels, names


# ------------------------------------------------------------------------------ python data.py
def describe(sets):
    """Print the splits, the shots, and the largest and the smallest class. Warns of classes whose
    first image is in another class's folder. Raises InputError if an image is missing."""
    train = sets["train"]
    N_c = train.N_c
    for split, dataset in sets.items():
        n = np.bincount(dataset.labels, minlength=len(N_c))
        print(f"{split:6} {n.sum():9,} images {len(n):6,} classes of {n.min():,} to {n.max():,}")
    for shot, mask in shots(N_c).items():
        print(f"{shot:6} {N_c[mask].sum():9,} images {mask.sum():6,} classes (training)")
    for kind, y in ("largest", N_c.argmax()), ("smallest", N_c.argmin()):
        print(f"{kind} class: {y}, {train.names[y]}, {N_c[y]:,} training images")
    # Lists that were numbered in different orders would train well and test at chance.
    for split in "val", "test":
        for y, name in enumerate(sets[split].names):
            if name != train.names[y] and train.names.count(name) == 1:
                print(f"warning: class {y} is {train.names[y]} in train, {name} in {split}")
    look_up_images(*sets.values())


def make(args):
    """Write the lists ROOT/NAME_{train,val,test}.txt of the images below ROOT. Labels number the
    folders of classes in alphabetical order, from 0. Raises InputError.

    If ROOT has the folders train, val and test, these are the splits. Else ROOT has a folder for
    each class, from which validation and test images are held out. With --max (Sec. 4.1), only some
    training images are taken: as many as `pareto` says, most from the largest folder.
    """
    # One such folder alone can be a class.
    has_splits = sum(os.path.isdir(f"{args.root}/{split}") for split in SPLITS) > 1
    if has_splits:
        lists = {split: class_folders(args.root, split) for split in SPLITS}
        lists["train"] = draw(lists["train"], args, 0, 0)["train"]
    else:
        lists = draw(class_folders(args.root), args, args.val, args.test)
    labels = {name: label for label, name in enumerate(lists["train"])}
    for split, folders in lists.items():
        if unknown := folders.keys() - labels.keys():
            raise InputError(f"{args.root}: {split} has {min(unknown)}, but train has not")
    for split, folders in lists.items():
        lines = [f"{path} {labels[name]}\n" for name, paths in folders.items() for path in paths]
        with open(f"{args.root}/{args.make}_{split}.txt", "x", encoding="utf-8") as file:
            file.writelines(lines)


def class_folders(root, split=""):
    """The images in the folders of ROOT/SPLIT: {folder: paths relative to root}. Raises InputError
    if there are fewer than two folders."""
    folders = {}
    top = os.path.join(root, split)
    for path in sorted(glob.glob("*/**/*", root_dir=top, recursive=True)):  # no hidden files
        if path.lower().endswith(IMG_EXTENSIONS):
            folders.setdefault(path.split(os.sep)[0], []).append(os.path.join(split, path))
    if len(folders) < 2:
        raise InputError(f"{top} does not have two folders of images (see --root)")
    return dict(sorted(folders.items()))


def draw(folders, args, val, test):
    """Draw disjoint splits from {class: paths}: {split: {class: paths}}. Raises InputError."""
    rng = np.random.default_rng(args.seed)
    size = np.array([len(paths) for paths in folders.values()])
    if args.max:
        by_size = np.lexsort([rng.permutation(len(size)), -size])  # ties in random order
        N_c = np.empty_like(size)
        N_c[by_size] = pareto(len(size), args.max, args.min)
    else:  # hold out at most a fifth each: small classes need their images for training
        val, test = np.minimum(val, size // 5), np.minimum(test, size // 5)
        N_c = size - val - test
    each = np.column_stack(np.broadcast_arrays(N_c, val, test))
    lists = {split: {} for split in SPLITS}
    for (name, paths), wanted in zip(folders.items(), each, strict=True):
        if sum(wanted) > len(paths):
            need = "{} for training (--max), {} for --val and {} for --test".format(*wanted)
            raise InputError(f"{args.root}: {name} has {len(paths)} images, but it needs {need}")
        chosen = rng.choice(paths, sum(wanted), replace=False)
        for split, part in zip(SPLITS, np.split(chosen, np.cumsum(wanted)[:2]), strict=True):
            lists[split][name] = part
    return lists


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Describe a dataset, or first make one of a folder of images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=str.lower, default="glyphs_lt", metavar="NAME", help="dataset")
    add("--root", default="data", metavar="DIR", help="dataset folder")
    add("--make", metavar="NAME", help="first write lists of this name of the images in --root")
    add("--max", type=int, help="--make: draw a long tail; training images of the largest class")
    add("--min", type=int, default=5, help="--make --max: training images of the smallest class")
    add("--val", type=int, default=20, help="--make, class folders: validation images of each")
    add("--test", type=int, default=50, help="--make, class folders: test images of each")
    add("--seed", type=int, default=0, help="--make: random seed for choosing images")
    args = parser.parse_args(argv)
    if args.make:
        make(args)
    describe(load(args.make or args.data, args.root))


if __name__ == "__main__":
    run(main)
