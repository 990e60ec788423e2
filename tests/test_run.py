"""Whole runs as real processes: the command line, the record, being killed and resumed, Table 3."""

import contextlib
import csv
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, start, tiny_flags, write_lists

import train


def wait_for(folder, text, file="stdout"):
    while not (folder / file).exists() or text not in (folder / file).read_text():
        time.sleep(0.01)


def signal_group(process, number):
    with contextlib.suppress(ProcessLookupError):  # ended by itself
        os.killpg(process.pid, number)
    process.join(60)


def state_of(run):
    return torch.load(run / "last.pt", weights_only=True)


def assert_same_bits(run, other):
    """Model, momentum, record.csv and test.csv."""
    a, b = state_of(run), state_of(other)
    assert a["epoch"] == b["epoch"] and a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    momenta, others = a["optimizer"]["state"], b["optimizer"]["state"]
    assert len(momenta) > 20 and momenta.keys() == others.keys()
    for k in momenta:
        assert torch.equal(momenta[k]["momentum_buffer"], others[k]["momentum_buffer"])
    for name in ("record.csv", "test.csv"):
        assert (run / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tiny_root, tmp_path_factory):
    """{workers: (folder, output)} of runs never stopped: 3 epochs of 7 iterations."""
    runs = {}
    for workers in (0, 2):
        folder = tmp_path_factory.mktemp("undisturbed")
        flags = tiny_flags(tiny_root, out="run", epochs=3, workers=workers)
        code, out, err = finish(start("train", flags, folder), folder)
        assert code == 0 and not err
        runs[workers] = folder / "run", out
    return runs


def test_evaluation_from_the_checkpoint_gives_the_row_that_training_printed(undisturbed, script):
    run, out = undisturbed[0]
    assert out.startswith("CBS+RRS+SS on tiny: 4 classes, 62 images (24 to 5 per class)\n")
    assert "3 epochs x 7 iterations, S 8, Z 2, lr 0.02, lambdas 0.5 1 1, seed 0" in out
    header, row = out.splitlines()[-3:-1]
    assert header == "test accuracy (%)  Many (>=100 images)  Medium (21-99)  Low (<=20)  Overall"
    code, evaluated, err = script("evaluate", run / "last.pt")
    assert code == 0 and not err and evaluated.splitlines()[-2:] == [header, row]


def test_record_and_test_csv_hold_what_was_printed(undisturbed):
    run, out = undisturbed[0]
    assert {f.name for f in run.iterdir()} == {"last.pt", "record.csv", "test.csv"}
    record = list(csv.DictReader((run / "record.csv").read_text().splitlines()))
    assert [row["epoch"] for row in record] == ["1", "2", "3"] and record[-1]["iteration"] == "21"
    printed = [line.split() for line in out.splitlines() if line.strip()[:2] in ("1/", "2/", "3/")]
    for row, cells in zip(record, printed, strict=True):
        l_CBS, l_RRS, l_SS = (float(row[k]) for k in ("l_CBS", "l_RRS", "l_SS"))
        assert float(row["L_Final"]) == pytest.approx(0.5 * l_CBS + l_RRS + l_SS)
        assert cells[1:4] == [f"{l:.3f}" for l in (l_CBS, l_RRS, l_SS)]
        assert cells[4] == "-" and cells[7] == f"{float(row['val_Overall']):.1f}"
        for sampler in ("CBS", "RRS"):  # Fig. 2
            per_class = [float(row[f"l_{sampler}_{y}"]) for y in range(4)]
            assert f"l_{sampler}_4" not in row and len(set(per_class)) == 4
            if sampler == "CBS":  # which draws every class about equally often
                assert np.mean(per_class) == pytest.approx(l_CBS, rel=0.5)
    lines = csv.DictReader((run / "test.csv").read_text().splitlines())
    tested = {row["class"]: row for row in lines}
    assert f"{float(tested['Overall']['accuracy']):.1f}" == out.splitlines()[-2].split()[-1]
    assert [int(tested[str(y)]["N_c"]) for y in range(4)] == [24, 21, 12, 5]
    assert state_of(run)["N_c"] == [24, 21, 12, 5]


def test_same_command_same_bits_and_another_seed_others(undisturbed, tiny_root, tmp_path, script):
    assert script("train", *tiny_flags(tiny_root, out="again", epochs=3))[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "again")
    assert script("train", *tiny_flags(tiny_root, out="other", epochs=1, seed=1))[0] == 0
    ours, other = state_of(undisturbed[0][0])["model"], state_of(tmp_path / "other")["model"]
    assert not torch.equal(ours["h.weight"], other["h.weight"])


def test_export_holds_what_figures_3_and_4_draw(undisturbed, tmp_path, script):
    run, _ = undisturbed[0]
    code, out, _ = script("evaluate", run / "last.pt", "--export", "figures.npz")
    x = np.load(tmp_path / "figures.npz")
    assert x["features"].shape == (20, 512) and x["N_c"].tolist() == [24, 21, 12, 5]
    model = state_of(run)["model"]
    norms = model["h.weight"].square().sum(1).sqrt()
    np.testing.assert_allclose(x["weight_norms"], norms, rtol=1e-6)
    logits = x["features"] @ model["h.weight"].numpy().T + model["h.bias"].numpy()
    assert (logits.argmax(1) == x["predictions"]).all()
    right = x["predictions"] == x["labels"]
    for c in range(4):
        assert x["class_accuracy"][c] == pytest.approx(100 * right[x["labels"] == c].mean())
    row, saved = out.splitlines()[-2:]
    assert float(row.split()[-1]) == pytest.approx(100 * right.mean(), abs=0.05)
    assert saved == "saved figures.npz"


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bits(
    undisturbed, tiny_root, tmp_path, workers
):
    """By SIGKILL, SIGTERM and Ctrl-C to the whole group, also while saving; each life goes on from
    the last whole epoch of the one before."""
    rng = random.Random(workers)
    argv = [*tiny_flags(tiny_root, out="run", epochs=3, workers=workers), "--resume"]
    reached = 0
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = start("train", argv, tmp_path)
        wait_for(tmp_path, f"  {reached + 1}/3" if reached < 2 else "images/s")
        time.sleep(rng.uniform(0, 0.3))
        signal_group(process, number)
        reached = state_of(tmp_path / "run")["epoch"]
        assert "Traceback" not in (tmp_path / "stderr").read_text()
    code, out, err = finish(start("train", argv, tmp_path), tmp_path)
    assert code == 0, err
    assert_same_bits(undisturbed[workers][0], tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_ctrl_c_prints_the_command_that_goes_on(tiny_root, tmp_path):
    argv = tiny_flags(tiny_root, out="my run", epochs=60)
    process = start("train", argv, tmp_path)
    wait_for(tmp_path, " 1/60")
    signal_group(process, signal.SIGINT)
    code, _, err = finish(process, tmp_path)
    assert code == 130 and err.strip().count("\n") == 0
    said, command = err.strip().split(": ", 1)
    assert said == "interrupted; resume with" and "train.py" in command.split()[1]
    process = start("train", shlex.split(command)[2:], tmp_path)
    wait_for(tmp_path, "2/60")
    signal_group(process, signal.SIGKILL)
    assert state_of(tmp_path / "my run")["epoch"] >= 2


def test_resume_starts_a_run_that_is_not_there_and_removes_what_a_kill_left(
    undisturbed, tiny_root, tmp_path, script
):
    (tmp_path / "run").mkdir()
    own = ["last.pt.2024.tmp.tmp", "the reader's.tmp"]
    for left in ["last.pt.123.tmp", "test.csv.4.tmp", *own]:
        (tmp_path / "run" / left).write_bytes(b"half")
    flags = tiny_flags(tiny_root, out="run", epochs=3)
    code, _, err = script("train", *flags)
    assert code == 1 and "run exists: --resume goes on, --out DIR starts anew" in err
    assert script("train", *flags, "--resume")[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "run")
    assert sorted(f.name for f in (tmp_path / "run").glob("*.tmp")) == own


@pytest.mark.parametrize("file", ["test.csv", "record.csv"])
def test_files_without_their_checkpoint_are_never_taken_for_a_new_runs(
    undisturbed, tiny_root, tmp_path, refused, file
):
    (tmp_path / "run").mkdir()
    shutil.copy(undisturbed[0][0] / file, tmp_path / "run")
    flags = tiny_flags(tiny_root, out=tmp_path / "run", epochs=1)
    line = refused(train.main, [*flags, "--resume"])
    assert f"run/{file} is of a run without last.pt; remove it" in line
    assert [f.name for f in (tmp_path / "run").iterdir()] == [file]


def test_a_checkpoint_that_is_a_broken_link_is_not_begun_again(tiny_root, tmp_path, refused):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.pt").symlink_to("/nosuch/disk")
    flags = tiny_flags(tiny_root, out=tmp_path / "run", epochs=1)
    assert "run/last.pt: no such file" in refused(train.main, [*flags, "--resume"])
    assert (tmp_path / "run/last.pt").is_symlink()


def test_a_finished_run_says_so_and_is_not_written_again(undisturbed, tiny_root, tmp_path, script):
    shutil.copytree(undisturbed[0][0], tmp_path / "run")
    before = (tmp_path / "run/last.pt").stat().st_mtime_ns
    flags = tiny_flags(tiny_root, out="run", epochs=3)
    code, out, err = script("train", *flags, "--resume")
    assert code == 0 and "already finished; --out DIR starts a new run" in out
    code, _, err = script("train", *flags)
    assert code == 1 and err.count("\n") == 1 and "--resume" in err and "--out" in err
    assert (tmp_path / "run/last.pt").stat().st_mtime_ns == before
    (tmp_path / "run/test.csv").unlink()  # as if killed in between
    (tmp_path / "run/record.csv").write_text("epoch\n1\n")
    assert script("train", *flags, "--resume")[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "run")


def test_a_slower_process_of_the_same_run_does_not_set_it_back(
    undisturbed, tiny_root, tmp_path, script
):
    argv = [*tiny_flags(tiny_root, out=tmp_path / "run", epochs=3), "--resume"]
    slow = start("train", argv, tmp_path / "slow")
    wait_for(tmp_path / "slow", " 1/3")
    os.killpg(slow.pid, signal.SIGSTOP)
    assert script("train", *argv)[0] == 0
    os.killpg(slow.pid, signal.SIGCONT)
    code, _, err = finish(slow, tmp_path / "slow")
    assert code == 1 and err.count("\n") == 1
    assert "run: another process has saved epoch 3 there" in err
    assert_same_bits(undisturbed[0][0], tmp_path / "run")


def test_a_checkpoint_that_is_damaged_under_a_run_is_written_again(
    undisturbed, tiny_root, tmp_path
):
    process = start("train", tiny_flags(tiny_root, out="run", epochs=3), tmp_path)
    wait_for(tmp_path, " 1/3")
    os.truncate(tmp_path / "run/last.pt", 10**6)
    assert finish(process, tmp_path)[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "run")


def test_of_two_runs_of_other_settings_in_one_folder_the_second_to_save_is_refused(
    tiny_root, tmp_path
):
    """Both begin at once, by --resume, where there is no checkpoint to compare with."""
    processes = {}
    for lr in "0.02", "0.01":
        argv = [*tiny_flags(tiny_root, out=tmp_path / "run", epochs=3, lr=lr), "--resume"]
        processes[lr] = start("train", argv, tmp_path / lr)
    ended = {lr: finish(process, tmp_path / lr) for lr, process in processes.items()}
    codes = {lr: code for lr, (code, _, _) in ended.items()}
    assert sorted(codes.values()) == [0, 1]
    winner, loser = sorted(codes, key=codes.get)
    assert f"lr {loser} differs from the checkpoint's ({winner})" in ended[loser][2]
    assert state_of(tmp_path / "run")["settings"]["lr"] == float(winner)
    tested = next(csv.reader((tmp_path / "run/test.csv").read_text().splitlines()[4:]))
    assert f"{float(tested[2]):.1f}" == ended[winner][1].splitlines()[-2].split()[-1]


@pytest.mark.parametrize(
    "flag, value",
    [("lr", 0.5), ("Z", 4), ("arch", "resnet18"), ("epochs", 9), ("batch-size", 16), ("size", 64)]
    + [("seed", 3), ("momentum", 0.5), ("init", "x.pt")],
)
def test_another_setting_than_the_checkpoints_is_refused_with_both_values(
    undisturbed, tiny_root, refused, flag, value
):
    run = undisturbed[0][0]
    flags = tiny_flags(tiny_root, **({"out": run, "epochs": 3} | {flag.replace("-", "_"): value}))
    line = refused(train.main, [*flags, "--resume"])
    old = state_of(run)["settings"][flag.replace("-", "_")]
    assert f"{flag} " in line and str(value) in line and f"({old})" in line


def test_workers_and_threads_may_differ_and_are_said(undisturbed, tiny_root, tmp_path, script):
    shutil.copytree(undisturbed[2][0], tmp_path / "run")
    (tmp_path / "run/test.csv").unlink()
    flags = tiny_flags(tiny_root, out="run", epochs=3, workers=0)
    code, out, _ = script("train", *flags, "--resume")
    assert code == 0 and "workers: 0, 2 before: other numbers by other augmentation" in out


def test_reordered_lists_are_not_those_trained_with(tmp_path, script):
    write_lists(tmp_path)
    flags = tiny_flags(tmp_path, out="run", epochs=1)
    assert script("train", *flags)[0] == 0
    for split in ("train", "val", "test"):
        path = tmp_path / f"tiny_{split}.txt"
        lines = path.read_text()
        path.write_text("".join(reversed(lines.splitlines(keepends=True))))
        code, _, err = script("train", *flags, "--resume")
        assert code == 1 and err.count("\n") == 1 and f"{split} list" in err
        code, out, err = script("evaluate", "run/last.pt")
        if split == "train":  # the shots
            assert code == 1 and "its train list is not the one trained with" in err
        else:
            said = "the test list in" in out and "is not the one that training used" in out
            assert code == 0 and said == (split == "test")
        path.write_text(lines)


def full_disk():
    """Files of more than 1 MB, such as a checkpoint, cannot be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))


def test_full_disk_is_one_line_and_the_old_checkpoint_goes_on(
    undisturbed, tiny_root, tmp_path, script
):
    argv = [*tiny_flags(tiny_root, out="run", epochs=3), "--resume"]
    process = start("train", argv, tmp_path)
    wait_for(tmp_path, " 1/3")
    signal_group(process, signal.SIGKILL)
    before = (tmp_path / "run/last.pt").read_bytes()
    code, _, err = finish(start("train", argv, tmp_path, setup=full_disk), tmp_path)
    assert code == 1 and err.count("\n") == 1
    assert "run/last.pt can't be written (File too large)" in err
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert script("train", *argv)[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "run")


def test_loss_that_is_not_finite_is_never_saved(tiny_root, tmp_path, script):
    code, _, err = script("train", *tiny_flags(tiny_root, out="run", lr=1e20))
    assert code == 1 and err.count("\n") == 1
    assert "the loss is not finite in epoch 1: l_CBS" in err and "lower --lr" in err
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("split, workers", [("train", 0), ("train", 2), ("val", 1), ("test", 1)])
def test_broken_image_is_one_line_with_its_path(tmp_path, script, split, workers):
    write_lists(tmp_path)
    image = tmp_path / split / "n00000003/2.JPEG"
    image.write_bytes(image.read_bytes()[:400])
    code, _, err = script("train", *tiny_flags(tmp_path, out="run", workers=workers, epochs=1))
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"train.py: {image}: not a readable image (")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the loading processes")
def test_a_loading_process_that_is_killed_is_one_line(tiny_root, tmp_path):
    process = start("train", tiny_flags(tiny_root, out="run", epochs=99, workers=1), tmp_path)
    wait_for(tmp_path, " 1/99")
    children = []
    while not children:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, _, err = finish(process, tmp_path)
    said = "train.py: a loading process ended, --resume goes on (DataLoader worker"
    assert code == 1 and err.splitlines()[-1].startswith(said)
    assert state_of(tmp_path / "run")["epoch"] >= 1


def test_crafted_pickle_does_not_execute(tiny_root, tmp_path, script):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "run").mkdir()
    torch.save({"layout": Evil()}, tmp_path / "run/last.pt")
    flags = tiny_flags(tiny_root)
    for name, argv in (
        ("evaluate", ["run/last.pt"]),
        ("train", [*flags, "--out", "run", "--resume"]),
        ("train", [*flags, "--init", "run/last.pt"]),
    ):
        code, _, err = script(name, *argv)
        assert code == 1 and err.count("\n") == 1 and "run/last.pt: not a checkpoint" in err
    assert not (tmp_path / "executed").exists()


def test_table_3_starts_with_phi_of_a_finished_rrs_only_run_and_a_new_h(
    tiny_root, tmp_path, script
):
    def run(out, lambdas, root=tiny_root, **extra):
        flags = tiny_flags(root, out=out, epochs=1, Z=None, **extra)
        return script("train", *flags, "--lambdas", *lambdas)

    still = {"lr": 0, "weight_decay": 0, "momentum": 0}
    assert run("rrs", (0, 1, 0))[0] == 0
    code, out, _ = run("ft", (1, 0, 0), init="rrs/last.pt", **still)
    assert code == 0 and out.startswith("ftRRS+CBS on tiny")
    rrs, ft = state_of(tmp_path / "rrs"), state_of(tmp_path / "ft")
    parameters = [k for k in rrs["model"] if k.startswith("phi.") and "weight" in k]
    assert len(parameters) > 20
    assert all(torch.equal(rrs["model"][k], ft["model"][k]) for k in parameters)
    assert not torch.equal(rrs["model"]["h_a.weight"], ft["model"]["h.weight"])

    (tmp_path / "away").mkdir()  # both moved together
    for name in "rrs", "ft":
        shutil.copytree(tmp_path / name, tmp_path / "away" / name)
    flags = tiny_flags(tiny_root, out="away/ft", epochs=1, Z=None, init="away/rrs/last.pt", **still)
    code, out, err = script("train", *flags, "--lambdas", 1, 0, 0, "--resume")
    assert code == 0 and "ftRRS+CBS" in out and "already finished" in out

    shutil.move(tmp_path / "rrs", tmp_path / "moved")  # not needed to resume
    code, out, _ = run("ft", (1, 0, 0), init="rrs/last.pt", resume="", **still)
    assert code == 2  # --resume takes no value
    flags = tiny_flags(tiny_root, out="ft", epochs=1, Z=None, init="rrs/last.pt", **still)
    code, out, err = script("train", *flags, "--lambdas", 1, 0, 0, "--resume")
    assert code == 0 and "ftRRS+CBS" in out and "already finished" in out

    code, out, _ = run("ft2", (1, 0, 0), init="ft/last.pt")
    assert code == 0 and out.startswith("CBS-Only from ftRRS+CBS on tiny")
    code, _, err = run("x", (1, 0, 0), init="ft/last.pt", arch="resnet18")
    assert code == 1 and "--init" in err and "its arch is resnet10" in err
    other = write_lists(tmp_path / "other", counts=([9, 6, 3, 3], [1] * 4, [1] * 4))
    code, out, _ = run("ft3", (1, 0, 0), init="moved/last.pt", root=other)
    assert out.startswith(
        "CBS-Only from RRS-Only (tiny, another train list) on tiny: 4 classes, 21"
    )
    ft["epoch"] = 0
    torch.save(ft, tmp_path / "unfinished.pt")
    code, _, err = run("x", (1, 0, 0), init="unfinished.pt")
    assert code == 1 and "that run is not finished" in err and not (tmp_path / "x").exists()


ROWS = {  # the paper's rows: flags, and the name they are given
    "RRS-Only": ["--lambdas", 0, 1, 0],
    "CBS-Only": ["--lambdas", 1, 0, 0],
    "CBS+RRS": ["--lambdas", 1, 0.5, 0],
    "RRS+SS": ["--lambdas", 0, 1, 1],
    "CBS+RRS+rotation": ["--rotation-augmentation"],
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_tables_trains_and_is_evaluated_by_its_own_head(
    tiny_root, tmp_path, script, name
):
    flags = tiny_flags(tiny_root, out="run", epochs=1, Z=None if name.startswith("RRS") else 2)
    code, out, err = script("train", *flags, *ROWS[name])
    assert code == 0 and not err and out.startswith(f"{name} on tiny")
    state = state_of(tmp_path / "run")
    tied = torch.equal(state["model"]["h.weight"], state["model"]["h_a.weight"])
    assert tied == name.startswith("RRS")
    row = next(line.split() for line in out.splitlines() if line.startswith("  1/1"))
    trained = set(name.replace("-Only", "").split("+"))
    assert [x != "-" for x in row[1:4]] == [task in trained for task in ("CBS", "RRS", "SS")]
    code, evaluated, _ = script("evaluate", "run/last.pt")
    assert code == 0 and evaluated.splitlines()[-1] == out.splitlines()[-2]


def test_recipes_are_the_papers_and_flags_override_them():
    recipe = train.parse([])
    assert recipe.lambdas == [0.5, 1, 1] and recipe.Z == 4 and recipe.data == "glyphs_lt"
    recipe = train.parse(["--data", "imagenet_lt", "--arch", "resnet10"])
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (90, 0.1, 128)
    assert (recipe.weight_decay, recipe.momentum, recipe.size) == (5e-4, 0.9, 224)
    assert not recipe.pretrained
    recipe = train.parse(["--data", "Places_LT", "--arch", "resnet152"])
    assert (recipe.pretrained, recipe.epochs, recipe.lr) == (True, 30, 0.1)
    assert recipe.lr_pretrained == 0.001
    assert not train.parse(["--data", "places_lt", "--arch", "resnet50"]).pretrained
    flags = "--data places_lt --arch resnet152 --no-pretrained --epochs 7 --lambdas 1 1 0"
    recipe = train.parse(flags.split())
    assert not recipe.pretrained and recipe.epochs == 7 and recipe.lambdas == [1, 1, 0]


def test_pretrained_layers_have_their_own_learning_rate_and_new_ones_have_not(monkeypatch):
    import model

    asked = []
    get_model = model.get_model

    def offline(arch, weights):
        asked.append(weights)
        return get_model(arch, weights=None)

    monkeypatch.setattr(model, "get_model", offline)
    flags = ["--arch", "resnet18", "--data", "x", "--pretrained"]
    for stem in [], ["--small-stem"]:
        args = train.parse(flags + stem)
        args.precision = "float32"
        net, optimizer, _ = train.build(args, 5, 10, torch.device("cpu"), None)
        rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        new = ("phi.resnet.fc.", "h") + ("phi.resnet.conv1.",) * len(stem)
        for name, p in net.named_parameters():
            assert rate[p] == (0.1 if name.startswith(new) else 0.001), name
    assert asked == ["IMAGENET1K_V1"] * 2
    args = train.parse([*flags, "--init", "x.pt"])  # would throw them away
    args.precision = "float32"
    with pytest.raises(train.InputError, match="x.pt: no such file"):
        train.build(args, 5, 10, torch.device("cpu"), None)
    assert asked[2:] == [None]


def test_folders_tell_the_papers_rows_and_seeds_apart():
    rows = ["", "--lambdas 1 0 0", "--lambdas 1 0 0 --init x.pt", "--lambdas 0 1 0", "--seed 1"]
    rows += ["--lambdas 0.5 1 0", "--lambdas 1 1 0", "--lambdas 1 0.5 0", "--rotation-augmentation"]
    folders = [train.parse(row.split()).out for row in rows]
    assert len(set(folders)) == len(rows)
    assert folders[0] == "runs/glyphs_lt-resnet10-CBS+RRS+SS-0.5_1_1-seed0"


def test_val_and_test_are_not_touched_by_training(tmp_path, script):
    """Other pictures for validation and test, the same weights."""
    weights = []
    for name, held_out in (("a", [3] * 4), ("b", [2] * 4)):
        root = write_lists(tmp_path / name, counts=([24, 21, 12, 5], held_out, held_out), seed=1)
        assert script("train", *tiny_flags(root, out=f"run{name}", epochs=2))[0] == 0
        weights.append(state_of(tmp_path / f"run{name}")["model"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_an_ascii_terminal_will_do(tiny_root, tmp_path):
    argv = tiny_flags(tiny_root, out="run", epochs=1)
    process = start("train", argv, tmp_path, setup=ascii_stdout)
    code, out, err = finish(process, tmp_path)
    assert code == 0 and not err and out.isascii()


def ascii_stdout():
    import sys

    sys.stdout.reconfigure(encoding="ascii")
