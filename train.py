"""Training: Algorithm 1 and Eq. 2. Secs. 3.4 and 4.4.

    python train.py                                                     # glyphs_lt, also on a CPU
    python train.py --data imagenet_lt --arch resnet10 --root DIR       # Table 1, on one GPU
    torchrun --nproc_per_node=8 train.py --data imagenet_lt --root DIR  # ... on 8

Each run writes to a folder, by default below runs/. The same command with --resume goes on after
the last whole epoch.
"""

import argparse
import io
import math
import os
import re
import shlex
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave the cores to others

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR

from data import CORES, InputError, load, loader, oddities, write
from evaluate import LAYOUT, csv_bytes, load_checkpoint, predict, report, shot_accuracy, table
from model import ARCHS, Model, has_bf16
from sampler import ClassBalancedSampler, JointBatchSampler, RegularRandomSampler


# ------------------------------------------------------------------------------ Algorithm 1
def train(args, device, rank=0, world=1):
    """Algorithm 1, from its start or from the last whole epoch, as process `rank` of `world`.
    args: what `parse` returns; `main` adds args.precision, `prepare` adds args.method."""
    # together(f, x) is f(x), with care for torchrun's processes: see 'many processes' below.
    sets, batches, checkpoint = prepare(args, rank, world)
    record = checkpoint["record"] if checkpoint else []
    if len(record) == args.epochs and already_tested(args):
        return
    N_c = sets["train"].N_c
    M = args.epochs * len(batches)
    # Where lambda_1 is 0, h is h_a (Model's `tied`): RRS-Only predicts by its one classifier.
    model, optimizer, schedule = build(args, len(N_c), M, device, checkpoint)
    phi, h, h_a, h_s = parallel(model, world)  # model.phi, ...; wrapped under torchrun
    together(make_folder, args, first_only=True)  # only now: a failed start leaves no folder
    if rank == 0:
        print_settings(args, sets, len(batches), checkpoint, device, world)
    lambda_1, lambda_2, lambda_3 = args.lambdas
    # How many images B_CBS, B_RRS and B_theta have in this process. A batch whose weight is 0 has
    # none, and its loss is 0: so Eq. 2 needs no cases. (Rotation Augmentation needs B_theta, too.)
    S = args.batch_size // world
    S_CBS = S if lambda_1 else 0
    S_RRS = S if lambda_2 else 0
    S_theta = S_CBS + S_RRS if lambda_3 or args.rotation_augmentation else 0
    progress = Progress(args, len(batches), (S_CBS + S_RRS) * world, len(record), rank)

    for epoch in range(len(record), args.epochs):
        # For theta, and for the augmentation: DataLoader seeds its loading processes by this seed.
        torch.manual_seed(seed_of(args.seed, epoch, rank))
        batches.batch_sampler.set_epoch(epoch)
        model.train()
        losses = Losses(len(N_c), device)
        # Lines 2-8 are in sampler.py. B is [B_CBS; B_RRS], or this process's share of both, uint8:
        # phi normalises.
        for m, (B, Y) in enumerate(batches, epoch * len(batches) + 1):  # line 1
            B = B.to(device, non_blocking=True)
            Y = Y.to(device, non_blocking=True)
            B_CBS, B_RRS = B.split([S_CBS, S_RRS])
            Y_CBS, Y_RRS = Y.split([S_CBS, S_RRS])
            # Sec. 3.3: a random angle for each image, in quarter turns.
            theta = torch.randint(4, (S_theta,), device=device)
            B_theta = rotate(B[:S_theta], theta)  # line 9; S_theta is the length of B, or 0
            if args.rotation_augmentation:  # a row of Table 5, not in Algorithm 1
                B_CBS, Y_CBS = add_rotated(B_CBS, Y_CBS, B_theta[:S_CBS])
                B_RRS, Y_RRS = add_rotated(B_RRS, Y_RRS, B_theta[S_CBS:])
                B_theta, theta = B_theta[:0], theta[:0]  # nothing for l_SS: lambda_3 is 0

            # Algorithm 1 prints three passes through phi; Sec. 3.4 concatenates B_CBS and B_RRS.
            # One pass, so that BatchNorm's statistics are of all three batches, is our choice.
            features = phi(torch.cat([B_CBS, B_RRS, B_theta]))
            f_CBS, f_RRS, f_theta = features.split([len(B_CBS), len(B_RRS), len(B_theta)])
            l_CBS, each_CBS = cross_entropy(h(f_CBS), Y_CBS)  # line 10
            l_RRS, each_RRS = cross_entropy(h_a(f_RRS), Y_RRS)  # line 10
            l_SS, _ = cross_entropy(h_s(f_theta), theta)  # line 11; theta is Y_theta
            L_Final = lambda_1 * l_CBS + lambda_2 * l_RRS + lambda_3 * l_SS  # line 11, Eq. 2

            optimizer.zero_grad()
            L_Final.backward()
            optimizer.step()  # line 12
            schedule.step()  # the cosine of Sec. 4.4
            losses.add((l_CBS, l_RRS, l_SS), (each_CBS, Y_CBS), (each_RRS, Y_RRS))
            progress.line(epoch, m, losses)
            # line 13: end for

        # Where a loss is not finite all processes raise the same error; together prints it once.
        by_task, by_class = together(losses.means, epoch)  # by_class is for Fig. 2
        predictions, _ = predict(model, sets["val"], args.workers, rank, world)
        accuracy = shot_accuracy(sets["val"].labels, predictions, N_c)
        record.append(record_row(args, epoch, m, by_task, accuracy, by_class))
        if rank == 0:
            save(args, world, sets, record, model, optimizer, schedule)
        progress.row(epoch, m, by_task, accuracy)

    # Of the last epoch's model, not of the best on validation.
    predictions, _ = predict(model, sets["test"], args.workers, rank, world)
    if rank == 0:
        report("test", sets["test"], predictions, N_c)
        write_record(args, record)  # again: a kill may have come after last.pt, before record.csv
        remove_half_written(args)
        write(f"{args.out}/test.csv", table(sets["test"].labels, predictions, N_c.tolist()))
        seconds = time.perf_counter() - progress.began
        since = " after --resume" if checkpoint else ""
        print(f"finished in {clock(seconds)}{since}; saved last.pt, test.csv, record.csv")


def rotate(B, theta):
    """Line 9, Sec. 3.3: image i of B [n, 3, H, H] turned left by theta[i] quarters, 0..3."""
    turned = torch.stack([B.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned[theta, torch.arange(len(B), device=B.device)]


def add_rotated(B, Y, rotated):
    """Table 5's Rotation Augmentation: each image's rotated twin joins B, with the image's label.
    Sec. 4.5 feeds 'four versions' of an image; one twin at a random angle is our choice."""
    return torch.cat([B, rotated]), Y.repeat(2)


def cross_entropy(logits, Y):
    """The loss l of Sec. 3.4: its mean over the batch, 0 for an empty one, and each image's [n]."""
    each = F.cross_entropy(logits, Y, reduction="none")
    return each.sum() / max(len(Y), 1), each.detach()


# ------------------------------------------------------------------------------ before the loop
def prepare(args, rank, world):
    """The data, the batches, and the checkpoint to go on from, None for a new run. Sets
    args.method, the paper's name of it. Raises InputError; all processes end where one fails."""
    sets = together(load_data, args, first_only=True)  # it may have to download CIFAR
    sets = together(lambda: sets or load_data(args))  # now the others, which got None
    batches = together(training_batches, args, sets["train"], rank, world)
    # What must equal the checkpoint's (find_checkpoint), and then that of each other process: on
    # other machines they may have been given other flags, lists or checkpoints.
    identity = settings(args, world) | fingerprints(sets)
    checkpoint = together(find_checkpoint, args, identity)
    identity["epoch"] = checkpoint["epoch"] if checkpoint else 0
    first_identity = of_all(identity)[0]
    together(compare, identity, first_identity, "the first process's")
    if checkpoint:
        args.method = checkpoint["method"]  # without opening --init, which may be gone by now
    else:
        args.method = together(method_name, args, identity)
    return sets, batches, checkpoint


def load_data(args):
    return load(args.data, args.root, args.size, args.imbalance)


def training_batches(args, dataset, rank, world):
    """Lines 2-8: a DataLoader of [B_CBS; B_RRS], or of this process's share. Raises InputError."""
    S = args.batch_size
    if S % world or S // world < 2:  # RRS-Only: BatchNorm needs two images
        needed = f"a multiple of {world}, {2 * world} or more"
        raise InputError(f"--batch-size {S}: {world} processes need {needed}")
    samplers = []
    try:
        if args.lambdas[0]:
            samplers.append(ClassBalancedSampler(dataset.labels, S, args.Z, args.seed))
        if args.lambdas[1]:
            samplers.append(RegularRandomSampler(len(dataset), S, args.seed))
    except ValueError as error:
        raise InputError(f"--batch-size {S} --Z {args.Z}: {error}") from None
    joint = JointBatchSampler(*samplers, rank=rank, world=world)
    return loader(dataset, args.workers, batch_sampler=joint)


def settings(args, world):
    """What must be equal to resume: args but for `others`, and the number of processes. Other
    workers change the augmentation, other threads the rounding: print_settings says so."""
    # Left out: amp, which main has turned into args.precision, and method, which follows from the
    # rest and which prepare doesn't know yet when it compares.
    others = "root", "workers", "out", "resume", "amp", "method"
    own = {k: v for k, v in vars(args).items() if k not in others} | {"processes": world}
    if args.init:
        own["init"] = os.path.relpath(args.init, args.out)  # they may be moved together
    return own


def fingerprints(sets):
    return {f"{split} list": dataset.fingerprint for split, dataset in sets.items()}


def find_checkpoint(args, identity):
    """With --resume, the folder's checkpoint, if it has one; else None. Raises InputError where it
    is of another run."""
    last = f"{args.out}/last.pt"
    if not args.resume or not os.path.lexists(last):  # lexists: a broken link is a lost checkpoint
        return None
    checkpoint = load_checkpoint(last)
    compare(identity, checkpoint["settings"] | checkpoint["lists"], "the checkpoint's")
    return checkpoint


def compare(ours, theirs, whose):
    """Raises InputError where a setting differs."""
    for key, value in ours.items():
        if value != theirs.get(key):
            name = key.replace("_", "-")
            raise InputError(f"{name} {value} differs from {whose} ({theirs.get(key)})")


def task_names(args):
    """The tasks that have a weight, as the paper names them: CBS+RRS+SS, RRS-Only."""
    weighted = zip(("CBS", "RRS", "SS"), args.lambdas, strict=True)
    names = [task for task, weight in weighted if weight]
    name = "+".join(names) if len(names) > 1 else f"{names[0]}-Only"
    return f"{name}+rotation" if args.rotation_augmentation else name


def method_name(args, identity):
    """The paper's name of the whole training. Raises InputError where --init can't be used."""
    if not args.init:
        return task_names(args)
    source = load_checkpoint(args.init)
    theirs = source["settings"]
    if source["epoch"] < theirs["epochs"]:
        raise InputError(f"--init {args.init}: that run is not finished")
    for key in "arch", "small_stem":
        if theirs[key] != vars(args)[key]:
            raise InputError(f"--init {args.init}: its {key} is {theirs[key]}")
    name = f"{task_names(args)} from {source['method']}"
    if source["lists"]["train list"] != identity["train list"]:
        return f"{name} ({theirs['data']}, another train list)"
    return "ftRRS+CBS" if name == "CBS-Only from RRS-Only" else name  # Table 3


def already_tested(args):
    """Whether the run in the folder, whose epochs are done, has its test.csv; if so, says it."""
    tested = of_all(os.path.exists(f"{args.out}/test.csv"))[0]  # the first's answer, for all
    if tested and get_rank() == 0:
        print(f"{args.method}: already finished; --out DIR starts a new run")
    return tested


def build(args, C, M, device, checkpoint):
    """Model, SGD and cosine schedule: new, with phi from --init (Table 3), or the checkpoint's."""
    torch.manual_seed(args.seed)
    download = args.pretrained and not (args.init or checkpoint)
    amp = args.precision == "bfloat16"  # main's choice, by the hardware
    tied = not args.lambdas[0]
    model = Model(args.arch, C, tied, pretrained=download, small_stem=args.small_stem, amp=amp)
    if args.init and not checkpoint:  # phi alone; then lr and epochs as ever, which is our choice
        source = load_checkpoint(args.init)["model"]
        weights = {k.removeprefix("phi."): v for k, v in source.items() if k.startswith("phi.")}
        model.phi.load_state_dict(weights)
    model.to(device)

    # With --pretrained, layers that have ImageNet weights learn at --lr-pretrained, others at --lr;
    # also where --init then replaces those weights (ftRRS+CBS). That the 512-d layer has the large
    # rate is our choice; in [19] it has the small one. Without --pretrained, all have --lr.
    not_pretrained = ("phi.resnet.fc.", "h.", "h_a.", "h_s.")
    if args.small_stem:
        not_pretrained += ("phi.resnet.conv1.",)
    at_lr = []
    at_lr_pretrained = []
    for name, p in model.named_parameters():
        has_lr = not args.pretrained or name.startswith(not_pretrained)
        (at_lr if has_lr else at_lr_pretrained).append(p)
    groups = [{"params": at_lr}, {"params": at_lr_pretrained, "lr": args.lr_pretrained}]
    how = {"momentum": args.momentum, "weight_decay": args.weight_decay, "fused": True}
    optimizer = torch.optim.SGD(groups, args.lr, **how)
    schedule = CosineAnnealingLR(optimizer, M)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
    return model, optimizer, schedule


def parallel(model, world):
    """phi, h, h_a, h_s: the loop calls the parts, not the model, whose forward is prediction."""
    if world == 1:
        return model.phi, model.h, model.h_a, model.h_s
    if torch.cuda.is_available():
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the same parameters
    # DistributedDataParallel averages each parameter's gradient over the processes, once in each
    # backward, when the gradient is complete. Three things make that right:
    # - A mean of the processes' means is the batch's mean, as their shares of it are equal.
    # - Every part gets a gradient, as it must: an empty batch gives 0.
    # - Where h is h_a, both calls of this one part are in its gradient by then
    #   (test_distributed.py: two processes train as one).
    wrapped = {module: DistributedDataParallel(module) for module in model.children()}
    return wrapped[model.phi], wrapped[model.h], wrapped[model.h_a], wrapped[model.h_s]


def make_folder(args):
    """Make the run's folder. Without --resume it must be new. With --resume it may have a last.pt,
    which find_checkpoint has compared; results without a last.pt are refused."""
    if args.resume and os.path.exists(args.out) and not os.path.isdir(args.out):
        raise InputError(f"--out {args.out} is not a folder")
    try:
        os.makedirs(args.out, exist_ok=args.resume)
    except FileExistsError:
        raise InputError(f"{args.out} exists: --resume goes on, --out DIR starts anew") from None
    for file in f"{args.out}/test.csv", f"{args.out}/record.csv":
        if os.path.exists(file) and not os.path.exists(f"{args.out}/last.pt"):
            raise InputError(f"{file} is of a run without last.pt; remove it, or take --out DIR")


def print_settings(args, sets, steps, checkpoint, device, world):
    N_c = sets["train"].N_c
    threads = torch.get_num_threads()
    stem = ", small stem" if args.small_stem else ""
    Z = f", Z {args.Z}" if args.lambdas[0] else ""
    pretrained = f", pre-trained layers' lr {args.lr_pretrained:g}" if args.pretrained else ""
    lambdas = " ".join(f"{x:g}" for x in args.lambdas)
    print(
        f"{args.method} on {args.data}: {len(N_c)} classes, {N_c.sum():,} images "
        f"({N_c.max():,} to {N_c.min():,} per class)"
    )
    print(
        f"{args.arch}{stem}, {args.epochs} epochs x {steps} iterations, S {args.batch_size}{Z}, "
        f"lr {args.lr:g}{pretrained}, lambdas {lambdas}, seed {args.seed}"
    )
    print(
        f"{args.size} pixels, momentum {args.momentum:g}, weight decay {args.weight_decay:g}; "
        f"{world} x {device.type}, {args.precision}"
    )
    print(f"output: {args.out}")
    for line in oddities(sets):
        print(line)
    effects = {"workers": (args.workers, "other augmentation"), "threads": (threads, "rounding")}
    for key, (now, effect) in effects.items():
        if checkpoint and checkpoint[key] != now:
            print(f"{key}: {now}, {checkpoint[key]} before: other numbers by {effect}")
    if device.type == "cpu" and world > 1:
        print("BatchNorm is not synchronised on CPUs: other numbers than those of one process")
    if device.type == "cpu" and threads > 1 and os.getloadavg()[0] > CORES:
        print("this CPU is busy: OMP_NUM_THREADS=1 may be faster")
    sys.stdout.flush()


# ------------------------------------------------------------------------------ in the loop
def seed_of(*numbers):
    """One seed for several numbers, of the 32 bits that PyTorch uses on a CPU."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


TASKS = "l_CBS", "l_RRS", "l_SS"


class Losses:
    """An epoch's sums, kept on the device: each task's losses, and each class's for Fig. 2."""

    def __init__(self, C, device):
        self.iterations = 0
        self.tasks = torch.zeros(3, device=device)
        # [CBS or RRS, sum of losses or number of images, class]
        self.classes = torch.zeros(2, 2, C, device=device)

    def add(self, tasks, *batches):
        """tasks: l_CBS, l_RRS, l_SS. batches: each image's loss and label, of B_CBS and B_RRS."""
        self.iterations += 1
        self.tasks += torch.stack(tasks).detach()
        for sums, (each, Y) in zip(self.classes, batches, strict=True):
            sums.index_add_(1, Y, torch.stack([each, torch.ones_like(each)]))

    def means(self, epoch):
        """Mean l_CBS, l_RRS, l_SS of the epoch, and [2, C] by class, over all processes.
        Raises InputError where a task's is not finite."""
        world = 1
        if dist.is_initialized():
            world = dist.get_world_size()
            dist.all_reduce(self.tasks)
            dist.all_reduce(self.classes)
        by_task = (self.tasks / self.iterations / world).tolist()
        if not np.isfinite(by_task).all():
            losses = ", ".join(f"{task} {x:.3g}" for task, x in zip(TASKS, by_task, strict=True))
            raise InputError(
                f"the loss is not finite in epoch {epoch + 1}: {losses}; try a lower --lr"
            )
        return by_task, (self.classes[:, 0] / self.classes[:, 1]).tolist()


class Progress:
    """The terminal: a line within an epoch, rewritten where it can be, and a row after it."""

    def __init__(self, args, steps, images, epoch, rank):
        self.args = args
        self.M = args.epochs * steps
        self.images = images  # of an iteration, the rotated ones not counted
        self.silent = rank > 0
        self.every = 1 if sys.stdout.isatty() else 60  # seconds
        self.clear = "\r\033[K" if sys.stdout.isatty() else ""
        self.iterations = 0  # since this start
        self.seconds = 0.0  # spent on them
        self.began = self.last = self.shown = time.perf_counter()
        if not self.silent and epoch < args.epochs:
            print("\n          mean training loss     validation accuracy (%)")
            print("epoch   l_CBS  l_RRS   l_SS    Many  Medium   Low  Overall  images/s   left")

    def line(self, epoch, m, losses):
        """After an iteration: the losses so far, of this process."""
        now = time.perf_counter()
        self.seconds += now - self.last
        self.iterations += 1
        self.last = now
        if now - self.shown > self.every:
            self.shown = now
            by_task = losses.tasks / losses.iterations  # to print it is to wait for the device
            middle = f"   m {m:,} of {self.M:,}".ljust(31)
            self.show(epoch, m, by_task.tolist(), middle, end="" if self.clear else "\n")

    def row(self, epoch, m, by_task, accuracy):
        """After an epoch, and its checkpoint."""
        many, medium, low, overall = (cell(x, 1) for x in accuracy.values())
        self.show(epoch, m, by_task, f"  {many:>6}  {medium:>6}{low:>6}  {overall:>7}", end="\n")
        self.last = self.shown = time.perf_counter()

    def show(self, epoch, m, by_task, middle, end):
        if self.silent:
            return
        per_second = self.iterations / self.seconds
        left = clock((self.M - m) / per_second)
        weighted = zip(by_task, self.args.lambdas, strict=True)
        line = f"{epoch + 1:3}/{self.args.epochs}".ljust(6)
        line += "".join(f"{cell(x if weight else math.nan, 3):>7}" for x, weight in weighted)
        line += f"{middle}  {self.images * per_second:8,.0f}  {left:>5}"
        print(self.clear + line, end=end, flush=True)


def cell(x, digits):
    return "-" if math.isnan(x) else f"{x:.{digits}f}"


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def record_row(args, epoch, m, by_task, accuracy, by_class):
    """An epoch's row of record.csv; NaN for a task not trained, a class not drawn."""
    row = {"epoch": epoch + 1, "iteration": m}
    for task, loss, weight in zip(TASKS, by_task, args.lambdas, strict=True):
        row[task] = loss if weight else math.nan
    row["L_Final"] = sum(weight * x for weight, x in zip(args.lambdas, by_task, strict=True))
    row |= {f"val_{shot}": a for shot, a in accuracy.items()}
    for task, losses in zip(("l_CBS", "l_RRS"), by_class, strict=True):  # Fig. 2
        row |= {f"{task}_{y}": loss for y, loss in enumerate(losses)}
    return row


def save(args, world, sets, record, model, optimizer, schedule):
    """The checkpoint and record.csv, after a whole epoch: all that a run goes on from."""
    state = {
        "layout": LAYOUT,
        "method": args.method,
        "settings": settings(args, world),
        "root": args.root,
        "lists": fingerprints(sets),
        "N_c": sets["train"].N_c.tolist(),
        "workers": args.workers,
        "threads": torch.get_num_threads(),
        "epoch": len(record),
        "record": record,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    check_saved(args, state)
    file = io.BytesIO()
    torch.save(state, file)
    write(f"{args.out}/last.pt", file.getbuffer())
    write_record(args, record)


def check_saved(args, state):
    """Raises InputError where another process, started in this folder at the same time, has saved:
    it may have other settings, or be further on."""
    try:
        saved = load_checkpoint(f"{args.out}/last.pt")
    except InputError:  # none yet, or damaged since
        return
    identity = state["settings"] | state["lists"]
    compare(identity, saved["settings"] | saved["lists"], "the checkpoint's")
    if saved["epoch"] >= state["epoch"]:
        raise InputError(f"{args.out}: another process has saved epoch {saved['epoch']} there")


def remove_half_written(args):
    """What `write` in killed processes left in the folder."""
    for name in os.listdir(args.out):
        if re.fullmatch(r"(last\.pt|(record|test)\.csv)\.\d+\.tmp", name):
            os.remove(f"{args.out}/{name}")


def write_record(args, record):
    write(f"{args.out}/record.csv", csv_bytes(list(record[0]), [row.values() for row in record]))


# ------------------------------------------------------------------------------ many processes
def of_all(x):
    """The x of each process, in a list."""
    if not dist.is_initialized():
        return [x]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, x)
    return everyone


def get_rank():
    return dist.get_rank() if dist.is_initialized() else 0


def together(step, *args, first_only=False):
    """step(*args) in each process, or in the first only, where the others get None. If it raises
    InputError or OSError in one process, all end, and the first says why. (Where a process fails
    outside of `together`, torchrun ends the others.)"""
    result = None
    fault = None
    try:
        if not first_only or get_rank() == 0:
            result = step(*args)
    except (InputError, OSError) as error:
        fault = str(error)
    faults = [fault for fault in of_all(fault) if fault]
    if faults and get_rank() > 0:
        sys.exit(1)
    if faults:
        raise InputError(faults[0])
    return result


# ------------------------------------------------------------------------------ command line
# Sec. 4.4 gives lambdas, Z, SGD and the cosine; for lr, epochs and S it refers to [19] and to
# cross-validation. A run has imagenet_lt's recipe, overridden by its dataset's own, if there is
# one, and by that of its 'dataset arch'.
RECIPES = {
    "imagenet_lt": {
        "lambdas": [0.5, 1.0, 1.0],  # Sec. 4.4
        "Z": 4,  # Sec. 4.4
        # S. Our choice, as CBS+RRS has 2S images an iteration: [19] has 256, and 128 on Places-LT.
        "batch_size": 128,
        # Our choice. [19] has 30; with 90 its plain model has 32.7 % overall, by issue 28 of its
        # repository. RRS-Only in Table 1 of the paper has 32.4 %.
        "epochs": 90,
        "lr": 0.1,  # [19]
        "momentum": 0.9,  # [19]
        "weight_decay": 5e-4,  # [19]
        "size": 224,  # [19]
        "pretrained": False,  # Sec. 4.4
        "lr_pretrained": 0.001,  # [19], where there are pre-trained layers
    },
    "places_lt resnet152": {"epochs": 30, "pretrained": True},  # [19]; Sec. 4.4
    # Not in the paper; the last three are for a CPU:
    "tinyimagenet_lt": {"size": 64},
    "cifar10_lt": {"epochs": 20, "size": 32},
    "cifar100_lt": {"epochs": 30, "size": 32},
    "glyphs_lt": {"epochs": 5, "lr": 0.03, "size": 32},
}


def flags():
    """The command line. None: by the recipe of the dataset, or not given."""
    parser = argparse.ArgumentParser(
        description="Train by Algorithm 1. A flag overrides the recipe of the dataset "
        "(RECIPES in train.py).",
        epilog="""examples:
  python train.py --data cifar100_lt --root DIR --seed 1
  python train.py --lambdas 0 1 0 --out RRS               # the baseline RRS-Only
  python train.py --lambdas 1 0 0 --init RRS/last.pt      # ... and then ftRRS+CBS (Table 3)""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("data").add_argument
    by = "(default: by the recipe)"
    add("--data", default="glyphs_lt", metavar="NAME", help="dataset (default: glyphs_lt)")
    add("--root", metavar="DIR", help="dataset folder (default: data)")
    add("--size", type=int, help=f"side of an image in pixels {by}")
    add("--imbalance", type=float, metavar="F", help="N_max / N_min of CIFAR-LT (default: 100)")
    add(
        "--workers",
        type=int,
        help="loading processes (default: cores, or a torchrun process's share, up to 16)",
    )
    add = parser.add_argument_group("model").add_argument
    add(
        "--arch",
        default="resnet10",
        choices=ARCHS,
        help="feature extractor (default: resnet10; Table 2: resnet50)",
    )
    switch = argparse.BooleanOptionalAction
    add("--pretrained", action=switch, help=f"start from ImageNet weights {by}")
    add("--small-stem", action="store_true", help="3 x 3 stem without max-pooling")
    add("--init", metavar="LAST.PT", help="start phi from a finished run's checkpoint (Table 3)")
    add = parser.add_argument_group("Algorithm 1").add_argument
    what = "weights of l_CBS, l_RRS, l_SS (default: 0.5 1 1; Table 4 varies the first two)"
    add("--lambdas", nargs=3, type=float, metavar="L", help=what)
    what = "images per batch, each of B_CBS and B_RRS (default: 128)"
    add("--batch-size", type=int, metavar="S", help=what)
    add("--Z", type=int, help="images per class in B_CBS (default: 4)")
    what = "rotated images join the class losses; the default is then --lambdas 0.5 1 0 (Table 5)"
    add("--rotation-augmentation", action="store_true", help=what)
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=int, help=f"epochs of floor(N / S) iterations {by}")
    add("--lr", type=float, help=f"learning rate at the start of the cosine {by}")
    what = "learning rate of pre-trained layers (default: 0.001)"
    add("--lr-pretrained", type=float, metavar="LR", help=what)
    add("--momentum", type=float, help="SGD momentum (default: 0.9)")
    what = "SGD weight decay (default: 5e-4)"
    add("--weight-decay", type=float, metavar="W", help=what)
    what = "float32 also where the hardware computes in bfloat16"
    add("--no-amp", dest="amp", action="store_false", help=what)
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0, help="random seed (default: 0)")
    add(
        "--out",
        metavar="DIR",
        help="folder of the run (default: runs/DATA-ARCH-METHOD-LAMBDAS-seedN)",
    )
    add("--resume", action="store_true", help="go on with the run in its folder, or start it")
    return parser


def parse(argv):
    """The settings: flags, then the recipe of the dataset for what was not given."""
    parser = flags()
    args = parser.parse_args(argv)
    given = {key for key, value in vars(args).items() if value is not None}  # for no_effect

    cores = CORES
    if dist.is_torchelastic_launched():  # a process's share
        cores = max(1, CORES // int(os.environ["LOCAL_WORLD_SIZE"]))
    name = args.data.lower()
    recipe = RECIPES["imagenet_lt"] | RECIPES.get(name, {}) | RECIPES.get(f"{name} {args.arch}", {})
    recipe |= {"root": "data", "imbalance": 100.0, "workers": min(16, cores)}
    if args.rotation_augmentation:
        recipe |= {"lambdas": [0.5, 1.0, 0.0]}
    for key, value in recipe.items():
        if getattr(args, key) is None:
            setattr(args, key, value)

    check(args, parser)
    no_effect = {
        "imbalance": name not in ("cifar10_lt", "cifar100_lt"),
        "root": name == "glyphs_lt",
        "lr_pretrained": not args.pretrained,
        "Z": not args.lambdas[0],
    }
    for key, useless in no_effect.items():
        if useless and key in given:
            parser.error(f"--{key.replace('_', '-')} has no effect on this dataset or method")
    args.root = os.path.abspath(args.root)
    if args.init:
        args.init = os.path.abspath(args.init)
    args.out = args.out or default_folder(args)
    return args


def check(args, parser):
    """Refuse what is out of range, as argparse does."""
    lowest = {"epochs": 1, "batch_size": 2, "Z": 1, "imbalance": 1}
    lowest |= {"lr": 0, "lr_pretrained": 0, "momentum": 0, "weight_decay": 0}
    ranges = {"seed": (0, 2**32 - 1), "workers": (0, 256), "size": (32, 4096)}
    for key, (low, high) in ranges.items():
        if not low <= getattr(args, key) <= high:
            parser.error(f"--{key} {getattr(args, key)}: must be {low} to {high}")
    for key in "data", "root", "init", "out":
        if getattr(args, key) == "":
            parser.error(f"--{key}: must not be empty")
    for key, low in lowest.items():
        if not low <= getattr(args, key) < math.inf:
            parser.error(f"--{key.replace('_', '-')} {getattr(args, key)}: must be {low} or more")
    if not all(0 <= weight < math.inf for weight in args.lambdas) or not any(args.lambdas[:2]):
        parser.error("--lambdas: must be 0 or more, and the first or the second above 0")
    if args.pretrained and args.arch == "resnet10":
        parser.error("--pretrained: resnet10 has no pre-trained weights")
    if args.rotation_augmentation and args.lambdas[2]:
        parser.error("--rotation-augmentation takes the place of l_SS: its lambda must be 0")


def default_folder(args):
    lambdas = "_".join(f"{x:g}" for x in args.lambdas)
    name = f"{task_names(args)}-init" if args.init else task_names(args)
    return f"runs/{args.data}-{args.arch}-{name}-{lambdas}-seed{args.seed}"


def main(argv=None):
    args = parse(argv)
    rank, world, local_rank = 0, 1, 0
    if dist.is_torchelastic_launched():  # by torchrun
        rank, world, local_rank = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    args.precision = "bfloat16" if args.amp and has_bf16(device) else "float32"
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(args, device, rank, world)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names in any encoding
    try:
        main()
    except KeyboardInterrupt:
        launcher = "torchrun ..." if dist.is_torchelastic_launched() else "python"
        again = sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"]
        if not dist.is_torchelastic_launched() or os.environ["RANK"] == "0":
            print(f"\ninterrupted; resume with: {launcher} {shlex.join(again)}", file=sys.stderr)
        sys.exit(130)
    except (InputError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        sys.exit(f"train.py: a loading process ended, --resume goes on ({error})")
