"""Sec. 4.2 against a hand-worked table and brute force."""
import numpy as np
import pytest
import torch

from data import LongTailed, shots
from evaluate import evaluate, predict, shot_accuracy, show
from model import Model

N_c = [500, 100, 99, 21, 20, 5]


def test_shots_at_their_exact_borders():
    assert {k: v.tolist() for k, v in shots(N_c).items()} == {
        "Many": [True, True, False, False, False, False],
        "Medium": [False, False, True, True, False, False],
        "Low": [False, False, False, False, True, True]}


def test_hand_worked_table():
    counts = np.array([[9, 8, 5, 4, 1, 0], [10, 10, 10, 10, 10, 10]])
    assert shot_accuracy(counts, N_c) == pytest.approx(dict(Many=85, Medium=45, Low=5, Overall=45))


def test_overall_is_over_images_and_shots_over_classes():
    counts = np.array([[30, 1, 0, 2, 0, 1], [30, 2, 10, 2, 4, 2]])  # medium: 0 % and 100 %
    assert shot_accuracy(counts, N_c) == pytest.approx(dict(Many=75, Medium=50, Low=25, Overall=68))


def test_class_without_test_image_takes_no_part_and_empty_shot_is_a_dash(capsys):
    row = shot_accuracy(np.array([[9, 0, 5, 5, 0, 0], [10, 0, 10, 10, 0, 0]]), N_c)
    assert row["Many"] == 90 and row["Medium"] == 50 and np.isnan(row["Low"]) and row["Overall"] == pytest.approx(190 / 3)
    show(row, np.array([[0], [10]]))
    header, values = capsys.readouterr().out.splitlines()
    assert header.split() == ["Many", "Medium", "Low", "Overall"] and values.split() == ["90.0", "50.0", "–", "63.3"]


def test_unbalanced_split_is_said(capsys):
    counts = np.array([[1, 1], [2, 3]])
    show(shot_accuracy(counts, [5, 5]), counts)
    assert "not balanced" in capsys.readouterr().out


@pytest.mark.parametrize("world", [1, 2, 3])
def test_counts_equal_one_image_at_a_time(world):
    """Also over several shares of a set that does not divide evenly: no image is missed or counted twice."""
    torch.manual_seed(0)
    model = Model("resnet10", 4)
    images, labels = torch.randint(256, (301, 3, 32, 32), dtype=torch.uint8), np.arange(301) % 4
    dataset = LongTailed(images, labels)
    model(images[:64])  # running statistics
    shares = []
    for rank in range(world):
        parts = predict(model, dataset, torch.device("cpu"), False, 0, rank, world)
        shares.append([torch.cat(x).numpy() for x in zip(*parts)])
    expected = np.zeros((2, 4), int)
    model.eval()
    for image, y in zip(images, labels):
        expected[1, y] += 1
        expected[0, y] += int(model(image[None])[0].argmax()) == y
    counts = sum(np.stack([np.bincount(y[p == y], minlength=4), np.bincount(y, minlength=4)]) for _, p, y in shares)
    assert (counts == expected).all()
    if world == 1:
        assert (evaluate(model, dataset, torch.device("cpu"), False) == expected).all()
        torch.testing.assert_close(torch.from_numpy(shares[0][0]), model.phi(images).detach(), rtol=1e-4, atol=1e-4)
