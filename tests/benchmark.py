"""Speed and memory as ratios, each pair measured turn by turn in one run; needs no data.

python tests/benchmark.py              # all sections, on the GPU where there is one
python tests/benchmark.py loading      # one of: samplers loading loop naive evaluation gpu
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms as v1

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import evaluate
import train
from data import LongTailed, load, read_image
from model import Model, has_bf16
from sampler import ClassBalancedSampler, JointBatchSampler, RegularRandomSampler

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def clock():
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(rounds, **functions):
    """Seconds of each function: the median over rounds in which all take turns."""
    taken = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            taken[name].append(clock() - start)
    return {name: statistics.median(t[1:]) for name, t in taken.items()}


def row(what, value, goal=""):
    print(f"  {what:<86}{value:>12}  {goal}", flush=True)


def jpegs(folder, n, classes=8):
    """n JPEG files of ImageNet's size with a photograph's smoothness, and their labels."""
    rng, paths = np.random.default_rng(0), []
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 255, (47, 63, 3), dtype=np.uint8)).resize(
            (500, 375), Image.BICUBIC
        )
        noise = rng.normal(0, 8, (375, 500, 3))
        paths.append(f"{folder}/{i}.jpg")
        Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8)).save(
            paths[-1], quality=90
        )
    return paths, np.sort(np.arange(n) % classes)


def parse(*flags):
    """train.py's settings by its flags."""
    args = train.parse([str(flag) for flag in flags])
    args.precision = "bfloat16" if args.amp and has_bf16(DEVICE) else "float32"
    return args


def photographs(folder, labels, size):
    """The training split of a dataset of lists over `folder`'s JPEG files, as train.py reads it."""
    for split in ("train", "val", "test"):
        Path(folder, f"bench_{split}.txt").write_text(
            "".join(f"{i}.jpg {y}\n" for i, y in enumerate(labels))
        )
    return load("bench", folder, size)["train"]


class Photos(Dataset):
    """The plain pipeline: Pillow, v1 transforms, float."""

    def __init__(self, paths, labels, size):
        self.paths, self.labels = paths, labels
        self.transform = v1.Compose(
            [
                v1.RandomResizedCrop(size),
                v1.RandomHorizontalFlip(),
                v1.ColorJitter(0.4, 0.4, 0.4, 0),
                v1.ToTensor(),
                v1.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with open(self.paths[i], "rb") as file:
            return self.transform(Image.open(file).convert("RGB")), self.labels[i]


class ListShuffling:
    """Class-aware sampling one index at a time, from shuffled lists per class."""

    def __init__(self, labels, Z):
        self.Z, self.lists, self.at = (
            Z,
            [np.flatnonzero(labels == c).tolist() for c in range(labels.max() + 1)],
            {},
        )
        self.order = list(range(len(self.lists)))

    def __iter__(self):
        while True:
            random.shuffle(self.order)
            for c in self.order:
                for _ in range(self.Z):
                    at = self.at[c] = (self.at.get(c, -1) + 1) % len(self.lists[c])
                    if at == 0:
                        random.shuffle(self.lists[c])
                    yield self.lists[c][at]


def samplers():
    print("Samplers, S = 128, Z = 4, C = 1000")
    seconds = {}
    for N in (10**5, 10**6, 10**7):
        labels = np.repeat(np.arange(1000), N // 1000)
        before = resident()
        start = time.perf_counter()
        joint = JointBatchSampler(
            ClassBalancedSampler(labels, 128, 4), RegularRandomSampler(N, 128)
        )
        batches = iter(joint)
        next(batches)  # the index is built, and the epoch's permutation drawn
        built = time.perf_counter() - start
        memory = (resident() - before) / N
        draw = turns(20, batches=lambda: [next(batches) for _ in range(30)])  # noqa: B023
        seconds[N] = draw["batches"] / 30
    for N in (10**7, 10**6):
        ratio = seconds[N] / seconds[10**5]
        row(
            f"time of a batch [B_CBS; B_RRS] of {N:,} images over that of 100,000",
            f"{ratio:.2f}",
            "1.20",
        )
    row("milliseconds for it", f"{1000 * seconds[10**7]:.2f}")
    row("seconds to build from 10^7 labels, with the first permutation", f"{built:.2f}", "under 5")
    row("bytes per image in both, 10^7 images", f"{memory:.0f}", "at most 100")
    labels = np.repeat(np.arange(1000), 1000)
    ours = iter(ClassBalancedSampler(labels, 128))
    naive = iter(ListShuffling(labels, 4))
    weights = torch.ones(len(labels), dtype=torch.double)
    n = 128 * 500
    t = turns(
        5,
        ours=lambda: [next(ours) for _ in range(500)],
        naive=lambda: [next(naive) for _ in range(n)],
        weighted=lambda: list(WeightedRandomSampler(weights, n)),
    )
    row("CBS indices/s", f"{n / t['ours']:,.0f}")
    row("... over a shuffling iterator per class", f"{t['naive'] / t['ours']:.2f}")
    row(
        "... over WeightedRandomSampler (10^6 images, 500 batches at once)",
        f"{t['weighted'] / t['ours']:.2f}",
    )


def resident(pid="self"):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def private(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


class Names(Dataset):
    """Touches a path an item, and decodes nothing."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return len(self.paths[i])


def loading(folder):
    print("Loading JPEGs of 500 x 375, one core, to 224 pixels")
    torch.set_num_threads(1)
    paths, labels = jpegs(folder, 64)
    plain, ours = Photos(paths, labels, 224), photographs(folder, labels, 224)
    t = turns(
        7,
        plain=lambda: torch.utils.data.default_collate([plain[i] for i in range(64)]),
        ours=lambda: torch.utils.data.default_collate([ours[i] for i in range(64)]),
        decode=lambda: [read_image(p) for p in paths],
        pillow=lambda: [Image.open(p).convert("RGB") for p in paths],
    )
    row("images/s a core: training transform with colour jitter", f"{64 / t['ours']:.0f}")
    row(
        "... over the plain pipeline (Pillow, v1 transforms, float)",
        f"{t['plain'] / t['ours']:.2f}",
        "1.8",
    )
    row("... over decoding alone (the floor)", f"{t['decode'] / t['ours']:.2f}")
    row("decoding alone over Pillow's", f"{t['pillow'] / t['decode']:.2f}")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    names = [f"train/n{i:08}/n{i:08}_{i}.JPEG" for i in range(10**6)]
    for what, index in (("a NumPy array, as here", np.array(names)), ("a list of str", names)):
        batches = iter(DataLoader(Names(index), batch_size=1000, num_workers=2))
        seen = [private(w.pid) for _ in batches for w in batches._workers if w.is_alive()]
        row(
            f"MiB private to a worker that read 10^6 paths once, paths in {what}",
            f"{max(seen):.0f}",
        )


def bare(args, n, C):
    """Forward, backward and SGD step of the settings' network on n images in memory."""
    model, optimizer, _ = train.build(args, C, 1000, DEVICE, None)
    optimizer.param_groups[0]["lr"] = 0.01
    images = torch.randint(256, (n, 3, args.size, args.size), dtype=torch.uint8).to(DEVICE)
    targets = torch.randint(C, (n,)).to(DEVICE)

    def step():
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def against(args, sets, other, block):
    """train.py's own loop and calls of `other`, in blocks turn by turn: the medians over the blocks
    of the loop's seconds an iteration, and of the ratio of other's seconds to the loop's."""
    spent = []
    mark = 0.0
    line = train.Progress.line

    def interleaved(progress, epoch, m, losses):
        nonlocal mark
        line(progress, epoch, m, losses)
        if m % block == 0:
            middle = clock()
            for _ in range(block):
                other()
            end = clock()
            spent.append(((middle - mark) / block, (end - middle) / block))
            mark = clock()

    load_data = train.load
    stdout = sys.stdout
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        args.out = f"{folder}/run"
        train.load = lambda *how: sets
        train.Progress.line = interleaved
        sys.stdout = nowhere
        try:
            train.train(args, DEVICE)
        finally:
            train.load = load_data
            train.Progress.line = line
            sys.stdout = stdout
    loop_seconds = statistics.median(ours for ours, _ in spent[1:])
    return loop_seconds, statistics.median(theirs / ours for ours, theirs in spent[1:])


def loop():
    print(f"Whole loop over the bare forward, backward and SGD step, {DEVICE.type}")
    sets = load("glyphs_lt")
    for split in ("val", "test"):
        sets[split] = LongTailed(sets[split].images[:128], sets[split].labels[:128], C=62)
    args = parse("--epochs", 3)
    seconds, ratio = against(args, sets, bare(args, 512, 62), 8)
    row("resnet10, 32 pixels, glyphs_lt in memory, images/s through phi", f"{512 / seconds:,.0f}")
    row("... over the bare step", f"{ratio:.3f}", "0.97 on the CPU")
    if CUDA:
        images = torch.randint(256, (4096, 3, 224, 224), dtype=torch.uint8)
        labels = np.arange(4096) % 100
        splits = {"train": 4096, "val": 512, "test": 512}
        sets = {split: LongTailed(images[:n], labels[:n]) for split, n in splits.items()}
        args = parse("--data", "any", "--arch", "resnet50", "--epochs", 2)
        seconds, ratio = against(args, sets, bare(args, 512, 100), 10)
        row("resnet50, 224 pixels, data in memory, images/s through phi", f"{512 / seconds:,.0f}")
        row("... over the bare step", f"{ratio:.3f}", "0.95 on an H200")


def naive(folder):
    S = 32
    size = 64
    print(
        f"Whole iteration from JPEG files over the naive form, S = {S}, {size} pixels, "
        f"{DEVICE.type}, no workers"
    )
    paths, labels = jpegs(folder, 256)
    dataset = Photos(paths, labels, size)
    cbs = iter(DataLoader(dataset, S, sampler=ListShuffling(labels, 4)))
    rrs = iter(DataLoader(dataset, S, sampler=torch.utils.data.RandomSampler(dataset, True, 10**6)))
    flags = ["--data", "bench", "--size", size, "--batch-size", S, "--workers", 0, "--epochs", 5]
    model, optimizer, _ = train.build(parse(*flags), 8, 1000, DEVICE, None)
    model = model.to(memory_format=torch.contiguous_format)
    resnet = model.phi.resnet  # the naive form's images are normalised while they are loaded

    def naive_iteration():
        B_CBS, Y_CBS = (x.to(DEVICE) for x in next(cbs))
        B_RRS, Y_RRS = (x.to(DEVICE) for x in next(rrs))
        both = torch.cat([B_CBS, B_RRS])
        theta = torch.randint(4, (2 * S,))
        B_theta = torch.stack(
            [image.rot90(int(k), (1, 2)) for image, k in zip(both, theta, strict=True)]
        )
        loss = (
            0.5 * F.cross_entropy(model.h(resnet(B_CBS)), Y_CBS)
            + F.cross_entropy(model.h_a(resnet(B_RRS)), Y_RRS)
            + F.cross_entropy(model.h_s(resnet(B_theta)), theta.to(DEVICE))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    sets = {"train": photographs(folder, labels, size)}
    for split in ("val", "test"):  # in memory, and small
        sets[split] = LongTailed(torch.zeros(8, 3, size, size, dtype=torch.uint8), np.arange(8))
    _, ratio = against(parse(*flags, "--no-amp"), sets, naive_iteration, 2)
    row("this project over the naive form, both in float32", f"{ratio:.2f}")
    _, ratio = against(parse(*flags), sets, naive_iteration, 2)
    row("... with bfloat16 autocast where the hardware has it", f"{ratio:.2f}", "1.6 on the CPU")


def evaluation():
    print(f"Evaluation over the bare forward pass, {DEVICE.type}")
    model, n = Model("resnet10", 62, amp=has_bf16(DEVICE)).to(DEVICE), 2048
    images, labels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), np.arange(n) % 62
    dataset = LongTailed(images, labels)
    resident_images = images.to(DEVICE)

    @torch.inference_mode()
    def forward():
        model.eval()
        for i in range(0, n, 256):
            model(resident_images[i : i + 256])

    t = turns(40, bare=forward, evaluate=lambda: evaluate.predict(model, dataset))
    row("resnet10, 32 pixels, 2,048 images in memory", f"{t['bare'] / t['evaluate']:.3f}", "0.95")


def gpu():
    if not CUDA:
        return print("GPU: none here, left out")
    from torch.utils.flop_counter import FlopCounterMode

    print(
        f"Training speed, {torch.cuda.get_device_name()}, bfloat16, "
        "512 images of 224 pixels an iteration"
    )
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    peak = 10 * 2 * 8192**3 / turns(9, matmul=lambda: [a @ a for _ in range(10)])["matmul"]
    row("measured bf16 peak, TFLOP/s", f"{peak / 1e12:.0f}")
    for arch in ("resnet10", "resnet50"):
        step = bare(parse("--data", "any", "--arch", arch), 512, 1000)
        with FlopCounterMode(display=False) as counter:
            step()
        seconds = turns(20, step=step)["step"]
        row(f"{arch}, images/s", f"{512 / seconds:,.0f}")
        row("... share of that peak", f"{counter.get_total_flops() / seconds / peak:.1%}")


if __name__ == "__main__":
    print(
        f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} CPU cores, "
        f"{torch.cuda.get_device_name() if CUDA else 'no GPU'}, "
        f"{'bfloat16' if has_bf16(DEVICE) else 'float32'}"
    )
    for section in sys.argv[1:] or ["samplers", "loading", "loop", "naive", "evaluation", "gpu"]:
        with tempfile.TemporaryDirectory() as folder:
            globals()[section](*[folder] * (section in ("loading", "naive")))
