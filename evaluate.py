"""Overall and many / medium / low-shot accuracy. Sec. 4.2; exports what Figs. 3 and 4 draw.

    row = shot_accuracy(labels, predictions, N_c)     # {"Many": 95.9, "Medium": ..., ...}

    python evaluate.py runs/RUN/last.pt [--split val] [--export FILE.npz]

The shots are those of the training set, whatever split is evaluated.
"""

import argparse
import csv
import io
import os
import sys
import zipfile

import numpy as np
import torch
import torch.distributed as dist

from data import CORES, SPLITS, InputError, load, loader, write
from model import Model, has_bf16

LAYOUT = "to-balance-or-not-to-balance 3"  # of a checkpoint, as train.py's save writes it


def shots(N_c):
    """Sec. 4.2: {"Many", "Medium", "Low": bool [C]} by training images per class, int [C]."""
    N_c = np.asarray(N_c)
    return {"Many": N_c >= 100, "Medium": (N_c > 20) & (N_c < 100), "Low": N_c <= 20}


def class_accuracy(labels, predictions, C):
    """Percent of right predictions, both int [N], per class: [C]; NaN where there are no images."""
    total = np.bincount(labels, minlength=C)
    right = np.bincount(labels[labels == predictions], minlength=C)
    return 100 * np.divide(right, total, out=np.full(C, np.nan), where=total > 0)


def shot_accuracy(labels, predictions, N_c):
    """Sec. 4.2, in percent: {"Many", "Medium", "Low": mean over the shot's classes of the accuracy
    per class, "Overall": over all images, which is the mean over all classes only where a split is
    balanced}; NaN for a shot without images. N_c: int [C]."""
    accuracy = class_accuracy(labels, predictions, len(N_c))
    row = {}
    for shot, mask in shots(N_c).items():
        mask = mask & ~np.isnan(accuracy)
        row[shot] = float(accuracy[mask].mean()) if mask.any() else float("nan")
    right = labels == predictions
    row["Overall"] = 100 * float(right.mean()) if len(right) else float("nan")
    return row


@torch.inference_mode()
def predict(model, dataset, workers=0, rank=0, world=1):
    """Predictions for a split, int [N], and features, a list of [B, 512]. Many processes share the
    work, and the first one's running statistics of BatchNorm; each gets all predictions, but its
    own features. Leaves the model in eval mode. Raises InputError where a logit is not finite."""
    model.eval()
    device = model.h.weight.device
    if world > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    mine = range(rank, len(dataset), world)
    predictions = torch.zeros(len(dataset), dtype=torch.long, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    features = []
    predicted = []
    for images, _ in loader(dataset, workers, sampler=mine, batch_size=256):
        features.append(model.phi(images.to(device, non_blocking=True)))
        logits = model.h(features[-1])
        predicted.append(logits.argmax(1))
        finite &= logits.isfinite().all()
    if not finite:
        raise InputError(
            "the model's logits are not finite: it was trained too fast, or is damaged"
        )
    if predicted:
        predictions[rank::world] = torch.cat(predicted)
    if world > 1:
        dist.all_reduce(predictions)  # a sum: the images of other processes have 0 here
    return predictions.cpu().numpy(), features


def report(split, dataset, predictions, N_c):
    """Print the paper's columns, in percent, and what to know of the split."""
    titles = "Many (>=100 images)", "Medium (21-99)", "Low (<=20)", "Overall"
    row = shot_accuracy(dataset.labels, predictions, N_c)
    print("  ".join([f"{split} accuracy (%)", *titles]))
    cells = ["-" if np.isnan(x) else f"{x:.1f}" for x in row.values()]
    indent = " " * len(f"{split} accuracy (%)")
    print("  ".join([indent, *(f"{x:>{len(t)}}" for x, t in zip(cells, titles, strict=True))]))
    if absent := (dataset.N_c == 0).sum():
        print(f"({absent} classes have no {split} image and take no part)")
    if np.ptp(dataset.N_c[dataset.N_c > 0]):
        print("(this split is not balanced: Overall is over images, the shots over classes)")
    if dataset.overlap:
        print(f"warning: {dataset.overlap:,} of these {len(dataset):,} images are training images")


def table(labels, predictions, N_c):
    """test.csv: the shots, then each class, as bytes."""
    rows = [[shot, "", a] for shot, a in shot_accuracy(labels, predictions, N_c).items()]
    classes = class_accuracy(labels, predictions, len(N_c)).tolist()
    rows += [[y, n, a] for y, (n, a) in enumerate(zip(N_c, classes, strict=True))]
    return csv_bytes(["class", "N_c", "accuracy"], rows)


def csv_bytes(header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


# What a checkpoint must hold, so that a foreign or damaged file is refused when it is read.
FIELDS = {
    "method": str,
    "settings": dict,
    "root": str,
    "lists": dict,
    "N_c": list,
    "workers": int,
    "threads": int,
    "epoch": int,
    "record": list,
    "model": dict,
    "optimizer": dict,
    "schedule": dict,
}
SETTINGS = {
    "data": str,
    "arch": str,
    "size": int,
    "imbalance": float,
    "epochs": int,
    "small_stem": bool,
    "lambdas": list,
    "precision": str,
}


def load_checkpoint(path):
    """A checkpoint of train.py, on the CPU; data only, no code runs. Raises InputError."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # torch.load does not look at the checksums
                raise ValueError(damaged)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        layout = checkpoint["layout"]
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint ({type(error).__name__}), or damaged") from None
    if layout != LAYOUT:
        raise InputError(f"{path}: layout {layout!r}; only the version that wrote it reads it")
    if not (fits(checkpoint, FIELDS) and fits(checkpoint["settings"], SETTINGS)):
        raise InputError(f"{path}: not a checkpoint, or damaged")
    return checkpoint


def fits(fields, kinds):
    return all(isinstance(fields.get(key), kind) for key, kind in kinds.items())


def load_model(checkpoint, device):
    """The model of a checkpoint, in eval mode, on the CPU; `device` is where it will predict."""
    settings = checkpoint["settings"]
    model = Model(
        settings["arch"],
        len(checkpoint["N_c"]),
        tied=not settings["lambdas"][0],
        small_stem=settings["small_stem"],
        amp=settings["precision"] == "bfloat16" and has_bf16(device),
    )
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Accuracy of a trained model, by its checkpoint.",
        epilog="""examples:
  python evaluate.py runs/RUN/last.pt --split val
  python evaluate.py runs/RUN/last.pt --export figures.npz""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="last.pt of a run")
    add("--split", choices=SPLITS, default="test", help="split to evaluate (default: test)")
    add("--export", metavar="FILE.npz", help="save predictions, features and weight norms")
    add("--root", metavar="DIR", help="dataset folder, where it moved since training")
    add(
        "--workers",
        type=int,
        default=min(16, CORES),
        help="loading processes (default: cores, up to 16)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.workers <= 256:
        parser.error("--workers must be 0 to 256")
    if args.root == "":
        parser.error("--root must not be empty")
    if args.export is not None:
        if not args.export.endswith(".npz"):
            parser.error(f"--export {args.export}: must end in .npz")
        if not os.path.isdir(os.path.dirname(args.export) or "."):
            parser.error(f"--export {args.export}: no such folder")
    return args


def main(argv=None):
    args = parse(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        settings = checkpoint["settings"]
        train_list = checkpoint["lists"]["train list"]
        own_list = checkpoint["lists"][f"{args.split} list"]
        model = load_model(checkpoint, device)
        data = settings["data"]
        root = args.root or checkpoint["root"]
        title = f"{checkpoint['method']} on {data}, {settings['arch']}"
        title += f", epoch {checkpoint['epoch']} of {settings['epochs']}"
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise InputError(f"{args.checkpoint}: not a checkpoint, or damaged") from None
    sets = load(data, root, settings["size"], settings["imbalance"], splits=[args.split])
    if sets["train"].fingerprint != train_list:
        raise InputError(f"{data} in {root}: its train list is not the one trained with")
    N_c = sets["train"].N_c
    dataset = sets[args.split]
    if not len(dataset):  # val of CIFAR-LT with --imbalance 1
        raise InputError(f"{data} has no {args.split} image")
    dataset.transform = sets["test"].transform  # also of training images: no augmentation
    print(title)
    if dataset.fingerprint != own_list:
        print(f"the {args.split} list in {root} is not the one that training used")
    if model.phi.amp != (settings["precision"] == "bfloat16"):
        print("computed in float32, trained in bfloat16: the accuracy may differ slightly")
    predictions, features = predict(model.to(device), dataset, args.workers)
    report(args.split, dataset, predictions, N_c)
    if args.export:
        arrays = io.BytesIO()
        np.savez(
            arrays,
            labels=dataset.labels,
            predictions=predictions,
            N_c=N_c,
            features=torch.cat(features).cpu().numpy(),  # Fig. 4, Sec. 4.6
            class_accuracy=class_accuracy(dataset.labels, predictions, len(N_c)),  # Fig. 3
            weight_norms=model.h.weight.detach().norm(dim=1).cpu().numpy(),  # Fig. 4, Sec. 4.6
        )
        write(args.export, arrays.getbuffer())
        print(f"saved {args.export}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names in any encoding
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("evaluate.py: interrupted")
    except (InputError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        sys.exit(f"evaluate.py: a loading process ended ({error})")
