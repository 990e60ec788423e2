"""Overall and many / medium / low-shot accuracy (Sec. 4.2), and what Figs. 3 and 4 draw.

    row = shot_accuracy(labels, predictions, N_c)     # {"Many": 95.9, "Medium": ..., ...}

    python evaluate.py runs/RUN/last.pt [--split val] [--export FILE.npz]
    python evaluate.py runs/RUN/last.pt --image FILE     # the most likely classes of an image

The shots are those of the training set, whatever split is evaluated.
"""

import argparse
import csv
import math
import zipfile

import numpy as np
import torch
import torch.distributed as dist

from data import WORKERS, centre_crop, load, loader, look_up_images, read_image, run, shots
from model import Model
from sampler import InputError


def class_accuracy(labels, predictions, C):
    """Accuracy per class in percent, [C]; NaN for a class without images. labels and predictions:
    int [N]."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    total = np.bincount(labels, minlength=C)
    right = np.bincount(labels[labels == predictions], minlength=C)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return 100 * (right / total)


def shot_accuracy(labels, predictions, N_c):
    """Sec. 4.2, in percent: means of the class accuracies, over the classes of a shot and "Overall"
    over all classes. Classes without images take no part; NaN if no class is left. N_c: training
    images per class, int [C]."""
    accuracy = class_accuracy(labels, predictions, len(N_c))
    every = np.ones(len(N_c), dtype=bool)
    row = {}
    for shot, mask in (shots(np.asarray(N_c)) | {"Overall": every}).items():
        existing = accuracy[mask & ~np.isnan(accuracy)]
        row[shot] = float(existing.mean()) if len(existing) else math.nan
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


def cell(x, digits):
    return "-" if math.isnan(x) else f"{x:.{digits}f}"


def write_test(path, labels, predictions, N_c, names):
    """Write test.csv: the accuracy of each shot, then of each class."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["class", "name", "N_c", "accuracy"])
        by_shot = shot_accuracy(labels, predictions, N_c)
        rows.writerows([shot, "", "", accuracy] for shot, accuracy in by_shot.items())
        by_class = class_accuracy(labels, predictions, len(N_c))
        rows.writerows(zip(range(len(N_c)), names, N_c, by_class, strict=True))


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


def load_model(path):
    """The trained network, ready to predict on the GPU if there is one, and its checkpoint. "names"
    in the checkpoint are the classes, and "settings" has the size of an image."""
    checkpoint = load_checkpoint(path)
    settings = checkpoint["settings"]
    network = {key: settings[key] for key in ("arch", "small_stem", "precision")}
    model = Model(C=len(checkpoint["N_c"]), **network)
    model.load_state_dict(checkpoint["model"])  # of RRS-Only, too: it has h_a also as h
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval(), checkpoint


@torch.inference_mode()
def classify(model, checkpoint, path):
    """The five most likely classes of an image file (Sec. 3.4): [(name, probability)]."""
    settings = checkpoint["settings"]
    image = centre_crop(settings["data"], settings["size"])(read_image(path))
    logits = model(image[None].to(model.h.weight.device))[0]
    best = logits.softmax(0).topk(min(5, len(logits)))
    names = [checkpoint["names"][y] for y in best.indices.tolist()]
    return list(zip(names, best.values.tolist(), strict=True))


def describe_run(checkpoint):
    """What was trained, in one line."""
    settings = checkpoint["settings"]
    epoch = f"epoch {len(checkpoint['record'])} of {settings['epochs']}"
    return f"{checkpoint['method']} on {settings['data']}, {settings['arch']}, {epoch}"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Accuracy of a trained checkpoint, or its prediction for an image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="last.pt of a run")
    add("--image", metavar="FILE", help="only predict the class of this image")
    add("--split", choices=["val", "test"], default="test", help="split to evaluate")
    add("--export", metavar="FILE.npz", help="save predictions, features and weight norms")
    add("--root", metavar="DIR", help="dataset folder, if it has moved since training")
    add("--workers", type=int, default=WORKERS, help="data-loading processes")
    args = parser.parse_args(argv)
    model, checkpoint = load_model(args.checkpoint)
    print(describe_run(checkpoint))
    if args.image:
        for name, probability in classify(model, checkpoint, args.image):
            print(f"{100 * probability:5.1f} %  {name}")
        return
    settings = checkpoint["settings"]
    N_c = np.array(checkpoint["N_c"])
    root = settings["root"] if args.root is None else args.root
    dataset = load(settings["data"], root, settings["size"], [args.split])[args.split]
    if len(dataset.N_c) > len(N_c):
        raise InputError(f"{settings['data']} in {root} has more classes than the run's {len(N_c)}")
    look_up_images(dataset)
    if dataset.checksum != checkpoint["checksums"][args.split]:
        print(f"warning: {settings['data']} in {root}: not the run's {args.split} split")
    predictions, features = predict(model, dataset, args.workers)
    report(args.split, dataset, predictions, N_c)
    if args.export:
        file = args.export.removesuffix(".npz") + ".npz"
        images = {} if torch.is_tensor(dataset.images) else {"images": dataset.images}
        np.savez(
            file,
            **images,
            labels=dataset.labels,
            predictions=predictions,
            N_c=N_c,
            features=features.cpu().numpy(),  # Fig. 4, Sec. 4.6
            class_accuracy=class_accuracy(dataset.labels, predictions, len(N_c)),  # Fig. 3
            weight_norms=model.h.weight.detach().norm(dim=1).cpu().numpy(),  # Fig. 4, Sec. 4.6
        )
        print(f"saved {file}")


if __name__ == "__main__":
    run(main)
