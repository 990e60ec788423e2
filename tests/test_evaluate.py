"""Sec. 4.2 against a hand-worked table and brute force; what is predicted and refused."""

import csv

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data import InputError, LongTailed, shots
from evaluate import class_accuracy, predict, report, shot_accuracy, write_test
from model import Model

N_c = np.array([500, 100, 99, 21, 20, 5])


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


def test_every_accuracy_is_over_classes_and_takes_lists():
    counted = of_counts([30, 1, 0, 2, 0, 1], [30, 2, 10, 2, 4, 2])  # 100, 50, 0, 100, 0, 50 %
    expected = {"Many": 75, "Medium": 50, "Low": 25, "Overall": 50}  # over images: 68
    assert shot_accuracy(*counted, N_c) == pytest.approx(expected)
    in_lists = shot_accuracy(*(x.tolist() for x in counted), N_c.tolist())
    assert in_lists == pytest.approx(expected)


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
            "Overall": sum(each) / 6,
        }
    )


def test_class_without_test_image_takes_no_part_and_empty_shot_is_a_dash(capsys):
    labels, predictions = of_counts([9, 0, 5, 5, 0, 0], [10, 0, 10, 10, 0, 0])
    row = shot_accuracy(labels, predictions, N_c)
    assert (row["Many"], row["Medium"]) == (90, 50)
    assert np.isnan(row["Low"]) and row["Overall"] == pytest.approx((90 + 50 + 50) / 3)
    report("val", LongTailed([], labels), predictions, N_c)
    titles, cells = capsys.readouterr().out.splitlines()[:2]
    assert titles.startswith("val accuracy (%)  Many") and titles.endswith("Overall")
    assert cells.split() == ["90.0", "50.0", "-", "63.3"]


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
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_a_process_predicts_with_the_statistics_of_the_first(images, monkeypatch, world):
    first, mine = trained_model(images), trained_model(images)
    for buffer in mine.buffers():  # mine saw other images
        buffer.mul_(3)
    sent = iter([buffer.clone() for buffer in first.buffers()])
    monkeypatch.setattr(dist, "broadcast", lambda buffer, source: buffer.copy_(next(sent)))
    monkeypatch.setattr(dist, "all_reduce", lambda predictions: None)
    dataset = LongTailed(images, np.arange(301) % 4)
    _, features = predict(mine, dataset, rank=1, world=world)
    _, expected = predict(first, dataset)
    torch.testing.assert_close(features, expected[1::world], rtol=1e-4, atol=1e-4)


def test_logits_that_tie_in_bfloat16_are_told_apart(images):
    """A tie would go to the lower label, here always 0."""
    model = trained_model(images, precision="bfloat16")
    slightly = torch.tensor([[1], [1.0005], [0.9], [1.0002]])
    with torch.no_grad():
        model.h.weight.copy_(slightly * model.h.weight[0].abs())
        model.h.bias.zero_()
    rows = model.h.weight.bfloat16()
    assert (rows[0] == rows[1]).float().mean() > 0.8
    predictions, _ = predict(model, LongTailed(images[:64], [0] * 64))
    assert predictions.tolist() == [1] * 64


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


def test_test_csv_holds_the_shots_and_each_class(tmp_path):
    labels, predictions = of_counts([9, 8, 5, 4, 1, 0, 0], [10] * 6 + [0])
    write_test(tmp_path / "test.csv", labels, predictions, np.array([*N_c, 7]), "abcdef,")
    rows = list(csv.DictReader((tmp_path / "test.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["Many", "Medium", "Low", "Overall", *"0123456"]
    accuracies = [85, 45, 5, 45, 90, 80, 50, 40, 10, 0, np.nan]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(accuracies, nan_ok=True)
    assert [int(row["N_c"]) for row in rows[4:]] == [*N_c, 7]
    assert [row["name"] for row in rows[4:]] == list("abcdef,")
