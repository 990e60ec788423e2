"""tests/paper.py: a whole table of real runs of a second each, killed in the middle and gone on with."""

import re
import subprocess
import sys
import time

import numpy as np
import paper
import pytest
from conftest import ROOT, tiny_flags

ROWS = ["RRS-Only", "ftRRS+CBS"]


def command(root, *argv):
    flags = tiny_flags(root, batch_size=8, Z=2, epochs=1)
    return [
        sys.executable,
        ROOT / "tests/paper.py",
        "--rows",
        *ROWS,
        "--seeds",
        "0",
        "1",
        "--jobs",
        "2",
        *flags,
        *argv,
    ]


def test_a_table_is_killed_in_the_middle_and_gone_on_with(tiny_root, tmp_path, script):
    flags = command(tiny_root, "--out", "my runs")
    process = subprocess.Popen(flags, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("my runs/*/test.csv")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("my runs/*/test.csv")}
    assert 0 < len(first) < 4
    done = subprocess.run(flags, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == then for path, then in first.items())  # not trained again
    rows = [
        line.split(" | ")
        for line in done.stdout.splitlines()
        if line.startswith("| ") and "Flags" not in line
    ]
    assert [row[0][2:] for row in rows] == ROWS
    for name, row in zip(ROWS, rows):
        overall = []
        for seed in (0, 1):
            code, out, _ = script("evaluate", f"my runs/{name}-seed{seed}/last.pt", "--workers", 0)
            assert code == 0
            overall.append(float(out.split()[-1]))
        mean, spread = map(float, row[5].split(" ± "))
        assert mean == pytest.approx(np.mean(overall), abs=0.051) and spread == pytest.approx(
            np.std(overall, ddof=1), abs=0.11
        )
        assert row[2] == "–"  # no class of many shots
    assert "The paper's orderings hold on every seed: " in done.stdout
    again = subprocess.run(flags, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout == done.stdout


def test_verdicts_are_computed(capsys):
    args = paper.parse(
        ["--rows", "RRS-Only", "CBS-Only", "CBS+RRS", "CBS+RRS+SS", "--seeds", "0", "1"]
    )
    r = dict(Many=1, Medium=1, Low=1, Overall=1)
    good = {
        "RRS-Only": r | dict(Many=9, Low=0),
        "CBS-Only": r,
        "CBS+RRS": r | dict(Overall=2),
        "CBS+RRS+SS": r | dict(Overall=3),
    }
    paper.table(args, {0: good, 1: good})
    out = capsys.readouterr().out
    assert "not here: none" in out and "SS adds +1.0 points to CBS+RRS (standard error 0.0)" in out
    bad = good | {"CBS+RRS+SS": r | dict(Overall=1.5), "RRS-Only": r | dict(Many=0, Low=0)}
    paper.table(args, {0: good, 1: bad})
    out = capsys.readouterr().out
    nan = {row: good[row] | dict(Many=np.nan) for row in good}
    paper.table(args, {0: nan, 1: nan})
    assert "many shot" not in capsys.readouterr().out
    assert re.search(
        r"on average only: SS adds to it; RRS-Only the best baseline on many shot\. not here: none",
        out,
    )


def test_the_papers_column_stands_beside_its_data_set(capsys):
    args = paper.parse(["--data", "places_lt", "--arch", "resnet50", "--seeds", "0"])
    r = dict(Many=1, Medium=1, Low=1, Overall=1)
    paper.table(args, {0: {row: r for row in paper.ROWS}})
    cells = [
        line.split(" | ")[-1].strip(" |") for line in capsys.readouterr().out.splitlines()[2:10]
    ]
    assert cells == [
        "19.3",
        "22.4",
        "27.8",
        "28.9",
        "24.6",
        "27.1",
        "25.6",
        "27.2",
    ]  # Tables 2 to 5


def test_other_flags_have_a_folder_of_their_own():
    folders = {
        paper.parse(argv.split()).out
        for argv in (
            "",
            "--lr 0.1",
            "--epochs 3",
            "--data cifar10_lt",
            "--data cifar10_lt --imbalance 1000",
            "--arch resnet18",
        )
    }
    assert len(folders) == 6
    assert (
        paper.parse(["--root", "my photos", "--workers", "3", "--compile"]).out
        == paper.parse([]).out
    )
    assert paper.parse(["--seeds", "1", "0", "1"]).seeds == [1, 0]


def test_figures_are_refused_in_one_line_where_matplotlib_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="^--figures: matplotlib is missing"):
        paper.figures(None, tmp_path)
