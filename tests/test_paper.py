"""tests/paper.py: a table of real runs of a second each, killed and continued, and kept apart."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import paper
import pytest
from conftest import ROOT, tiny_flags, write_lists


def command(root, *argv):
    """A table of two rows with one seed each, below tmp_path/runs."""
    flags = tiny_flags(root, epochs=1, workers=1)
    rows = ["--rows", "RRS-Only", "ftRRS+CBS", "--seeds", "0", "--out", "runs"]
    return [sys.executable, ROOT / "tests/paper.py", *rows, *flags, *argv]


def test_a_table_is_killed_and_continued_and_never_mixes_settings(tmp_path, script):
    root = write_lists(tmp_path / "set")
    process = subprocess.Popen(command(root), cwd=tmp_path, stderr=subprocess.DEVNULL)
    first = tmp_path / "runs/tiny-resnet10-RRS-Only-1epochs-seed0"
    while not (first / "test.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = (first / "last.pt").stat().st_mtime_ns
    done = subprocess.run(command(root), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (first / "last.pt").stat().st_mtime_ns == before  # not trained again
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    for name in "RRS-Only", "ftRRS+CBS":
        run = f"runs/tiny-resnet10-{name}-1epochs-seed0/last.pt"
        _, out, _ = script("evaluate.py", run, "--workers", 0)
        row = next(row for row in rows if row[0] == name)
        assert out.startswith(name) and row[4] == out.split()[-1]
        assert row[1] == "–"  # no class has many shots
    other = command(root, "--weight-decay", "0.5")
    done = subprocess.run(other, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "|" not in done.stdout
    assert "last.pt was trained with weight_decay 0.0005; choose another --out" in done.stderr
    # The lists are made anew under the same name.
    path = root / "tiny_test.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    for flags in (), ("--finished",):
        done = subprocess.run(command(root, *flags), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and "|" not in done.stdout
        assert "last.pt was trained on another dataset; choose another --out" in done.stderr


def test_every_row_and_seed_is_a_run_of_the_papers_flags(monkeypatch, tmp_path):
    """Each in a process with one thread; ftRRS+CBS begins when its RRS-Only has ended."""
    started = []

    def finished(command, env, **how):
        started.append(command)
        assert env["OMP_NUM_THREADS"] == "1"
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(paper.subprocess, "run", finished)
    flags = ["--jobs", "3", "--seeds", "4", "5", "--epochs", "1", "2", "--out", str(tmp_path)]
    args = paper.parse(flags)
    settings = list(itertools.product(args.epochs, args.seeds, args.rows))
    runs = [paper.Run(args, row, seed, epochs) for epochs, seed, row in settings]
    paper.train_all(args, runs, {})
    assert len(started) == len({run.folder for run in runs}) == 4 * len(paper.ROWS) == 32
    for run in runs:
        (argv,) = [c for c in started if c[-1] == str(run.folder)]
        assert argv[argv.index("--seed") + 1] == str(run.seed)
        assert " ".join(paper.ROWS[run.row].split()[:4]) in " ".join(argv)
        if run.row == "ftRRS+CBS":
            source = argv[argv.index("--init") + 1].removesuffix("/last.pt")
            assert source == str(run.folder).replace("ftRRS+CBS", "RRS-Only")
            ends = [c[-1] for c in started]
            assert ends.index(source) < ends.index(str(run.folder))


def test_a_failed_run_is_one_line(tmp_path):
    argv = command(tmp_path / "nosuch")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/nosuch has no tiny_train.txt")


def test_a_failed_run_ends_the_table_with_the_last_line_of_its_log(monkeypatch, tmp_path):
    """Whatever the other jobs do."""

    def failed(command, stdout, **how):
        stdout.write("error: a bad day\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(paper.subprocess, "run", failed)
    args = paper.parse(["--jobs", "2", "--out", str(tmp_path)])
    runs = [paper.Run(args, "CBS+RRS", seed, None) for seed in range(8)]
    with pytest.raises(SystemExit, match="seed0.log: error: a bad day|seed1.log: error: a bad day"):
        paper.train_all(args, runs, {})


SAME = dict.fromkeys(paper.SHOTS, 1.0)
GOOD = {
    "RRS-Only": SAME | {"Many": 9.0, "Low": 0.0},
    "CBS-Only": SAME,
    "CBS+RRS": SAME | {"Overall": 2.0},
    "CBS+RRS+SS": SAME | {"Overall": 3.0},
}


def printed(capsys, results, *flags):
    """The table of `results` {seed: {row: accuracies}}."""
    rows = {row: {seed: x[row] for seed, x in results.items() if row in x} for row in GOOD}
    paper.table(paper.parse(flags), rows)
    return capsys.readouterr().out


def test_gains_and_whether_they_hold_are_those_worked_out_by_hand(capsys):
    worse = GOOD | {"CBS+RRS+SS": SAME | {"Overall": 1.4}}
    out = printed(capsys, {0: GOOD, 1: worse})
    # gains of SS: 1 and -0.6, mean 0.2, standard deviation 1.131
    assert "| CBS+RRS+SS over CBS+RRS | 0.0±0.0 | 0.0±0.0 | 0.0±0.0 | 0.2±1.1 |" in out
    assert "0.2±1.1 | on average | 1.4 / 1.0 / 0.0 / 1.0 |" in out  # Table 1: 52.4 - 51.0, ...
    assert "| CBS+RRS over the better baseline | −8.0±0.0 |" in out
    assert "1.0±0.0 | on every seed | −2.4 / 7.0 / 2.4 / 8.5 |" in out
    assert "| 1.0 | on one seed | 1.4 /" in printed(capsys, {0: GOOD})
    assert "−0.6 | no |" in printed(capsys, {0: worse})
    assert "1.0±0.0 | 1.0±0.0 | 1.0±0.0 | 2.2±1.1 |\n" in out  # 3 and 1.4


def test_a_comparison_that_is_not_defined_has_no_verdict(capsys):
    no_many_shot = {row: x | {"Many": np.nan} for row, x in GOOD.items()}
    out = printed(capsys, {0: no_many_shot, 1: no_many_shot})
    assert "| RRS-Only over CBS-Only on many shot | – | " in out
    (line,) = [line for line in out.splitlines() if "on many shot" in line]
    assert line.split(" | ")[5] == "–"


def test_rows_are_compared_on_the_seeds_that_they_have_in_common(capsys):
    without = {row: x for row, x in GOOD.items() if row != "CBS+RRS+SS"}
    out = printed(capsys, {0: GOOD, 1: without})
    assert "RRS-Only [0, 1]; CBS-Only [0, 1]; CBS+RRS [0, 1]; CBS+RRS+SS [0].\n" in out
    assert "| CBS+RRS+SS over CBS+RRS | 0.0 | 0.0 | 0.0 | 1.0 | on one seed |" in out
    assert paper.verdict([]) == "–"


@pytest.mark.parametrize("row", ["CBS+RRS", "1:1", "Rotation"])
def test_a_row_is_named_by_what_its_checkpoint_says_it_is(monkeypatch, row):
    run = paper.Run(paper.parse([]), row, 0, None)
    monkeypatch.setattr(paper.evaluate, "load_checkpoint", lambda _: {"method": "CBS+RRS"})
    assert run.name == ("Rotation (CBS+RRS)" if row == "Rotation" else row)


@pytest.mark.parametrize("visible, jobs", [(None, ["0", "1", "0"]), ("4,6", ["4", "6", "4"])])
def test_each_job_has_a_gpu_of_its_own_in_turn(monkeypatch, tmp_path, visible, jobs):
    """Three jobs and two GPUs."""
    together = threading.Barrier(3)
    used = []

    def finished(command, env, **how):
        used.append(env["CUDA_VISIBLE_DEVICES"])
        together.wait(timeout=60)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(paper.subprocess, "run", finished)
    monkeypatch.setattr(paper.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    args = paper.parse(["--jobs", "3", "--out", str(tmp_path)])
    paper.train_all(args, [paper.Run(args, "CBS+RRS", seed, None) for seed in range(6)], {})
    assert sorted(used[:3]) == sorted(used[3:]) == sorted(jobs)


@pytest.mark.parametrize("data, arch", paper.PAPER)
def test_the_papers_figures_stand_beside_its_own_dataset_and_network(capsys, data, arch):
    out = printed(capsys, {0: GOOD}, "--data", data, "--arch", arch)
    theirs = " / ".join(map(str, paper.PAPER[data, arch]["CBS+RRS"]))
    assert f"| CBS+RRS | 1.0 | 1.0 | 1.0 | 2.0 | {theirs} |" in out
    assert "| CBS+RRS | 1.0 | 1.0 | 1.0 | 2.0 |\n" in printed(capsys, {0: GOOD}, "--data", "other")


def test_the_papers_own_tables():
    rows = paper.PAPER
    assert rows["imagenet_lt", "resnet10"]["ftRRS+CBS"] == (48.3, 35.2, 16.4, 37.6)
    assert rows["places_lt", "resnet152"]["CBS+RRS+SS"] == (42.5, 40.6, 32.6, 39.6)
    assert rows["imagenet_lt", "resnet50"]["CBS-Only"] == (51.1, 38.2, 16.7, 40.1)
    assert rows["places_lt", "resnet50"]["Rotation"] == (35.3, 28.2, 11.4, 27.2)
    assert np.array([x for table in rows.values() for x in table.values()]).shape == (24, 4)
