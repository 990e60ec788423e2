"""Overall and many / medium / low-shot accuracy. Sec. 4.2; exports what Figures 3 and 4 draw.

    row = shot_accuracy(labels, predictions, N_c)     # {"Many": 95.9, "Medium": ..., ...}

    python evaluate.py runs/RUN/last.pt [--split val] [--export FILE.npz]
"""
import argparse, os

import numpy as np
import torch
import torch.distributed as dist

from data import SPLITS, WORKERS, Parser, explain, load, loader, number, require, run, shots
from model import Model, has_bf16

LAYOUT = "to-balance-or-not-to-balance 2"  # of a checkpoint

def class_accuracy(labels, predictions, C):
    """Share of right predictions, both int [N], per class: [C], NaN for a class without images."""
    right, total = (np.bincount(y, minlength=C) for y in (labels[labels == predictions], labels))
    return np.divide(right, total, out=np.full(C, np.nan), where=total > 0)

def shot_accuracy(labels, predictions, N_c):
    """Sec. 4.2, in percent: {"Many", "Medium", "Low": mean over the shot's classes of the accuracy
    per class, "Overall": over all images}; NaN for a shot without images. N_c: int [C]."""
    accuracy, row = class_accuracy(labels, predictions, len(N_c)), {}
    for shot, mask in shots(N_c).items():
        mask = mask & ~np.isnan(accuracy)
        row[shot] = 100 * accuracy[mask].mean() if mask.any() else np.nan
    return row | {"Overall": 100 * (labels == predictions).sum() / len(labels)}

def report(title, dataset, predictions, N_c, out=None):
    """Print the paper's columns, in percent; out: a folder, for them and each class in test.csv."""
    labels, row = dataset.labels, shot_accuracy(dataset.labels, predictions, N_c)
    if out:
        classes = class_accuracy(labels, predictions, len(N_c))
        lines = ["class,N_c,accuracy"] + [f"{shot},,{a}" for shot, a in row.items()]
        lines += [f"{y},{n},{100 * a}" for y, (n, a) in enumerate(zip(N_c, classes))]
        write(f"{out}/test.csv", ("\n".join(lines) + "\n").encode())
    values = " ".join(f"{accuracy:7.1f}" for accuracy in row.values()).replace("nan", "  –")
    print(title, " ".join(f"{shot:>7}" for shot in row), values, sep="\n")
    if np.ptp(np.bincount(labels)):
        print("(this split is not balanced: Overall is over images, the shots over classes)")

def write(path, content):
    """Save bytes completely or not at all. Raises InputError."""
    with explain(f"{path}: cannot be saved; what was saved before is untouched", OSError):
        with open(f"{path}.tmp", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)

@torch.inference_mode()
def predict(model, dataset, amp, workers=0, rank=0, world=1):
    """Predictions for a split, int [N], and features, a list of [B, 512]. Many processes share the
    work and the first one's batch statistics; each gets all predictions, but its own features."""
    model.eval()
    device, features = model.classifier.weight.device, []
    for buffer in model.buffers() if world > 1 else ():
        dist.broadcast(buffer, 0)
    predictions = torch.zeros(len(dataset), dtype=torch.long, device=device)
    share = range(rank, len(dataset), world)
    batches = [share[i:i + 256] for i in range(0, len(share), 256)]
    for i, (images, _) in zip(batches, loader(dataset, batches, workers, device.type == "cuda")):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp and has_bf16(device)):
            features.append(model.phi(images.to(device, non_blocking=True)))
            predictions[i.start:i.stop:world] = model.classifier(features[-1]).argmax(1)
    if world > 1:
        dist.all_reduce(predictions)
    model.train()
    return predictions.cpu().numpy(), features

def load_checkpoint(path):
    """A checkpoint of train.py, on the CPU; data only, no code runs. Raises InputError."""
    with explain(f"{path}: not a checkpoint of this project, or damaged", Exception):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        layout = dict(checkpoint)["layout"]
    require(layout == LAYOUT, f"{path}: layout {layout!r}; only the version that wrote it reads it")
    return checkpoint

def load_data(args, checkpoint=None, splits=SPLITS):
    """The splits that settings name. Raises InputError where they are not the checkpoint's."""
    sets = load(args.data, args.root, args.size, args.imbalance, splits=splits)
    for split in ["train", *splits]:
        require(not checkpoint or sets[split].fingerprint == checkpoint["lists"][split],
                f"{args.data} in {args.root}: its {split} list is not the one trained with")
    return sets

def main(argv=None):
    parser = Parser("Accuracy of a trained model, rebuilt from its checkpoint.")
    add = parser.add_argument
    add("checkpoint", help="runs/.../last.pt")
    add("--split", choices=SPLITS, default="test", help="split to evaluate")
    add("--export", metavar="FILE.npz", help="save what the figures need")
    add("--root", metavar="DIR", help="where the data is now; None: where it was in training")
    add("--workers", type=number(int, 0), default=WORKERS, help="loading processes")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    recipe, N_c = argparse.Namespace(**checkpoint["recipe"]), checkpoint["N_c"]
    recipe.root = args.root or recipe.root
    dataset = load_data(recipe, checkpoint, [args.split])[args.split]
    model = Model(recipe.arch, len(N_c), False, recipe.small_stem, checkpoint["predict_with"])
    model.load_state_dict(checkpoint["model"])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    predictions, features = predict(model, dataset, recipe.amp, args.workers)
    report(f"{recipe.data} {args.split}, {recipe.arch}, {checkpoint['method']}, iteration "
           f"{checkpoint['m']:,}", dataset, predictions, N_c)
    if args.export:
        np.savez(args.export, labels=dataset.labels, predictions=predictions, N_c=N_c,
                 features=torch.cat(features).float().cpu().numpy(),
                 class_accuracy=100 * class_accuracy(dataset.labels, predictions, len(N_c)),
                 weight_norms=model.classifier.weight.detach().norm(dim=1).cpu().numpy())

if __name__ == "__main__":
    run(main)
