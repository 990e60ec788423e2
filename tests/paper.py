"""The paper's tables and figures on any dataset: real runs of train.py, as many seeds as you like.

    python tests/paper.py --data glyphs_lt --jobs 2 --figures DIR
    python tests/paper.py --data cifar100_lt --root DIR --rows RRS-Only CBS-Only CBS+RRS
    python tests/paper.py --data cifar100_lt --root DIR --epochs 15 30 60 --figures DIR

Trains each row with each seed and for each number of epochs, in a folder below --out; with several
GPUs, each of --jobs has its own. Started again after it was stopped, it resumes the unfinished runs
and trains the missing ones. Then it prints the tables, the gains, and which of the paper's
orderings hold. Other flags go to train.py. The figures need matplotlib and scikit-learn.
"""

import argparse
import csv
import ctypes
import functools
import itertools
import os
import queue
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data
import evaluate
import train

SHOTS = "Many", "Medium", "Low", "Overall"
ROWS = {  # Tables 1, 3, 4 and 5: the flags of train.py
    "RRS-Only": "--lambdas 0 1 0",
    "CBS-Only": "--lambdas 1 0 0",
    "CBS+RRS": "--lambdas 0.5 1 0",
    "CBS+RRS+SS": "--lambdas 0.5 1 1",
    "ftRRS+CBS": "--lambdas 1 0 0 --init {RRS}",
    "1:1": "--lambdas 1 1 0",
    "1:0.5": "--lambdas 1 0.5 0",
    "Rotation": "--lambdas 0.5 1 0 --rotation-augmentation",
}
METHODS = {  # as train.py names a run, where the row has another name
    "1:1": "CBS+RRS",
    "1:0.5": "CBS+RRS",
    "Rotation": "CBS+RRS+rotation",
}
PAPER = {  # Tables 1 to 5: many, medium, low, overall
    ("imagenet_lt", "resnet10"): {
        "RRS-Only": (53.4, 23.5, 4.3, 32.4),
        "CBS-Only": (35.4, 31.5, 18.6, 31.2),
        "CBS+RRS": (51.0, 38.5, 21.0, 40.9),
        "CBS+RRS+SS": (52.4, 39.5, 21.0, 41.9),
        "ftRRS+CBS": (48.3, 35.2, 16.4, 37.6),
        "1:1": (49.4, 37.7, 19.8, 39.6),
        "1:0.5": (46.0, 35.5, 17.8, 37.0),
        "Rotation": (50.5, 39.1, 22.1, 41.0),
    },
    ("places_lt", "resnet152"): {
        "RRS-Only": (47.4, 27.1, 10.5, 31.0),
        "CBS-Only": (46.9, 34.9, 18.1, 35.7),
        "CBS+RRS": (42.5, 40.3, 32.2, 39.4),
        "CBS+RRS+SS": (42.5, 40.6, 32.6, 39.6),
    },
    ("imagenet_lt", "resnet50"): {
        "RRS-Only": (61.3, 32.2, 7.2, 39.9),
        "CBS-Only": (51.1, 38.2, 16.7, 40.1),
        "CBS+RRS": (59.0, 43.5, 22.8, 46.5),
        "CBS+RRS+SS": (60.2, 44.0, 23.1, 47.3),
    },
    ("places_lt", "resnet50"): {
        "RRS-Only": (39.1, 12.0, 0.3, 19.3),
        "CBS-Only": (32.1, 22.9, 4.6, 22.4),
        "CBS+RRS": (35.6, 29.3, 11.3, 27.8),
        "CBS+RRS+SS": (35.8, 31.0, 12.7, 28.9),
        "ftRRS+CBS": (29.3, 27.6, 10.3, 24.6),
        "1:1": (37.8, 27.6, 7.8, 27.1),
        "1:0.5": (34.9, 26.9, 6.9, 25.6),
        "Rotation": (35.3, 28.2, 11.4, 27.2),
    },
}
COMPARISONS = [  # of the paper: a row is better than the best of the others, on this shot
    ("CBS+RRS over the better baseline", "CBS+RRS", ["RRS-Only", "CBS-Only"], "Overall"),
    ("RRS-Only over CBS-Only on many shot", "RRS-Only", ["CBS-Only"], "Many"),
    ("CBS-Only over RRS-Only on low shot", "CBS-Only", ["RRS-Only"], "Low"),
    ("CBS+RRS+SS over CBS+RRS", "CBS+RRS+SS", ["CBS+RRS"], "Overall"),
    ("joint over stage-wise", "CBS+RRS", ["ftRRS+CBS"], "Overall"),
    ("0.5:1 over 1:1", "CBS+RRS", ["1:1"], "Overall"),
    ("1:1 over 1:0.5", "1:1", ["1:0.5"], "Overall"),
    ("rotation as task over augmentation", "CBS+RRS+SS", ["Rotation"], "Overall"),
]


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=str.lower, default="glyphs_lt", help="dataset (default: glyphs_lt)")
    add("--arch", default="resnet10", help="the ResNet in phi (default: resnet10)")
    add("--root", default="data", metavar="DIR", help="dataset folder (default: data)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    add("--epochs", nargs="+", default=[None], help="lengths of training (default: the recipe's)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--workers", default="1", help="data-loading workers of each run (default: 1)")
    add("--out", default="runs/paper", metavar="DIR", help="(default: runs/paper)")
    add("--figures", metavar="DIR", help="also draw the figures, as SVG")
    add("--finished", action="store_true", help="train nothing; report the finished runs")
    args, args.others = parser.parse_known_args(argv)
    args.rows = [row for row in ROWS if row in args.rows]
    if "ftRRS+CBS" in args.rows and "RRS-Only" not in args.rows:
        parser.error("ftRRS+CBS starts from RRS-Only: name that row, too")
    return args


# ------------------------------------------------------------------------------ the runs
class Run:
    """A row of the tables, trained with a seed for a number of epochs (None: the recipe's)."""

    def __init__(self, args, row, seed, epochs):
        flags = ["--data", args.data, "--arch", args.arch, "--seed", str(seed), *args.others]
        flags += ["--epochs", epochs] if epochs else []
        self.row = row
        self.seed = seed
        self.source = Run(args, "RRS-Only", seed, epochs) if row == "ftRRS+CBS" else None
        flags += [self.source.folder / "last.pt" if x == "{RRS}" else x for x in ROWS[row].split()]
        self.flags = [str(flag) for flag in flags]
        self.where = ["--root", args.root, "--workers", args.workers]
        self.settings = vars(train.parse([*self.flags, *self.where])[0])
        self.epochs = self.settings["epochs"]
        name = f"{args.data}-{args.arch}-{row.replace(':', '_')}-{self.epochs}epochs-seed{seed}"
        self.folder = Path(args.out, name)

    def is_finished(self, checksums):
        """Exits if the folder has a run with other settings or on another dataset."""
        last = self.folder / "last.pt"
        if last.exists():
            theirs = evaluate.load_checkpoint(last)
            settings = theirs["settings"]
            for key in self.settings.keys() - {"root", "out"}:
                if self.settings[key] != settings[key]:
                    sys.exit(f"{last} was trained with {key} {settings[key]}; choose another --out")
            if theirs["checksums"] != checksums:
                sys.exit(f"{last} was trained on another dataset; choose another --out")
        return (self.folder / "test.csv").exists()

    def finish(self, gpu):
        """Train, or continue, on the GPU of that number ("": on the CPU)."""
        command = [sys.executable, str(ROOT / "train.py"), *self.where]
        if (self.folder / "last.pt").exists():
            command += ["--resume", str(self.folder)]
        else:
            command += [*self.flags, "--out", str(self.folder)]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = f"{self.folder}.log"
        with open(log, "a") as file:
            how = {"stdout": file, "stderr": file, "preexec_fn": end_with_parent}
            # One thread: the numbers depend on how many there are.
            env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpu}
            status = subprocess.run(command, env=env, **how)
        if status.returncode:
            sys.exit(f"{log}: {Path(log).read_text().strip().splitlines()[-1]}")

    @functools.cached_property
    def name(self):
        """The row; and what train.py says was trained, if this is something else."""
        method = evaluate.load_checkpoint(self.folder / "last.pt")["method"]
        return self.row if method == METHODS.get(self.row, self.row) else f"{self.row} ({method})"

    def accuracies(self):
        """{shot: percent} of test.csv."""
        with open(self.folder / "test.csv") as file:
            rows = csv.DictReader(file)
            return {row["class"]: float(row["accuracy"]) for row in rows if row["class"] in SHOTS}

    def record(self, column):
        """A column of record.csv."""
        with open(self.folder / "record.csv") as file:
            return [float(row[column]) for row in csv.DictReader(file)]


def end_with_parent():
    """A run ends when this script is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def gpus():
    """The numbers of the GPUs; [""] if there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return visible.split(",")
    return [str(i) for i in range(torch.cuda.device_count())] or [""]


def train_all(args, runs, checksums):
    """Finish all runs, --jobs at a time. A row that starts from another waits for it."""
    missing = [run for run in runs if not run.is_finished(checksums)]
    free = queue.Queue()
    for _, gpu in zip(range(args.jobs), itertools.cycle(gpus()), strict=False):
        free.put(gpu)
    started = {}

    def finish(run):
        if run.source and run.source.folder in started:
            started[run.source.folder].result()
        gpu = free.get()
        try:
            run.finish(gpu)
        finally:
            free.put(gpu)
        return run

    with ThreadPoolExecutor(args.jobs) as pool:
        for run in missing:
            started[run.folder] = pool.submit(finish, run)
        try:
            for n, future in enumerate(as_completed(started.values()), 1):
                run = future.result()
                print(f"{n} of {len(missing)} runs done: {run.folder.name}", file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ------------------------------------------------------------------------------ the tables
def deviation(x):
    """Standard deviation over the seeds, the first axis; 0 for one seed."""
    return np.std(x, axis=0, ddof=1) if len(x) > 1 else np.zeros(np.shape(x)[1:])


def cell(values, spread):
    """Mean and spread over the seeds; a dash for an empty shot."""
    if np.isnan(values).all():
        return "–"
    text = f"{np.mean(values):.1f}" + (f"±{spread:.1f}" if len(values) > 1 else "")
    return text.replace("-", "−")


def table(args, results):
    """Print accuracies, gains and verdicts. results: {row: {seed: {shot: accuracy}}}."""
    paper = PAPER.get((args.data, args.arch), {})
    print("| Row |", " | ".join(SHOTS), "| Paper |" if paper else "|")
    print("|---|" + "---:|" * (4 + bool(paper)))
    for row, by_seed in results.items():
        values = [[accuracies[shot] for accuracies in by_seed.values()] for shot in SHOTS]
        cells = [cell(x, deviation(x)) for x in values]
        cells += [" / ".join(map(str, paper.get(row, [])))] if paper else []
        print("|", " | ".join([row, *cells]), "|")
    print("\nTest accuracy in percent; mean ± standard deviation over the seeds:")
    print("; ".join(f"{row} {sorted(by_seed)}" for row, by_seed in results.items()), end=".\n\n")

    imagenet = PAPER["imagenet_lt", "resnet10"]
    print("| Gain in points |", " | ".join(SHOTS), "| Holds | Paper, ImageNet-LT, ResNet-10 |")
    print("|---|" + "---:|" * 4 + "---|---:|")
    for text, row, others, shot in COMPARISONS:
        if {row, *others} <= results.keys():
            gained = {shot: gains(results, row, others, shot) for shot in SHOTS}
            cells = [cell(x, deviation(x)) for x in gained.values()]
            cells.append(verdict(gained[shot]))
            theirs = [imagenet[row][i] - max(imagenet[o][i] for o in others) for i in range(4)]
            cells.append(" / ".join(f"{x:.1f}" for x in theirs).replace("-", "−"))
            print("|", " | ".join([text, *cells]), "|")
    print("\nMean ± standard deviation over the seeds that the rows have in common.")


def gains(results, row, others, shot):
    """By how much a row is better than the best of the others, on each seed that all have."""
    seeds = set.intersection(*(set(results[name]) for name in (row, *others)))
    return [
        results[row][seed][shot] - max(results[other][seed][shot] for other in others)
        for seed in sorted(seeds)
    ]


def verdict(gained):
    """Whether a comparison holds; a dash if the dataset does not have the shot."""
    if np.isnan(gained).all():
        return "–"
    if min(gained) > 0:
        return "on every seed" if len(gained) > 1 else "on one seed"
    return "on average" if np.mean(gained) > 0 else "no"


# ------------------------------------------------------------------------------ the figures
COLOURS = {  # Okabe and Ito's, which colour-blind readers can tell apart
    "RRS-Only": "#0072B2",
    "CBS-Only": "#D55E00",
    "CBS+RRS": "#009E73",
    "CBS+RRS+SS": "#00503A",
}
OFFSETS = {  # of the names beside the points of dilemma.svg
    "RRS-Only": ((0, -10), "center", "top"),
    "CBS-Only": ((10, 8), "left", "bottom"),
    "CBS+RRS": ((-16, 0), "right", "center"),
    "CBS+RRS+SS": ((0, 12), "center", "bottom"),
}
NAMES = {
    "imagenet_lt": "ImageNet-LT",
    "places_lt": "Places-LT",
    "cifar10_lt": "CIFAR-10-LT",
    "cifar100_lt": "CIFAR-100-LT",
}


def figures(args, runs):
    """The figures whose rows were trained: of all seeds dilemma.svg and length.svg, of the first
    seed Figs. 2, 3 and 4, all but length.svg for the first number of epochs."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "paper", "svg.fonttype": "none", "axes.titlesize": 10}
    import matplotlib.pyplot as plt

    os.makedirs(args.figures, exist_ok=True)
    lengths = sorted({run.epochs for run in runs})
    shortest = [run for run in runs if run.epochs == lengths[0]]
    seed = min(run.seed for run in shortest)
    first = {run.name: run for run in shortest if run.seed == seed}
    what = f"{NAMES.get(args.data, args.data)}, {args.arch.replace('resnet', 'ResNet-')}"

    def draw(name, size, function, *content):
        figure = plt.figure(figsize=size, layout="constrained")
        function(figure, *content)
        figure.savefig(Path(args.figures, name), metadata={"Date": None}, dpi=150)
        plt.close(figure)

    if first.keys() >= COLOURS.keys():
        draw("dilemma.svg", (9, 4.3), dilemma, shortest, what)
    if len(lengths) > 1:
        draw("length.svg", (9, 3.2), length, runs, lengths, what)
    if first.keys() >= {"RRS-Only", "CBS-Only", "CBS+RRS"}:
        exports = {row: export(run) for row, run in first.items() if row in COLOURS}
        what += f", seed {seed}"
        draw("figure2.svg", (9, 3.8), figure2, first, exports, what)
        draw("figure3.svg", (9, 5.4), figure3, exports, what)
        draw("figure4.svg", (9, 9), figure4, exports, what)


def dilemma(figure, runs, what):
    """Head against tail accuracy: the paper's Table 1, and this code over all seeds."""
    left, right = figure.subplots(1, 2)
    left.set_title("The paper\nImageNet-LT, ResNet-10")
    right.set_title(f"This code\n{what}, mean ± deviation of {len({r.seed for r in runs})} seeds")
    figure.supxlabel("accuracy (%) on head classes, ≥ 100 training images each", size=10)
    figure.supylabel("accuracy (%) on tail classes, ≤ 20 images each", size=10)
    table1 = PAPER["imagenet_lt", "resnet10"]
    theirs = {row: np.array([[table1[row][0], table1[row][2]]]) for row in COLOURS}
    ours = {row: [run.accuracies() for run in runs if run.name == row] for row in COLOURS}
    ours = {row: np.array([[x["Many"], x["Low"]] for x in ours[row]]) for row in COLOURS}
    for axis, points in (left, theirs), (right, ours):
        ends = np.array([points["CBS-Only"].mean(0), points["RRS-Only"].mean(0)])
        axis.plot(*ends.T, "--", color="0.5", zorder=0)
        right, up = ends[1] - ends[0]
        how = {"rotation": np.degrees(np.arctan2(up, right)), "transform_rotates_text": True}
        how |= {"ha": "center", "va": "top", "rotation_mode": "anchor", "color": "0.35"}
        axis.text(*ends.mean(0), "the dilemma: one or the other", **how)
        for row, x in points.items():
            axis.errorbar(*x.mean(0), *deviation(x)[::-1], "o", color=COLOURS[row], capsize=3)
            offset, ha, va = OFFSETS[row]
            how = {"xytext": offset, "textcoords": "offset points", "ha": ha, "va": va}
            axis.annotate(row, x.mean(0), color=COLOURS[row], weight="bold", **how)
        axis.margins(0.35, 0.2)


def length(figure, runs, lengths, what):
    """Overall and low-shot accuracy against the length of training."""
    N_c = np.array(evaluate.load_checkpoint(runs[0].folder / "last.pt")["N_c"])
    draws = N_c.sum() / (len(N_c) * N_c.max())  # of an image of the largest class by CBS, an epoch
    paper = np.array([62500 / (365 * 4980), 115846 / (1000 * 1280)]) * 90  # Places-LT, ImageNet-LT
    for axis, shot in zip(figure.subplots(1, 2), ("Overall", "Low"), strict=True):
        axis.axvspan(*paper / draws, color="0.9", label="the paper's datasets (if 90 epochs)")
        for row, colour in COLOURS.items():
            points = {}
            for run in runs:
                if run.name == row:
                    points.setdefault(run.epochs, []).append(run.accuracies()[shot])
            mean = [np.mean(x) for x in points.values()]
            error = [deviation(x) for x in points.values()]
            axis.errorbar([*points], mean, error, fmt="o-", color=colour, capsize=3, label=row)
        axis.set(xscale="log", xlabel=f"epochs; {what}", ylabel=f"accuracy (%), {shot.lower()}")
        axis.set_xticks(lengths, lengths)
        axis.minorticks_off()
        top = axis.secondary_xaxis("top", functions=(lambda x: x * draws, lambda x: x / draws))
        top.set_xlabel("how often CBS draws an image of the largest class")
        top.set_xticks([n * draws for n in lengths], [f"{n * draws:.1f}" for n in lengths])
        top.minorticks_off()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5)


def export(run):
    """What evaluate.py exports of a run."""
    file = f"{run.folder}.npz"
    with open(os.devnull, "w") as nowhere:
        command = [sys.executable, str(ROOT / "evaluate.py"), f"{run.folder}/last.pt"]
        command += [*run.where, "--export", file]
        subprocess.run(command, stdout=nowhere, check=True)
    with np.load(file) as arrays:
        return dict(arrays)


def by_frequency(exports):
    """The classes, the most frequent first, and the borders many | medium | low in that order."""
    N_c = exports["CBS+RRS"]["N_c"]
    return np.argsort(-N_c, kind="stable"), [(N_c >= 100).sum(), (N_c > 20).sum()]


def figure2(figure, runs, exports, what):
    """The mean training loss of a tail class and of a head class, epoch by epoch."""
    figure.suptitle(f"Fig. 2: training loss of a tail class and a head class; {what}", size=12)
    order, _ = by_frequency(exports)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, y, kind in zip(axes, (order[-1], order[0]), ("Tail", "Head"), strict=True):
        for row in "RRS-Only", "CBS-Only":
            losses = runs[row].record(f"l_{row[:3]}_{y}")
            axis.plot(range(1, len(losses) + 1), losses, ".-", color=COLOURS[row], label=row)
        n = exports["CBS+RRS"]["N_c"][y]
        axis.set(title=f"{kind} class, {n:,} training images", xlabel="epoch", ylim=(0, None))
    axes[0].set_ylabel("mean training loss of the class")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def figure3(figure, exports, what):
    """The accuracy gain of CBS+RRS over each baseline, class by class."""
    figure.suptitle(f"Fig. 3: accuracy gain per class; {what}", size=12)
    order, borders = by_frequency(exports)
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for axis, base in zip(axes, ("RRS-Only", "CBS-Only"), strict=True):
        gained = exports["CBS+RRS"]["class_accuracy"] - exports[base]["class_accuracy"]
        axis.stairs(gained[order], fill=True, color=COLOURS[base])
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"CBS+RRS over {base}", ylabel="gain (points)", xlim=(0, len(order)))
        right = axis.twinx()
        right.stairs(exports["CBS+RRS"]["N_c"][order], baseline=None, color="0.45")
        right.set(yscale="log", ylabel="training images (grey line)")
        for border in borders:
            axis.axvline(border, color="black", linestyle=":")
    axes[1].set_xlabel("classes, the most frequent first; dotted borders: many | medium | low shot")


def figure4(figure, exports, what):
    """Features of six classes of each shot by t-SNE, and the classifiers' weight norms."""
    from matplotlib import colormaps
    from sklearn.manifold import TSNE

    figure.suptitle(f"Fig. 4: test features by t-SNE, classifier weights; {what}", size=12)
    order, borders = by_frequency(exports)
    axes = figure.subplots(2, 2).ravel()
    kinds = ("many", "o", "Purples"), ("medium", "s", "Oranges"), ("low", "^", "Greys")
    shown = [row for row in ("RRS-Only", "CBS-Only", "CBS+RRS+SS", "CBS+RRS") if row in exports][:3]
    for axis, row in zip(axes, shown, strict=False):
        run = exports[row]
        for_shot = []
        for classes in np.split(order, borders):
            for_shot.append(
                classes[np.linspace(0, len(classes) - 1, min(6, len(classes))).astype(int)]
            )
        chosen = np.concatenate(for_shot)
        keep = np.concatenate([np.flatnonzero(run["labels"] == y)[:50] for y in chosen])
        tsne = TSNE(random_state=0, perplexity=min(30, len(keep) / 4))
        places = tsne.fit_transform(run["features"][keep])
        for classes, (shot, marker, colours) in zip(for_shot, kinds, strict=True):
            for y, shade in zip(classes, np.linspace(0.95, 0.45, len(classes)), strict=True):
                how = {"marker": marker, "color": colormaps[colours](shade), "s": 9}
                how["label"] = f"{shot} shot, class {y}: {run['N_c'][y]:,} images"
                axis.scatter(*places[run["labels"][keep] == y].T, rasterized=True, **how)
        axis.set(title=f"Features, {row}", xticks=[], yticks=[])
        axes[3].plot(run["weight_norms"][order], color=COLOURS[row], label=row)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes[3].set(title="Weights of the classifier", xlabel="classes, the most frequent first")
    axes[3].set_ylabel("l2 norm of a class's weights")
    axes[3].legend()


def main(argv=None):
    args = parse(argv)
    settings = itertools.product(args.epochs, args.seeds, args.rows)
    runs = [Run(args, row, seed, epochs) for epochs, seed, row in settings]
    sets = data.load(args.data, args.root)  # downloaded once, not by each run
    checksums = {split: dataset.checksum for split, dataset in sets.items()}
    if args.finished:
        runs = [run for run in runs if run.is_finished(checksums)]
    else:
        train_all(args, runs, checksums)
    for epochs in sorted({run.epochs for run in runs}):
        results = {}
        for run in runs:
            if run.epochs == epochs:
                results.setdefault(run.name, {})[run.seed] = run.accuracies()
        print(f"\n{args.data}, {args.arch}, {epochs} epochs\n")
        table(args, results)
    if args.figures:
        figures(args, runs)


if __name__ == "__main__":
    try:
        data.run(main)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")
