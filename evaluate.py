"""Overall and many / medium / low-shot accuracy (Sec. 4.2), and what Figs. 3 and 4 draw.

    row = shot_accuracy(labels, predictions, N_c)     # {"Many": 95.9, "Medium": ..., ...}

    python evaluate.py runs/RUN/last.pt [--split val] [--export FILE.npz]

The shots are those of the training set, whatever split is evaluated.
"""

import argparse
import csv
import math
import zipfile

import numpy as np
import torch
import torch.distributed as dist

from data import WORKERS, InputError, load, loader, look_up_images, run, shots
from model import Model


def class_accuracy(labels, predictions, C):
    """Accuracy per class in percent, [C]; NaN for a class without images. labels and predictions:
    int [N]."""
    total = np.bincount(labels, minlength=C)
    right = np.bincount(labels[labels == predictions], minlength=C)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return 100 * (right / total)


def shot_accuracy(labels, predictions, N_c):
    """Sec. 4.2, in percent. "Many", "Medium" and "Low" are means of the shot's class accuracies.
    "Overall" is over all images. Sec. 4.2 has it "over all classes", which is the same if the split
    is balanced. NaN if there are no images. N_c: training images per class, int [C].
    """
    accuracy = class_accuracy(labels, predictions, len(N_c))
    row = {}
    for shot, mask in shots(N_c).items():
        mask = mask & ~np.isnan(accuracy)
        row[shot] = float(accuracy[mask].mean()) if mask.any() else math.nan
    row["Overall"] = 100 * float(np.mean(labels == predictions)) if len(labels) else math.nan
    return row


@torch.inference_mode()
def predict(model, dataset, workers=0, rank=0, world=1):
    """Predictions for a split, int [N], and features, float [N, 512] on the model's device.

    Processes share the work and use rank 0's BatchNorm statistics. Each gets all predictions, but
    only the features of its own images. Leaves the model in eval mode. Raises InputError if a logit
    is not finite.
    """
    model.eval()
    device = model.h.weight.device
    if world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    mine = range(rank, len(dataset), world)
    features = [torch.empty(0, 512, device=device)]  # in case this process has no images
    for images, _ in loader(dataset, workers, sampler=mine, batch_size=256):
        features.append(model.phi(images.to(device, non_blocking=True)))
    features = torch.cat(features)
    logits = model.h(features)
    if not logits.isfinite().all():
        raise InputError("the model's logits are not finite")
    predictions = torch.zeros(len(dataset), dtype=torch.long, device=device)
    predictions[rank::world] = logits.argmax(1)
    if world > 1:
        dist.all_reduce(predictions)  # the sum; images of other processes have 0 here
    return predictions.cpu().numpy(), features


def report(split, dataset, predictions, N_c):
    """Print the columns of the paper's tables, in percent."""
    row = shot_accuracy(dataset.labels, predictions, N_c)
    titles = "Many (>=100 images)", "Medium (21-99)", "Low (<=20)", "Overall"
    title = f"{split} accuracy (%)"
    print(title, *titles, sep="  ")
    cells = [f"{cell(x, 1):>{len(t)}}" for x, t in zip(row.values(), titles, strict=True)]
    print(" " * len(title), *cells, sep="  ")
    if np.ptp(np.bincount(dataset.labels, minlength=len(N_c))):  # not balanced
        print("Overall is the mean over images, the others over the classes that have images.")


def cell(x, digits):
    return "-" if math.isnan(x) else f"{x:.{digits}f}"


def write_test(path, labels, predictions, N_c):
    """Write test.csv: the accuracy of each shot, then of each class."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["class", "N_c", "accuracy"])
        for shot, accuracy in shot_accuracy(labels, predictions, N_c).items():
            rows.writerow([shot, "", accuracy])
        accuracies = class_accuracy(labels, predictions, len(N_c))
        for y, (n, accuracy) in enumerate(zip(N_c, accuracies, strict=True)):
            rows.writerow([y, n, accuracy])


def load_checkpoint(path):
    """A checkpoint of train.py, on the CPU. Loads data only; runs no code from the file. Raises
    InputError if the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not check the checksums
    except Exception as error:
        damaged = error
    if damaged:
        raise InputError(f"{path} is not a readable checkpoint ({damaged})")
    return torch.load(path, map_location="cpu", weights_only=True)


def describe_run(checkpoint):
    """What was trained, in one line."""
    settings = checkpoint["settings"]
    epoch = f"epoch {len(checkpoint['record'])} of {settings['epochs']}"
    return f"{checkpoint['method']} on {settings['data']}, {settings['arch']}, {epoch}"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Accuracy of a trained checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="last.pt of a run")
    add("--split", choices=["val", "test"], default="test", help="split to evaluate")
    add("--export", metavar="FILE.npz", help="save predictions, features and weight norms")
    add("--root", metavar="DIR", help="dataset folder, if it has moved since training")
    add("--workers", type=int, default=WORKERS, help="data-loading processes")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    settings = checkpoint["settings"]
    N_c = np.array(checkpoint["N_c"])
    root = settings["root"] if args.root is None else args.root
    dataset = load(settings["data"], root, settings["size"], [args.split])[args.split]
    look_up_images(dataset)
    if dataset.checksum != checkpoint["checksums"][args.split]:
        print(f"warning: {settings['data']} in {root}: not the run's {args.split} split")
    model = Model(
        settings["arch"],
        len(N_c),
        small_stem=settings["small_stem"],
        precision=settings["precision"],
    )
    model.load_state_dict(checkpoint["model"])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(describe_run(checkpoint))
    predictions, features = predict(model, dataset, args.workers)
    report(args.split, dataset, predictions, N_c)
    if args.export:
        np.savez(
            args.export,
            labels=dataset.labels,
            predictions=predictions,
            N_c=N_c,
            features=features.cpu().numpy(),  # Fig. 4, Sec. 4.6
            class_accuracy=class_accuracy(dataset.labels, predictions, len(N_c)),  # Fig. 3
            weight_norms=model.h.weight.detach().norm(dim=1).cpu().numpy(),  # Fig. 4, Sec. 4.6
        )
        print(f"saved {args.export}")


if __name__ == "__main__":
    run(main)
