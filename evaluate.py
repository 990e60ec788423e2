"""Overall and many / medium / low-shot accuracy. Paper: Sec. 4.2; exports what Figures 3 and 4 draw.

    python evaluate.py runs/glyphs_lt-resnet10-CBS+RRS+SS_0.5_1_1-seed0/last.pt [--split val] [--export FILE.npz]
"""
import numpy as np
import torch
import torch.distributed as dist

from data import CORES, SPLITS, InputError, Parser, at_least, loader, load, run, shots
from model import Model

LAYOUT = "to-balance-or-not-to-balance 1"  # of a checkpoint


def load_checkpoint(path):
    """A checkpoint of train.py as a dict, on the CPU; data only, no code runs. Raises InputError."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        layout = dict(checkpoint)["layout"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint of this project, or damaged ({type(error).__name__})") from None
    if layout != LAYOUT:
        raise InputError(f"{path}: layout {layout!r}, but this version reads {LAYOUT!r}; use the version that wrote it")
    return checkpoint


def load_data(recipe, N_c=None):
    """The splits that a recipe names. Raises InputError where the training counts are not N_c, a checkpoint's."""
    sets = load(recipe["data"], recipe["root"], recipe["size"], recipe["imbalance"])
    if N_c is not None and sets["train"].N_c.tolist() != N_c:
        raise InputError(f"{recipe['data']} in {recipe['root']} is not what the checkpoint was trained on: "
                         "its training images per class differ")
    return sets


def use_bf16(device, amp):
    """Whether to run under bfloat16 autocast: where `amp` allows it and the hardware has it."""
    if device.type == "cuda":
        return amp and torch.cuda.is_bf16_supported(including_emulation=False)
    return amp and bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))


@torch.inference_mode()
def predict(model, dataset, device, amp, workers=0, rank=0, world=1):
    """Yield features [B, 512], predictions [B] and labels [B], on `device`, of images rank, rank + world, ..."""
    model.eval()
    share = range(rank, len(dataset), world)
    draws = [[(i, 0) for i in share[j:j + 256]] for j in range(0, len(share), 256)]
    for images, labels, _ in loader(dataset, draws, workers, device.type == "cuda"):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            features = model.phi(images.to(device, non_blocking=True))
            yield features, model.classifier(features).argmax(1), labels.to(device, non_blocking=True)


def evaluate(model, dataset, device, amp, workers=0, rank=0, world=1):
    """Correct and all images per class, int [2, C], summed over the processes of a distributed run."""
    counts = torch.zeros(2, model.classifier.out_features, dtype=torch.long, device=device)
    for _, predictions, labels in predict(model, dataset, device, amp, workers, rank, world):
        counts.index_add_(1, labels, torch.stack([predictions == labels, labels == labels]).long())
    if world > 1:
        dist.all_reduce(counts)
    return counts.cpu().numpy()


def shot_accuracy(counts, N_c):
    """Sec. 4.2, in percent: {"Many", "Medium", "Low": mean over the shot's classes of the accuracy per class,
    "Overall": over all images}. counts: int [2, C], see evaluate; N_c: int [C]. NaN for a shot without images."""
    correct, total = counts
    row = {shot: 100 * np.mean(correct[mask] / total[mask]) if mask.any() else np.nan
           for shot, mask in ((shot, mask & (total > 0)) for shot, mask in shots(N_c).items())}
    return row | {"Overall": 100 * correct.sum() / total.sum()}


def cell(accuracy):
    return "–" if np.isnan(accuracy) else f"{accuracy:.1f}"


def show(row, counts):
    """The paper's columns, in percent, an empty shot as –."""
    print(*(f"{shot:>7}" for shot in row))
    print(*(f"{cell(accuracy):>7}" for accuracy in row.values()))
    if np.ptp(counts[1]):
        print("(this split is not balanced: Overall is over images, the shots are means over classes)")


def main(argv=None):
    parser = Parser(description="Accuracy of a trained model; everything is rebuilt from its checkpoint.")
    add = parser.add_argument
    add("checkpoint", help="runs/.../last.pt")
    add("--split", choices=SPLITS, default="test", help="split to evaluate (default: test)")
    add("--export", metavar="FILE.npz", help="save labels, predictions, features, class_accuracy, N_c, weight_norms")
    add("--root", help="where the data is now (default: where it was in training)")
    add("--workers", type=at_least(int, 0), default=CORES, help="loading processes (default: %(default)s)")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    recipe = checkpoint["recipe"] | ({"root": args.root} if args.root else {})
    N_c = checkpoint["N_c"]
    dataset = load_data(recipe, N_c)[args.split]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(recipe["arch"], len(N_c), small_stem=recipe["small_stem"], predict_with=checkpoint["predict_with"])
    model.load_state_dict(checkpoint["model"])
    parts = predict(model.to(device), dataset, device, use_bf16(device, recipe["amp"]), args.workers)
    features, predictions, labels = (torch.cat(part).cpu().float().numpy() for part in zip(*parts))
    labels, predictions = labels.astype(int), predictions.astype(int)
    counts = np.stack([np.bincount(y, minlength=len(N_c)) for y in (labels[labels == predictions], labels)])
    print(f"{recipe['data']} {args.split}, {recipe['arch']}, {checkpoint['method']}, iteration {checkpoint['m']:,}")
    show(shot_accuracy(counts, N_c), counts)
    if args.export:
        with np.errstate(invalid="ignore"):
            np.savez(args.export, labels=labels, predictions=predictions, features=features, N_c=N_c,
                     class_accuracy=100 * counts[0] / counts[1],
                     weight_norms=model.classifier.weight.detach().norm(dim=1).cpu().numpy())


if __name__ == "__main__":
    run(main)
