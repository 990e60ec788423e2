"""Whole runs as real processes: the command line, resuming, being killed, full disks, broken images, Table 3."""
import csv
import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from conftest import finish, start, tiny_flags, write_lists


def weights(folder):
    """Everything of a checkpoint that a resumed run must reproduce bit by bit, flat."""
    state = torch.load(folder / "last.pt", weights_only=True)
    tensors = {f"model {k}": v for k, v in state["model"].items()} | {"sums": state["sums"], "class": state["class_sums"]}
    tensors |= {f"momentum {i}": v["momentum_buffer"] for i, v in state["optimizer"]["state"].items()}
    tensors |= {f"class_loss {i}": v for i, v in enumerate(state["class_loss"])}
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in state["record"]]
    return tensors, rows, state["m"]


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
    assert "epoch 2/2  iteration 18/18  l_CBS" in out and "images/s" in out and "left" in out
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
    losses = list(csv.reader(open(run / "class_loss.csv")))
    assert losses[0] == ["epoch", "sampler", "0", "1", "2", "3"] and [row[1] for row in losses[1:]] == ["CBS", "RRS"] * 2
    state = torch.load(run / "last.pt", weights_only=True)  # 18 batches of 8, half of each class by CBS
    for row, line in zip(record, losses[1::2]):  # every class is drawn by CBS about equally often
        assert np.mean([float(x) for x in line[2:]]) == pytest.approx(float(row["l_CBS"]), rel=0.5)
    assert state["N_c"] == [40, 21, 12, 5]


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
    while "iteration 9/18" not in (tmp_path / "stdout").read_text() if (tmp_path / "stdout").exists() else True:
        time.sleep(0.01)
    os.kill(process.pid, number)
    code, out, err = finish(process, tmp_path)
    assert code == 128 + number and err.count("\n") == 1
    assert "go on with: python train.py --resume run/last.pt" in err
    stopped = torch.load(tmp_path / "run/last.pt", weights_only=True)["m"]
    assert 9 <= stopped < 18 and f"stopped at iteration {stopped}/18" in err
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
    assert code == 2 and err.count("\n") == 1 and f"--resume {run}/last.pt" in err and "--out" in err
    assert (run / "last.pt").read_bytes() == before


def test_full_disk_is_one_line_and_the_old_checkpoint_loads(tiny_root, tmp_path, script):
    run = tmp_path / "run"
    assert script("train", *tiny_flags(tiny_root, out="run", epochs=1))[0] == 0
    state = torch.load(run / "last.pt", weights_only=True)
    state["m"] = 5  # as if stopped there
    torch.save(state, run / "last.pt")
    before = (run / "last.pt").read_bytes()
    (run / "last.pt.tmp").symlink_to("/dev/full")
    code, _, err = script("train", "--resume", "run/last.pt", "--workers", 0)
    assert code == 1 and err.count("\n") == 1 and "run/last.pt: cannot be saved (No space left on device)" in err
    assert (run / "last.pt").read_bytes() == before
    (run / "last.pt.tmp").unlink()
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
    assert code == 1 and "--init rrs/last.pt: its phi does not fit --arch resnet18" in err


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
    from train import parse
    monkeypatch.chdir(tmp_path)
    recipe = parse([])[0]
    assert recipe["lambdas"] == [0.5, 1, 1] and recipe["Z"] == 4 and recipe["data"] == "glyphs_lt"
    recipe = parse("--data imagenet_lt --arch resnet10".split())[0]
    assert (recipe["epochs"], recipe["lr"], recipe["batch_size"], recipe["weight_decay"]) == (90, 0.1, 128, 5e-4)
    assert recipe["size"] == 224 and not recipe["pretrained"]
    recipe = parse("--data Places_LT --arch resnet152".split())[0]
    assert (recipe["pretrained"], recipe["epochs"], recipe["lr"], recipe["lr_pretrained"]) == (True, 30, 0.1, 0.001)
    assert not parse("--data places_lt --arch resnet50".split())[0]["pretrained"]
    assert parse("--data cifar100_lt".split())[0]["small_stem"]
    recipe = parse("--data places_lt --arch resnet152 --no-pretrained --epochs 7 --lambdas 1 1 0".split())[0]
    assert not recipe["pretrained"] and recipe["epochs"] == 7 and recipe["lambdas"] == [1, 1, 0]


def test_pretrained_weights_have_their_own_learning_rate(monkeypatch):
    import model
    import train
    original, asked = model.get_model, []
    monkeypatch.setattr(model, "get_model", lambda arch, weights: asked.append(weights) or original(arch, weights=None))
    recipe = train.DEFAULTS | dict(arch="resnet18", pretrained=True)
    net, optimizer = train.build(recipe, 5, None)
    assert asked == ["IMAGENET1K_V1"]
    rate = {p: group["peak"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in net.named_parameters():
        assert rate[p] == (0.001 if name.startswith("phi.1.") and ".fc." not in name else 0.1), name
