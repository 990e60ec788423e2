"""Long-tailed datasets, transforms and loading. Paper: Sec. 4.1, augmentation of reference [19].

    python data.py --data imagenet_lt --root DIR [--check]       # what to look at before a long run
    python data.py --make my_lt --from DIR                       # cut a long-tailed set from DIR/CLASS/*.jpg

A dataset NAME is glyphs_lt (drawn in memory), cifar10_lt, cifar100_lt, or any for which the lists
ROOT/NAME_{train,val,test}.txt exist (case ignored): one `PATH LABEL` a line, paths relative to ROOT.
"""
import argparse
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader, Dataset
from torchvision import io
from torchvision.transforms import v2

GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # the most frequent first
SPLITS = "train", "val", "test"
CORES = min(16, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) or 1)  # for each process of torchrun


class InputError(ValueError):
    """A user's mistake, in one line; of a loader worker's traceback only the last line is kept."""

    def __init__(self, message):
        super().__init__(str(message).strip().splitlines()[-1].split("InputError: ")[-1])


def at_least(kind, low):
    """An argparse type: a finite number of `low` or more."""
    def parse(text):
        if not low <= kind(text) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of {low} or more")
        return kind(text)
    parse.__name__ = kind.__name__
    return parse


class Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse prints its usage first; one line says enough
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def run(main):
    """Run a script; a mistake in its input is one line on stderr and exit status 1, never a traceback."""
    try:
        main()
    except (InputError, OSError) as error:
        message = error
    except KeyboardInterrupt:
        message = "interrupted"
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        message = f"{str(error).splitlines()[0]} (out of memory? try fewer --workers; --resume continues a saved run)"
    else:
        return
    sys.exit(f"{os.path.basename(sys.argv[0])}: {message}")


# ------------------------------------------------------------------------------ images

def read_image(path):
    """Decode one image file to uint8 [3, H, W]. Raises InputError with its path."""
    try:
        try:
            image = io.decode_image(io.read_file(path), io.ImageReadMode.RGB)
        except (RuntimeError, AttributeError):  # BMP and TIFF; and all, once torchvision drops its decoders
            image = Image.open(path)
            if image.mode.startswith("I"):  # 16 bits, which convert() would clip
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = v2.functional.pil_to_tensor(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except Exception as error:
        raise InputError(f"{path}: not a readable image ({type(error).__name__})") from None
    image = image[0] if image.ndim == 4 else image  # an animated GIF: its first frame
    return v2.functional.to_dtype(image, torch.uint8, scale=True)


def colour_jitter(image, strength=0.4):
    """What v2.ColorJitter does, in a third of its time: brightness, contrast and saturation by random factors in random
    order, as one affine map of the colours, clipped once at its end. uint8 [3, H, W] to the same."""
    x, grey = image.reshape(3, -1).float(), torch.tensor([[0.2989, 0.587, 0.114]])
    A, b = torch.eye(3), torch.zeros(3, 1)
    for step, factor in zip(torch.randperm(3).tolist(), torch.empty(3).uniform_(1 - strength, 1 + strength).tolist()):
        if step == 0:  # contrast: towards the image's mean grey
            A, b = factor * A, factor * b + (1 - factor) * grey @ (A @ x.mean(1, keepdim=True) + b)
        else:  # 1, brightness: towards black; 2, saturation: towards each pixel's grey
            M = factor * torch.eye(3) + (step - 1) * (1 - factor) * grey
            A, b = M @ A, M @ b
    return torch.addmm(b, A, x).clamp_(0, 255).to(torch.uint8).view(image.shape)


def transforms(name, size, train):
    """From uint8 [3, H, W] to uint8 [3, size, size]: that of [19] for photographs, None for glyphs."""
    if name == "glyphs_lt":
        return None
    if name.startswith("cifar"):
        return v2.Compose([v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()]) if train else None
    if train:
        return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), colour_jitter])
    return v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])


class LongTailed(Dataset):
    """A split. images: uint8 [N, 3, H, W], or the N paths as a NumPy array of bytes (worker processes
    would copy a list of str, see pytorch issue 13246); labels: int [N]; N_c: images per class, int [C]."""

    def __init__(self, images, labels, transform=None):
        self.images, self.labels, self.transform = images, torch.as_tensor(labels), transform
        self.N_c = np.bincount(labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i] if torch.is_tensor(self.images) else read_image(os.fsdecode(self.images[i]))
        return self.transform(image) if self.transform else image, self.labels[i]

    def __getitems__(self, draws):
        """Of (index, key) pairs: images uint8 [B, 3, H, W], labels int [B], and the keys, which seed augmentation."""
        indices, keys = torch.tensor(draws).unbind(1)
        if self.transform is None:
            return self.images[indices], self.labels[indices], keys
        images = []
        for i, key in draws:
            torch.default_generator.manual_seed(key)
            images.append(self[i][0])
        return torch.stack(images), self.labels[indices], keys


def loader(dataset, draws, workers, cuda):
    """DataLoader over `draws`, an iterable of lists of (index, key). In memory without transform: no workers."""
    workers = workers if dataset.transform else 0
    return DataLoader(dataset, batch_sampler=draws, num_workers=workers, collate_fn=tuple, pin_memory=cuda)


# ------------------------------------------------------------------------------ datasets

def pareto(C, N_max, N_min, alpha=6):
    """Sec. 4.1: images per class, int [C], N(x) = N_max x^-alpha at C even steps of x from N_max to N_min."""
    x = np.linspace(1, (N_max / N_min) ** (1 / alpha), C)
    return np.rint(N_max * x ** -alpha).astype(int)


def exponential(C, N_max, imbalance):
    """The field's rule for CIFAR-LT: images per class, int [C], N_max mu^(c / (C - 1)), mu = 1 / imbalance."""
    return (N_max * (1 / imbalance) ** (np.arange(C) / (C - 1))).astype(int)


def draw_glyphs(N_c, rng):
    """N_c[c] pictures of each character: uint8 [N, 3, 32, 32], and their labels, int [N]."""
    labels = np.repeat(np.arange(len(N_c)), N_c)
    N, font, shapes = len(labels), ImageFont.load_default(60), []
    for glyph in GLYPHS:  # at three times the size, to be box-filtered
        shapes.append(Image.new("L", (96, 96)))
        ImageDraw.Draw(shapes[-1]).text((48, 48), glyph, fill=255, font=font, anchor="mm")
    angle, shear = np.deg2rad(rng.uniform(-20, 20, N)), rng.uniform(-0.3, 0.3, N)
    cos, sin = np.array([np.cos(angle), np.sin(angle)]) / rng.uniform(0.8, 1.25, N)
    x, y = 48 + 96 * rng.uniform(-0.12, 0.12, (2, N))  # where the centre goes
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos  # from output to input, as Pillow wants it
    maps = np.stack([a, b, 48 - a * x - b * y, d, e, 48 - d * x - e * y], 1)
    ink = np.stack([np.asarray(shapes[label].transform((96, 96), Image.AFFINE, affine, Image.BILINEAR).reduce(3))
                    for label, affine in zip(labels, maps)])[:, None] / np.float32(255)
    colours = rng.uniform(0, 255, (N, 2, 3))
    while (dull := np.abs(np.diff(colours.mean(2))[:, 0]) < 90).any():  # paper and ink: 90 grey levels apart
        colours[dull] = rng.uniform(0, 255, (dull.sum(), 2, 3))
    paper, tint = colours.astype(np.float32).transpose(1, 0, 2)[..., None, None]
    x, y, r, shade = rng.uniform([[0], [0], [4], [-50]], [[32], [32], [10], [50]], (4, N))[..., None, None]
    disc = shade * ((np.arange(32) - x) ** 2 + (np.arange(32)[:, None] - y) ** 2 < r * r)
    images = paper + ink * (tint - paper) + disc[:, None] + rng.normal(0, 8, (N, 1, 32, 32))
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), labels


def glyphs_lt(seed=0):
    """The embedded default: 62 characters, 1,280 to 5 training images each (Sec. 4.1), 20 for val, 40 for test."""
    rng, C = np.random.default_rng(seed), len(GLYPHS)
    return [draw_glyphs(N_c, rng) for N_c in (pareto(C, 1280, 5), [20] * C, [40] * C)]


def cifar_lt(name, root, imbalance, download):
    """Long-tailed CIFAR; val is up to a tenth of N_max a class of the training images that are left over."""
    try:
        archive = torchvision.datasets.CIFAR10 if name == "cifar10_lt" else torchvision.datasets.CIFAR100
        train, test = (archive(root, train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        hint = "the download failed" if download else f"fetch it: python data.py --data {name} --root {root} --download"
        raise InputError(f"{archive.__name__} is not in {root}: {hint} ({str(error).splitlines()[0]})") from None
    y, N_max = np.array(train.targets), len(train) // len(train.classes)
    N_c, rng = exponential(len(train.classes), N_max, imbalance), np.random.default_rng(0)
    drawn = [rng.permutation(np.flatnonzero(y == c)) for c in range(len(N_c))]
    pick = [np.concatenate([i[:n] for i, n in zip(drawn, N_c)]),
            np.concatenate([i[n:n + N_max // 10] for i, n in zip(drawn, N_c)])]
    sets = [(train.data[i], y[i]) for i in pick] + [(test.data, test.targets)]
    return [(torch.from_numpy(images).permute(0, 3, 1, 2), labels) for images, labels in sets]


def read_list(path):
    """One `PATH LABEL` a line: paths (below the list's folder), labels. Raises InputError with file and line number."""
    paths, labels = [], []
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(map(str.strip, lines), 1):
            image, _, label = line.replace("\t", " ").rpartition(" ")
            if line and (not image or not label.isdecimal()):
                raise InputError(f"{path}:{number}: {line[:80]!r} is not `PATH LABEL` with a label of 0 or more")
            if line:
                paths.append(os.fsencode(os.path.join(os.path.dirname(path), image.strip())))
                labels.append(int(label))
    if not labels:
        raise InputError(f"{path}: the list is empty")
    return np.array(paths), labels


def image_lists(name, root):
    """Paths and labels of ROOT/NAME_{train,val,test}.txt. Raises InputError where they don't fit together."""
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such folder; give the one that holds the lists and images with --root")
    found, sets = {file.lower(): os.path.join(root, file) for file in os.listdir(root)}, []
    for file in (f"{name}_{split}.txt" for split in SPLITS):
        if file not in found:
            known = sorted(f.removesuffix("_train.txt") for f in found if f.endswith("_train.txt"))
            raise InputError(f"unknown dataset {name!r}: no {os.path.join(root, file)}; "
                             f"there are {', '.join(['glyphs_lt', 'cifar10_lt', 'cifar100_lt', *known])}")
        sets.append(read_list(found[file]))
        if len(sets) == 1:  # of train, which says what classes there are
            classes = sorted(set(sets[0][1]))
            for c, label in enumerate(classes):
                if label != c:
                    raise InputError(f"{found[file]}: class {c} has no training image, though there is a class {label}")
        for image, label in zip(*sets[-1]):
            if label > classes[-1]:
                raise InputError(f"{found[file]}: {os.fsdecode(image)} has label {label}, but training has only "
                                 f"classes 0 to {classes[-1]}")
    return sets


def load(name, root="data", size=224, imbalance=100, download=False):
    """{"train", "val", "test": LongTailed} for dataset `name`; images are `size` pixels square. Raises InputError."""
    name = name.lower()
    sets = (glyphs_lt() if name == "glyphs_lt" else
            cifar_lt(name, root, imbalance, download) if name in ("cifar10_lt", "cifar100_lt") else
            image_lists(name, root))
    return {split: LongTailed(images, labels, transforms(name, size, split == "train"))
            for split, (images, labels) in zip(SPLITS, sets)}


# ------------------------------------------------------------------------------ command line

def shots(N_c):
    """Sec. 4.2: {"Many": bool [C], "Medium": ..., "Low": ...} by training images per class N_c, int [C]."""
    N_c = np.asarray(N_c)
    return {"Many": N_c >= 100, "Medium": (N_c > 20) & (N_c < 100), "Low": N_c <= 20}


def describe(sets):
    """Print what a person checks before a long run."""
    for split, dataset in sets.items():
        n = dataset.N_c
        print(f"{split:6}{len(dataset):9,} images{(n > 0).sum():7,} classes   smallest: class {n.argmin()} with "
              f"{n.min():,}, largest: class {n.argmax()} with {n.max():,}")
    n = sets["train"].N_c
    for shot, mask in shots(n).items():
        print(f"{shot:6}{n[mask].sum():9,} images{mask.sum():7,} classes")


def check(sets):
    """Decode every listed image; print those that fail. Raises InputError if any does."""
    def broken(path):
        try:
            read_image(os.fsdecode(path))
        except InputError as error:
            print(error)
            return True

    paths = [path for dataset in sets.values() if not torch.is_tensor(dataset.images) for path in dataset.images]
    with ThreadPoolExecutor() as pool:
        n = sum(map(bool, pool.map(broken, paths)))
    print(f"{len(paths) - n:,} of {len(paths):,} image files decode")
    if n:
        raise InputError(f"{n} image files are missing or broken, see above")


def make(name, source, root, alpha, N_max, N_min, n_val, n_test, seed):
    """Sec. 4.1: write ROOT/NAME_{train,val,test}.txt from source/CLASS/*, nothing shared between them: a balanced
    test and val first, then training images by the Pareto rule over a shuffled order of the classes."""
    ends = ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"
    classes = sorted(entry.name for entry in os.scandir(source) if entry.is_dir())
    if len(classes) < 2:
        raise InputError(f"{source}: needs a folder of images for each of two or more classes")
    files = [os.path.join(root, f"{name}_{split}.txt") for split in SPLITS]
    for file in filter(os.path.exists, files):
        raise InputError(f"{file} exists; take another name or remove it")
    rng, lists = np.random.default_rng(seed), ([], [], [])
    counts = pareto(len(classes), N_max, N_min, alpha)[rng.permutation(len(classes))]
    for label, (folder, N_c) in enumerate(zip(classes, counts)):
        images = sorted(f for f in os.listdir(os.path.join(source, folder)) if f.lower().endswith(ends))
        if len(images) < N_c + n_val + n_test:
            raise InputError(f"class {folder} has {len(images)} images, fewer than the {N_c} + {n_val} + {n_test} "
                             "asked of it for train, val and test")
        cut = np.split(rng.permutation(images), [n_test, n_test + n_val, n_test + n_val + N_c])
        for lines, part in zip(lists, (cut[2], cut[1], cut[0])):
            lines += [f"{os.path.relpath(os.path.join(source, folder, image), root)} {label}\n" for image in part]
    for file, lines in zip(files, lists):
        with open(file, "w", encoding="utf-8", errors="surrogateescape") as out:
            out.writelines(lines)
        print(f"{file}: {len(lines):,} images")


def main(argv=None):
    parser = Parser(description="Describe a dataset, or make a long-tailed one from a folder of images.")
    add = parser.add_argument
    add("--data", default="glyphs_lt", metavar="NAME", help="dataset (default: glyphs_lt)")
    add("--root", metavar="DIR", help="folder with the lists and images (default: data; of --make: its --from)")
    add("--check", action="store_true", help="also decode every listed image")
    add("--imbalance", type=at_least(float, 1), default=100, help="N_max / N_min of CIFAR-LT (default: 100)")
    add("--download", action="store_true", help="fetch CIFAR first")
    add("--make", metavar="NAME", help="write ROOT/NAME_{train,val,test}.txt from the images of --from")
    add("--from", dest="source", metavar="DIR", help="one folder of images a class")
    add("--alpha", type=at_least(float, 0.01), default=6, help="of the Pareto rule (default: 6)")
    add("--max", type=at_least(int, 1), default=1280, help="training images of the largest class (default: 1280)")
    add("--min", type=at_least(int, 1), default=5, help="... and of the smallest (default: 5)")
    add("--val", type=at_least(int, 1), default=20, help="validation images per class (default: 20)")
    add("--test", type=at_least(int, 1), default=50, help="test images per class (default: 50)")
    add("--seed", type=at_least(int, 0), default=0, help="of the choice of images and order of classes (default: 0)")
    args = parser.parse_args(argv)
    if args.make:
        if not args.source or args.min > args.max:
            parser.error("--make needs --from DIR, and --min not above --max")
        root = args.root or args.source
        return make(args.make, args.source, root, args.alpha, args.max, args.min, args.val, args.test, args.seed)
    sets = load(args.data, args.root or "data", imbalance=args.imbalance, download=args.download)
    describe(sets)
    if args.check:
        check(sets)


if __name__ == "__main__":
    run(main)
