"""Sec. 4.2 against a hand-worked table and brute force; what is predicted and refused."""

import csv

import numpy as np
import pytest
import torch
from conftest import write_lists

from data import InputError, LongTailed, load
from evaluate import class_accuracy, predict, report, shot_accuracy, shots, table
from model import Model

N_c = [500, 100, 99, 21, 20, 5]


def of_counts(right, total):
    """Labels and predictions with right[y] of the total[y] images of class y predicted as such."""
    labels = []
    predictions = []
    for y, (r, n) in enumerate(zip(right, total, strict=True)):
        labels += [y] * n
        predictions += [y] * r + [(y + 1) % len(total)] * (n - r)
    return np.array(labels), np.array(predictions)


def test_shots_at_their_exact_borders():
    assert {k: v.tolist() for k, v in shots(N_c).items()} == {
        "Many": [True, True, False, False, False, False],
        "Medium": [False, False, True, True, False, False],
        "Low": [False, False, False, False, True, True],
    }


def test_hand_worked_table():
    labels, predictions = of_counts([9, 8, 5, 4, 1, 0], [10] * 6)
    assert class_accuracy(labels, predictions, 6).tolist() == [90, 80, 50, 40, 10, 0]
    assert shot_accuracy(labels, predictions, N_c) == pytest.approx(
        {"Many": 85, "Medium": 45, "Low": 5, "Overall": 45}
    )


def test_overall_is_over_images_and_shots_over_classes():
    counted = of_counts([30, 1, 0, 2, 0, 1], [30, 2, 10, 2, 4, 2])  # medium: 0 % and 100 %
    assert shot_accuracy(*counted, N_c) == pytest.approx(
        {"Many": 75, "Medium": 50, "Low": 25, "Overall": 68}
    )


def test_accuracies_of_random_predictions_by_counting_one_image_at_a_time():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(6, size=(2, 300))
    hits = [[] for _ in range(6)]
    for y, predicted in zip(labels, predictions, strict=True):
        hits[y].append(100 * (y == predicted))
    each = [sum(hit) / len(hit) for hit in hits]
    np.testing.assert_allclose(class_accuracy(labels, predictions, 6), each)
    assert shot_accuracy(labels, predictions, N_c) == pytest.approx(
        {
            "Many": (each[0] + each[1]) / 2,
            "Medium": (each[2] + each[3]) / 2,
            "Low": (each[4] + each[5]) / 2,
            "Overall": sum(map(sum, hits)) / 300,
        }
    )


def test_class_without_test_image_takes_no_part_and_empty_shot_is_a_dash(capsys):
    labels, predictions = of_counts([9, 0, 5, 5, 0, 0], [10, 0, 10, 10, 0, 0])
    row = shot_accuracy(labels, predictions, N_c)
    assert (row["Many"], row["Medium"]) == (90, 50)
    assert np.isnan(row["Low"]) and row["Overall"] == pytest.approx(190 / 3)
    report("val", LongTailed(None, labels), predictions, N_c)
    titles, cells = capsys.readouterr().out.splitlines()[:2]
    assert titles.startswith("val accuracy (%)  Many") and titles.endswith("Overall")
    assert cells.split() == ["90.0", "50.0", "-", "63.3"]


def test_each_number_stands_below_the_end_of_its_title(capsys):
    labels, predictions = of_counts([9, 8, 5, 4, 1, 0], [10] * 6)
    report("test", LongTailed(None, labels), predictions, N_c)
    titles, cells = capsys.readouterr().out.splitlines()
    for title, cell in {"(>=100 images)": 85, "(21-99)": 45, "(<=20)": 5, "Overall": 45}.items():
        end = titles.index(title) + len(title)
        assert cells[:end].split()[-1] == f"{cell:.1f}" and cells[end : end + 1] in ("", " ")


@pytest.mark.parametrize("total, said", [([2, 3], True), ([3, 3], False)])
def test_unbalanced_split_is_said(capsys, total, said):
    labels, predictions = of_counts([1, 1], total)
    report("test", LongTailed(None, labels), predictions, [5, 5])
    assert ("not balanced" in capsys.readouterr().out) == said


def test_accuracy_on_training_images_comes_with_a_warning(tmp_path, capsys):
    write_lists(tmp_path)
    trained = (tmp_path / "tiny_train.txt").read_text().splitlines(keepends=True)
    for lines, warning in (
        ([], None),
        (trained[:7], "warning: 7 of these 27 images are training images"),
    ):
        with open(tmp_path / "tiny_test.txt", "a") as file:
            file.writelines(lines)
        dataset = load("tiny", str(tmp_path), 32)["test"]
        report("test", dataset, dataset.labels, [40, 21, 12, 5])
        said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
        assert said == ([warning] if warning else [])


@pytest.fixture(scope="module")
def images():
    """Noise of many colours."""
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(301, 3, 32, 32, generator=g)
    return (255 * noise * torch.rand(301, 3, 1, 1, generator=g)).to(torch.uint8)


def trained_model(images, **kwargs):
    torch.manual_seed(0)
    model = Model("resnet10", 4, **kwargs)
    with torch.no_grad():
        model(images[:64])  # running statistics
        model.h.bias -= model.eval()(images).mean(0)  # else one class would win always
    return model.train()


def test_predictions_equal_one_image_at_a_time(images):
    model = trained_model(images)
    predictions, features = predict(model, LongTailed(images, np.arange(301) % 4))
    assert not model.training
    with torch.no_grad():
        one_by_one = torch.cat([model(image[None]) for image in images])
        expected = model.phi(images)
    first, second = one_by_one.topk(2).values.T
    clear = (first - second > 1e-4).numpy()
    assert clear.mean() > 0.98 and len(set(predictions)) == 4
    assert (predictions == one_by_one.argmax(1).numpy())[clear].all()
    torch.testing.assert_close(torch.cat(features), expected, rtol=1e-4, atol=1e-4)


def test_prediction_leaves_the_model_as_it_was(images):
    model = trained_model(images)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict(model, LongTailed(images[:50], [0] * 50))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_logits_that_tie_in_bfloat16_are_told_apart(images):
    """Fault 5: a tie would go to the lower label, here always 0."""
    model = trained_model(images, amp=True)
    slightly = torch.tensor([[1], [1.0005], [0.9], [1.0002]])
    with torch.no_grad():
        model.h.weight.copy_(slightly * model.h.weight[0].abs())
        model.h.bias.zero_()
    rows = model.h.weight.bfloat16()
    assert (rows[0] == rows[1]).float().mean() > 0.8
    predictions, _ = predict(model, LongTailed(images[:64], [0] * 64))
    assert predictions.tolist() == [1] * 64


@pytest.mark.parametrize(
    "where, value",
    [("h.bias", "nan"), ("h.bias", "inf"), ("h.bias", "-inf")]
    + [("phi.resnet.layer4.0.bn2.running_mean", "nan")],
)
def test_logits_that_are_not_finite_are_refused(images, where, value):
    model = trained_model(images)
    model.state_dict()[where][1] = float(value)
    with pytest.raises(InputError, match="logits are not finite"):
        predict(model, LongTailed(images[:300], [0] * 300))


@pytest.mark.parametrize("position", [0, 300])
def test_one_image_without_finite_logits_is_enough(images, position):
    model = trained_model(images)
    phi = model.phi.forward
    model.phi.forward = lambda x: phi(x) * torch.where(x[:, :1, 0, 0] == 7, torch.nan, 1)
    images = images.clone()
    images[:, 0, 0, 0] = 8
    predict(model, LongTailed(images, [0] * 301))
    images[position, 0, 0, 0] = 7  # in one batch alone
    with pytest.raises(InputError, match="logits are not finite"):
        predict(model, LongTailed(images, [0] * 301))


def test_table_holds_the_shots_and_each_class():
    labels, predictions = of_counts([9, 8, 5, 4, 1, 0, 0], [10] * 6 + [0])
    rows = list(csv.DictReader(table(labels, predictions, [*N_c, 7]).decode().splitlines()))
    assert [row["class"] for row in rows] == ["Many", "Medium", "Low", "Overall", *"0123456"]
    accuracies = [85, 45, 5, 45, 90, 80, 50, 40, 10, 0, np.nan]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(accuracies, nan_ok=True)
    assert [int(row["N_c"]) for row in rows[4:]] == [*N_c, 7]
