"""Long-tailed datasets, transforms and loading. Sec. 4.1; the augmentation of reference [19].

    sets = load("glyphs_lt")              # {"train", "val", "test": LongTailed}
    image, label = sets["train"][0]       # uint8 [3, 32, 32], int

    python data.py --data imagenet_lt --root DIR [--check]     # to look at before a long run
    python data.py --make my_lt --from DIR                     # a long-tailed set of DIR/CLASS/*

A dataset is one of IN_MEMORY, or any NAME of lists ROOT/NAME_{train,val,test}.txt (case ignored):
one `PATH LABEL` a line, paths relative to ROOT.
"""
import argparse, contextlib, multiprocessing, os, re, signal, sys, zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import io
from torchvision.transforms import v2

SPLITS = "train", "val", "test"
IN_MEMORY = "glyphs_lt", "cifar10_lt", "cifar100_lt"  # 32 pixels square
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # most frequent first
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1  # on which training saves

def load(name, root="data", size=None, imbalance=100, download=False, splits=SPLITS):
    """{"train", "val", "test": LongTailed} of dataset `name`, images `size` pixels square (224; 32
    of IN_MEMORY); those not in `splits` have labels only. Raises InputError."""
    name, size = name.lower(), size or (32 if name.lower() in IN_MEMORY else 224)
    require(name not in IN_MEMORY or size == 32, f"--size {size}: {name} has images of 32 pixels")
    train = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), colour_jitter])
    test = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size)])
    if name == "glyphs_lt":
        parts, train, test = glyphs_lt(splits), None, None
    elif name in IN_MEMORY:
        parts, test = cifar_lt(name, root, imbalance, download), None
    else:
        parts = image_lists(name, root, splits)
    return {split: LongTailed(*part, transform, root, np.max(parts[0][1]) + 1)
            for split, part, transform in zip(SPLITS, parts, (train, test, test))}

class LongTailed(Dataset):
    """A split. images: uint8 [N, 3, H, W], or paths below `root`, as a NumPy array of bytes (worker
    processes would copy a list of str: pytorch issue 13246); labels: int [N]; N_c: int [C]."""
    def __init__(self, images, labels, transform=None, root="", C=0):
        self.images, self.transform, self.root = images, transform, os.fsencode(root)
        self.labels, self.N_c = np.asarray(labels), np.bincount(labels, minlength=C)
        self.paths = images if isinstance(images, np.ndarray) else np.array([], "S")
        self.fingerprint = zlib.crc32(self.paths.tobytes() + self.labels.tobytes())  # of this order

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, item):
        """item: an index, for (image uint8 [3, size, size], label), or (index, seed), for (image,
        label, theta): the seed's 32 random bits alone decide the augmentation and the angle."""
        index, seed = item if isinstance(item, tuple) else (item, None)
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        image, label = self.images[index], int(self.labels[index])
        if isinstance(image, bytes):
            image = read_image(os.fsdecode(os.path.join(self.root, image)))
        image = self.transform(image) if self.transform else image
        if seed is None:
            return image, label
        theta = seed >> 30  # line 9's angle in quarters of a turn: two bits, uniform on 0..3
        return image, label, theta

def loader(dataset, batches, workers, cuda):
    """Generator of `batches` (lists of items) of a dataset; one in memory needs no workers."""
    workers = workers if dataset.transform else 0
    data_loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=cuda)
    mask, others = signal.pthread_sigmask(signal.SIG_BLOCK, ()), multiprocessing.active_children()
    try:
        if workers:
            multiprocessing.Lock()  # on macOS starts a helper that would undo the next line
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit it: training saves
        iterator = iter(data_loader)
    except OSError as error:
        for worker in set(multiprocessing.active_children()) - set(others):  # that did start
            worker.kill()
        raise InputError(f"--workers {workers}: {error.strerror}; take fewer, or 0") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield from iterator
    finally:
        if workers:
            iterator._shutdown_workers()  # at exit they would be asked by a signal, and waited for

def shots(N_c):
    """Sec. 4.2: {"Many", "Medium", "Low": bool [C]} by training images per class, int [C]."""
    N_c = np.asarray(N_c)
    return {"Many": N_c >= 100, "Medium": (N_c > 20) & (N_c < 100), "Low": N_c <= 20}

# ------------------------------------------------------------------------------ images
def read_image(path):
    """Decode an image file to uint8 [3, H, W], upright. Raises InputError with its path."""
    require(os.path.isfile(path), f"{path}: no such image file")  # a FIFO would be waited for
    with explain(f"{path}: not a readable image", Exception):
        if path.lower().endswith((".jpg", ".jpeg")) and os.path.getsize(path) < 2 ** 20:
            with contextlib.suppress(Exception):  # faster than Pillow, where torchvision has it
                return io.decode_jpeg(io.read_file(path), "RGB", apply_exif_orientation=True)
        image = Image.open(path)  # the header alone; refuses what is above Pillow's limit
        require(image.mode != "F", "floating-point pixels; save it with 8 bits")
        if image.mode.startswith("I"):  # 16 bits, which convert() would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return v2.functional.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))

def colour_jitter(image, strength=0.4):
    """v2.ColorJitter in a third of its time: brightness, contrast and saturation by random factors
    in random order, as one affine map of the colours, clipped once. uint8 [3, H, W] to the same."""
    x, grey = image.reshape(3, -1).float(), torch.tensor([[0.2989, 0.587, 0.114]])
    A, b = torch.eye(3), torch.zeros(3, 1)
    order, factors = torch.randperm(3), torch.empty(3).uniform_(1 - strength, 1 + strength)
    for step, factor in zip(order.tolist(), factors.tolist()):
        if step == 0:  # contrast: towards the image's mean grey
            mean = A @ x.mean(1, keepdim=True) + b
            A, b = factor * A, factor * b + (1 - factor) * grey @ mean
        else:  # 1, brightness: towards black; 2, saturation: towards each pixel's grey
            blend = factor * torch.eye(3) + (step - 1) * (1 - factor) * grey
            A, b = blend @ A, blend @ b
    return torch.addmm(b, A, x).clamp_(0, 255).to(torch.uint8).view(image.shape)

# ------------------------------------------------------------------------------ datasets
def pareto(C, N_max, N_min, alpha=6):
    """Sec. 4.1: images per class, int [C], N(x) = N_max x^-alpha at C even steps of x."""
    x = np.linspace(1, (N_max / N_min) ** (1 / alpha), C)
    return np.rint(N_max * x ** -alpha).astype(int)

def glyphs_lt(splits):
    """The embedded default: 62 characters, 1,280 to 5 training images each (Sec. 4.1)."""
    rng, C, parts = np.random.default_rng(0), len(GLYPHS), []
    for split, N_c in zip(SPLITS, (pareto(C, 1280, 5), [20] * C, [40] * C)):
        labels = np.repeat(np.arange(C), N_c)
        parts.append((draw_glyphs(labels, rng, split in splits), labels))
    return parts

def draw_glyphs(labels, rng, draw=True):
    """Pictures of the characters `labels`, of random looks: uint8 [N, 3, 32, 32]. draw=False only
    takes the random numbers, so that the next split looks the same without this one."""
    N, shapes, font, ink = len(labels), [], ImageFont.load_default(60), []
    angle, shear = np.deg2rad(rng.uniform(-20, 20, N)), rng.uniform(-0.3, 0.3, N)
    cos, sin = np.array([np.cos(angle), np.sin(angle)]) / rng.uniform(0.8, 1.25, N)
    x, y = 48 + 96 * rng.uniform(-0.12, 0.12, (2, N))  # where the centre goes
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos  # from output to input, for Pillow
    maps = np.stack([a, b, 48 - a * x - b * y, d, e, 48 - d * x - e * y], 1)
    colours = rng.uniform(0, 255, (N, 2, 3))
    while (too_close := np.abs(np.diff(colours.mean(2))[:, 0]) < 90).any():  # in grey levels
        colours[too_close] = rng.uniform(0, 255, (too_close.sum(), 2, 3))
    discs = rng.uniform([[0], [0], [4], [-50]], [[32], [32], [10], [50]], (4, N))
    noise = rng.normal(0, 8, (N, 1, 32, 32))
    if not draw:
        return None
    for glyph in GLYPHS:  # at three times the size, to be box-filtered
        shapes.append(Image.new("L", (96, 96)))
        ImageDraw.Draw(shapes[-1]).text((48, 48), glyph, fill=255, font=font, anchor="mm")
    for label, affine in zip(labels, maps):
        shape = shapes[label].transform((96, 96), Image.AFFINE, affine, Image.BILINEAR)
        ink.append(np.asarray(shape.reduce(3)))
    ink = np.stack(ink)[:, None] / np.float32(255)
    paper, tint = colours.astype(np.float32).transpose(1, 0, 2)[..., None, None]
    x, y, radius, shade = discs[..., None, None]  # a faint disc as clutter
    disc = (np.arange(32) - x) ** 2 + (np.arange(32)[:, None] - y) ** 2 < radius * radius
    images = paper + ink * (tint - paper) + (shade * disc)[:, None] + noise
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))

def cifar_lt(name, root, imbalance, download):
    """Long-tailed CIFAR; val: up to a tenth of N_max a class of the training images left over."""
    archive = getattr(torchvision.datasets, name.removesuffix("_lt").upper())
    with explain(f"{archive.__name__} is not in {root}; data.py --download fetches it", Exception):
        train, test = (archive(root, train, download=download) for train in (True, False))
    y, C, rng = np.array(train.targets), len(train.classes), np.random.default_rng(0)
    N_max, drawn, held_out = len(y) // C, [], []
    N_c = (N_max * (1 / imbalance) ** (np.arange(C) / (C - 1))).astype(int)  # the field's rule
    require(N_c.all(), f"--imbalance {imbalance:g} leaves a class without an image")
    for c, n in enumerate(N_c):
        images = rng.permutation(np.flatnonzero(y == c)).tolist()
        drawn, held_out = drawn + images[:n], held_out + images[n:n + N_max // 10]
    parts = [(train.data[i], y[i]) for i in (drawn, held_out)] + [(test.data, test.targets)]
    return [(torch.from_numpy(images).permute(0, 3, 1, 2), labels) for images, labels in parts]

def image_lists(name, root, splits):
    """Paths and labels of ROOT/NAME_{train,val,test}.txt. Raises InputError."""
    with explain(f"{root}: not a folder of lists and images; name it by --root", OSError):
        found, parts, classes = {file.lower(): file for file in os.listdir(root)}, [], set()
    known = [*IN_MEMORY, *(f[:-10] for f in sorted(found) if f.endswith("_train.txt"))]
    for split in SPLITS:
        file = f"{name}_{split}.txt"
        require(file in found, f"unknown dataset {name!r}: no {file} in {root}; there are {known}")
        file = os.path.join(root, found[file])
        images, labels = read_list(file)
        classes, last = classes or set(labels), max(labels)
        absent = min(set(range(len(classes) + 1)) - classes)  # the first that training lacks
        require(last < absent, f"{file}: label {last}, but class {absent} has no training image")
        lost = [i for i in images if split in splits and not os.path.isfile(os.path.join(root, i))]
        require(not lost, f"{file}: {len(lost):,} listed images are no files: {lost[:1]}")
        parts.append((np.array([os.fsencode(i) for i in images]), labels))
    return parts

def read_list(path):
    """Paths and labels of a list. Raises InputError with the line."""
    images, labels = [], []
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for n, line in enumerate(map(str.strip, lines), 1):
            if line:
                match = re.fullmatch(r"(.*\S)\s+(\d+)", line, re.ASCII)
                require(match, f"{path}:{n}: {line[:60]!r} is not `PATH LABEL`, label >= 0")
                images.append(match[1])
                labels.append(int(match[2]))
    require(labels, f"{path}: the list is empty")
    return images, labels

# ------------------------------------------------------------------------------ python data.py
def describe(sets, check):
    """What to look at before a long run; check: decode all images, too. Raises InputError."""
    for split, dataset in sets.items():
        n = dataset.N_c
        print(f"{split:6}{len(dataset):9,} images{(n > 0).sum():7,} classes   smallest: class "
              f"{n.argmin()} with {n.min():,}, largest: class {n.argmax()} with {n.max():,}")
    N_c = sets["train"].N_c
    for shot, mask in shots(N_c).items():
        print(f"{shot:6}{N_c[mask].sum():9,} images{mask.sum():7,} classes")
    paths = [os.fsdecode(os.path.normpath(os.path.join(dataset.root, path)))
             for dataset in sets.values() for path in dataset.paths.tolist()]
    repeated, broken = len(paths) - len(set(paths)), 0
    if repeated:
        print(f"{repeated:,} lines list an image that an earlier line, of any split, lists")
    if not check:
        return
    for i in range(0, len(paths), 10_000):
        with ThreadPoolExecutor() as pool:
            decoded = [pool.submit(lambda path: read_image(path).shape, path)
                       for path in paths[i:i + 10_000]]
        bad = [image.exception() for image in decoded if image.exception()]
        broken += len(bad)
        print(*bad[:20], f"{broken:,} of {len(paths[:i + 10_000]):,} files do not decode", sep="\n")
    require(not broken + repeated, f"{broken:,} images are broken, {repeated:,} repeated")

def make(args):
    """Sec. 4.1: write ROOT/NAME_{train,val,test}.txt of --from's CLASS/*, nothing shared between
    them: a balanced test and val, then training images by the Pareto rule, over a shuffled order of
    the classes or, where some are too small for that, over the order of their sizes."""
    ends = ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"
    root, lists, rng = args.root or args.source, ([], [], []), np.random.default_rng(args.seed)
    files = [os.path.join(root, f"{args.make}_{split}.txt") for split in SPLITS]
    for file in files:
        require(not os.path.exists(file), f"{file} exists; take another name or remove it")
    folders = sorted(f.path for f in os.scandir(args.source) if f.is_dir() and f.name[0] != ".")
    require(len(folders) > 1, f"{args.source}: needs folders of images of two or more classes")
    images = [sorted(i for i in os.listdir(f) if i[0] != "." and i.lower().endswith(ends))
              for f in folders]
    counts = pareto(len(folders), args.max, args.min, args.alpha)
    free, N_c = np.array([len(i) - args.val - args.test for i in images]), rng.permutation(counts)
    if (N_c > free).any():
        N_c = np.sort(counts)[free.argsort(kind="stable").argsort()]
    for y in np.flatnonzero(N_c > free):
        raise InputError(f"{folders[y]} has {len(images[y])} images, fewer than the {N_c[y]} + "
                         f"{args.val} + {args.test} asked of it; lower --max, --val or --test")
    for label, (folder, n) in enumerate(zip(folders, N_c)):
        cuts = np.cumsum([args.test, args.val, n])
        test, val, train, _ = np.split(rng.permutation(images[label]), cuts)
        path = os.path.relpath(folder, root)
        for lines, part in zip(lists, (train, val, test)):
            lines += [f"{os.path.join(path, image)} {label}\n" for image in part]
    for file, lines in zip(files, lists):
        with open(file, "w", encoding="utf-8", errors="surrogateescape") as out:
            out.writelines(lines)
        print(f"{file}: {len(lines):,} images")

def main(argv=None):
    parser = Parser("Describe a dataset, or make a long-tailed one from a folder.")
    add = parser.add_argument
    add("--data", default="glyphs_lt", metavar="NAME", help="dataset")
    add("--root", metavar="DIR", help="of the lists and images; None: data, or --make's --from")
    add("--check", action="store_true", help="also decode every listed image")
    add("--imbalance", type=number(float, 1), default=100, help="N_max / N_min of CIFAR-LT")
    add("--download", action="store_true", help="fetch CIFAR first")
    add("--make", metavar="NAME", help="write ROOT/NAME_{train,val,test}.txt of --from's images")
    add("--from", dest="source", metavar="DIR", help="holds one folder of images a class")
    add("--alpha", type=number(float, 0.01), default=6, help="of the Pareto rule")
    for name, n in dict(max=1280, min=5, val=20, test=50).items():
        add(f"--{name}", type=number(int, 1), default=n, help="images of a class by --make")
    add("--seed", type=number(int, 0, 2 ** 64 - 1), default=0, help="of --make's choices")
    args = parser.parse_args(argv)
    if args.make:
        require(args.source and args.min <= args.max, "--make needs --from, and --min below --max")
        return make(args)
    describe(load(args.data, args.root or "data", None, args.imbalance, args.download), args.check)

# ------------------------------------------------------------------------------ every command line
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
WORKERS = max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))  # of each process

class InputError(ValueError):
    """A user's mistake, said in one line."""

def require(condition, message):
    if not condition:
        raise InputError(message)

@contextlib.contextmanager
def explain(what, *expected):
    """Turn an expected exception into the one line that a user needs."""
    try:
        yield
    except expected as error:
        reason = getattr(error, "strerror", None) or re.split(r"\. |\n", str(error))[0]
        raise InputError(f"{what} ({reason or type(error).__name__})") from None

def number(kind, low, high=1e300):
    """An argparse type: a number from `low` to `high`."""
    def parse(text):
        if low <= kind(text) <= high:
            return kind(text)
        raise argparse.ArgumentTypeError(f"{text} is not a number of {low} or more, or too large")
    parse.__name__ = kind.__name__
    return parse

class Parser(argparse.ArgumentParser):
    def __init__(self, description):
        shown = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(description=description, formatter_class=shown)

    def error(self, message):
        raise InputError(f"{message} (--help lists the flags)")

def run(main):
    """Run a script; a mistake in its input is one line on stderr, never a traceback."""
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        return main()
    except KeyboardInterrupt:
        message = "interrupted"
    except (InputError, OSError) as error:  # a loading process's has a traceback before its line
        message = str(error).strip().splitlines()[-1].split("InputError: ")[-1]
    except (RuntimeError, MemoryError) as error:
        if not re.search(r"worker \(pid|shared memory|llocate|of memory|open files", str(error)):
            raise
        message = (f"{str(error).strip().splitlines()[-1]} (take a smaller --batch-size or --size, "
                   "--workers 0, or a container with more --shm-size; --resume goes on)")
    sys.stdout = open(os.devnull, "w")  # what could not be written is not tried again
    sys.exit(f"{os.path.basename(sys.argv[0])}: {message}")

if __name__ == "__main__":
    run(main)
