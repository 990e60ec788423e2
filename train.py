"""Training: the weighted-loss loop, Algorithm 1 and Eq. 2. Paper: Secs. 3.4 and 4.4.

    python train.py                                                      # glyphs_lt: minutes on a CPU
    python train.py --data imagenet_lt --arch resnet10 --root DIR        # the paper's Table 1, on one GPU
    torchrun --nproc_per_node=8 train.py --data imagenet_lt --root DIR   # the same on 8 GPUs (add --nnodes ...)
    python train.py --resume runs/RUN/last.pt                            # go on where a run was stopped
"""
import argparse
import datetime
import io
import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from data import CORES, InputError, Parser, at_least, loader, run
from evaluate import LAYOUT, cell, evaluate, load_checkpoint, load_data, shot_accuracy, show, use_bf16
from model import ARCHS, Model
from sampler import JointBatchSampler

# Sec. 4.4 and, where it is silent, reference [19]; a flag wins over its dataset's row, and that over DEFAULTS.
DEFAULTS = dict(data="glyphs_lt", root="data", arch="resnet10", lambdas=[0.5, 1.0, 1.0], Z=4, batch_size=128,
                epochs=90, lr=0.1, lr_pretrained=0.001, momentum=0.9, weight_decay=5e-4, size=224, imbalance=100.0,
                seed=0, amp=True, pretrained=False, small_stem=False, rotation_augmentation=False, init=None)
RECIPES = {
    "glyphs_lt": dict(epochs=5, lr=0.03, size=32),
    "imagenet_lt": dict(epochs=90, lr=0.1),
    "places_lt": dict(epochs=90, lr=0.1),
    "places_lt resnet152": dict(epochs=30, pretrained=True),
    "cifar10_lt": dict(epochs=200, size=32, small_stem=True),
    "cifar100_lt": dict(epochs=200, size=32, small_stem=True),
    "tinyimagenet_lt": dict(epochs=90, size=64),
}

RETURN = "\r\033[K" * sys.stdout.isatty()  # a terminal's progress line is rewritten


# ------------------------------------------------------------------------------ Algorithm 1

def rotate(B, theta):
    """Line 9: image i of B [B, 3, H, H] turned by theta[i] x 90 degrees counter-clockwise; theta: int [B], 0..3."""
    turned = torch.stack([B.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned[theta, torch.arange(len(B), device=B.device)]


def losses(phi, h, h_a, h_s, B_CBS, Y_CBS, B_RRS, Y_RRS, theta, lambdas):
    """Lines 9-11 and Eq. 2: L_Final, and l_CBS [S], l_RRS [S], l_SS [2S] per image, whose means the paper weighs.

    B_CBS, B_RRS: images [S, 3, H, H]; Y_CBS, Y_RRS: int [S]; theta: int [2S], 0..3.
    A branch whose lambda is 0 is not computed; its batch may be empty.
    """
    lambda_1, lambda_2, lambda_3 = lambdas
    B = torch.cat([B_CBS, B_RRS])
    B_theta = rotate(B, theta) if lambda_3 else B[:0]                                                 # line 9
    f_CBS, f_RRS, f_theta = phi(torch.cat([B, B_theta])).split([len(B_CBS), len(B_RRS), len(B_theta)])
    off = torch.zeros(1, device=B.device)
    l_CBS = F.cross_entropy(h(f_CBS), Y_CBS, reduction="none") if lambda_1 else off                   # line 10
    l_RRS = F.cross_entropy(h_a(f_RRS), Y_RRS, reduction="none") if lambda_2 else off                 # line 10
    l_SS = F.cross_entropy(h_s(f_theta), theta, reduction="none") if lambda_3 else off                # line 11
    L_Final = lambda_1 * l_CBS.mean() + lambda_2 * l_RRS.mean() + lambda_3 * l_SS.mean()              # line 11, Eq. 2
    return L_Final, l_CBS, l_RRS, l_SS


def algorithm_1(phi, h, h_a, h_s, optimizer, batches, recipe, start, M, device, amp):
    """Lines 1-13, from iteration start + 1 to M. After each yields m, (l_CBS, l_RRS, l_SS) per image, (Y_CBS, Y_RRS).

    batches: of [B_CBS; B_RRS], their labels, and a random 32-bit key for each image.
    """
    sampled = [weight > 0 for weight in recipe["lambdas"][:2]]
    for m, batch in enumerate(batches, start + 1):                                                    # line 1
        B, Y, keys = (x.to(device, non_blocking=True) for x in batch)                                 # lines 2-8
        sizes = [len(B) // sum(sampled) * on for on in sampled]
        (B_CBS, B_RRS), (Y_CBS, Y_RRS) = B.split(sizes), Y.split(sizes)
        theta = keys >> 30  # the first two bits: uniform on 0..3
        if recipe["rotation_augmentation"]:  # Table 5: rotated twins join the class losses
            twins_CBS, twins_RRS = rotate(B, theta).split(sizes)
            B_CBS, Y_CBS = torch.cat([B_CBS, twins_CBS]), Y_CBS.repeat(2)
            B_RRS, Y_RRS = torch.cat([B_RRS, twins_RRS]), Y_RRS.repeat(2)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            L_Final, *l = losses(phi, h, h_a, h_s, B_CBS, Y_CBS, B_RRS, Y_RRS, theta, recipe["lambdas"])  # lines 9-11
        for group in optimizer.param_groups:  # Sec. 4.4: cosine schedule
            group["lr"] = group["peak"] * (1 + math.cos(math.pi * (m - 1) / M)) / 2
        optimizer.zero_grad()
        L_Final.backward()
        optimizer.step()                                                                              # line 12
        yield m, [x.detach() for x in l], (Y_CBS, Y_RRS)                                              # line 13


# ------------------------------------------------------------------------------ a run and its folder

def method(recipe):
    """The paper's name of what a recipe trains."""
    name = "+".join(n for n, weight in zip(("CBS", "RRS", "SS"), recipe["lambdas"]) if weight)
    name = name if "+" in name else "ftRRS+CBS" if recipe["init"] else f"{name}-Only"
    return name + "+rotation" * recipe["rotation_augmentation"]


def write(path, data):
    """Save bytes completely or not at all: written beside, flushed, renamed. Raises InputError."""
    try:
        with open(f"{path}.tmp", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        raise InputError(f"{path}: cannot be saved ({error.strerror}); what was saved before is untouched") from None


def save(out, state, m, model, optimizer):
    """record.csv and class_loss.csv (Fig. 2: mean loss per class and epoch under either sampler), then last.pt."""
    state = state | dict(m=m, model=model.state_dict(), optimizer=optimizer.state_dict(), sums=total(state["sums"]),
                         class_sums=total(state["class_sums"]), predict_with=model.predict_with)
    if int(os.environ.get("RANK", 0)):  # one process writes
        return
    losses = [["epoch", "sampler", *range(len(state["N_c"]))]]
    for epoch, means in enumerate(state["class_loss"], 1):
        losses += [[epoch, name, *np.round(mean.tolist(), 4)] for name, mean in zip(("CBS", "RRS"), means)]
    record = [list(row) for row in state["record"][:1]] + [row.values() for row in state["record"]]
    for name, table in (("record", record), ("class_loss", losses)):
        write(f"{out}/{name}.csv", "".join(",".join(map(str, row)) + "\n" for row in table).encode())
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(f"{out}/last.pt", buffer.getbuffer())


def build(recipe, C, checkpoint):
    """Model and SGD optimiser: new, with phi from --init (Table 3), or as a checkpoint left them."""
    torch.manual_seed(recipe["seed"])
    try:
        model = Model(recipe["arch"], C, recipe["pretrained"] and not checkpoint, recipe["small_stem"],
                      "h" if recipe["lambdas"][0] else "h_a")
    except (ValueError, OSError) as error:  # there are no such weights, or no network to fetch them
        raise InputError(f"--arch {recipe['arch']} --pretrained: {error}") from None
    if recipe["init"] and not checkpoint:
        source = load_checkpoint(recipe["init"])["model"]
        try:
            model.phi.load_state_dict({k.removeprefix("phi."): v for k, v in source.items() if k.startswith("phi.")})
        except RuntimeError:
            raise InputError(f"--init {recipe['init']}: its phi does not fit --arch {recipe['arch']}") from None
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
    if torch.cuda.is_available():
        model.cuda()
        if dist.is_initialized():
            SyncBatchNorm.convert_sync_batchnorm(model)
    old = {p for name, p in model.phi.named_parameters() if recipe["pretrained"] and ".fc." not in name}
    groups = [dict(params=[p for p in model.parameters() if (p in old) == pretrained], peak=lr)
              for pretrained, lr in ((False, recipe["lr"]), (True, recipe["lr_pretrained"]))]
    optimizer = torch.optim.SGD(groups, 0, recipe["momentum"], weight_decay=recipe["weight_decay"], fused=True)
    if checkpoint:
        optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer


# ------------------------------------------------------------------------------ one process or many (torchrun)

def processes():
    """(world, rank, device) of this process."""
    world, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return world, rank, device


def total(x):
    """The sum of a tensor over all processes, on the CPU."""
    x = x.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(x)
    return x.cpu()


def share(recipe, labels, start, M, world, rank):
    """The sampler of the batches [B_CBS; B_RRS], the same in every process, and the places of this one's slices."""
    S, Z, seed, (lambda_1, lambda_2, _) = (recipe[k] for k in ("batch_size", "Z", "seed", "lambdas"))
    try:
        sampler = JointBatchSampler(labels, S, Z, M, seed, start, lambda_1 > 0, lambda_2 > 0)
    except ValueError as error:
        raise InputError(f"--batch-size {S} --Z {Z}: {error}") from None
    least = world * (Z if lambda_1 else 1)
    if S % least:
        raise InputError(f"--batch-size {S} --Z {Z}: {world} processes need a multiple of {least}: whole classes each")
    return sampler, torch.arange(S * len(sampler.samplers)).view(-1, world, S // world)[:, rank].flatten()


def draws(sampler, mine, seed):
    """The images at places `mine` of each batch, each with the key that seeds its augmentation: [(index, key)]."""
    for m, B in enumerate(sampler, sampler.start + 1):
        keys = np.random.default_rng([seed, 2, m]).integers(2 ** 32, size=len(B)).tolist()
        yield [(B[i], keys[i]) for i in mine.tolist()]


# ------------------------------------------------------------------------------ bookkeeping

def check_finite(window, m, out):
    """The mean losses [3] of the iterations up to m, on the host. Raises InputError where one is not finite."""
    window = torch.stack(window).cpu()  # the only synchronisation, once a progress line
    for i, l in enumerate(window, m - len(window) + 1):
        if not l.isfinite().all():
            raise InputError("the loss is not finite at iteration {}: l_CBS {:.4g}, l_RRS {:.4g}, l_SS {:.4g}; the "
                             "last good checkpoint is {}/last.pt; try a lower --lr".format(i, *l.tolist(), out))
    return window.mean(0).tolist()


def begin(recipe, checkpoint, N_c, device, rank):
    """What is saved of a run but the network, new or a checkpoint's. sums: l_CBS, l_RRS, l_SS since the epoch began;
    class_sums: by sampler and class, losses and images (Fig. 2)."""
    state = checkpoint or dict(layout=LAYOUT, method=method(recipe), m=0, N_c=N_c.tolist(), record=[], class_loss=[],
                               sums=torch.zeros(3), class_sums=torch.zeros(2, 2, len(N_c)))
    for name in ("sums", "class_sums"):  # saved as totals over the processes, so only one takes them up again
        state[name] = state[name].to(device) * (rank == 0)
    state["recipe"] = recipe
    return state


def tally(state, l, Y, world):
    """Add an iteration's losses to state["sums"] and, by class, to state["class_sums"]; returns their means [3]."""
    means = torch.stack([x.mean() for x in l])
    state["sums"] += means / world
    for table, y, x in zip(state["class_sums"], Y, l):
        if len(y):
            table.index_add_(1, y, torch.stack([x, torch.ones_like(x)]))
    return means


def end_epoch(state, steps, accuracy, **row):
    """Append the epoch's row to state["record"], its losses per class to state["class_loss"]; empty the sums."""
    l = (total(state["sums"]) / steps).tolist()
    row |= dict(zip(("l_CBS", "l_RRS", "l_SS"), l)) | dict(L_Final=float(np.dot(state["recipe"]["lambdas"], l)))
    state["record"].append(row | {f"val_{shot}": float(a) for shot, a in accuracy.items()})
    state["class_loss"].append(torch.div(*total(state["class_sums"]).unbind(1)))
    state["sums"].zero_(), state["class_sums"].zero_()


def train(recipe, out, checkpoint=None, workers=0, save_every=None, compile=False):
    """One run in folder `out`, from the start or from `checkpoint`, alone or under torchrun: Algorithm 1 with
    progress lines, validation, saving, and the test row at its end."""
    world, rank, device = processes()
    say = print if rank == 0 else lambda *args, **kwargs: None
    sets = load_data(recipe, checkpoint and checkpoint["N_c"])
    N_c, N, amp = sets["train"].N_c, len(sets["train"]), use_bf16(device, recipe["amp"])
    state = begin(recipe, checkpoint, N_c, device, rank)
    steps, start = N // recipe["batch_size"], state["m"]  # iterations of an epoch; done so far
    M = recipe["epochs"] * steps
    sampler, mine = share(recipe, sets["train"].labels.numpy(), start, M, world, rank)
    batches = loader(sets["train"], draws(sampler, mine, recipe["seed"]), workers, device.type == "cuda")
    model, optimizer = build(recipe, len(N_c), checkpoint)
    parts = model.phi, model.h, model.h_a, model.h_s
    if compile:
        model.phi.compile()
    if world > 1:
        parts = [DistributedDataParallel(part) if used else part for part, used in zip(parts, (1, *recipe["lambdas"]))]
    say(f"{state['method']} on {recipe['data']}: {N:,} images of {len(N_c)} classes, {world} x {device.type}, "
        f"{'bfloat16' if amp else 'float32'}, to {out}\n{', '.join(f'{k} {v}' for k, v in recipe.items())}")
    if not checkpoint:
        save(out, state, 0, model, optimizer)

    window, stop = [], []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    began = told = time.perf_counter()
    m_began = start
    for m, l, Y in algorithm_1(*parts, optimizer, batches, recipe, start, M, device, amp):
        window.append(tally(state, l, Y, world))
        stopping = stop if world == 1 else m % 10 == 0 and total(torch.tensor(len(stop), device=device))
        saving, epoch = stopping or m % steps == 0 or m % (save_every or M) == 0, -(-m // steps)
        if saving or time.perf_counter() - told > (1 if RETURN else 30):
            losses_now = check_finite(window, m, out)
            window, told = [], time.perf_counter()
            speed = (m - m_began) / (told - began)
            say(f"{RETURN}epoch {epoch}/{recipe['epochs']}  iteration {m}/{M}  "
                + "".join(f"{name} {x:.3f}  " for name, x in zip(("l_CBS", "l_RRS", "l_SS"), losses_now))
                + f"{speed * len(mine) * world:,.0f} images/s  {datetime.timedelta(seconds=int((M - m) / speed))} left",
                end="" if RETURN else "\n", flush=True)
        if m % steps == 0:
            accuracy = shot_accuracy(evaluate(model, sets["val"], device, amp, workers, rank, world), N_c)
            model.train()
            shown = "  ".join(f"{shot} {cell(a)}" for shot, a in accuracy.items())
            say(f"{RETURN}epoch {epoch}/{recipe['epochs']}  val  {shown}")
            end_epoch(state, steps, accuracy, epoch=epoch, iteration=m, lr=optimizer.param_groups[0]["lr"],
                      images_per_second=speed * len(mine) * world)
            began, m_began = time.perf_counter(), m
        if saving:
            save(out, state, m, model, optimizer)
        if stopping:
            say(f"{RETURN}stopped at iteration {m}/{M}; go on with: python train.py --resume {out}/last.pt",
                file=sys.stderr)
            sys.exit(128 + (stop or [signal.SIGTERM])[0])

    counts = evaluate(model, sets["test"], device, amp, workers, rank, world)
    if rank == 0:
        print("test accuracy, in percent")
        show(shot_accuracy(counts, N_c), counts)
    if world > 1:
        dist.destroy_process_group()


# ------------------------------------------------------------------------------ command line

def flags():
    """The parser; a flag that is not given leaves no trace, so that the recipe can fill it in."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    argument_default=argparse.SUPPRESS)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    whole, real = at_least(int, 1), at_least(float, 0)
    add("--data", metavar="NAME", help="glyphs_lt, cifar10_lt, cifar100_lt, or a NAME with lists in --root (glyphs_lt)")
    add("--root", metavar="DIR", help="folder of ROOT/NAME_{train,val,test}.txt and the images (data)")
    add("--arch", choices=ARCHS, help="feature extractor phi (resnet10)")
    add("--lambdas", nargs=3, type=real, metavar=("L1", "L2", "L3"), help="weights of l_CBS, l_RRS, l_SS (0.5 1 1)")
    add("--Z", type=whole, help="images per class in B_CBS (4)")
    add("--batch-size", type=whole, metavar="S", help="images in each of B_CBS and B_RRS, over all processes (128)")
    add("--epochs", type=whole, help="passes of RRS over the training set (90, or the dataset's recipe)")
    add("--lr", type=real, help="learning rate at the start of the cosine (0.1, or the recipe's)")
    add("--lr-pretrained", type=real, metavar="LR", help="learning rate of pre-trained weights (0.001)")
    add("--momentum", type=real, help="of SGD (0.9)")
    add("--weight-decay", type=real, metavar="W", help="of SGD (0.0005)")
    add("--size", type=at_least(int, 32), help="side of a training image in pixels (224, or the recipe's)")
    add("--imbalance", type=at_least(float, 1), help="N_max / N_min of CIFAR-LT (100)")
    add("--seed", type=at_least(int, 0), help="of weights, batches, augmentation and rotation (0)")
    add("--amp", action=switch, help="bfloat16 autocast where the hardware has it (on)")
    add("--pretrained", action=switch, help="phi from torchvision's ImageNet weights (on for resnet152 on places_lt)")
    add("--small-stem", action=switch, help="3 x 3 stem without max-pooling, for 32-pixel photographs (on for CIFAR)")
    add("--rotation-augmentation", action=switch, help="Table 5: rotations as augmentation, no l_SS (off)")
    add("--init", metavar="CHECKPOINT", help="Table 3: phi from another run's last.pt (none)")
    add("--out", metavar="DIR", help="folder of the run (runs/ and a name made of the recipe)")
    add("--resume", metavar="CHECKPOINT", help="go on from a run's last.pt, with its recipe")
    add("--save-every", type=whole, metavar="M", help="also save every M iterations (once an epoch)")
    add("--workers", type=at_least(int, 0), help=f"image loading processes ({CORES}: one a core)")
    add("--compile", action="store_true", help="torch.compile phi")
    return parser


def parse(argv):
    """Flags to (recipe, out, checkpoint, options); a resumed run's recipe is its checkpoint's."""
    parser = flags()
    given = vars(parser.parse_args(argv))
    options = dict(save_every=given.pop("save_every", None), compile=given.pop("compile", False),
                   workers=given.pop("workers", CORES))
    out, resume = given.pop("out", None), given.pop("resume", None)
    if "root" in given:
        given["root"] = os.path.abspath(given["root"])
    if resume:
        checkpoint = load_checkpoint(resume)
        recipe = checkpoint["recipe"] | {k: given.pop(k) for k in ("root",) if k in given}
        for flag, value in given.items():
            if recipe[flag] != value:
                parser.error(f"--{flag.replace('_', '-')} {value} contradicts {resume}, which has {recipe[flag]}; "
                             "leave it out, or start a new run with --out")
        if out:
            parser.error("--out contradicts --resume, which goes on in the folder of its checkpoint; leave one out")
        return recipe, os.path.dirname(resume) or ".", checkpoint, options
    data, arch = (given.get(k, DEFAULTS[k]) for k in ("data", "arch"))
    recipe = DEFAULTS | RECIPES.get(data.lower(), {}) | RECIPES.get(f"{data.lower()} {arch}", {}) | given
    if recipe["rotation_augmentation"]:
        recipe["lambdas"] = [*recipe["lambdas"][:2], 0.0]
    if not sum(recipe["lambdas"][:2]):
        parser.error("--lambdas: L1 and L2 are both 0, so no classifier would be trained")
    weights = "_".join(f"{weight:g}" for weight in recipe["lambdas"])
    out = out or f"runs/{data}-{arch}-{method(recipe)}_{weights}-seed{recipe['seed']}"
    if os.path.exists(os.path.join(out, "last.pt")):
        parser.error(f"{out} holds a run; go on with it by --resume {out}/last.pt, or choose another folder with --out")
    return recipe, out, None, options


def main(argv=None):
    recipe, out, checkpoint, options = parse(argv)
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None
    write(os.path.join(out, "recipe.json"), json.dumps(recipe, indent=1).encode())
    train(recipe, out, checkpoint, **options)


if __name__ == "__main__":
    run(main)
