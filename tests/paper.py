"""The paper's tables and figures on any dataset: real runs of train.py, as many seeds as you like.

    python tests/paper.py --data glyphs_lt --seeds 0 1 2 --figures DIR
    python tests/paper.py --data cifar100_lt --root DIR --jobs 2 --rows RRS-Only CBS-Only CBS+RRS

Trains each row and seed with --resume, in folders below runs/paper-NAME-ARCH: a finished run is
used, an interrupted one goes on, and one of other settings or lists is refused by train.py. Then
prints the table, the gains, and which of the paper's orderings hold. Any other flag is handed to
train.py. The figures need matplotlib and scikit-learn.
"""

import argparse
import csv
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHOTS = "Many", "Medium", "Low", "Overall"
ROWS = {  # Tables 1, 3, 4 and 5: the flags of train.py
    "RRS-Only": "--lambdas 0 1 0",
    "CBS-Only": "--lambdas 1 0 0",
    "CBS+RRS": "--lambdas 0.5 1 0",
    "CBS+RRS+SS": "--lambdas 0.5 1 1",
    "ftRRS+CBS": "--lambdas 1 0 0 --init RRS-ONLY",
    "1:1": "--lambdas 1 1 0",
    "1:0.5": "--lambdas 1 0.5 0",
    "Rotation": "--lambdas 0.5 1 0 --rotation-augmentation",
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
GAINS = [  # a row over others: over the better of them, shot by shot
    ("CBS+RRS", ["RRS-Only", "CBS-Only"], "CBS+RRS over the better baseline"),
    ("CBS+RRS+SS", ["CBS+RRS"], "SS over CBS+RRS"),
    ("CBS+RRS", ["ftRRS+CBS"], "joint over stage-wise"),
    ("CBS+RRS", ["1:1"], "0.5:1 over 1:1"),
    ("1:1", ["1:0.5"], "1:1 over 1:0.5"),
    ("CBS+RRS+SS", ["Rotation"], "rotation as task over rotation as augmentation"),
]
ORDERINGS = [  # of the paper: each row is better than the next, on this shot
    ("CBS+RRS above RRS-Only", "Overall", ["CBS+RRS", "RRS-Only"]),
    ("CBS+RRS above CBS-Only", "Overall", ["CBS+RRS", "CBS-Only"]),
    ("SS adds to CBS+RRS", "Overall", ["CBS+RRS+SS", "CBS+RRS"]),
    ("RRS-Only above CBS-Only on many shot", "Many", ["RRS-Only", "CBS-Only"]),
    ("CBS-Only above RRS-Only on low shot", "Low", ["CBS-Only", "RRS-Only"]),
    ("joint above stage-wise training", "Overall", ["CBS+RRS", "ftRRS+CBS"]),
    ("0.5:1 above 1:1 above 1:0.5", "Overall", ["CBS+RRS", "1:1", "1:0.5"]),
    ("rotation as task above rotation as augmentation", "Overall", ["CBS+RRS+SS", "Rotation"]),
]


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", default="glyphs_lt", metavar="NAME", help="dataset (default: glyphs_lt)")
    add("--root", metavar="DIR", help="dataset folder (default: train.py's)")
    add("--arch", default="resnet10", help="feature extractor (default: resnet10)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--threads", type=int, default=1, help="of each run; numbers depend on it (default: 1)")
    add("--workers", type=int, default=1, help="of each run; numbers depend on it (default: 1)")
    add("--Z", help="images per class in B_CBS (default: train.py's)")
    add("--out", metavar="DIR", help="where the runs go (default: runs/paper-NAME-ARCH)")
    add("--figures", metavar="DIR", help="also draw the figures, as SVG")
    args, args.flags = parser.parse_known_args(argv)
    if min(args.jobs, args.threads) < 1:
        parser.error("--jobs and --threads: must be 1 or more")
    for flag in args.flags:
        name = flag.partition("=")[0]
        if name in ("--lambdas", "--init", "--rotation-augmentation", "--seed", "--resume"):
            parser.error(f"{name} is set by the rows and seeds")
    args.seeds = list(dict.fromkeys(args.seeds))
    args.rows = [row for row in ROWS if row in args.rows]
    if "ftRRS+CBS" in args.rows and "RRS-Only" not in args.rows:
        parser.error("ftRRS+CBS starts from RRS-Only: name that row, too")
    if "" in (args.out, args.root, args.figures):
        parser.error("--out, --root, --figures: must not be empty")
    args.out = args.out or f"runs/paper-{args.data}-{args.arch}"
    return args


def folder(args, row, seed):
    """Where a run's files are; its output goes to a log beside it."""
    return Path(args.out, f"{row}-seed{seed}".replace(":", "_"))


def start(args, row, seed):
    """Start a run, or go on with it; its process."""
    run = folder(args, row, seed)
    run.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, ROOT / "train.py", "--data", args.data, "--arch", args.arch]
    command += ["--seed", seed, "--workers", args.workers, "--out", run, "--resume", *args.flags]
    command += ["--root", args.root] * (args.root is not None)
    command += ["--Z", args.Z] * (args.Z is not None and row != "RRS-Only")
    source = folder(args, "RRS-Only", seed) / "last.pt"
    command += [source if flag == "RRS-ONLY" else flag for flag in ROWS[row].split()]
    command = [str(x) for x in command]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    with open(f"{run}.log", "a") as log:
        how = {"env": env, "stdout": log, "stderr": log, "preexec_fn": end_with_parent}
        return subprocess.Popen(command, **how)


def end_with_parent():
    """A run ends when this script is killed (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def result(args, row, seed):
    """A finished run's accuracies {shot: percent}."""
    with open(folder(args, row, seed) / "test.csv") as file:
        lines = csv.DictReader(file)
        return {x["class"]: float(x["accuracy"]) for x in lines if x["class"] in SHOTS}


def train_all(args):
    """Bring every row and seed to its end, --jobs at a time."""
    waiting = [(row, seed) for seed in args.seeds for row in args.rows]
    running = {}
    done = set()
    shown = ""
    try:
        while waiting or running:
            for row, seed in list(waiting):
                ready = row != "ftRRS+CBS" or ("RRS-Only", seed) in done
                if ready and len(running) < args.jobs:
                    waiting.remove((row, seed))
                    running[row, seed] = start(args, row, seed)
            status = f"{len(done)}/{len(args.seeds) * len(args.rows)} runs done; now " + ", ".join(
                f"{row} seed {seed}" for row, seed in running
            )
            if status != shown:
                shown = status
                print(status, file=sys.stderr, flush=True)
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                if code := running.pop(job).returncode:
                    log = Path(f"{folder(args, *job)}.log")
                    last = "".join(log.read_text().splitlines()[-1:])
                    if code < 0:
                        last = f"ended by signal {-code}; the same command goes on"
                    sys.exit(f"{job[0]}, seed {job[1]}: {last} (see {log})")
                done.add(job)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def mean_of(args, results):
    """{row: {shot: accuracy}} of the seeds' means."""
    return {
        row: {shot: np.mean([results[seed][row][shot] for seed in args.seeds]) for shot in SHOTS}
        for row in args.rows
    }


def cell(values, spread):
    """Mean and spread over the seeds; a dash for an empty shot."""
    if np.isnan(values).all():
        return "–"
    mean = round(float(np.mean(values)), 1) + 0  # no -0.0
    return f"{mean:.1f}" + (f" ± {spread:.1f}" if len(values) > 1 else "")


def table(args, results):
    """Print accuracies, gains and verdicts, as the README has them."""
    paper = PAPER.get((args.data.lower(), args.arch), {})
    heading = " Paper |" if paper else ""
    print("| Row |", " | ".join(SHOTS), "|" + heading)
    print("|---|" + "---:|" * (4 + bool(paper)))
    for row in args.rows:
        values = [[results[seed][row][shot] for seed in args.seeds] for shot in SHOTS]
        cells = [cell(x, np.std(x, ddof=1) if len(x) > 1 else 0) for x in values]
        cells += [" / ".join(map(str, paper[row])) if row in paper else ""] * bool(paper)
        print("|", " | ".join([row, *cells]), "|")
    print(f"\nTest accuracy in percent; mean ± standard deviation of {len(args.seeds)} seeds.\n")
    gains(args, results)
    verdicts(args, results)


def other_conditions(args):
    """Name the runs whose numbers another number of workers or threads made: a finished run is
    taken as it is."""
    sys.path.insert(0, str(ROOT))
    from evaluate import load_checkpoint

    for row, seed in itertools.product(args.rows, args.seeds):
        run = load_checkpoint(folder(args, row, seed) / "last.pt")
        if (run["workers"], run["threads"]) != (args.workers, args.threads):
            print(f"{row}, seed {seed}, had workers {run['workers']}, threads {run['threads']}")


def gains(args, results):
    """Differences, seed by seed, beside those of the paper."""
    paper = PAPER["imagenet_lt", "resnet10"]
    print("| Gain in points |", " | ".join(SHOTS), "| Paper, ImageNet-LT, ResNet-10 |")
    print("|---|" + "---:|" * 5)
    for row, others, text in GAINS:
        if not {row, *others} <= set(args.rows):
            continue
        cells = []
        theirs = []
        for i, shot in enumerate(SHOTS):
            gain = [
                results[seed][row][shot] - max(results[seed][other][shot] for other in others)
                for seed in args.seeds
            ]
            error = np.std(gain, ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else 0
            cells.append(cell(gain, error).replace("-", "−"))
            theirs.append(f"{paper[row][i] - max(paper[other][i] for other in others):.1f}")
        print("|", " | ".join([text, *cells, " / ".join(theirs).replace("-", "−")]), "|")
    print(f"\nMean ± standard error of {len(args.seeds)} seeds.\n")


def verdicts(args, results):
    """Which of the paper's orderings hold."""
    said = {"on every seed": [], "on average only": [], "a tie": [], "not here": []}
    mean = mean_of(args, results)

    def margin(r, shot, rows):
        worst = min(r[a][shot] - r[b][shot] for a, b in zip(rows, rows[1:], strict=False))
        return round(worst, 9)  # the sums of equal means may differ in their last digits

    for text, shot, rows in ORDERINGS:
        if set(rows) <= set(args.rows) and not np.isnan(mean[rows[0]][shot]):
            worst = min(margin(results[seed], shot, rows) for seed in args.seeds)
            average = margin(mean, shot, rows)
            if worst > 0:
                said["on every seed"].append(text)
            elif average > 0:
                said["on average only"].append(text)
            else:
                said["a tie" if average == 0 else "not here"].append(text)
    print("The paper's orderings hold")
    for verdict, texts in said.items():
        if texts or verdict != "a tie":
            print(f"- {verdict}: {'; '.join(texts) or 'none'}")


# ------------------------------------------------------------------------------ figures
COLOURS = {  # of a method, in every figure; Okabe and Ito's, for colour-blind readers, too
    "RRS-Only": "#0072B2",
    "CBS-Only": "#D55E00",
    "CBS+RRS": "#009E73",
    "CBS+RRS+SS": "#00503A",
}
SHOT_COLOURS = {  # marker, colours of the most and of the least frequent class; no method's hues
    "many shot": ("o", "#4B0082", "#D9B3F0"),
    "medium shot": ("s", "#7A5200", "#F5CB3A"),
    "low shot": ("^", "#101010", "#C4C4C4"),
}
NAMES = {
    "imagenet_lt": "ImageNet-LT",
    "places_lt": "Places-LT",
    "cifar10_lt": "CIFAR-10-LT",
    "cifar100_lt": "CIFAR-100-LT",
    "tinyimagenet_lt": "Tiny-ImageNet-LT",
}


def drawing_tools(args):
    """pyplot and TSNE. Exits with one line where the figures can't be drawn."""
    try:
        import matplotlib.pyplot
        import sklearn.manifold
    except ImportError as error:
        package = error.name.partition(".")[0]
        sys.exit(f"--figures: {package} is missing; pip install matplotlib scikit-learn")
    missing = [row for row in COLOURS if row not in args.rows]
    if missing:
        sys.exit(f"--figures: name these rows, too: {' '.join(missing)}")
    matplotlib.use("Agg")
    return matplotlib.pyplot, sklearn.manifold.TSNE


def figures(args, destination):
    """dilemma.svg, of all seeds; Figures 2, 3 and 4, of the first."""
    plt, TSNE = drawing_tools(args)
    plt.rcParams.update({"svg.hashsalt": "paper", "svg.fonttype": "none", "figure.dpi": 72})
    plt.rcParams["axes.titlesize"] = "medium"
    runs = {row: export(args, row) for row in COLOURS}
    N_c = runs["CBS+RRS"]["N_c"]
    order = np.argsort(-N_c, kind="stable")  # the most frequent class first
    bounds = [(N_c >= 100).sum(), (N_c > 20).sum()]  # many | medium | low in that order
    what = f"{name_of(args.data, args.arch)}, seed {args.seeds[0]}"

    def save(name, size, draw, *content):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure, *content)
        figure.savefig(Path(destination, name), metadata={"Date": None}, dpi=150)
        plt.close(figure)

    save("dilemma.svg", (9, 4.3), dilemma, args)
    save("figure2.svg", (9, 3.8), figure2, args, what, N_c, order)
    save("figure3.svg", (9, 5.4), figure3, runs, what, order, bounds)
    save("figure4.svg", (9, 9.5), figure4, runs, what, order, bounds, TSNE)


def name_of(data, arch):
    return f"{NAMES.get(data.lower(), data)}, {arch.replace('resnet', 'ResNet-')}"


def export(args, row):
    """What evaluate.py exports of the first seed's run."""
    with tempfile.TemporaryDirectory() as scratch:
        run = folder(args, row, args.seeds[0])
        command = [sys.executable, ROOT / "evaluate.py", run / "last.pt"]
        command += ["--export", f"{scratch}/run.npz", "--workers", str(args.workers)]
        command += ["--root", args.root] * (args.root is not None)
        env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
        with np.load(f"{scratch}/run.npz") as arrays:
            return dict(arrays)


def dilemma(figure, args):
    """Head against tail accuracy: the paper's Table 1, and this code over all seeds."""
    left, right = figure.subplots(1, 2)
    table1 = PAPER["imagenet_lt", "resnet10"]
    theirs = {row: np.array([table1[row]])[:, [0, 2]] for row in COLOURS}
    left.set_title(f"The paper\n{name_of('imagenet_lt', 'resnet10')}")
    ours = {}
    for row in COLOURS:
        results = [result(args, row, seed) for seed in args.seeds]
        ours[row] = np.array([[x["Many"], x["Low"]] for x in results])
    n = len(args.seeds)
    spread = f"mean ± deviation of {n} seeds" if n > 1 else f"seed {args.seeds[0]}"
    right.set_title(f"This code\n{name_of(args.data, args.arch)}, {spread}")
    figure.supxlabel("accuracy (%) on head classes, ≥ 100 training images each", size=10)
    figure.supylabel("accuracy (%) on tail classes, ≤ 20 images each", size=10)
    panels = [(left, theirs), (right, ours)]
    if np.isnan(list(ours.values())).any():
        how = {"ha": "center", "transform": right.transAxes}
        right.text(0.5, 0.5, f"{args.data} has no head or no tail class", **how)
        panels.pop()
    for axis, points in panels:
        scatter(axis, points)
    figure.draw_without_rendering()  # lays the axes out: pixels are known from here on
    for axis, points in panels:
        name_all(axis, points)


def spread_of(x):
    """Standard deviation over the seeds of [seeds, 2], 0 of one."""
    return x.std(0, ddof=1) if len(x) > 1 else np.zeros(2)


def scatter(axis, points):
    """{row: accuracies on head and tail [seeds, 2]} as means with deviations."""
    for row, x in points.items():
        width, height = spread_of(x)
        axis.errorbar(*x.mean(0), height, width, "none", ecolor=COLOURS[row], capsize=3)
        how = {"color": COLOURS[row], "markersize": 9, "markeredgecolor": "white"}
        axis.plot(*x.mean(0), "o", **how)
    baselines = [points["CBS-Only"].mean(0), points["RRS-Only"].mean(0)]
    axis.plot(*np.transpose(baselines), "--", color="grey", zorder=0)
    axis.margins(0.35, 0.2)
    axis.locator_params(nbins=5)


def name_all(axis, points):
    """Write names beside the line and the points, so that none covers another thing."""
    from matplotlib.transforms import Bbox

    taken = name_line(axis, points["CBS-Only"].mean(0), points["RRS-Only"].mean(0))
    for x in points.values():
        for bar in np.diag(spread_of(x)):
            taken.append(axis.transData.transform([x.mean(0) - bar, x.mean(0) + bar]))
    taken = [Bbox(x).padded(5) for x in taken]
    for row, x in points.items():
        taken.append(name_point(axis, row, x.mean(0), taken))


def name_line(axis, CBS, RRS):
    """Write along the line between the baselines what it is; [corners] of what both cover."""
    start, end = axis.transData.transform([CBS, RRS])
    covered = [(p, p) for p in np.linspace(start, end, 99)]
    right, up = end - start
    if right > 0 > up:  # else one baseline is better on both
        beside = np.array([up, -right]) / np.hypot(up, right) * 10  # towards the lower left
        how = {"ha": "center", "va": "center", "rotation_mode": "anchor", "color": "0.35"}
        how |= {"textcoords": "offset points", "rotation": np.degrees(np.arctan2(up, right))}
        axis.annotate("the dilemma: one or the other", (CBS + RRS) / 2, beside, **how)
        covered += [(p + beside, p + beside) for p, _ in covered]
    return covered


def name_point(axis, row, point, taken):
    """Write the name beside the point, where it covers least of what is `taken`; its box."""
    how = {"color": COLOURS[row], "weight": "bold", "textcoords": "offset points"}
    text = axis.annotate(row, point, (0, 0), **how)

    def move(spot):
        far, (x, y) = spot
        how = {"ha": ("center", "left", "right")[x], "va": ("center", "bottom", "top")[y]}
        text.set(position=(far * x, far * y), **how)
        return text.get_window_extent()

    def covers(spot):
        box = move(spot)
        outside = 2 - axis.bbox.count_contains([box.min, box.max])
        return box.count_overlaps(taken) + 99 * outside

    sides = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)]
    return move(min(itertools.product((9, 14, 20), sides), key=covers))


def figure2(figure, args, what, N_c, order):
    """The mean training loss of a tail class and of a head class, epoch by epoch."""
    figure.suptitle(f"Fig. 2: training loss of a tail class and a head class; {what}")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, y, kind in zip(axes, (order[-1], order[0]), ("Tail", "Head"), strict=True):
        for row, column in ("RRS-Only", f"l_RRS_{y}"), ("CBS-Only", f"l_CBS_{y}"):
            with open(folder(args, row, args.seeds[0]) / "record.csv") as file:
                losses = [float(epoch[column]) for epoch in csv.DictReader(file)]
            axis.plot(range(1, len(losses) + 1), losses, ".-", color=COLOURS[row], label=row)
        axis.set(title=f"{kind} class, {N_c[y]:,} training images", xlabel="epoch")
    axes[0].set(ylabel="mean training loss of the class (nats)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def figure3(figure, runs, what, order, bounds):
    """The accuracy gain of CBS+RRS over each baseline, class by class."""
    figure.suptitle(f"Fig. 3: accuracy gain per class; {what}")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    C = len(order)
    for axis, base in zip(axes, ("RRS-Only", "CBS-Only"), strict=True):
        gain = runs["CBS+RRS"]["class_accuracy"] - runs[base]["class_accuracy"]
        axis.stairs(gain[order], fill=True, color=COLOURS[base])
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"CBS+RRS over {base}", ylabel="gain (points)", xlim=(0, C))
        right = axis.twinx()
        right.stairs(runs["CBS+RRS"]["N_c"][order], baseline=None, color="0.45")
        right.set(yscale="log", ylabel="training images (grey line)")
        right.yaxis.set_major_formatter("{x:,.0f}")
        for bound in bounds:
            axis.axvline(bound, color="black", linestyle=":")
    axes[1].set_xlabel("classes, the most frequent first; dotted borders: many | medium | low shot")


def figure4(figure, runs, what, order, bounds, TSNE):
    """Features of six classes of each shot by t-SNE, and the classifiers' weight norms."""
    figure.suptitle(f"Fig. 4: test features by t-SNE, classifier weights; {what}")
    axes = figure.subplots(2, 2).flat
    marks = marks_of(order, bounds)
    rows = "RRS-Only", "CBS-Only", "CBS+RRS+SS"
    for axis, row in zip(axes, rows, strict=False):
        labels = runs[row]["labels"]
        keep = np.concatenate([np.flatnonzero(labels == y)[:50] for y in marks])
        tsne = TSNE(random_state=0, perplexity=min(30, len(keep) / 4))
        places = tsne.fit_transform(runs[row]["features"][keep])
        for y, (shot, marker, colour) in marks.items():
            how = {"marker": marker, "color": colour, "s": 9, "rasterized": True}
            label = f"{shot}, class {y}: {runs[row]['N_c'][y]:,} images"
            axis.scatter(*places[labels[keep] == y].T, label=label, **how)
        axis.set(title=f"Features, {row}", xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for row in rows:
        axes[3].plot(runs[row]["weight_norms"][order], color=COLOURS[row], label=row)
    axes[3].set_title("Weights of the classifier", pad=28)
    axes[3].set(xlabel="classes, the most frequent first", ylabel="l2 norm of a class's weights")
    axes[3].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def marks_of(order, bounds):
    """{class: (shot, marker, colour)} of six classes of each shot, evenly from its order."""
    from matplotlib.colors import LinearSegmentedColormap

    marks = {}
    for shot, classes in zip(SHOT_COLOURS, np.split(order, bounds), strict=True):
        marker, dark, light = SHOT_COLOURS[shot]
        shades = LinearSegmentedColormap.from_list(shot, [dark, light], 6)
        chosen = np.unique(np.linspace(0, len(classes) - 1, 6).astype(int)) if len(classes) else []
        marks |= {classes[i]: (shot, marker, shades(n)) for n, i in enumerate(chosen)}
    return marks


def main(argv=None):
    args = parse(argv)
    if args.figures:
        drawing_tools(args)  # what is missing is said now, not after the runs
        os.makedirs(args.figures, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        train_all(args)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
    table(args, {seed: {row: result(args, row, seed) for row in args.rows} for seed in args.seeds})
    other_conditions(args)
    if args.figures:
        figures(args, args.figures)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # as an ASCII terminal has no ±
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"paper.py: {error}")
