"""Speed as ratios, each pair measured turn by turn in one run; needs no data.

python tests/benchmark.py              # all sections, on the GPU if there is one
python tests/benchmark.py loop         # one of: loading augment loop evaluation gpu
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import evaluate
import train
from data import CORES, WORKERS, LongTailed, augment, load, read_image
from model import Model, best_precision

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


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


def parse(*flags):
    return train.parse([*map(str, flags), "--out", tempfile.mkdtemp() + "/run"])[0]


def jpegs(folder, n):
    """n JPEG files of ImageNet's size that compress like photographs, 0.jpg, 1.jpg, ..."""
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 255, (47, 63, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((500, 375), Image.BICUBIC))
        image = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(f"{folder}/{i}.jpg", quality=90)


def write_lists(folder, files, train, others):
    """Lists of dataset `bench` with 8 classes, over and over the same files."""
    for split, n in ("train", train), ("val", others), ("test", others):
        lines = [f"{i % files}.jpg {i % 8}\n" for i in range(n)]
        Path(folder, f"bench_{split}.txt").write_text("".join(lines))


# ------------------------------------------------------------------------------ loading
def loading(folder):
    print("Loading JPEG files of 500 x 375 to 224 pixels, one core")
    torch.set_num_threads(1)
    jpegs(folder, 64)
    write_lists(folder, 64, 64, 8)
    paths = [f"{folder}/{i}.jpg" for i in range(64)]
    ours = load("bench", folder)["train"]
    plain = v1.Compose(  # Pillow, v1 transforms, float, as in [19]
        [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ColorJitter(0.4, 0.4, 0.4)]
        + [v1.ToTensor(), v1.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )
    flip_and_jitter = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)])
    t = turns(
        7,
        ours=lambda: [ours[i] for i in range(64)],
        jitter=lambda: [flip_and_jitter(ours[i][0]) for i in range(64)],
        plain=lambda: [plain(Image.open(path).convert("RGB")) for path in paths],
        decode=lambda: [read_image(path) for path in paths],
        pillow=lambda: [np.asarray(Image.open(path).convert("RGB")) for path in paths],
    )
    row("decode and crop, images/s", f"{64 / t['ours']:.0f}")
    row("... over the same with flip and jitter of each image", f"{t['jitter'] / t['ours']:.2f}")
    row("... over the plain pipeline (Pillow, float)", f"{t['plain'] / t['ours']:.2f}")
    row("decoding over Pillow's", f"{t['pillow'] / t['decode']:.2f}")
    torch.set_num_threads(CORES)


def augmenting():
    print(f"Flip and jitter of 256 images, {DEVICE.type}" + (", one core" if not CUDA else ""))
    torch.set_num_threads(1)
    each = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)])
    for size in 32, 224:
        B = torch.randint(256, (256, 3, size, size), dtype=torch.uint8)
        on_device = B.to(DEVICE)
        t = turns(5, ours=lambda: augment(on_device), each=lambda: [each(x) for x in B])  # noqa: B023
        row(f"{size} pixels, microseconds an image", f"{t['ours'] / 256 * 1e6:.0f}")
        row("... over torchvision's of each image on the CPU", f"{t['each'] / t['ours']:.2f}")
    torch.set_num_threads(CORES)


# ------------------------------------------------------------------------------ training
def bare(args, n, C):
    """Forward, backward and SGD step of the settings' network on n images in memory."""
    model, optimizer, _ = train.build(args, C, 1000, DEVICE)
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
    stdout = sys.stdout

    def interleaved(progress, m):
        nonlocal mark
        line(progress, m)
        if m % block == 0:
            middle = clock()
            for _ in range(block):
                other()
            end = clock()
            spent.append(((middle - mark) / block, (end - middle) / block))
            mark = clock()

    with open(os.devnull, "w") as nowhere:
        train.load = lambda *_: sets
        train.Progress.line = interleaved
        sys.stdout = nowhere
        try:
            train.train(args, None, DEVICE)
        finally:
            train.load = load
            train.Progress.line = line
            sys.stdout = stdout
    seconds = statistics.median(ours for ours, _ in spent[1:])
    return seconds, statistics.median(theirs / ours for ours, theirs in spent[1:])


def loop():
    print(f"The training loop over the bare forward, backward and SGD step, {DEVICE.type}")
    sets = load("glyphs_lt")
    for split in "val", "test":
        sets[split] = LongTailed(sets[split].images[:128], sets[split].labels[:128])
    args = parse("--epochs", 3)
    seconds, ratio = against(args, sets, bare(args, 512, 62), 8)
    row("resnet10, 32 pixels, glyphs_lt in memory, images/s through phi", f"{512 / seconds:,.0f}")
    row("... over the bare step", f"{ratio:.3f}", "0.97 on the CPU")


def evaluation():
    print(f"Evaluation over the bare forward pass, {DEVICE.type}")
    n = 2048
    model = Model("resnet10", 62, precision=best_precision()).to(DEVICE)
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    dataset = LongTailed(images, np.arange(n) % 62)
    on_device = images.to(DEVICE)

    @torch.inference_mode()
    def forward():
        model.eval()
        for i in range(0, n, 256):
            model(on_device[i : i + 256])

    t = turns(40, bare=forward, evaluate=lambda: evaluate.predict(model, dataset))
    row("resnet10, 32 pixels, 2,048 images in memory", f"{t['bare'] / t['evaluate']:.3f}", "0.95")


def gpu(folder):
    """Images a second as loaded: with SS each goes through phi twice."""
    if not CUDA:
        return print("GPU: none here, left out")
    print(f"Training at 224 pixels, {torch.cuda.get_device_name()}, {CORES} cores, bfloat16")
    for arch in "resnet10", "resnet50":
        seconds = turns(20, step=bare(parse("--data", "bench", "--arch", arch), 512, 1000))["step"]
        row(f"{arch}: the bare step, loaded images/s", f"{256 / seconds:,.0f}")
    jpegs(folder, 512)
    write_lists(folder, 512, 12800, 256)
    dataset = load("bench", folder)["train"]
    batches = DataLoader(dataset, 256, shuffle=True, num_workers=WORKERS, pin_memory=True)
    seconds = turns(1, load=lambda: [None for _ in batches])["load"]
    row("loading alone, images/s", f"{len(dataset) / seconds:,.0f}")
    command = [sys.executable, ROOT / "train.py", "--data", "bench", "--root", folder]
    command += ["--epochs", "3", "--out", f"{folder}/run"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    speed = re.findall(r"([\d,]+) images/s", out)[-1]
    row("resnet10: train.py from JPEG files, loaded images/s", speed, "4,000 on an H200, 16 cores")


if __name__ == "__main__":
    name = torch.cuda.get_device_name() if CUDA else "no GPU"
    print(f"torch {torch.__version__}, {CORES} CPU cores, {name}, {best_precision()}")
    sections = {"loading": loading, "augment": augmenting, "loop": loop}
    sections |= {"evaluation": evaluation, "gpu": gpu}
    for section in sys.argv[1:] or sections:
        with tempfile.TemporaryDirectory() as folder:
            sections[section](*[folder] * (section in ("loading", "gpu")))
