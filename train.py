"""Training: Algorithm 1 and Eq. 2. Secs. 3.4 and 4.4.

    python train.py                                                     # glyphs_lt, also on a CPU
    python train.py --data imagenet_lt --arch resnet10 --root DIR       # Table 1, on one GPU
    torchrun --nproc_per_node=8 train.py --data imagenet_lt --root DIR  # the same on 8 GPUs
    python train.py --lambdas 0 1 0 --out runs/RRS                      # the baseline RRS-Only
    python train.py --lambdas 1 0 0 --init runs/RRS/last.pt             # then ftRRS+CBS
    python train.py --resume runs/RUN     # continue a run after its last completed epoch

Each run writes to a new folder, by default below runs/.
"""

import argparse
import csv
import math
import os
import sys
import time
from datetime import timedelta

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave the cores to others

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn import SyncBatchNorm
from torch.optim.lr_scheduler import CosineAnnealingLR

from data import WORKERS, augment, load, loader, look_up_images, run
from evaluate import cell, describe_run, load_checkpoint, predict, report, shot_accuracy, write_test
from model import ARCHS, Model, best_precision
from sampler import ClassBalancedSampler, InputError, JointBatchSampler, RegularRandomSampler


# ------------------------------------------------------------------------------ Algorithm 1
def train(args, checkpoint, device, rank=0, world=1):  # noqa: C901 (long, but in one piece)
    """Run Algorithm 1 as process `rank` of `world`, from scratch or from a checkpoint.

    args, checkpoint: what `parse` returns. Raises InputError.
    """
    if rank == 0 and checkpoint is None and os.path.exists(args.out):
        raise InputError(f"{args.out} exists: choose another --out, or --resume that run")
    source = None  # the run that phi comes from (Table 3)
    if checkpoint is None and args.init is not None:
        source = from_first(load_checkpoint(args.init) if rank == 0 else None)
        if source["settings"]["arch"] != args.arch:
            raise InputError(f"{args.init} needs --arch {source['settings']['arch']}")

    sets = load(args.data, args.root, args.size)
    N_c = sets["train"].N_c
    C = len(N_c)
    batches = make_batches(args, sets["train"], rank, world)
    M = args.epochs * len(batches)
    look_up_images(*sets.values())
    model, optimizer, schedule = build(args, C, M, device, source, checkpoint)

    # What last.pt holds beside the weights. All processes must have the dataset of the first one,
    # and a resumed run that of its start.
    checksums = {split: dataset.checksum for split, dataset in sets.items()}
    new_run = {
        "method": name_of_method(args, source, checksums),
        "settings": vars(args),
        "checksums": checksums,
        "N_c": N_c.tolist(),
        "names": sets["train"].names,
        "record": [],
    }
    state = checkpoint or from_first(new_run)
    if state["checksums"] != checksums:
        raise InputError(f"{args.data} in {args.root} is not the dataset of this run")
    record = state["record"]
    if rank == 0 and checkpoint is None:
        os.makedirs(args.out)
        save(state, model, optimizer, schedule)
    if world > 1 and device.type == "cuda":  # SyncBatchNorm needs CUDA
        SyncBatchNorm.convert_sync_batchnorm(model)  # in place; the parameters stay the same
    print(f"{state['method']}: {C} classes, {N_c.sum():,} images, {M:,} iterations; to {args.out}")
    print(vars(args), flush=True)

    phi, h, h_a, h_s = model.phi, model.h, model.h_a, model.h_s
    lambda_1, lambda_2, lambda_3 = args.lambdas
    # How many images of B_CBS and of B_RRS this process has. If a loss has weight 0, its batch is
    # empty, and cross_entropy returns 0.
    share = args.batch_size // world
    S_CBS = share if lambda_1 else 0
    S_RRS = share if lambda_2 else 0
    progress = Progress(len(record) * len(batches), M, (S_CBS + S_RRS) * world)

    for epoch in range(len(record), args.epochs):
        # Reseed each epoch, so that a run resumed with as many processes and workers draws the same
        # crops, flips, colours and angles.
        seed = np.random.SeedSequence([args.seed, epoch, rank]).generate_state(1)
        torch.manual_seed(int(seed[0]))
        batches.batch_sampler.set_epoch(epoch)
        model.train()
        losses = {"l_CBS": Losses(C, device), "l_RRS": Losses(C, device), "l_SS": Losses(4, device)}
        # Lines 2-8 are in sampler.py. B is [B_CBS; B_RRS], or this process's share of both. It is
        # uint8; phi normalises it.
        for m, (B, Y) in enumerate(batches, epoch * len(batches) + 1):  # line 1
            B = B.to(device, non_blocking=True)
            Y = Y.to(device, non_blocking=True)
            Y_CBS, Y_RRS = Y.split([S_CBS, S_RRS])
            if sets["train"].augmented:
                B = augment(B)
            if lambda_3 or args.rotation_augmentation:
                # Sec. 3.3: each image is rotated by 0, 90, 180 or 270 degrees, at random.
                theta = torch.randint(4, (len(B),), device=device)
                B_theta = rotate(B, theta)  # line 9
            else:
                theta, B_theta = Y[:0], B[:0]  # empty

            # Algorithm 1 shows three passes through phi. Sec. 3.4 concatenates B_CBS and B_RRS.
            # Our choice: one pass over all three, so BatchNorm's statistics cover all of them.
            f = phi(torch.cat([B, B_theta]))
            f_CBS, f_RRS, f_theta = f.split([S_CBS, S_RRS, len(B_theta)])
            # Table 5, not in Algorithm 1. Rotated images become extra training images of the same
            # class. Sec. 4.5 feeds all four rotations; we add one, at a random angle (our choice).
            if args.rotation_augmentation:
                f_CBS = torch.cat([f_CBS, f_theta[:S_CBS]])
                f_RRS = torch.cat([f_RRS, f_theta[S_CBS:]])
                Y_CBS = Y_CBS.repeat(2)
                Y_RRS = Y_RRS.repeat(2)
            l_CBS, each_CBS = cross_entropy(h(f_CBS), Y_CBS)  # line 10
            l_RRS, each_RRS = cross_entropy(h_a(f_RRS), Y_RRS)  # line 10
            l_SS, each_SS = cross_entropy(h_s(f_theta), theta)  # line 11; theta is Y_theta
            L_Final = lambda_1 * l_CBS + lambda_2 * l_RRS + lambda_3 * l_SS  # line 11, Eq. 2

            optimizer.zero_grad()
            L_Final.backward()
            if world > 1:
                average_gradients(model, world)
            optimizer.step()  # line 12
            schedule.step()  # the cosine of Sec. 4.4
            losses["l_CBS"].add(each_CBS, Y_CBS)
            losses["l_RRS"].add(each_RRS, Y_RRS)
            losses["l_SS"].add(each_SS, theta)
            progress.line(m)
            # line 13: end for

        row = record_row(epoch, m, losses, args.lambdas, world)
        if not math.isfinite(row["L_Final"]):
            raise InputError(f"the loss of epoch {epoch + 1} is not finite; try a lower --lr")
        predictions, _ = predict(model, sets["val"], args.workers, rank, world)
        accuracy = shot_accuracy(sets["val"].labels, predictions, N_c)
        record.append(row | {f"val_{shot}": x for shot, x in accuracy.items()})
        if rank == 0:
            save(state, model, optimizer, schedule)
        progress.row(m, record[-1])

    # Our choice: test the model of the last epoch. [19] tests the epoch with the best validation
    # accuracy.
    predictions, _ = predict(model, sets["test"], args.workers, rank, world)
    report("test", sets["test"], predictions, N_c)
    if rank == 0:
        write_test(f"{args.out}/test.csv", sets["test"].labels, predictions, N_c, state["names"])
    print(f"saved last.pt, record.csv and test.csv in {args.out}")


def rotate(B, theta):
    """Line 9, Sec. 3.3: turn image i of B [n, 3, H, H] left by theta[i] quarter turns, 0..3."""
    turned = torch.stack([B.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned[theta, torch.arange(len(B), device=B.device)]


def cross_entropy(logits, Y):
    """The loss l of Sec. 3.4: its mean over the batch (0 if empty), and the loss of each image [n],
    detached."""
    each = F.cross_entropy(logits, Y, reduction="none")
    return each.sum() / max(len(Y), 1), each.detach()


# ------------------------------------------------------------------------------ before the loop
def make_batches(args, dataset, rank, world):
    """Lines 2-8: a DataLoader of [B_CBS; B_RRS], or of this process's share of both."""
    samplers = []
    if args.lambdas[0]:
        samplers.append(ClassBalancedSampler(dataset.labels, args.batch_size, args.Z, args.seed))
    if args.lambdas[1]:
        samplers.append(RegularRandomSampler(len(dataset), args.batch_size, args.seed))
    joint = JointBatchSampler(*samplers, rank=rank, world=world)
    return loader(dataset, args.workers, batch_sampler=joint)


def build(args, C, M, device, source=None, checkpoint=None):
    """The model, SGD, and the cosine schedule of M iterations: with phi of the checkpoint `source`,
    or with all of the run's own checkpoint."""
    torch.manual_seed(args.seed)
    model = Model(
        args.arch,
        C,
        tied=not args.lambdas[0],  # RRS-Only has one classifier, and it predicts
        pretrained=args.pretrained and checkpoint is None,  # a checkpoint has its own weights
        small_stem=args.small_stem,
        precision=args.precision,
    )
    if source:
        weights = source["model"].items()
        phi = {k.removeprefix("phi."): w for k, w in weights if k.startswith("phi.")}
        model.phi.load_state_dict(phi)
    model.to(device)

    # The layers without ImageNet weights. Our choice: the 512-d layer, too, learns at the full lr.
    # In [19] it learns at the small one.
    new_layers = ("phi.resnet.fc.", "h.", "h_a.", "h_s.")
    new = [p for name, p in model.named_parameters() if name.startswith(new_layers)]
    others = [p for name, p in model.named_parameters() if not name.startswith(new_layers)]
    lr_others = args.lr_pretrained if args.pretrained else args.lr
    groups = [{"params": new}, {"params": others, "lr": lr_others}]
    optimizer = torch.optim.SGD(
        groups, args.lr, args.momentum, weight_decay=args.weight_decay, fused=True
    )
    schedule = CosineAnnealingLR(optimizer, M)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
    return model, optimizer, schedule


def name_of_method(args, source, checksums):
    """The paper's name of what is trained, or 'X from Y', if phi comes from another run."""
    name = name_of_tasks(args.lambdas, args.rotation_augmentation)
    if source is None:
        return name
    finished = len(source["record"]) == source["settings"]["epochs"]
    same_data = source["checksums"]["train"] == checksums["train"]
    if name == "CBS-Only" and source["method"] == "RRS-Only" and finished and same_data:
        return "ftRRS+CBS"  # Table 3. Our choice: it has the same lr and epochs again
    return f"{name} from {describe_run(source)}"


def from_first(x):
    """The first process's x, in every process."""
    values = [x]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


# ------------------------------------------------------------------------------ in the loop
def average_gradients(model, world):
    """Replace each gradient by its mean over the processes. This is the gradient of the whole
    batch, because the processes' shares of the batch are equal. DistributedDataParallel does it
    only for a model that is called as a whole; the loop calls phi and the heads one by one."""
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world


class Losses:
    """One task's losses of an epoch: for each of n labels, their sum and the number of images. They
    stay on the device, so that an iteration does not wait for it."""

    def __init__(self, n, device):
        self.loss = torch.zeros(n, device=device)
        self.images = torch.zeros(n, device=device)

    def add(self, each, Y):
        """each: the loss of each image. Y: its label: a class, or an angle for l_SS."""
        self.loss.index_add_(0, Y, each)
        self.images.index_add_(0, Y, torch.ones_like(each))

    def by_label(self):
        return (self.loss / self.images).tolist()


def record_row(epoch, m, losses, lambdas, world):
    """A row of record.csv: the epoch's mean losses, overall and by class (Fig. 2). NaN for a task
    with weight 0 and for a class that was never drawn."""
    row = {"epoch": epoch + 1, "iteration": m, "L_Final": 0.0} | dict.fromkeys(losses, math.nan)
    for (name, task), weight in zip(losses.items(), lambdas, strict=True):
        if world > 1:
            dist.all_reduce(task.loss)
            dist.all_reduce(task.images)
        if weight:
            row[name] = (task.loss.sum() / task.images.sum()).item()
            row["L_Final"] += weight * row[name]
    for name in "l_CBS", "l_RRS":
        row |= {f"{name}_{y}": loss for y, loss in enumerate(losses[name].by_label())}
    return row


class Progress:
    """Output: a row per epoch, and between rows the speed: a line that is rewritten every second,
    or, if the output is not a terminal, a new line every minute."""

    def __init__(self, first, M, images):
        self.first = first  # iterations done before this start, of M
        self.M = M
        self.images = images  # per iteration; rotated ones are not counted
        self.start = self.shown = time.perf_counter()
        print("epoch   l_CBS   l_RRS    l_SS    Many  Medium     Low Overall (validation, %)")

    def speed(self, m):
        seconds = (time.perf_counter() - self.start) / (m - self.first)
        left = timedelta(seconds=round(seconds * (self.M - m)))
        return f"  {self.images / seconds:,.0f} images/s, {left} left"

    def line(self, m):
        terminal = sys.stdout.isatty()
        if time.perf_counter() > self.shown + (1 if terminal else 60):
            self.shown = time.perf_counter()
            end = "\033[K\r" if terminal else "\n"
            print(f"iteration {m:,} of {self.M:,}{self.speed(m)}", end=end, flush=True)

    def row(self, m, row):
        """row: of the record."""
        cells = [cell(row[task], 3) for task in ("l_CBS", "l_RRS", "l_SS")]
        cells += [cell(x, 1) for key, x in row.items() if key.startswith("val_")]
        print(f"{row['epoch']:5}", *(f"{x:>7}" for x in cells), self.speed(m), flush=True)


def save(state, model, optimizer, schedule):
    """Write record.csv, and last.pt with everything needed to resume."""
    out = state["settings"]["out"]
    record = state["record"]
    with open(f"{out}/record.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, record[0] if record else [], lineterminator="\n")
        rows.writeheader()
        rows.writerows(record)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    weights = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | weights, f"{out}/last.pt.tmp")
    # If the run is killed, last.pt is the old or the new checkpoint. record.csv may be newer or
    # incomplete; the resumed run writes it again.
    os.replace(f"{out}/last.pt.tmp", f"{out}/last.pt")


# ------------------------------------------------------------------------------ command line
# Sec. 4.4 gives lambdas, Z, SGD and the cosine. Learning rates, epochs and batch sizes "are set by
# referring to [19] and cross-validated". The paper is silent on the rest. [19] here is its public
# code of November 2019, when the paper was written.
DEFAULTS = {
    "data": "glyphs_lt",
    "arch": "resnet10",
    "lambdas": [0.5, 1.0, 1.0],  # Sec. 4.4 gives the ratios; these values are our choice
    "Z": 4,  # Sec. 4.4
    # S. Our choice: [19] has 256, and CBS+RRS draws 2S images per iteration.
    "batch_size": 128,
    # [19] has 30 epochs of plain training, then 60 with its class-aware sampler: 90 in all.
    # Places-LT with ResNet-50 is not in [19]; 90 is our choice.
    "epochs": 90,
    "lr": 0.1,  # [19]
    "momentum": 0.9,  # [19]
    "weight_decay": 5e-4,  # [19]
    "size": 224,  # [19]
    "pretrained": False,  # Sec. 4.4
    # Our choice: fine-tune the pre-trained layers. The paper does not say. [19] froze them, and
    # its plain model had 27.2 % overall, where RRS-Only in Table 1 has 31.0 %. Later [19]
    # fine-tuned them at this rate.
    "lr_pretrained": 0.001,
    "small_stem": False,
    "rotation_augmentation": False,
    "init": None,
    "root": os.path.abspath("data"),
    "workers": WORKERS,
    "precision": best_precision(),
    "seed": 0,
}
RECIPES = {  # what differs from DEFAULTS for a dataset, or for 'dataset arch'
    # [19] trains for 30 + 30 epochs; 30 is our choice. Sec. 4.4 has pre-trained weights here.
    "places_lt resnet152": {"epochs": 30, "pretrained": True},
    # The others are not in the paper.
    "cifar10_lt": {"epochs": 20, "size": 32},
    "cifar100_lt": {"epochs": 30, "size": 32},
    "glyphs_lt": {"epochs": 2, "batch_size": 64, "lr": 0.03, "size": 32},
}


def parse(argv=None):
    """Returns (settings, checkpoint). For a new run, the checkpoint is None; flags override the
    recipe, and the recipe overrides DEFAULTS. With --resume, both are those of the run."""
    recipes = [f"{name}: {values}" for name, values in {"Defaults": DEFAULTS, **RECIPES}.items()]
    parser = argparse.ArgumentParser(
        description="Train by Algorithm 1. Each run prints its settings.",
        epilog=". ".join(recipes),
        argument_default=argparse.SUPPRESS,  # so that `given` below has only what is given
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=str.lower, metavar="NAME", help="dataset")
    add("--root", type=os.path.abspath, metavar="DIR", help="dataset folder")
    add("--size", type=int, help="side of an image in pixels")
    add("--workers", type=int, help="data-loading processes; with torchrun, of each process")
    add("--arch", choices=ARCHS, help="the ResNet in phi")
    add("--pretrained", action=argparse.BooleanOptionalAction, help="start from ImageNet weights")
    add("--small-stem", action="store_true", help="3 x 3 stem without max-pooling")
    add("--init", metavar="LAST.PT", help="start phi from the checkpoint of a run (Table 3)")
    add("--lambdas", nargs=3, type=float, metavar="L", help="weights of l_CBS, l_RRS, l_SS")
    add(
        "--rotation-augmentation",
        action="store_true",
        help="add rotated images to l_CBS and l_RRS (Table 5: with --lambdas 0.5 1 0)",
    )
    add("--batch-size", type=int, metavar="S", help="S: images in B_CBS, and in B_RRS")
    add("--Z", type=int, help="images per class in B_CBS")
    add("--epochs", type=int, help="number of epochs, each of floor(N / S) iterations")
    add("--lr", type=float, help="learning rate at the start of the cosine")
    add("--weight-decay", type=float, metavar="W", help="SGD weight decay")
    add("--precision", choices=["bfloat16", "float32"], help="of the computations in phi")
    add("--seed", type=int, help="random seed")
    add("--out", metavar="DIR", help="run folder (default: below runs/)")
    add("--resume", metavar="DIR", help="continue this run; takes only --root and --workers")
    given = vars(parser.parse_args(argv))

    if "resume" in given:
        out = given.pop("resume").removesuffix("/last.pt")
        if given.keys() - {"root", "workers"}:
            parser.error("--resume takes only --root and --workers")
        checkpoint = load_checkpoint(f"{out}/last.pt")
        settings = checkpoint["settings"]
        settings["out"] = out
        settings.update(given)
        return argparse.Namespace(**settings), checkpoint

    data = given.get("data", DEFAULTS["data"])
    arch = given.get("arch", DEFAULTS["arch"])
    dataset = data.rstrip("0123456789")  # without the imbalance of CIFAR
    settings = DEFAULTS | RECIPES.get(dataset, {}) | RECIPES.get(f"{dataset} {arch}", {}) | given
    if not any(settings["lambdas"][:2]):
        parser.error("--lambdas: the first (CBS) or the second (RRS) weight must not be 0")
    tasks = name_of_tasks(settings["lambdas"], settings["rotation_augmentation"])
    tasks += "-init" if settings["init"] else ""
    weights = "_".join(f"{weight:g}" for weight in settings["lambdas"])
    settings.setdefault("out", f"runs/{data}-{arch}-{tasks}-{weights}-seed{settings['seed']}")
    return argparse.Namespace(**settings), None


def name_of_tasks(lambdas, rotation_augmentation):
    """The tasks that have a weight, as in the paper: CBS+RRS+SS, RRS-Only."""
    names = [name for name, w in zip(("CBS", "RRS", "SS"), lambdas, strict=True) if w]
    name = "+".join(names) if len(names) > 1 else f"{names[0]}-Only"
    return f"{name}+rotation" if rotation_augmentation else name


def main(argv=None):
    torchrun = dist.is_torchelastic_launched()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if torchrun else 0)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    rank, world = 0, 1
    if torchrun:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
    args, checkpoint = from_first(parse(argv) if rank == 0 else None)
    if rank > 0:  # only the first process prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        train(args, checkpoint, device, rank, world)
    except KeyboardInterrupt:
        if os.path.exists(f"{args.out}/last.pt"):
            print(f"\nstopped; to continue: python train.py --resume {args.out}")
        sys.exit(130)
    if torchrun:
        dist.barrier()  # with PyTorch 2.6 and gloo, a process that leaves early can hang
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
