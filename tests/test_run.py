"""Whole runs as real processes: the command line, resuming, being killed, full disks, broken images, Table 3."""
import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from conftest import ROOT, finish, start, tiny_flags, write_lists


def weights(folder):
    """Everything of a checkpoint that a resumed run must reproduce bit by bit, flat."""
    state = torch.load(folder / "last.pt", weights_only=True)
    tensors = {f"model {k}": v for k, v in state["model"].items()} | {"sums": state["sums"]}
    tensors |= {f"momentum {i}": v["momentum_buffer"] for i, v in state["optimizer"]["state"].items()}
    rows = [{k: v for k, v in row.items() if k != "images_per_second"}
            for row in csv.DictReader(state["record"].splitlines())]
    return tensors, rows, state["m"]


def wait_for(folder, text, file="stdout"):
    while not (folder / file).exists() or text not in (folder / file).read_text():
        time.sleep(0.01)


def assert_same_run(a, b):
    (tensors, rows, m), (others, other_rows, other_m) = weights(a), weights(b)
    assert m == other_m and str(rows) == str(other_rows) and tensors.keys() == others.keys()
    assert all(torch.equal(tensors[k].nan_to_num(-1), others[k].nan_to_num(-1)) for k in tensors)


@pytest.fixture(scope="module")
def undisturbed(tiny_root, tmp_path_factory):
    """A run never stopped: 18 iterations, with its output."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out, err = finish(start("train", tiny_flags(tiny_root, out="run"), folder), folder)
    assert code == 0 and not err
    return folder / "run", out


def test_training_then_evaluation_from_its_checkpoint_gives_the_same_row(undisturbed, script):
    run, out = undisturbed
    assert out.startswith("CBS+RRS+SS on tiny: 78 images of 4 classes, 1 x cpu, float32")
    assert "lambdas [0.5, 1.0, 1.0], Z 2, batch_size 8, epochs 2" in out
    assert "m 1/18  l_CBS" in out and "m 18/18  l_CBS" in out and "images/s  0 min left" in out
    header, row = out.splitlines()[-2:]
    assert header.split() == ["Many", "Medium", "Low", "Overall"] and row.split()[0] == "–"
    code, evaluated, err = script("evaluate", run / "last.pt")
    assert code == 0 and not err and evaluated.splitlines()[-2:] == [header, row]


def test_folder_holds_recipe_and_records_a_spreadsheet_opens(undisturbed):
    run, out = undisturbed
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["lr"] == 0.02 and recipe["lambdas"] == [0.5, 1, 1] and recipe["momentum"] == 0.9
    record = list(csv.DictReader(open(run / "record.csv")))
    assert [row["epoch"] for row in record] == ["1", "2"] and record[-1]["iteration"] == "18"
    for row in record:
        L = 0.5 * float(row["l_CBS"]) + float(row["l_RRS"]) + float(row["l_SS"])
        assert float(row["L_Final"]) == pytest.approx(L)
        assert f"Overall {float(row['val_Overall']):.1f}" in out
        for sampler in ("CBS", "RRS"):  # Fig. 2; every class is drawn by CBS about equally often
            per_class = [float(row[f"l_{sampler}_{y}"]) for y in range(4)]
            assert f"l_{sampler}_4" not in row and len(set(per_class)) == 4
            if sampler == "CBS":
                assert np.mean(per_class) == pytest.approx(float(row["l_CBS"]), rel=0.5)
    assert torch.load(run / "last.pt", weights_only=True)["N_c"] == [40, 21, 12, 5]


def test_same_seed_same_numbers_and_another_seed_others(undisturbed, tiny_root, tmp_path, script):
    assert script("train", *tiny_flags(tiny_root, out="again", workers=2))[0] == 0
    assert_same_run(undisturbed[0], tmp_path / "again")
    assert script("train", *tiny_flags(tiny_root, out="other", seed=1))[0] == 0
    assert weights(tmp_path / "other")[1] != weights(tmp_path / "again")[1]


def test_export_holds_what_figures_3_and_4_draw(undisturbed, tmp_path, script):
    run, _ = undisturbed
    code, out, _ = script("evaluate", run / "last.pt", "--export", "figures.npz")
    x = np.load(tmp_path / "figures.npz")
    assert x["features"].shape == (20, 512) and x["N_c"].tolist() == [40, 21, 12, 5]
    state = torch.load(run / "last.pt", weights_only=True)["model"]
    np.testing.assert_allclose(x["weight_norms"], state["h.weight"].square().sum(1).sqrt(), rtol=1e-6)
    logits = x["features"] @ state["h.weight"].numpy().T + state["h.bias"].numpy()
    assert (logits.argmax(1) == x["predictions"]).all()
    for c in range(4):
        assert x["class_accuracy"][c] == pytest.approx(100 * (x["predictions"] == c)[x["labels"] == c].mean())
    assert float(out.split()[-1]) == pytest.approx(100 * (x["predictions"] == x["labels"]).mean(), abs=0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resuming_ends_with_the_same_bits(undisturbed, tiny_root, tmp_path, script, number):
    flags = tiny_flags(tiny_root, out="run", workers=1)
    process = start("train", flags, tmp_path)
    wait_for(tmp_path, "epoch 1/2")
    os.kill(process.pid, number)
    code, out, err = finish(process, tmp_path)
    assert code == 128 + number and err.count("\n") == 1
    assert "go on with --resume 'run/last.pt'" in err
    stopped = torch.load(tmp_path / "run/last.pt", weights_only=True)["m"]
    assert 9 <= stopped <= 18 and f"stopped at iteration {stopped}/18" in err
    assert script("train", "--resume", "run/last.pt", "--workers", 0)[0] == 0
    assert_same_run(undisturbed[0], tmp_path / "run")


def test_sigkill_at_random_moments_loses_nothing_saved(undisturbed, tiny_root, tmp_path):
    """Also while saving, which takes most of the time here; each life goes on from the last save of the one before."""
    rng, lives, reached = random.Random(0), 0, 0
    argv = tiny_flags(tiny_root, out="run", save_every=1)
    while True:
        process = start("train", argv, tmp_path)
        process.join(rng.uniform(0.25, 1.2) if lives < 25 else 120)
        if process.exitcode is not None:
            assert process.exitcode == 0, (tmp_path / "stderr").read_text()
            break
        process.kill()
        process.join()
        lives += 1
        if (tmp_path / "run/last.pt").exists():
            m = torch.load(tmp_path / "run/last.pt", weights_only=True)["m"]
            assert m >= reached
            reached = m
            argv = ["--resume", "run/last.pt", "--save-every", 1, "--workers", rng.choice([0, 1, 2])]
    assert lives >= 3
    assert_same_run(undisturbed[0], tmp_path / "run")


def test_resuming_a_finished_run_prints_its_row_again(undisturbed, script):
    run, out = undisturbed
    code, again, _ = script("train", "--resume", run / "last.pt")
    assert code == 0 and again.splitlines()[-2:] == out.splitlines()[-2:]


def test_a_run_is_never_overwritten(undisturbed, tiny_root, script):
    run, _ = undisturbed
    before = (run / "last.pt").read_bytes()
    code, _, err = script("train", *tiny_flags(tiny_root, out=run))
    assert code == 1 and err.count("\n") == 1 and f"--resume '{run}/last.pt'" in err and "--out" in err
    assert (run / "last.pt").read_bytes() == before


def full_disk():
    """Files of more than 1 MB, such as a checkpoint, cannot be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 ** 6, 10 ** 6))


def test_full_disk_is_one_line_and_the_old_checkpoint_loads(tiny_root, tmp_path, script):
    run = tmp_path / "run"
    assert script("train", *tiny_flags(tiny_root, out="run", epochs=1))[0] == 0
    state = torch.load(run / "last.pt", weights_only=True)
    state["m"], state["epoch"] = 5, 0  # as if stopped there
    torch.save(state, run / "last.pt")
    before = (run / "last.pt").read_bytes()
    process = start("train", ["--resume", "run/last.pt", "--workers", 0], tmp_path, setup=full_disk)
    code, _, err = finish(process, tmp_path)
    assert code == 1 and err.count("\n") == 1 and "run/last.pt: cannot be saved" in err and "(File too large)" in err
    assert (run / "last.pt").read_bytes() == before
    assert script("train", "--resume", "run/last.pt", "--workers", 0)[0] == 0


def test_loss_that_is_not_finite_stops_with_iteration_losses_and_checkpoint(tiny_root, tmp_path, script):
    code, _, err = script("train", *tiny_flags(tiny_root, out="run", lr=1e20))
    assert code == 1 and err.count("\n") == 1
    assert "not finite at iteration 2: l_CBS" in err and "l_RRS" in err and "l_SS" in err and "run/last.pt" in err
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["m"] == 0 and all(v.isfinite().all() for v in state["model"].values())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_broken_image_in_the_middle_of_an_epoch_stops_with_its_path(tmp_path, script, workers):
    write_lists(tmp_path)
    image = tmp_path / "train/n00000003/2.JPEG"
    image.write_bytes(image.read_bytes()[:400])
    code, _, err = script("train", *tiny_flags(tmp_path, out="run", workers=workers))
    assert code == 1 and err.count("\n") == 1 and f"{image}: not a readable image" in err


def kill_a_worker():
    """In the training process: the loading worker dies as it would when memory runs out."""
    import data
    data.read_image = lambda path: os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_reported_as_such(tiny_root, tmp_path):
    process = start("train", tiny_flags(tiny_root, out="run", workers=1), tmp_path, setup=kill_a_worker)
    code, _, err = finish(process, tmp_path)
    assert code == 1 and err.count("\n") == 1 and "DataLoader worker" in err and "--workers" in err


def test_crafted_pickle_does_not_execute(tmp_path, script):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)
    torch.save({"layout": Evil()}, tmp_path / "last.pt")
    for name, argv in (("evaluate", ["last.pt"]), ("train", ["--resume", "last.pt"]), ("train", ["--init", "last.pt"])):
        code, _, err = script(name, *argv)
        assert code == 1 and err.count("\n") == 1 and "last.pt: not a checkpoint of this project" in err
    assert not (tmp_path / "executed").exists()


def test_ftrrs_cbs_starts_with_phi_of_the_checkpoint_and_a_new_h(tiny_root, tmp_path, script):
    """Table 3's path."""
    assert script("train", *tiny_flags(tiny_root, out="rrs", epochs=1), "--lambdas", 0, 1, 0)[0] == 0
    flags = tiny_flags(tiny_root, out="ft", epochs=1, lr=0, weight_decay=0, momentum=0)
    code, out, _ = script("train", *flags, "--lambdas", 1, 0, 0, "--init", "rrs/last.pt")
    assert code == 0 and out.startswith("ftRRS+CBS")
    rrs, ft = (torch.load(tmp_path / run / "last.pt", weights_only=True)["model"] for run in ("rrs", "ft"))
    parameters = [k for k in rrs if k.startswith("phi.") and "running" not in k and "tracked" not in k]
    assert len(parameters) > 20 and all(torch.equal(rrs[k], ft[k]) for k in parameters)
    assert not torch.equal(rrs["h_a.weight"], ft["h.weight"]) and not torch.equal(rrs["h.weight"], ft["h_a.weight"])
    code, _, err = script("train", *tiny_flags(tiny_root, out="x", arch="resnet18"), "--init", "rrs/last.pt")
    assert code == 1 and "rrs/last.pt: its --arch or --small-stem is another" in err


ROWS = {  # the paper's rows: flags, and the name they are given
    "RRS-Only": ["--lambdas", 0, 1, 0],
    "CBS-Only": ["--lambdas", 1, 0, 0],
    "CBS+RRS": ["--lambdas", 1, 0.5, 0],
    "CBS+RRS+SS": [],
    "CBS+RRS+rotation": ["--rotation-augmentation"],
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_tables_trains_and_predicts_with_its_own_head(tiny_root, tmp_path, script, name):
    code, out, err = script("train", *tiny_flags(tiny_root, out="run", epochs=1), *ROWS[name])
    assert code == 0 and not err and out.startswith(f"{name} on tiny")
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["predict_with"] == ("h_a" if name == "RRS-Only" else "h")
    trained = {k for k, v in state["optimizer"]["state"].items()}
    assert len(trained) == len(state["optimizer"]["param_groups"][0]["params"]) - 2 * (3 - len(set(name.split("+")) & {
        "RRS-Only", "CBS-Only", "CBS", "RRS", "SS"}))


def test_recipes_are_the_papers_and_flags_win(tmp_path, monkeypatch):
    import train
    monkeypatch.chdir(tmp_path)
    def recipe_of(flags):
        return train.recipe(train.parse(flags.split())[0])
    recipe = recipe_of("")
    assert recipe["lambdas"] == [0.5, 1, 1] and recipe["Z"] == 4 and recipe["data"] == "glyphs_lt"
    recipe = recipe_of("--data imagenet_lt --arch resnet10")
    assert (recipe["epochs"], recipe["lr"], recipe["batch_size"], recipe["weight_decay"]) == (90, 0.1, 128, 5e-4)
    assert recipe["size"] == 224 and not recipe["pretrained"]
    recipe = recipe_of("--data Places_LT --arch resnet152")
    assert (recipe["pretrained"], recipe["epochs"], recipe["lr"], recipe["lr_pretrained"]) == (True, 30, 0.1, 0.001)
    assert not recipe_of("--data places_lt --arch resnet50")["pretrained"]
    assert recipe_of("--data cifar100_lt")["small_stem"]
    recipe = recipe_of("--data places_lt --arch resnet152 --no-pretrained --epochs 7 --lambdas 1 1 0")
    assert not recipe["pretrained"] and recipe["epochs"] == 7 and recipe["lambdas"] == [1, 1, 0]


def test_pretrained_weights_have_their_own_learning_rate(monkeypatch):
    import model
    import train
    original, asked = model.get_model, []
    monkeypatch.setattr(model, "get_model", lambda arch, weights: asked.append(weights) or original(arch, weights=None))
    args = train.flags().parse_args(["--arch", "resnet18", "--pretrained"])
    net, optimizer = train.build(args, 5)
    assert asked == ["IMAGENET1K_V1"]
    rate = {p: group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in net.named_parameters():
        assert rate[p] == (0.001 if name.startswith("phi.1.") and ".fc." not in name else 0.1), name


@pytest.mark.parametrize("workers, moment", [(1, "m 1/540"), (2, "epoch 2/60"), (1, "stopped in validation"),
                                             (2, "stopped in validation")])
def test_signal_to_the_whole_group_loses_nothing(tiny_root, tmp_path, script, workers, moment):
    """As a cluster's scheduler sends it: to loading workers, too."""
    setup = slow_validation if moment.startswith("stopped") else None
    process = start("train", tiny_flags(tiny_root, out="run", workers=workers, epochs=60), tmp_path, setup=setup)
    wait_for(tmp_path, "validating" if setup else moment)
    os.killpg(process.pid, signal.SIGTERM)
    code, out, err = finish(process, tmp_path)
    assert code == 128 + signal.SIGTERM and err.count("\n") == 1, err
    m = torch.load(tmp_path / "run/last.pt", weights_only=True)["m"]
    assert f"stopped at iteration {m}/540" in err and m >= (9 if setup else 1)
    assert "go on with --resume 'run/last.pt'" in err


def slow_validation():
    """In the training process: say when validation begins, then take a while."""
    import evaluate
    predict = evaluate.predict

    def slow(*args):
        print("validating", flush=True)
        time.sleep(2)
        return predict(*args)
    evaluate.predict = slow


def slow_test():
    import evaluate
    predict, calls = evaluate.predict, []

    def slow(*args):
        calls.append(1)
        if len(calls) == 2:
            print("testing", flush=True)
            time.sleep(20)
        return predict(*args)
    evaluate.predict = slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_the_final_test_ends_at_once_and_the_run_is_complete(tiny_root, tmp_path, script, number):
    process = start("train", tiny_flags(tiny_root, out="run", epochs=1, workers=1), tmp_path, setup=slow_test)
    wait_for(tmp_path, "testing")
    os.killpg(process.pid, number)
    process.join(10)
    assert process.exitcode not in (None, 0)
    code, out, err = script("train", "--resume", "run/last.pt", "--workers", 0)
    assert code == 0 and "test accuracy" in out and (tmp_path / "run/test.csv").exists()


def stubborn():
    """An iteration that never ends, as when shared memory is short."""
    import train

    def hang(*args):
        print("hanging", flush=True)
        while True:
            time.sleep(0.1)
    train.losses = hang
    save_run = train.save_run

    def save(args, log, *rest):
        save_run(args, log, *rest)
        log.saved = None  # as if an iteration had been done since
    train.save_run = save


def test_a_second_signal_always_ends_the_process(tiny_root, tmp_path):
    process = start("train", tiny_flags(tiny_root, out="run"), tmp_path, setup=stubborn)
    wait_for(tmp_path, "hanging")
    os.kill(process.pid, signal.SIGTERM)
    process.join(0.5)
    assert process.exitcode is None  # the first is remembered until the iteration is done
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_a_schedulers_warning_save(tiny_root, tmp_path, number):
    process = start("train", tiny_flags(tiny_root, out="run", epochs=60), tmp_path)
    wait_for(tmp_path, "epoch 1/60")
    os.kill(process.pid, number)
    code, _, err = finish(process, tmp_path)
    assert code == 128 + number and "stopped at iteration" in err


def test_an_ignored_signal_stays_ignored(tiny_root, tmp_path):
    """nohup python train.py &"""
    process = start("train", tiny_flags(tiny_root, out="run"), tmp_path, setup=ignore_hangup)
    wait_for(tmp_path, "m 1/18")
    os.kill(process.pid, signal.SIGHUP)
    assert finish(process, tmp_path)[0] == 0


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_folder_belongs_to_one_process_and_is_free_when_that_is_killed(tiny_root, tmp_path, script):
    first = start("train", tiny_flags(tiny_root, out=tmp_path / "run", epochs=60, workers=1, save_every=1), tmp_path / "a")
    wait_for(tmp_path / "a", "epoch 1/60")
    for argv in (tiny_flags(tiny_root, out="run"), ["--resume", "run/last.pt"]):
        code, _, err = script("train", *argv)
        assert code == 1 and err.count("\n") == 1 and "run: another process trains in it" in err
    assert first.is_alive()
    first.kill()
    first.join()
    process = start("train", ["--resume", "run/last.pt", "--workers", 0], tmp_path)  # at once
    wait_for(tmp_path, "60  val")
    process.terminate()
    assert finish(process, tmp_path)[0] == 128 + signal.SIGTERM


def test_an_image_that_vanishes_in_an_epoch_costs_no_iteration(tmp_path, script):
    write_lists(tmp_path)
    process = start("train", tiny_flags(tmp_path, out="run", epochs=60), tmp_path)
    wait_for(tmp_path, "epoch 1/60")
    for image in (tmp_path / "train/n00000003").iterdir():
        image.rename(f"{image}.gone")
    code, _, err = finish(process, tmp_path)
    assert code == 1 and err.count("\n") == 1 and "no such image file" in err
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["m"] > 9 or state["epoch"] == 1


def test_a_validation_that_fails_costs_no_epoch(tmp_path, script):
    write_lists(tmp_path)
    broken = tmp_path / "val/n00000001/0.JPEG"
    good = broken.read_bytes()
    broken.write_bytes(b"")
    code, _, err = script("train", *tiny_flags(tmp_path, out="run"))
    assert code == 1 and f"{broken}: not a readable image" in err
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["m"] == 9 and state["epoch"] == 0
    broken.write_bytes(good)
    assert script("train", "--resume", "run/last.pt", "--workers", 0)[0] == 0
    assert script("train", *tiny_flags(tmp_path, out="whole"))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_older_copy_does_not_replace_a_newer_checkpoint(undisturbed, tmp_path, script):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    torch.save(state | dict(m=9, epoch=1), tmp_path / "run/older.pt")
    before = (tmp_path / "run/last.pt").read_bytes()
    code, _, err = script("train", "--resume", "run/older.pt")
    assert code == 1 and "run holds a run further on: --resume 'run/last.pt'" in err
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_a_reordered_list_is_not_the_one_trained_with(tmp_path, script):
    write_lists(tmp_path)
    assert script("train", *tiny_flags(tmp_path, out="run", epochs=1))[0] == 0
    for split, command in (("train", ["train", "--resume", "run/last.pt"]), ("test", ["evaluate", "run/last.pt"])):
        path = tmp_path / f"tiny_{split}.txt"
        lines = path.read_text()
        path.write_text("".join(reversed(lines.splitlines(keepends=True))))
        code, _, err = script(*command)
        assert code == 1 and f"its {split} list is not the one trained with" in err
        path.write_text(lines)


def test_names_of_runs_tell_them_apart(tmp_path, monkeypatch):
    import train
    monkeypatch.chdir(tmp_path)

    def named(flags):
        args, _ = train.parse(flags.split())
        return train.method(args), args.out
    runs = [named(flags) for flags in (
        "", "--lambdas 1 0 0", "--lambdas 1 0 0 --init x.pt", "--lambdas 0 1 0 --init x.pt", "--lambdas 0.5 1 0 --init x.pt",
        "--lambdas 0.5 1 0", "--lr 0.05", "--epochs 7", "--lr 0.05 --epochs 7", "--Z 2", "--no-amp", "--seed 1", "--size 32",
        "--rotation-augmentation")]
    names, folders = zip(*runs)
    assert names[1:5] == ("CBS-Only", "ftRRS+CBS", "RRS-Only-init", "CBS+RRS-init")
    assert len(set(folders)) == len(folders) - 1 and folders[0] == folders[-2]  # --size 32 is the recipe's
    assert folders[6] == "runs/glyphs_lt-resnet10-CBS+RRS+SS_0.5_1_1-seed0-lr_0.05"


def test_the_default_root_is_saved_whole(tmp_path, monkeypatch):
    import train
    monkeypatch.chdir(tmp_path)
    assert train.parse([])[0].root == str(tmp_path / "data")


def test_a_resumed_run_lets_go_of_its_checkpoint(undisturbed, tmp_path):
    import train
    args, checkpoint = train.parse(["--resume", str(undisturbed[0] / "last.pt"), "--no-amp"])
    train.build(args, 4, checkpoint)
    assert not any(torch.is_tensor(x) and x.numel() > 1000 for x in checkpoint.values())
    assert "model" not in checkpoint and "optimizer" not in checkpoint


def test_output_that_is_closed_saves_and_says_so_in_one_line(tiny_root, tmp_path):
    process = subprocess.Popen([sys.executable, "train.py", *tiny_flags(tiny_root, out=tmp_path / "run", epochs=60)],
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3):
        process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 1 and err.count("\n") == 1 and "Broken pipe" in err
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["m"] >= 1


def test_no_loss_is_shown_of_a_task_that_is_off_and_ascii_terminals_will_do(tiny_root, tmp_path):
    done = subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "train.py", "--lambdas", "0", "1", "0",
                           *tiny_flags(tiny_root, out=tmp_path / "run", epochs=1)], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | dict(PYTHONIOENCODING="ascii"))
    assert done.returncode == 0 and "l_RRS" in done.stdout and "l_SS" not in done.stdout and "Many ?" in done.stdout
    assert max(map(len, done.stdout.splitlines()[2:])) < 80


def few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))


def test_loading_processes_that_cannot_start_are_one_line_and_no_hang(tiny_root, tmp_path):
    process = start("train", tiny_flags(tiny_root, out="run", workers=12), tmp_path, setup=few_files)
    code, _, err = finish(process, tmp_path)
    assert code == 1 and "--workers 12: Too many open files; take fewer, or 0\n" in err


def test_only_loading_processes_that_just_started_are_ended(monkeypatch):
    """Those of training go on while validation's cannot start."""
    import multiprocessing

    import data
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    other.start()

    class Full:
        def __iter__(self):
            raise OSError(24, "Too many open files")
    monkeypatch.setattr(data, "DataLoader", lambda *args, **kwargs: Full())
    dataset = data.LongTailed(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [0], transform=lambda image: image)
    with pytest.raises(data.InputError, match="--workers 2: Too many open files"):
        next(data.loader(dataset, [[0]], 2, False))
    other.join(0.5)
    assert other.is_alive()
    other.kill()


def no_locks():
    import fcntl

    def lockf(*args):
        raise OSError(38, "Function not implemented")
    fcntl.lockf = lockf


def test_a_file_system_without_locks_will_do(tiny_root, tmp_path):
    process = start("train", tiny_flags(tiny_root, out="run", epochs=1), tmp_path, setup=no_locks)
    assert finish(process, tmp_path)[0] == 0


def test_a_signal_loses_nothing_where_processes_are_spawned(tiny_root, tmp_path):
    """As on macOS; from another folder than the script's. Python's tracker of semaphores may warn then: ignored."""
    (tmp_path / "my code").mkdir()
    script = tmp_path / "my code/train it.py"
    script.write_text("import multiprocessing, data, train\nif __name__ == '__main__':\n"
                      "    multiprocessing.set_start_method('spawn')\n    data.run(train.main)\n")
    flags = tiny_flags(tiny_root, out="run", workers=1, epochs=60)
    with open(tmp_path / "stdout", "w") as out:
        process = subprocess.Popen([sys.executable, "-W", "ignore", "my code/train it.py", *flags], cwd=tmp_path, stdout=out,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(tmp_path, "epoch 1/60")
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and err.count("\n") == 1, err
    assert "go on with --resume 'run/last.pt'" in err
