"""The paper's tables and figures on any data set: real runs of train.py, as many seeds as you like.

    python tests/paper.py --data glyphs_lt --seeds 0 1 2 --figures DIR
    python tests/paper.py --data cifar10_lt --root DIR --jobs 2 --rows RRS-Only CBS-Only CBS+RRS

Trains what is missing of each row and seed below runs/paper-NAME…, resumes what was interrupted,
skips what is finished, then prints the table and which of the paper's orderings hold. Any other
flag is handed to train.py, and becomes part of the folder's name. The figures need matplotlib and
scikit-learn.
"""
import argparse
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHOTS = "Many", "Medium", "Low", "Overall"
ROWS = {  # Tables 1, 3, 4 and 5: the flags of train.py
    "RRS-Only": "--lambdas 0 1 0",
    "CBS-Only": "--lambdas 1 0 0",
    "CBS+RRS": "--lambdas 0.5 1 0",
    "CBS+RRS+SS": "",
    "ftRRS+CBS": "--lambdas 1 0 0 --init RRS-ONLY",
    "1:1": "--lambdas 1 1 0",
    "1:0.5": "--lambdas 1 0.5 0",
    "Rotation": "--rotation-augmentation",
}
PAPER = {  # overall accuracy in the order of ROWS; another data set stands beside the first
    ("imagenet_lt", "resnet10"): (32.4, 31.2, 40.9, 41.9, 37.6, 39.6, 37.0, 41.0),
    ("imagenet_lt", "resnet50"): (39.9, 40.1, 46.5, 47.3),
    ("places_lt", "resnet152"): (31.0, 35.7, 39.4, 39.6),
    ("places_lt", "resnet50"): (19.3, 22.4, 27.8, 28.9, 24.6, 27.1, 25.6, 27.2),
}


def higher(*rows, shot="Overall"):
    """Whether each of `rows` is better than the next."""
    return lambda r: all(r[a][shot] > r[b][shot] for a, b in zip(rows, rows[1:])), rows


ORDERINGS = {  # of the paper: what holds of the accuracies r[row][shot], and the rows it speaks of
    "CBS+RRS above both baselines": (
        lambda r: r["CBS+RRS"]["Overall"] > max(r["RRS-Only"]["Overall"], r["CBS-Only"]["Overall"]),
        ("RRS-Only", "CBS-Only", "CBS+RRS")),
    "SS adds to it": higher("CBS+RRS+SS", "CBS+RRS"),
    "RRS-Only the best baseline on many shot": higher("RRS-Only", "CBS-Only", shot="Many"),
    "RRS-Only the worst of all on low shot": (
        lambda r: r["RRS-Only"]["Low"] <= min(r[row]["Low"] for row in r), ("RRS-Only", "CBS-Only")),
    "0.5:1 > 1:1 > 1:0.5": higher("CBS+RRS", "1:1", "1:0.5"),
    "joint above stage-wise training": higher("CBS+RRS", "ftRRS+CBS"),
    "rotation as augmentation does not explain SS": higher("CBS+RRS+SS", "Rotation"),
}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="glyphs_lt", metavar="NAME", help="data set (default: glyphs_lt)")
    add("--arch", default="resnet10", help="(default: resnet10)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    add("--jobs", type=int, default=1, help="runs at a time, the cores divided among them (default: 1)")
    add("--out", metavar="DIR", help="where the runs go (default: runs/paper-NAME and the other flags)")
    add("--figures", metavar="DIR", help="also draw Figures 2, 3 and 4 of the first seed, as SVG")
    add("--root", metavar="DIR", help="folder of the data set (default: train.py's)")
    add("--workers", metavar="N", help="loading processes of each run (default: train.py's)")
    args, args.flags = parser.parse_known_args(argv)
    given = {"--root": args.root, "--workers": args.workers}
    args.where = [x for flag, value in given.items() if value for x in (flag, value)]  # no number depends on them
    if args.jobs < 1:
        parser.error("--jobs: a number of 1 or more")
    if not args.out:
        numbers = [flag for flag in args.flags if flag != "--compile"]
        args.out = f"runs/paper-{args.data}-{args.arch}" + re.sub(r"[^\w.]+", "-", " ".join(numbers)).rstrip("-")
    args.seeds, args.rows = list(dict.fromkeys(args.seeds)), list(dict.fromkeys(args.rows))
    return args


def folder(args, row, seed):
    """Where a run's files are; its output goes to a log beside it."""
    return Path(args.out, f"{row}-seed{seed}".replace(":", "_"))


def start(args, row, seed):
    """Start or resume a run; its process."""
    run = folder(args, row, seed)
    run.parent.mkdir(parents=True, exist_ok=True)
    rrs_only = str(folder(args, "RRS-Only", seed) / "last.pt")
    flags = [flag.replace("RRS-ONLY", rrs_only) for flag in ROWS[row].split()]
    command = ["--data", args.data, "--arch", args.arch, "--seed", seed, "--out", run, *args.where, *args.flags, *flags]
    if (run / "last.pt").exists():
        command = ["--resume", run / "last.pt", *args.where]
    env = os.environ | dict(OMP_NUM_THREADS=str(max(1, len(os.sched_getaffinity(0)) // args.jobs)))
    with open(f"{run}.log", "a") as log:
        return subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, command)], env=env, stdout=log,
                                stderr=log, preexec_fn=end_with_parent)


def end_with_parent():
    """A run is told to save and stop when this script is killed (Linux)."""
    if sys.platform == "linux":
        import ctypes
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def result(args, row, seed):
    """A finished run's accuracies {shot: percent}, or None."""
    path = folder(args, row, seed) / "test.csv"
    if path.exists():
        return {line["class"]: float(line["accuracy"]) for line in csv.DictReader(open(path)) if line["class"] in SHOTS}


def train_all(args):
    """Bring every row and seed to its end, --jobs at a time."""
    waiting = [(row, seed) for seed in args.seeds for row in args.rows if not result(args, row, seed)]
    total, running, shown = len(args.seeds) * len(args.rows), {}, ""
    try:
        while waiting or running:
            ready = [job for job in waiting if job[0] != "ftRRS+CBS" or result(args, "RRS-Only", job[1])]
            while ready and len(running) < args.jobs:
                job = ready.pop(0)
                waiting.remove(job)
                running[job] = start(args, *job)
            if not running:
                sys.exit("ftRRS+CBS starts from RRS-Only: name that row too")
            status = f"{total - len(waiting) - len(running)}/{total} runs done; now " + \
                ", ".join(f"{row} seed {seed}" for row, seed in running)
            if status != shown:
                shown = status
                print(status, file=sys.stderr, flush=True)
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                if running.pop(job).returncode:
                    log = f"{folder(args, *job)}.log"
                    sys.exit(f"{job[0]}, seed {job[1]}: {''.join(open(log).read().splitlines()[-1:])} (see {log})")
    finally:  # told to save and stop
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def table(args, results):
    """The README's table, and what it says of the paper's orderings."""
    paper = dict(zip(ROWS, PAPER.get((args.data.lower(), args.arch), PAPER["imagenet_lt", "resnet10"])))
    print("| Row | Flags |", " | ".join(SHOTS), "| Paper |\n" + "|---" * 7 + "|")
    for row in args.rows:
        cells = []
        for shot in SHOTS:
            x = np.array([results[seed][row][shot] for seed in args.seeds])
            spread = f" ± {x.std(ddof=1):.1f}" if len(x) > 1 else ""
            cells.append("–" if np.isnan(x).all() else f"{x.mean():.1f}{spread}")
        flags = f"`{ROWS[row]}`" if ROWS[row] else "(none)"
        print("|", " | ".join([row, flags, *cells, str(paper.get(row, ""))]), "|")
    mean = {row: {shot: np.mean([results[seed][row][shot] for seed in args.seeds]) for shot in SHOTS} for row in args.rows}
    verdicts = {"on every seed": [], "on average only": [], "not here": []}
    for text, (holds, rows) in ORDERINGS.items():
        shot = next((shot for shot in SHOTS if shot.lower() in text), "Overall")
        if set(rows) <= set(args.rows) and not np.isnan(mean[rows[0]][shot]):
            each = all(holds(results[seed]) for seed in args.seeds)
            verdicts["on every seed" if each else "on average only" if holds(mean) else "not here"].append(text)
    print("\nThe paper's orderings hold " + ". ".join(f"{k}: {'; '.join(v) or 'none'}" for k, v in verdicts.items()) + ".")
    if {"CBS+RRS", "CBS+RRS+SS"} <= set(args.rows) and len(args.seeds) > 1:
        gain = np.array([results[s]["CBS+RRS+SS"]["Overall"] - results[s]["CBS+RRS"]["Overall"] for s in args.seeds])
        print(f"SS adds {gain.mean():+.1f} points to CBS+RRS (standard error {gain.std(ddof=1) / len(gain) ** 0.5:.1f}).")


def exported(args, row, scratch):
    """What evaluate.py exports of the first seed's run of a row."""
    run, file = folder(args, row, args.seeds[0]), Path(scratch, f"{row}.npz")
    subprocess.run([sys.executable, ROOT / "evaluate.py", run / "last.pt", "--export", file, *args.where],
                   check=True, stdout=subprocess.DEVNULL)
    saved, record = dict(np.load(file)), np.atleast_1d(np.genfromtxt(run / "record.csv", delimiter=",", names=True))
    for sampler in ("CBS", "RRS"):  # mean loss [epochs, C]
        saved[sampler] = np.stack([record[f"l_{sampler}_{y}"] for y in range(len(saved["N_c"]))], 1)
    return saved


def figures(args, destination):
    """Figures 2, 3 and 4."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
        from sklearn.manifold import TSNE
    except ImportError as error:
        sys.exit(f"--figures: {error.name} is missing; pip install matplotlib scikit-learn")
    import tempfile
    plt.rcParams.update({"svg.hashsalt": "paper", "font.size": 8, "axes.titlesize": 8})
    os.makedirs(destination, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rrs, cbs, two, ours = (exported(args, row, scratch) for row in ("RRS-Only", "CBS-Only", "CBS+RRS", "CBS+RRS+SS"))
    N_c = ours["N_c"]
    order = np.argsort(-N_c, kind="stable")  # the most frequent class first

    def save(figure, name):
        figure.tight_layout()
        figure.savefig(Path(destination, name), metadata={"Date": None}, dpi=110)

    figure, axes = plt.subplots(1, 2, figsize=(7, 2.4))
    for axis, c, name in zip(axes, (order[-1], order[0]), ("tail", "head")):
        for run, sampler, colour in ((rrs, "RRS", "tab:blue"), (cbs, "CBS", "tab:red")):
            loss = run[sampler][:, c]
            axis.plot(np.arange(1, len(loss) + 1), loss, colour, marker=".", label=f"{sampler}-Only")
        axis.set(title=f"Fig. 2: {name} class, {N_c[c]:,} images", xlabel="epoch", ylabel="mean training loss (nats)")
        axis.legend()
    save(figure, "figure2.svg")

    figure, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True)
    for axis, base, name, colour in zip(axes, (rrs, cbs), ("RRS-Only", "CBS-Only"), ("tab:blue", "tab:red")):
        axis.bar(range(len(order)), (two["class_accuracy"] - base["class_accuracy"])[order], color=colour)
        axis.set(ylabel="gain (points)", title=f"Fig. 3: accuracy gain of CBS+RRS over {name} per class")
        right = axis.twinx()
        right.plot(N_c[order], "k", lw=1, label="training images")
        right.set(yscale="log", ylabel="training images")
        for border in ((N_c >= 100).sum() - 0.5, (N_c > 20).sum() - 0.5):  # many | medium | low
            axis.axvline(border, color="grey", ls=":")
        right.legend(loc="upper right")
    axes[1].set_xlabel("classes, the most frequent first; dotted: many | medium | low shot")
    save(figure, "figure3.svg")

    shots = [order[mask[order]] for mask in (N_c >= 100, (N_c > 20) & (N_c < 100), N_c <= 20)]
    chosen = np.concatenate([shot[np.unique(np.linspace(0, len(shot) - 1, 6).astype(int))] for shot in shots if len(shot)])
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.8))
    for axis, run, name in zip(axes, (rrs, cbs, ours), ("RRS-Only", "CBS-Only", "CBS+RRS+SS")):
        keep = np.concatenate([np.flatnonzero(run["labels"] == c)[:50] for c in chosen])
        places = TSNE(random_state=0, perplexity=min(30, len(keep) / 4)).fit_transform(run["features"][keep])
        for i, c in enumerate(chosen):
            axis.scatter(*places[run["labels"][keep] == c].T, s=3, color=plt.cm.nipy_spectral(i / len(chosen)), rasterized=True)
        axis.set(title=f"Fig. 4: features, {name}", xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        axes[3].plot(run["weight_norms"][order], label=name, lw=1)
    axes[3].set(title="Fig. 4: classifier weights", xlabel="classes, most frequent first", ylabel="l2 norm of the row")
    axes[3].legend()
    save(figure, "figure4.svg")


def main(argv=None):
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        train_all(args)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    table(args, {seed: {row: result(args, row, seed) for row in args.rows} for seed in args.seeds})
    if args.figures:
        figures(args, args.figures)


if __name__ == "__main__":
    main()
