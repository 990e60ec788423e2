"""Whole runs as real processes: the record, being killed and resumed, Table 3, one-line errors."""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import finish, start, tiny_flags, write_lists
from PIL import Image

import data
import evaluate
import train
from model import Model


def wait_for(process, folder, text):
    while not (folder / "stdout").exists() or text not in (folder / "stdout").read_text():
        assert process.is_alive()
        time.sleep(0.01)


def state_of(run):
    return torch.load(run / "last.pt", weights_only=True)


def assert_same_bits(run, other):
    """Model, momentum, record.csv and test.csv."""
    a, b = state_of(run), state_of(other)
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    momenta, others = a["optimizer"]["state"], b["optimizer"]["state"]
    assert len(momenta) > 20 and momenta.keys() == others.keys()
    for k in momenta:
        assert torch.equal(momenta[k]["momentum_buffer"], others[k]["momentum_buffer"])
    for name in "record.csv", "test.csv":
        assert (run / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tiny_root, tmp_path_factory):
    """{workers: (folder, output)} of runs that were never stopped: 3 epochs of 7 iterations."""
    runs = {}
    for workers in 0, 2:
        folder = tmp_path_factory.mktemp("undisturbed")
        flags = tiny_flags(tiny_root, out="run", epochs=3, workers=workers)
        status, out, err = finish(start("train.py", flags, folder), folder)
        assert status == 0 and not err
        runs[workers] = folder / "run", out
    return runs


def test_evaluation_from_the_checkpoint_gives_the_row_that_training_printed(undisturbed, script):
    run, out = undisturbed[0]
    assert out.startswith("CBS+RRS+SS: 4 classes, 62 images, 21 iterations; to run\n")
    header, row, saved = out.splitlines()[-3:]
    assert header == "test accuracy (%)  Many (>=100 images)  Medium (21-99)  Low (<=20)  Overall"
    assert saved == "saved last.pt, record.csv and test.csv in run"
    status, evaluated, err = script("evaluate.py", run / "last.pt")
    assert status == 0 and not err
    described = "CBS+RRS+SS on tiny, resnet10, epoch 3 of 3"
    assert evaluated.splitlines() == [described, header, row]


def test_record_and_test_csv_hold_what_was_printed(undisturbed):
    run, out = undisturbed[0]
    assert {f.name for f in run.iterdir()} == {"last.pt", "record.csv", "test.csv"}
    record = list(csv.DictReader((run / "record.csv").read_text().splitlines()))
    assert [row["epoch"] for row in record] == ["1", "2", "3"] and record[-1]["iteration"] == "21"
    printed = [line.split() for line in out.splitlines() if line.split()[0] in ("1", "2", "3")]
    for row, cells in zip(record, printed, strict=True):
        l_CBS, l_RRS, l_SS = (float(row[k]) for k in ("l_CBS", "l_RRS", "l_SS"))
        assert float(row["L_Final"]) == pytest.approx(0.5 * l_CBS + l_RRS + l_SS)
        assert cells[1:4] == [f"{l:.3f}" for l in (l_CBS, l_RRS, l_SS)]
        assert cells[4] == "-" and cells[7] == f"{float(row['val_Overall']):.1f}"
        # Fig. 2. CBS draws every class about equally often.
        by_class = [float(row[f"l_CBS_{y}"]) for y in range(4)]
        assert len(set(by_class)) == 4 and np.mean(by_class) == pytest.approx(l_CBS, rel=0.5)
    tested = {x["class"]: x for x in csv.DictReader((run / "test.csv").read_text().splitlines())}
    assert f"{float(tested['Overall']['accuracy']):.1f}" == out.splitlines()[-2].split()[-1]
    assert [int(tested[str(y)]["N_c"]) for y in range(4)] == [24, 21, 12, 5]
    names = [f"class{y}" for y in range(4)]
    assert [tested[str(y)]["name"] for y in range(4)] == state_of(run)["names"] == names


def test_same_command_same_bits_and_another_seed_others(undisturbed, tiny_root, tmp_path, script):
    flags = tiny_flags(tiny_root, out="again", epochs=3)
    assert script("train.py", *flags)[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "again")
    assert script("train.py", *tiny_flags(tiny_root, out="other", epochs=1, seed=1))[0] == 0
    first = [
        state_of(run)["record"][0]["l_CBS"] for run in (tmp_path / "again", tmp_path / "other")
    ]
    assert first[0] != first[1]


def test_export_holds_what_figures_3_and_4_draw(undisturbed, tmp_path, script):
    run, _ = undisturbed[0]
    status, out, _ = script("evaluate.py", run / "last.pt", "--export", "figures.npz")
    x = np.load(tmp_path / "figures.npz")
    assert x["features"].shape == (20, 512) and x["N_c"].tolist() == [24, 21, 12, 5]
    model = state_of(run)["model"]
    norms = model["h.weight"].square().sum(1).sqrt()
    np.testing.assert_allclose(x["weight_norms"], norms, rtol=1e-6)
    logits = x["features"] @ model["h.weight"].numpy().T + model["h.bias"].numpy()
    assert (logits.argmax(1) == x["predictions"]).all()
    right = x["predictions"] == x["labels"]
    for y in range(4):
        assert x["class_accuracy"][y] == pytest.approx(100 * right[x["labels"] == y].mean())
    assert out.splitlines()[-1] == "saved figures.npz"
    for path, label in zip(x["images"], x["labels"], strict=True):
        assert path.startswith(f"test/class{label}/")


def test_an_image_is_predicted_from_the_checkpoint_alone(undisturbed, tiny_root, tmp_path, script):
    """As in the prediction of the whole list, with the softmax of its logits."""
    run, _ = undisturbed[0]
    script("evaluate.py", run / "last.pt", "--export", "figures")
    x = np.load(tmp_path / "figures.npz")
    weights = state_of(run)["model"]
    logits = x["features"] @ weights["h.weight"].numpy().T + weights["h.bias"].numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    shutil.copytree(run, tmp_path / "copy")  # the lists are not there
    for i in 0, 7, 19:
        image = tiny_root / x["images"][i]
        status, out, _ = script("evaluate.py", "copy/last.pt", "--image", image, "--root", "/x")
        best = np.argsort(-probabilities[i])
        expected = [f"{100 * probabilities[i, y]:5.1f} %  class{y}" for y in best]
        assert status == 0 and out.splitlines()[1:] == expected
        assert best[0] == x["predictions"][i]


def test_an_rrs_only_model_and_a_model_of_small_images_predict(rrs_only, tmp_path):
    model, checkpoint = evaluate.load_model(rrs_only / "last.pt")
    assert not model.training and torch.equal(model.h.weight, model.h_a.weight)
    glyph = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    Image.fromarray(glyph.permute(1, 2, 0).numpy()).save(tmp_path / "glyph.png")
    checkpoint["settings"]["data"] = "glyphs_lt"  # whose images are not cropped
    (name, probability), *rest = evaluate.classify(model, checkpoint, str(tmp_path / "glyph.png"))
    with torch.no_grad():
        expected = model(glyph[None]).softmax(1).max(1)
    assert name == checkpoint["names"][expected.indices[0]] and len(rest) == 3
    assert probability == pytest.approx(expected.values[0].item(), rel=1e-4)


def test_the_five_most_likely_classes_are_named(tmp_path):
    model = Model("resnet10", 7).eval()
    checkpoint = {"names": list("abcdefg"), "settings": {"data": "x", "size": 32}}
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    with torch.no_grad():
        probabilities = model(
            torch.tensor([255, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 32, 32).byte()
        )
        best = probabilities[0].softmax(0).sort(descending=True)
    found = evaluate.classify(model, checkpoint, str(tmp_path / "red.png"))
    assert [name for name, _ in found] == ["abcdefg"[y] for y in best.indices[:5]]
    assert [p for _, p in found] == pytest.approx(best.values[:5].tolist(), rel=1e-4)


def test_a_label_beyond_the_runs_classes_is_one_line_before_anything_is_predicted(
    undisturbed, tmp_path, refused
):
    root = write_lists(tmp_path / "other", ([2] * 5, [1] * 5, [1] * 5))
    (root / "test/class4/0.JPEG").unlink()
    said = refused("evaluate.py", undisturbed[0][0] / "last.pt", "--root", root)
    assert said == f"error: tiny in {root} has more classes than the run's 4"


# ------------------------------------------------------------------------------ resuming
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bits(
    undisturbed, tiny_root, tmp_path, workers
):
    """By SIGKILL, SIGTERM and Ctrl-C to the whole group, also while saving. What is left of a file
    that was being written does no harm."""
    rng = random.Random(workers)
    run = tmp_path / "run"
    argv = tiny_flags(tiny_root, out=run, epochs=3, workers=workers)
    for number in signal.SIGKILL, signal.SIGINT, signal.SIGTERM:
        process = start("train.py", argv, tmp_path)
        wait_for(process, tmp_path, "Overall (validation, %)\n")
        time.sleep(rng.uniform(0, 0.6))
        os.killpg(process.pid, number)
        process.join()
        argv = ["--resume", run]
    (run / "last.pt.tmp").write_bytes(b"half")
    (run / "record.csv").write_text("epoch\n1\n")
    status, out, err = finish(start("train.py", argv, tmp_path), tmp_path)
    assert status == 0, err
    assert_same_bits(undisturbed[workers][0], run)


def spawn():
    """As on a Mac; Python 3.14 has forkserver."""
    multiprocessing.set_start_method("spawn", force=True)


def test_workers_that_are_not_forked_load_the_same_bits(undisturbed, tiny_root, tmp_path):
    flags = tiny_flags(tiny_root, out="run", epochs=3, workers=2)
    process = start("train.py", flags, tmp_path, setup=spawn)
    assert finish(process, tmp_path)[0] == 0
    assert_same_bits(undisturbed[2][0], tmp_path / "run")


@pytest.mark.parametrize("method, workers_from", [("fork", None), ("spawn", "forkserver")])
def test_workers_come_from_a_fork_server_where_they_are_not_forked(
    tiny_root, monkeypatch, method, workers_from
):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    monkeypatch.setattr(multiprocessing, "set_forkserver_preload", lambda modules: None)
    context = data.loader(data.load("tiny", tiny_root, 32)["val"], 2).multiprocessing_context
    assert (context and context.get_start_method()) == workers_from


def test_ctrl_c_prints_the_command_that_continues(tiny_root, tmp_path):
    process = start("train.py", tiny_flags(tiny_root, out="run", epochs=60), tmp_path)
    wait_for(process, tmp_path, "\n    1 ")
    os.killpg(process.pid, signal.SIGINT)
    status, out, err = finish(process, tmp_path)
    assert status == 130 and "Traceback" not in err
    assert out.endswith("\nstopped; to continue: python train.py --resume run\n")


def test_a_run_that_is_killed_in_its_first_epoch_can_be_resumed(tiny_root, tmp_path, script):
    process = start("train.py", tiny_flags(tiny_root, out="run", epochs=1, batch_size=60), tmp_path)
    wait_for(process, tmp_path, "iterations; to run")
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert state_of(tmp_path / "run")["record"] == []
    assert script("train.py", "--resume", "run", "--workers", 0)[0] == 0


def test_a_finished_run_is_tested_again(undisturbed, tmp_path, script):
    shutil.copytree(undisturbed[0][0], tmp_path / "run")
    (tmp_path / "run/test.csv").unlink()  # as if killed before it was written
    assert script("train.py", "--resume", "run")[0] == 0
    assert_same_bits(undisturbed[0][0], tmp_path / "run")


def test_a_resumed_run_has_its_own_settings(undisturbed, tiny_root, tmp_path, script, refused):
    run, _ = undisturbed[0]
    said = refused("train.py", "--resume", run, "--lr", 0.02)
    assert said.endswith("--resume takes only --root and --workers")
    args, checkpoint = train.parse(["--resume", str(run)])
    assert (args.lr, args.epochs, args.root, args.workers) == (0.02, 3, str(tiny_root), 0)
    assert len(checkpoint["record"]) == 3
    assert train.parse(["--resume", f"{run}/last.pt"])[0] == args
    args, _ = train.parse(["--resume", str(run), "--root", "/x", "--workers", "1"])
    assert (args.root, args.workers, args.out) == ("/x", 1, str(run))


def test_no_run_overwrites_another(undisturbed, tiny_root, refused):
    run, _ = undisturbed[0]
    before = (run / "last.pt").read_bytes()
    said = refused("train.py", *tiny_flags(tiny_root, out=run))
    assert said == f"error: {run} exists: choose another --out, or --resume that run"
    assert (run / "last.pt").read_bytes() == before


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_other_lists_are_refused_on_resuming_and_said_in_evaluation(
    undisturbed, tmp_path, script, refused, split
):
    run, _ = undisturbed[0]
    root = write_lists(tmp_path / "other")
    path = root / f"tiny_{split}.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    said = refused("train.py", "--resume", run, "--root", root)
    assert said == f"error: tiny in {root} is not the dataset of this run"
    if split != "train":
        (root / "tiny_train.txt").unlink()  # the shots are those of the run's training set
        status, out, _ = script("evaluate.py", run / "last.pt", "--split", split, "--root", root)
        assert status == 0 and f"warning: tiny in {root}: not the run's {split} split" in out


def test_a_damaged_checkpoint_is_refused_and_no_code_in_it_runs(undisturbed, tmp_path, refused):
    whole = (undisturbed[0][0] / "last.pt").read_bytes()
    (tmp_path / "run").mkdir()
    for damaged in whole[: len(whole) // 2], whole[: 10**6] + b"damage" + whole[10**6 + 6 :], b"":
        (tmp_path / "run/last.pt").write_bytes(damaged)
        for argv in ["evaluate.py", "run/last.pt"], ["train.py", "--resume", "run"]:
            assert "run/last.pt is not a readable checkpoint" in refused(*argv)

    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"settings": Touch()}, tmp_path / "run/last.pt")
    with pytest.raises(Exception, match="weights_only"):
        train.load_checkpoint(tmp_path / "run/last.pt")
    assert not (tmp_path / "ran").exists()


def test_a_run_that_is_killed_while_it_saves_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    state = {"settings": {"out": str(tmp_path)}, "record": []}
    parts = [torch.nn.Linear(2, 2)] * 3
    train.save(state, *parts)
    before = (tmp_path / "last.pt").read_bytes()

    def half(checkpoint, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        train.save(state | {"record": [{"epoch": 1}]}, *parts)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_evaluation_of_a_missing_image_is_one_line(undisturbed, tmp_path, refused):
    root = write_lists(tmp_path / "moved")
    (root / "test/class1/2.JPEG").unlink()
    said = refused("evaluate.py", undisturbed[0][0] / "last.pt", "--root", root)
    assert said == f"error: {root} has no test/class1/2.JPEG"


# ------------------------------------------------------------------------------ Table 3
@pytest.fixture(scope="module")
def rrs_only(tiny_root, tmp_path_factory):
    """The folder of a finished RRS-Only run."""
    folder = tmp_path_factory.mktemp("rrs")
    flags = tiny_flags(tiny_root, out="run", epochs=1)
    process = start("train.py", [*flags, "--lambdas", 0, 1, 0], folder)
    assert finish(process, folder)[0] == 0
    return folder / "run"


def test_stage_wise_training_starts_phi_from_an_rrs_only_run(tiny_root, rrs_only, tmp_path, script):
    init = ["--init", rrs_only / "last.pt"]
    flags = tiny_flags(tiny_root, out="ft", epochs=1, lr=0)
    status, out, _ = script("train.py", *flags, "--lambdas", 1, 0, 0, *init)
    assert status == 0 and out.startswith("ftRRS+CBS: 4 classes")
    source, tuned = state_of(rrs_only)["model"], state_of(tmp_path / "ft")["model"]
    assert torch.equal(source["phi.resnet.conv1.weight"], tuned["phi.resnet.conv1.weight"])
    assert not torch.equal(source["h.weight"], tuned["h.weight"])
    flags = tiny_flags(tiny_root, out="other", epochs=1)
    _, out, _ = script("train.py", *flags, "--lambdas", 0.5, 1, 0, *init)
    assert out.startswith("CBS+RRS from RRS-Only on tiny, resnet10, epoch 1 of 1: 4 classes")


@pytest.mark.parametrize("change", ["unfinished", "other lists"])
def test_only_a_finished_run_on_the_same_list_makes_it_ftRRS_CBS(
    tiny_root, rrs_only, tmp_path, script, change
):
    source = state_of(rrs_only)
    if change == "unfinished":
        source["record"] = []
    else:
        source["checksums"]["train"] += 1
    torch.save(source, tmp_path / "source.pt")
    flags = tiny_flags(tiny_root, out="other", epochs=1)
    _, out, _ = script("train.py", *flags, "--lambdas", 1, 0, 0, "--init", "source.pt")
    assert out.startswith("CBS-Only from RRS-Only on tiny, resnet10, epoch ")


# ------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    "argv, said",
    [(["--arch", "resnet9"], "argument --arch: invalid choice: 'resnet9'")]
    + [(["--epochs", "x"], "argument --epochs: invalid int value: 'x'")]
    + [(["--init", "nosuch/last.pt"], "No such file or directory: 'nosuch/last.pt'")]
    + [(["--init", ""], "No such file or directory: ''")]
    + [(["--resume", "nosuch"], "No such file or directory: 'nosuch/last.pt'")]
    + [(["--lambdas", 0, 0, 1], "the first (CBS) or the second (RRS) weight must not be 0")]
    + [(["--batch-size", 30], "error: Z = 4 does not divide S = 30")]
    + [(["--batch-size", 9200], "error: S = 9200 is more than the 9014 training images")]
    + [(["--lambdas", 0, 1, 0, "--batch-size", 9200], "S = 9200 is more than the 9014 training")],
)
def test_mistakes_are_one_line(refused, argv, said):
    assert said in refused("train.py", *argv)


def test_phi_of_another_network_is_one_line(tiny_root, rrs_only, refused):
    flags = tiny_flags(tiny_root, out="run", arch="resnet18", init=rrs_only / "last.pt")
    assert refused("train.py", *flags) == f"error: {rrs_only}/last.pt needs --arch resnet10"


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tiny_root, tmp_path, refused):
    said = refused("train.py", *tiny_flags(tiny_root, out="run", lr=1e20))
    assert said == "error: the loss of epoch 1 is not finite; try a lower --lr"
    state = state_of(tmp_path / "run")
    assert state["record"] == [] and all(x.isfinite().all() for x in state["model"].values())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line_with_its_path(tmp_path, refused, workers):
    root = write_lists(tmp_path / "set")
    (root / "train/class0/3.JPEG").write_bytes(b"no image")
    said = refused("train.py", *tiny_flags(root, out="run", epochs=1, workers=workers))
    assert f"{root}/train/class0/3.JPEG: not a readable image" in said


def test_photographs_of_any_size_train(tmp_path, script):
    root = write_lists(tmp_path / "set")
    Image.new("L", (7, 400)).save(root / "train/class3/0.JPEG")
    assert script("train.py", *tiny_flags(root, out="run", epochs=1))[0] == 0
