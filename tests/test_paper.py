"""tests/paper.py: tables of real runs of a second each, killed, gone on with, and kept apart."""

import subprocess
import sys
import time

import numpy as np
import paper
import pytest
from conftest import ROOT, tiny_flags, write_lists

ROWS = ["RRS-Only", "ftRRS+CBS"]


def command(root, *argv, rows=ROWS, **extra):
    flags = tiny_flags(root, epochs=1, workers=1, **extra)
    return [sys.executable, ROOT / "tests/paper.py", "--rows", *rows, "--seeds", "0", *flags, *argv]


def finished(argv, folder):
    return subprocess.run([str(x) for x in argv], cwd=folder, capture_output=True, text=True)


def test_a_table_is_killed_gone_on_with_and_refused_for_other_settings(
    tmp_path, script, monkeypatch, capsys
):
    root = write_lists(tmp_path / "set")
    argv = command(root, "--out", "my runs")
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = tmp_path / "my runs/RRS-Only-seed0"
    while not (first / "test.csv").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = (first / "last.pt").stat().st_mtime_ns
    done = finished(argv, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (first / "last.pt").stat().st_mtime_ns == before  # not trained again
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    for row in ROWS:
        code, out, _ = script("evaluate", f"my runs/{row}-seed0/last.pt", "--workers", 0)
        assert code == 0
        printed = next(line for line in lines if line[0] == row)
        assert printed[4] == out.split()[-1] and printed[1] == "–"  # no class of many shots

    monkeypatch.chdir(tmp_path)
    for workers, said in (1, ""), (2, "RRS-Only, seed 0, had workers 1, threads 1\n"):
        flags = ["--out", "my runs", "--rows", "RRS-Only", "--seeds", "0", "--workers", workers]
        paper.other_conditions(paper.parse([str(x) for x in flags]))
        assert capsys.readouterr().out == said

    refused = finished([*argv, "--lr", "0.5"], tmp_path)
    assert refused.returncode == 1 and "RRS-Only, seed 0: " in refused.stderr
    assert "lr 0.5 differs" in refused.stderr and "|" not in refused.stdout


def test_each_run_has_one_thread_and_one_worker_whatever_the_jobs(monkeypatch, tmp_path):
    started = []

    def popen(command, env, **how):
        started.append((command, env["OMP_NUM_THREADS"]))

    monkeypatch.setattr(paper.subprocess, "Popen", popen)
    for jobs in ("1", "2"):
        args = paper.parse(["--jobs", jobs, "--out", str(tmp_path / "runs"), "--Z", "2"])
        for row in paper.ROWS:
            paper.start(args, row, 5)
    for command, threads in started:
        assert threads == "1" and command[command.index("--workers") + 1] == "1"
        assert "--resume" in command and command[command.index("--seed") + 1] == "5"
        assert ("--Z" in command) == (command[-3:] != ["0", "1", "0"])  # RRS-Only has no Z
    assert len(started) == 2 * len(paper.ROWS)


def test_a_run_that_was_killed_is_said_to_be(monkeypatch, tmp_path):
    kill = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(paper, "start", lambda *_: subprocess.Popen(kill))
    args = paper.parse(["--rows", "CBS-Only", "--seeds", "4", "--out", str(tmp_path)])
    (tmp_path / "CBS-Only-seed4.log").write_text("  1/5  3.6\n")
    with pytest.raises(SystemExit, match="^CBS-Only, seed 4: ended by signal 9; the same command"):
        paper.train_all(args)


def test_an_output_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    argv = command(tmp_path, "--out", "file", rows=["RRS-Only"])
    done = finished(argv, tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("paper.py: ")
    assert "'file'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags", [["--lambdas", "1", "0", "0"], ["--seed", "3"], ["--init=x.pt"], ["--resume"]]
)
def test_flags_that_the_rows_set_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        paper.parse(flags)
    assert f"{flags[0].partition('=')[0]} is set by the rows and seeds" in capsys.readouterr().err


def test_ftrrs_cbs_needs_rrs_only_and_seeds_count_once(capsys):
    with pytest.raises(SystemExit):
        paper.parse(["--rows", "ftRRS+CBS"])
    assert "name that row, too" in capsys.readouterr().err
    assert paper.parse(["--seeds", "1", "0", "1"]).seeds == [1, 0]


SAME = dict.fromkeys(paper.SHOTS, 1.0)
GOOD = {
    "RRS-Only": SAME | {"Many": 9.0, "Low": 0.0},
    "CBS-Only": SAME,
    "CBS+RRS": SAME | {"Overall": 2.0},
    "CBS+RRS+SS": SAME | {"Overall": 3.0},
}


def printed(capsys, results, *flags):
    seeds = [str(seed) for seed in results]
    args = paper.parse(["--rows", *results[0], "--seeds", *seeds, *flags])
    paper.table(args, results)
    return capsys.readouterr().out


def verdicts(out):
    said = [line.removeprefix("- ") for line in out.splitlines() if line.startswith("- ")]
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in said}


def test_verdicts_and_gains_are_those_worked_out_by_hand(capsys):
    out = printed(capsys, {0: GOOD, 1: GOOD})
    assert verdicts(out)["not here"] == "none" and "a tie" not in verdicts(out)
    worse = GOOD | {"CBS+RRS+SS": SAME | {"Overall": 1.4}, "RRS-Only": SAME | {"Low": 1.0}}
    out = printed(capsys, {0: GOOD, 1: worse})
    assert "SS adds to CBS+RRS" in verdicts(out)["on average only"]
    assert "RRS-Only above CBS-Only on many shot" in verdicts(out)["on average only"]
    # gains of SS: 1 and -0.6, mean 0.2, standard deviation 1.131, standard error 0.8
    assert "| SS over CBS+RRS | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.2 ± 0.8 |" in out
    assert "1.4 / 1.0 / 0.0 / 1.0" in out  # Table 1: 52.4 - 51.0, 39.5 - 38.5, ...
    out = printed(capsys, {0: worse, 1: worse})
    assert "RRS-Only above CBS-Only on many shot" in verdicts(out)["a tie"]
    assert "SS adds to CBS+RRS" in verdicts(out)["not here"]
    empty = {row: GOOD[row] | {"Many": np.nan} for row in GOOD}
    assert "many shot" not in printed(capsys, {0: empty, 1: empty})


def test_the_papers_figures_stand_beside_its_own_dataset_and_network_alone(capsys):
    out = printed(capsys, {0: GOOD}, "--data", "Places_LT", "--arch", "resnet50")
    assert "| RRS-Only | 9.0 | 1.0 | 0.0 | 1.0 | 39.1 / 12.0 / 0.3 / 19.3 |" in out
    for flags in ([], ["--data", "places_lt"], ["--data", "imagenet_lt", "--arch", "resnet18"]):
        out = printed(capsys, {0: GOOD}, *flags)
        assert "| RRS-Only | 9.0 | 1.0 | 0.0 | 1.0 |\n" in out and "Paper |\n" not in out
    assert paper.PAPER["imagenet_lt", "resnet10"]["ftRRS+CBS"] == (48.3, 35.2, 16.4, 37.6)
    assert paper.PAPER["places_lt", "resnet152"]["CBS+RRS+SS"] == (42.5, 40.6, 32.6, 39.6)
    assert paper.PAPER["imagenet_lt", "resnet50"]["CBS-Only"] == (51.1, 38.2, 16.7, 40.1)


def test_figures_are_refused_in_one_line_where_matplotlib_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="^--figures: matplotlib is missing"):
        paper.main(["--figures", str(tmp_path)])  # before anything is trained
