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
import train  # noqa: E402
import evaluate  # noqa: E402
from data import LongTailed, load, read_image  # noqa: E402
from model import Model, has_bf16  # noqa: E402
from sampler import ClassBalancedSampler, JointBatchSampler  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def clock():
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(rounds, **functions):
    """Seconds of each function, the median over rounds in which all take their turn, after one unmeasured round."""
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


def settings(**changed):
    """train.py's defaults, but for what is changed."""
    args = train.flags().parse_args([])
    vars(args).update(changed)
    return args


def photographs(folder, labels, size):
    """The training split of a data set of lists over `folder`'s JPEG files, as train.py reads it."""
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
        before, start = resident(), time.perf_counter()
        sampler = JointBatchSampler(labels, 128, 4, M=N // 128)
        built = time.perf_counter() - start
        rrs, m = sampler.samplers[1], iter(range(1, N))
        start = time.perf_counter()
        rrs.batch(1)  # the permutation, paid once an epoch
        permutation = (time.perf_counter() - start) / (N // 128)
        memory = (resident() - before) / N
        draw = (
            turns(
                20, both=lambda: [s.batch(next(m)) for _ in range(100) for s in sampler.samplers]
            )["both"]
            / 200
        )
        seconds[N] = 2 * draw + permutation
    row(
        "time of a batch [B_CBS; B_RRS] of 10^7 images over that of 10^5",
        f"{seconds[10**7] / seconds[10**5]:.2f}",
        "within 1.20",
    )
    row(
        "time of a batch of 10^6 images over that of 10^5",
        f"{seconds[10**6] / seconds[10**5]:.2f}",
        "within 1.20",
    )
    row("milliseconds for it", f"{1000 * seconds[10**7]:.2f}")
    row("seconds to build from 10^7 labels", f"{built:.2f}", "under 5")
    row("bytes per image in the index, 10^7 images", f"{memory:.0f}", "at most 100")
    labels = np.repeat(np.arange(1000), 1000)
    ours, naive = ClassBalancedSampler(labels, 128), iter(ListShuffling(labels, 4))
    weights = torch.ones(len(labels), dtype=torch.double)
    numbers, n = iter(range(1, 10**6)), 128 * 500
    t = turns(
        5,
        ours=lambda: [ours.batch(next(numbers)).tolist() for _ in range(500)],
        naive=lambda: [next(naive) for _ in range(n)],
        weighted=lambda: list(WeightedRandomSampler(weights, n)),
    )
    row("CBS indices/s", f"{n / t['ours']:,.0f}")
    row("... over a shuffling iterator per class", f"{t['naive'] / t['ours']:.2f}")
    row(
        "... over WeightedRandomSampler (10^6 images, 500 batches drawn at once)",
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
        ours=lambda: torch.utils.data.default_collate([ours[i, i] for i in range(64)]),
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
    for what, index in (("NumPy bytes, as here", np.array(names, "S")), ("a list of str", names)):
        batches = iter(DataLoader(Names(index), batch_size=1000, num_workers=2))
        seen = [private(w.pid) for _ in batches for w in batches._workers if w.is_alive()]
        row(
            f"MiB private to a worker that read 10^6 paths once, paths in {what}",
            f"{max(seen):.0f}",
        )


def bare_step(model, optimizer, images, targets, amp):
    """Forward, backward and SGD step on images in memory; nothing else."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp):
        loss = F.cross_entropy(model(images), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def bare(recipe, n, size, C):
    """bare_step for n images of the recipe's network."""
    model, optimizer = train.build(settings(**recipe), C)
    optimizer.param_groups[0]["lr"] = 0.01
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8).to(DEVICE)
    targets = torch.randint(C, (n,)).to(DEVICE)
    return lambda: bare_step(model, optimizer, images, targets, has_bf16(DEVICE))


def loop_ratio(recipe, sets, n, size, block):
    """Images/s of the whole loop of train.py, and that over the bare step's, in blocks turn by turn."""
    step, algorithm_1, original = (
        bare(recipe, n, size, len(sets["train"].N_c)),
        train.algorithm_1,
        evaluate.load_data,
    )
    spent = {"loop": [], "bare": []}

    def interleaved(*args):
        start = clock()
        for i, result in enumerate(algorithm_1(*args), 1):
            yield result
            if i % block == 0:
                middle = clock()
                for _ in range(block):
                    step()
                end = clock()
                spent["loop"].append(middle - start)
                spent["bare"].append(end - middle)
                start = clock()

    train.algorithm_1, evaluate.load_data = interleaved, lambda *args: sets
    with tempfile.TemporaryDirectory() as out:
        stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
        train.train(settings(out=out, **recipe))
        sys.stdout = stdout
    train.algorithm_1, evaluate.load_data = algorithm_1, original
    ratios = [b / a for a, b in zip(spent["loop"][1:], spent["bare"][1:])]
    return n * block / statistics.median(spent["loop"][1:]), statistics.median(ratios)


def loop():
    print(f"Whole loop over the bare forward, backward and SGD step, {DEVICE.type}")
    sets = load("glyphs_lt")
    for split in ("val", "test"):
        sets[split].images, sets[split].labels = sets[split].images[:128], sets[split].labels[:128]
    speed, ratio = loop_ratio(train.RECIPES["glyphs_lt"] | dict(epochs=3), sets, 512, 32, 8)
    row("glyphs_lt, resnet10, images/s through phi", f"{speed:,.0f}")
    row("... over the bare step", f"{ratio:.3f}", "0.97 on the CPU")
    if CUDA:
        images, labels = (
            torch.randint(256, (4096, 3, 224, 224), dtype=torch.uint8),
            np.arange(4096) % 100,
        )
        sets = {
            split: LongTailed(images[:n], labels[:n])
            for split, n in (("train", 4096), ("val", 512), ("test", 512))
        }
        speed, ratio = loop_ratio(dict(arch="resnet50", epochs=2), sets, 512, 224, 10)
        row("resnet50, 224 pixels, data in memory, images/s through phi", f"{speed:,.0f}")
        row("... over the bare step", f"{ratio:.3f}", "0.95 on an H200")


def naive(folder):
    S, Z, size = 32, 4, 64
    print(
        f"Whole iteration from JPEG files over the naive form, S = {S}, {size} pixels, {DEVICE.type}, no loading processes"
    )
    paths, labels = jpegs(folder, 256)
    dataset = Photos(paths, labels, size)
    cbs = iter(DataLoader(dataset, S, sampler=ListShuffling(labels, Z)))
    rrs = iter(DataLoader(dataset, S, sampler=torch.utils.data.RandomSampler(dataset, True, 10**6)))
    model, optimizer = train.build(settings(), 8)
    model = model.to(memory_format=torch.contiguous_format)
    resnet = model.phi[1]  # the naive form's images are normalised while they are loaded

    def naive_iteration():
        (B_CBS, Y_CBS), (B_RRS, Y_RRS) = (
            (x.to(DEVICE), y.to(DEVICE)) for x, y in (next(cbs), next(rrs))
        )
        both = torch.cat([B_CBS, B_RRS])
        theta = torch.randint(4, (2 * S,))
        B_theta = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(both, theta)])
        loss = (
            0.5 * F.cross_entropy(model.h(resnet(B_CBS)), Y_CBS)
            + F.cross_entropy(model.h_a(resnet(B_RRS)), Y_RRS)
            + F.cross_entropy(model.h_s(resnet(B_theta)), theta.to(DEVICE))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    def ours(amp):
        model, optimizer = train.build(settings(), 8)
        args = settings(batch_size=S, workers=0)
        batches = train.training_batches(args, photographs(folder, labels, size), 0, 10**6)
        return train.algorithm_1(
            list(model.children()), optimizer, batches, args.lambdas, False, 0, 10**6, amp
        )

    float32, mixed = ours(False), ours(has_bf16(DEVICE))
    t = turns(25, naive=naive_iteration, float32=lambda: next(float32), mixed=lambda: next(mixed))
    row(
        "this project over the naive form, both in float32",
        f"{t['naive'] / t['float32']:.2f}",
        "1.6 on the CPU",
    )
    row("... with bfloat16 autocast where the hardware has it", f"{t['naive'] / t['mixed']:.2f}")


def evaluation():
    print(f"Evaluation over the bare forward pass, {DEVICE.type}")
    model, n = Model("resnet10", 62).to(DEVICE), 2048
    images, labels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), np.arange(n) % 62
    dataset, amp, resident_images = LongTailed(images, labels), has_bf16(DEVICE), images.to(DEVICE)

    @torch.inference_mode()
    def forward():
        model.eval()
        for i in range(0, n, 256):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp):
                model(resident_images[i : i + 256])

    t = turns(40, bare=forward, evaluate=lambda: evaluate.predict(model, dataset, True))
    row("resnet10, 32 pixels, 2,048 images in memory", f"{t['bare'] / t['evaluate']:.3f}", "0.95")


def gpu():
    if not CUDA:
        return print("GPU: none here, left out")
    from torch.utils.flop_counter import FlopCounterMode

    print(
        f"Training speed, {torch.cuda.get_device_name()}, bfloat16, 512 images of 224 pixels an iteration"
    )
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    peak = 10 * 2 * 8192**3 / turns(9, matmul=lambda: [a @ a for _ in range(10)])["matmul"]
    row("measured bf16 peak, TFLOP/s", f"{peak / 1e12:.0f}")
    for arch in ("resnet10", "resnet50"):
        step = bare(dict(arch=arch), 512, 224, 1000)
        with FlopCounterMode(display=False) as counter:
            step()
        seconds = turns(20, step=step)["step"]
        row(f"{arch}, images/s", f"{512 / seconds:,.0f}")
        row("... share of that peak", f"{counter.get_total_flops() / seconds / peak:.1%}")


if __name__ == "__main__":
    print(
        f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} CPU cores, "
        f"{torch.cuda.get_device_name() if CUDA else 'no GPU'}, {'bfloat16' if has_bf16(DEVICE) else 'float32'}"
    )
    for section in sys.argv[1:] or ["samplers", "loading", "loop", "naive", "evaluation", "gpu"]:
        with tempfile.TemporaryDirectory() as folder:
            globals()[section](*[folder] * (section in ("loading", "naive")))
