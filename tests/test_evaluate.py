"""Sec. 4.2 against a hand-worked table and brute force."""

import numpy as np
import pytest
import torch

from data import LongTailed, shots
from evaluate import class_accuracy, predict, report, shot_accuracy
from model import Model

N_c = [500, 100, 99, 21, 20, 5]


def of_counts(right, total):
    """Labels and predictions with right[y] of the total[y] images of class y predicted as such."""
    labels, predictions = [], []
    for y, (r, n) in enumerate(zip(right, total)):
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
    assert class_accuracy(labels, predictions, 6).tolist() == [0.9, 0.8, 0.5, 0.4, 0.1, 0]
    assert shot_accuracy(labels, predictions, N_c) == pytest.approx(
        dict(Many=85, Medium=45, Low=5, Overall=45)
    )


def test_overall_is_over_images_and_shots_over_classes():
    counted = of_counts([30, 1, 0, 2, 0, 1], [30, 2, 10, 2, 4, 2])  # medium: 0 % and 100 %
    assert shot_accuracy(*counted, N_c) == pytest.approx(
        dict(Many=75, Medium=50, Low=25, Overall=68)
    )


def test_class_without_test_image_takes_no_part_and_empty_shot_is_a_dash(capsys):
    labels, predictions = of_counts([9, 0, 5, 5, 0, 0], [10, 0, 10, 10, 0, 0])
    row = shot_accuracy(labels, predictions, N_c)
    assert (
        row["Many"] == 90
        and row["Medium"] == 50
        and np.isnan(row["Low"])
        and row["Overall"] == pytest.approx(190 / 3)
    )
    report("title", LongTailed(None, labels), predictions, N_c)
    title, header, values = capsys.readouterr().out.splitlines()[:3]
    assert header.split() == ["Many", "Medium", "Low", "Overall"] and values.split() == [
        "90.0",
        "50.0",
        "–",
        "63.3",
    ]


def test_unbalanced_split_is_said(capsys):
    for total, said in (([2, 3], True), ([3, 3], False)):
        labels, predictions = of_counts([1, 1], total)
        report("title", LongTailed(None, labels), predictions, [5, 5])
        assert ("not balanced" in capsys.readouterr().out) == said


def test_predictions_equal_one_image_at_a_time():
    torch.manual_seed(0)
    model = Model("resnet10", 4)
    images, labels = torch.randint(256, (301, 3, 32, 32), dtype=torch.uint8), np.arange(301) % 4
    model(images[:64])  # running statistics
    predictions, features = predict(model, LongTailed(images, labels), False)
    model.eval()
    assert predictions.tolist() == [int(model(image[None])[0].argmax()) for image in images]
    torch.testing.assert_close(
        torch.cat(features), model.phi(images).detach(), rtol=1e-4, atol=1e-4
    )


def test_test_csv_holds_the_shots_and_each_class(tmp_path):
    labels, predictions = of_counts([9, 8, 5, 4, 1, 0], [10] * 6)
    report("title", LongTailed(None, labels), predictions, N_c, tmp_path)
    rows = [line.split(",") for line in (tmp_path / "test.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["class", "Many", "Medium", "Low", "Overall", *"012345"]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(
        [85, 45, 5, 45, 90, 80, 50, 40, 10, 0]
    )
    assert [int(row[1]) for row in rows[5:]] == N_c
