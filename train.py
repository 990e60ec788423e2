"""Training: Algorithm 1 and Eq. 2. Secs. 3.4 and 4.4.

    python train.py                                                    # glyphs_lt: minutes on a CPU
    python train.py --data imagenet_lt --arch resnet10 --root DIR      # Table 1, on one GPU
    torchrun --nproc_per_node=8 train.py --data imagenet_lt --root DIR # ... on 8 (add --nnodes ...)
    python train.py --resume runs/RUN/last.pt                          # go on where a run stopped
"""
import argparse, contextlib, fcntl, functools, io, itertools, json, math, os, signal, sys, time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave the cores to others

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import evaluate
from data import SIGNALS, WORKERS, InputError, Parser, explain, loader, number, require, run
from model import ARCHS, Model, has_bf16
from sampler import JointBatchSampler

WORLD, RANK, LOCAL = (int(os.environ.get(name, default)) for name, default in  # torchrun's
                      (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
TASKS, KEPT = ("l_CBS", "l_RRS", "l_SS"), ("m", "epoch", "sums", "record")
DEVICE = torch.device(f"cuda:{LOCAL}" if torch.cuda.is_available() else "cpu")

# ------------------------------------------------------------------------------ Algorithm 1
def rotate(B, theta):
    """Line 9: image i of B [B, 3, H, H] turned counter-clockwise by theta[i], 0..3, quarters."""
    turned = torch.stack([B.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned[theta, torch.arange(len(B), device=B.device)]

def losses(phi, h, h_a, h_s, B_CBS, Y_CBS, B_RRS, Y_RRS, theta, lambdas):
    """Lines 9-11 and Eq. 2: L_Final, and per image l_CBS [S], l_RRS [S], l_SS [2S], for Fig. 2: the
    paper's are their means. B_*: images [S, 3, H, H]; Y_*: int [S]; theta: int [2S], 0..3. A branch
    whose lambda is 0 is left out; its batch may be empty."""
    lambda_1, lambda_2, lambda_3 = lambdas
    B = torch.cat([B_CBS, B_RRS])
    B_theta = rotate(B, theta) if lambda_3 else B[:0]                                 # line 9
    features = phi(torch.cat([B, B_theta]))
    f_CBS, f_RRS, f_theta = features.split([len(B_CBS), len(B_RRS), len(B_theta)])
    l_CBS = l_RRS = l_SS = torch.zeros(1, device=B.device)
    if lambda_1:
        l_CBS = F.cross_entropy(h(f_CBS), Y_CBS, reduction="none")                    # line 10
    if lambda_2:
        l_RRS = F.cross_entropy(h_a(f_RRS), Y_RRS, reduction="none")                  # line 10
    if lambda_3:
        l_SS = F.cross_entropy(h_s(f_theta), theta, reduction="none")                 # line 11
    L_Final = lambda_1 * l_CBS.mean() + lambda_2 * l_RRS.mean() + lambda_3 * l_SS.mean()  # line 11
    return L_Final, l_CBS, l_RRS, l_SS

def cosine(m, M):
    """Sec. 4.4: the share of the learning rate in force at iteration m, from 1 towards 0 at M."""
    return (1 + math.cos(math.pi * (m - 1) / M)) / 2

def algorithm_1(modules, optimizer, batches, lambdas, rotation_augmentation, start, M, amp):
    """Lines 1-13 for m = start + 1 to M; after each, yields m, the losses (l_CBS, l_RRS, l_SS) of
    each image, and their classes (Y_CBS, Y_RRS, both). modules: phi, h, h_a, h_s. batches: images
    [B_CBS; B_RRS], labels and theta; lines 2-8 run in sampler.py, perhaps ahead in a loading
    process, in step with line 1."""
    cbs, rrs = lambdas[0] > 0, lambdas[1] > 0
    for m, batch in enumerate(batches, start + 1):                                    # line 1
        B, Y, theta = (x.to(DEVICE, non_blocking=True) for x in batch)                # lines 2-8
        S = len(B) // (cbs + rrs)
        (B_CBS, B_RRS), (Y_CBS, Y_RRS) = B.split([S * cbs, S * rrs]), Y.split([S * cbs, S * rrs])
        if rotation_augmentation:  # Table 5: the rotated twins join the class losses
            twins_CBS, twins_RRS = rotate(B, theta).split([S * cbs, S * rrs])
            B_CBS, Y_CBS = torch.cat([B_CBS, twins_CBS]), Y_CBS.repeat(2)
            B_RRS, Y_RRS = torch.cat([B_RRS, twins_RRS]), Y_RRS.repeat(2)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp):
            L_Final, *l = losses(*modules, B_CBS, Y_CBS, B_RRS, Y_RRS, theta, lambdas)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * cosine(m, M)
        optimizer.zero_grad()
        L_Final.backward()
        optimizer.step()                                                              # line 12
        yield m, [x.detach() for x in l], (Y_CBS, Y_RRS, Y)                           # line 13

# ------------------------------------------------------------------------------ a run
def train(args, checkpoint=None):
    """A run's whole life, from its start or a checkpoint, alone or as one of many processes."""
    sets = evaluate.load_data(args, checkpoint)
    N_c, amp = sets["train"].N_c, args.amp and has_bf16(DEVICE)
    model, optimizer = build(args, len(N_c), checkpoint)
    log = Log(args, len(sets["train"]), len(N_c), checkpoint)
    batches = training_batches(args, sets["train"], log.m, log.M)
    lock = claim(args, log.m) if RANK == 0 else None  # noqa: F841, held while this function runs
    print(f"{method(args)} on {args.data}: {len(sets['train']):,} images of {len(N_c)} classes, "
          f"{WORLD} x {DEVICE.type}, {'bfloat16' if amp else 'float32'}, to {args.out}\n"
          + ", ".join(f"{key} {value}" for key, value in recipe(args).items()))
    iterations = algorithm_1(parallel(model, args.lambdas), optimizer, batches, args.lambdas,
                             args.rotation_augmentation, log.m, log.M, amp)
    save = functools.partial(save_run, args, log, model, optimizer, sets)
    def predict(split):
        return evaluate.predict(model, sets[split], args.amp, args.workers, RANK, WORLD)[0]
    if not args.resume:
        save()
    on_signals(log.on_signal)
    try:
        for epoch in range(log.epoch, args.epochs):
            for m, l, Y in itertools.islice(iterations, (epoch + 1) * log.steps - log.m):
                log.add(m, l, Y)
                stop = log.must_stop()
                if stop or m % (args.save_every or math.inf) == 0:
                    save()
                if stop:
                    log.leave()
            save()  # before validation, which takes long and may fail
            log.end_epoch(sets["val"].labels, predict("val"), N_c)
            save()
    except Exception:  # a missing image, a closed pipe: keep what was trained, if it is finite
        if WORLD == 1:
            save()
        raise
    finally:
        batches.close()
    on_signals(signal.SIG_DFL)  # all is saved
    evaluate.report("test accuracy, in percent", sets["test"], predict("test"), N_c,
                    args.out if RANK == 0 else None)

def build(args, C, checkpoint=None):
    """Model and SGD: new, with phi from --init (Table 3), or taken out of a checkpoint."""
    torch.manual_seed(args.seed)
    weights, predict_with = args.pretrained and not checkpoint, "h" if args.lambdas[0] else "h_a"
    with explain(f"--arch {args.arch} --pretrained", ValueError, OSError):  # none, or no network
        model = Model(args.arch, C, weights, args.small_stem, predict_with)
    if checkpoint:
        model.load_state_dict(checkpoint.pop("model"))
    elif args.init:
        source = evaluate.load_checkpoint(args.init)["model"]
        with explain(f"--init {args.init}: its --arch or --small-stem is another", RuntimeError):
            phi = {k[4:]: v for k, v in source.items() if k.startswith("phi.")}
            model.phi.load_state_dict(phi)
    model.to(DEVICE)
    if DEVICE.type == "cuda" and WORLD > 1:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.compile:
        model.phi.compile()
    new, old = [], []
    for name, p in model.named_parameters():
        is_old = args.pretrained and name.startswith("phi.") and ".fc." not in name
        (old if is_old else new).append(p)
    groups = [dict(params=new, base_lr=args.lr), dict(params=old, base_lr=args.lr_pretrained)]
    optimizer = torch.optim.SGD(groups, args.lr, args.momentum, 0, args.weight_decay, fused=True)
    if checkpoint:
        optimizer.load_state_dict(checkpoint.pop("optimizer"))
    return model, optimizer

def training_batches(args, dataset, start, M):
    """Lines 2-8: iterator over the batches of algorithm_1. Every process draws the same global
    [B_CBS; B_RRS] and takes its slice of either; an image's seed is a function of (--seed, m)."""
    S, cbs, rrs = args.batch_size, args.lambdas[0] > 0, args.lambdas[1] > 0
    with explain(f"--batch-size {S} --Z {args.Z}", ValueError):
        sampler = JointBatchSampler(dataset.labels, S, args.Z, M, args.seed, start, cbs, rrs)
    require(S % WORLD == 0, f"--batch-size {S}: {WORLD} processes need a multiple of {WORLD}")
    def items():
        for m, batch in enumerate(sampler, start + 1):
            seeds = np.random.default_rng([args.seed, 2, m]).integers(2 ** 32, size=len(batch))
            pairs = np.stack([batch, seeds], 1).reshape(-1, WORLD, S // WORLD, 2)[:, RANK]
            yield [tuple(pair) for pair in pairs.reshape(-1, 2).tolist()]
    return loader(dataset, items(), args.workers, DEVICE.type == "cuda")

def parallel(model, lambdas):
    """phi, h, h_a, h_s; those in use with their gradients averaged over many processes."""
    return [DistributedDataParallel(module) if used and WORLD > 1 else module
            for module, used in zip(model.children(), (1, *lambdas))]

def all_reduce(x):
    """The sum of a tensor over all processes, on the CPU."""
    x = x.clone()
    if WORLD > 1:
        dist.all_reduce(x)
    return x.cpu()

# ------------------------------------------------------------------------------ log and checkpoint
class Log:
    """What a run accumulates: iteration m of M; sums [3, 2, C], losses and images of the epoch by
    task and class; recent, losses not yet printed; record, a CSV file as text; saved, the m on
    the disk; stop, a signal's number."""
    def __init__(self, args, N, C, checkpoint):
        self.args, self.steps = args, N // args.batch_size
        self.M = args.epochs * self.steps
        self.tasks = {task: i for i, task in enumerate(TASKS) if args.lambdas[i]}
        kept = checkpoint or dict(m=0, epoch=0, sums=torch.zeros(3, 2, C), record="")
        self.m, self.epoch, self.sums, self.record = (kept[key] for key in KEPT)
        self.sums = self.sums.to(DEVICE) * (RANK == 0)  # saved as totals over the processes
        self.saved, self.stop, self.recent = self.m, None, []
        self.last_print, self.images_per_second = 0, math.nan
        self.epoch_start = time.perf_counter(), self.m
        self.clear = "\r\033[K" if sys.stdout.isatty() else ""  # a terminal's line is rewritten

    def add(self, m, l, Y):
        """An iteration's losses and the classes of their images; prints a line now and then."""
        self.m = m
        for i in self.tasks.values():
            self.sums[i].index_add_(1, Y[i], torch.stack([l[i], torch.ones_like(l[i])]))
        self.recent.append(torch.stack([l[i].mean() for i in self.tasks.values()]))
        if time.perf_counter() - self.last_print > (1 if self.clear else 30):
            self.progress()

    def progress(self):
        """Print the mean losses since the last time. Raises InputError where one is not finite."""
        recent = torch.stack(self.recent).cpu()  # the loop waits for the device only here
        for m, l in enumerate(recent, self.m - len(recent) + 1):
            require(l.isfinite().all(), f"the loss is not finite at iteration {m}: {self.shown(l)}"
                    f"; {self.args.out}/last.pt is of before; try a lower --lr")
        self.recent, self.last_print = [], time.perf_counter()
        start, done = self.epoch_start
        per_second = (self.m - done) / (self.last_print - start)
        batches = sum(weight > 0 for weight in self.args.lambdas[:2])
        self.images_per_second = per_second * batches * self.args.batch_size
        print(f"{self.clear}m {self.m}/{self.M}  {self.shown(recent.mean(0))}  "
              f"{self.images_per_second:,.0f} images/s  {(self.M - self.m) / per_second / 60:.0f} "
              "min left", end="" if self.clear else "\n", flush=True)

    def shown(self, l):
        return " ".join(f"{task} {x:.3f}" for task, x in zip(self.tasks, l.tolist()))

    def end_epoch(self, labels, predictions, N_c):
        """A line, and a row of record.csv, with the losses per class for Fig. 2; empties sums."""
        self.epoch += 1
        accuracy, sums = evaluate.shot_accuracy(labels, predictions, N_c), all_reduce(self.sums)
        l = {task: (sums[i, 0].sum() / sums[i, 1].sum()).item() for task, i in self.tasks.items()}
        row = dict(epoch=self.epoch, iteration=self.m, lr=self.args.lr * cosine(self.m, self.M),
                   images_per_second=self.images_per_second, **l)
        row["L_Final"] = sum(self.args.lambdas[i] * l[task] for task, i in self.tasks.items())
        row |= {f"val_{shot}": a for shot, a in accuracy.items()}
        for task, (losses, images) in zip(TASKS[:2], sums):
            row |= {f"{task}_{y}": f"{x:.4f}" for y, x in enumerate(losses / images)}
        self.record = self.record or ",".join(row) + "\n"
        self.record += ",".join(map(str, row.values())) + "\n"
        self.sums.zero_()
        self.epoch_start = time.perf_counter(), self.m
        shown = "  ".join(f"{shot} {a:.1f}" for shot, a in accuracy.items()).replace("nan", "–")
        print(f"{self.clear}epoch {self.epoch}/{self.args.epochs}  val  {shown}")

    def on_signal(self, signum, frame):
        """The first signal asks for a stop, at once where all is saved; a second one kills."""
        self.stop = signum
        on_signals(signal.SIG_DFL)
        if self.saved == self.m and WORLD == 1:
            self.leave()

    def must_stop(self):
        """Whether a signal came; many processes agree on it every ten iterations."""
        if WORLD == 1:
            return self.stop
        return self.m % 10 == 0 and all_reduce(torch.tensor(self.stop or 0, device=DEVICE)) > 0

    def leave(self):
        if RANK == 0:
            print(f"{self.clear}stopped at iteration {self.m}/{self.M}; go on with --resume "
                  f"'{self.args.out}/last.pt'", file=sys.stderr)
        sys.exit(128 + (self.stop or signal.SIGTERM))

def on_signals(action):
    for n in SIGNALS:
        if signal.getsignal(n) != signal.SIG_IGN:  # nohup's stays ignored
            signal.signal(n, action)

def claim(args, m):
    """Make the run's folder and lock it while the returned file is referenced. Raises InputError
    where another process has it, or it holds a run that is further on than m."""
    with explain(f"--out {args.out}: not a folder to write in", OSError):
        os.makedirs(args.out, exist_ok=True)
        lock = open(f"{args.out}/lock", "w")
    occupied = explain(f"--out {args.out}: another process trains in it", BlockingIOError)
    with contextlib.suppress(OSError), occupied:  # other errors: a file system without locks
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loading processes do not inherit it
    last = f"{args.out}/last.pt"
    if os.path.exists(last) and (not args.resume or evaluate.load_checkpoint(last)["m"] > m):
        raise InputError(f"{args.out} holds a run further on: --resume '{last}', or another --out")
    return lock

def save_run(args, log, model, optimizer, sets):
    """The settings, the records and the checkpoint; one process writes for all."""
    if log.recent:
        log.progress()
    state = {key: getattr(log, key) for key in KEPT} | dict(
        sums=all_reduce(log.sums), layout=evaluate.LAYOUT, method=method(args), recipe=recipe(args),
        lists={split: dataset.fingerprint for split, dataset in sets.items()},
        N_c=sets["train"].N_c.tolist(), predict_with=model.predict_with, model=model.state_dict(),
        optimizer=optimizer.state_dict())
    if RANK == 0:
        file = io.BytesIO()
        torch.save(state, file)
        evaluate.write(f"{args.out}/recipe.json", json.dumps(recipe(args), indent=1).encode())
        evaluate.write(f"{args.out}/record.csv", log.record.encode())
        evaluate.write(f"{args.out}/last.pt", file.getbuffer())
    log.saved = log.m

# ------------------------------------------------------------------------------ command line
# Sec. 4.4 and, where it is silent, reference [19]: what differs from the defaults of the flags.
RECIPES = {
    "glyphs_lt": dict(epochs=5, lr=0.03, size=32),
    "imagenet_lt": dict(epochs=90, lr=0.1),
    "places_lt resnet152": dict(epochs=30, pretrained=True),
    "cifar10_lt": dict(epochs=20, size=32),  # for a CPU
    "cifar100_lt": dict(epochs=200, size=32, small_stem=True),
    "tinyimagenet_lt": dict(epochs=90, size=64),
}

def flags():
    """The command line, with the defaults for what no recipe says."""
    parser = Parser("Train by Algorithm 1. A dataset's recipe may change the defaults.")
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    whole, real, path = number(int, 1), number(float, 0), os.path.abspath
    add("--data", default="glyphs_lt", type=str.lower, metavar="NAME", help="dataset, see data.py")
    add("--root", default="data", type=path, metavar="DIR", help="of the lists and images")
    add("--arch", default="resnet10", choices=ARCHS, help="feature extractor phi")
    add("--lambdas", default=[0.5, 1.0, 1.0], nargs=3, type=real, help="of l_CBS, l_RRS, l_SS")
    add("--Z", default=4, type=whole, help="images per class in B_CBS")
    add("--batch-size", default=128, type=number(int, 2), metavar="S", help="of B_CBS and of B_RRS")
    add("--epochs", default=90, type=whole, help="passes of RRS over the training set")
    add("--lr", default=0.1, type=real, help="learning rate at the start of the cosine")
    add("--lr-pretrained", default=0.001, type=real, metavar="LR", help="of pre-trained weights")
    add("--momentum", default=0.9, type=real, help="of SGD")
    add("--weight-decay", default=5e-4, type=real, metavar="W", help="of SGD")
    add("--size", default=224, type=number(int, 32), help="side of an image in pixels")
    add("--imbalance", default=100.0, type=number(float, 1), help="N_max / N_min of CIFAR-LT")
    add("--seed", default=0, type=number(int, 0, 2 ** 64 - 1), help="of all that is random")
    add("--amp", default=True, action=switch, help="bfloat16 autocast where the hardware has it")
    add("--pretrained", default=False, action=switch, help="phi from ImageNet weights")
    add("--small-stem", default=False, action=switch, help="3 x 3 stem without max-pooling")
    add("--rotation-augmentation", default=False, action=switch, help="Table 5: in place of l_SS")
    add("--init", type=path, metavar="CHECKPOINT", help="Table 3: phi from another run's last.pt")
    add("--out", metavar="DIR", help="folder of the run; None: runs/ and a name of its settings")
    add("--resume", metavar="CHECKPOINT", help="go on from a run's last.pt, with its settings")
    add("--save-every", type=whole, metavar="M", help="also save every M iterations")
    add("--workers", default=WORKERS, type=number(int, 0), help="loading processes")
    add("--compile", action="store_true", help="torch.compile phi")
    return parser

def recipe(args):
    """The settings that a run's numbers depend on."""
    others = "out", "resume", "save_every", "workers", "compile"
    return {key: value for key, value in vars(args).items() if key not in others}

def method(args):
    """The paper's name of what is trained."""
    tasks = [task[2:] for task, weight in zip(TASKS, args.lambdas) if weight]
    name = "+".join(tasks) if len(tasks) > 1 else f"{tasks[0]}-Only"
    if args.rotation_augmentation:
        name += "+rotation"
    if args.init:
        name = "ftRRS+CBS" if name == "CBS-Only" else f"{name}-init"
    return name

def parse(argv):
    """Settings and the checkpoint to go on from. Flags win over its recipe or the dataset's."""
    parser, checkpoint = flags(), {}
    args = parser.parse_args(argv)
    parser.set_defaults(**RECIPES.get(args.data, {}) | RECIPES.get(f"{args.data} {args.arch}", {}))
    if args.resume:
        checkpoint = evaluate.load_checkpoint(args.resume)
        parser.set_defaults(**checkpoint["recipe"])
    args = parser.parse_args(argv)
    if args.rotation_augmentation:
        args.lambdas = args.lambdas[:2] + [0.0]
    require(any(args.lambdas[:2]), "--lambdas: with the first two 0 no classifier would be trained")
    changed = {k: v for k, v in recipe(args).items() if v != parser.get_default(k)}
    if args.resume:
        for key in changed.keys() - {"root"}:
            raise InputError(f"--{key.replace('_', '-')} {changed[key]} contradicts {args.resume}, "
                             f"with its {parser.get_default(key)}; leave it out, or start anew")
        require(not args.out, "--out contradicts --resume, which goes on in its own folder")
        args.out = os.path.dirname(args.resume) or "."
    elif not args.out:
        weights = "_".join(f"{weight:g}" for weight in args.lambdas)
        args.out = f"runs/{args.data}-{args.arch}-{method(args)}_{weights}-seed{args.seed}"
        said = "data", "root", "arch", "lambdas", "seed", "init", "rotation_augmentation"
        args.out += "".join(f"-{k}_{v}" for k, v in changed.items() if k not in said)
    return args, checkpoint

def main(argv=None):
    cuda, store = DEVICE.type == "cuda", None
    if cuda:
        torch.cuda.set_device(DEVICE)
        torch.backends.cudnn.benchmark = True
    if WORLD > 1:  # join torchrun's other processes, all but the first of them silent
        store, _, _ = next(dist.rendezvous("env://"))
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=RANK, world_size=WORLD)
        sys.stdout = open(os.devnull, "w") if RANK else sys.stdout
    try:
        train(*parse(argv))
    except Exception:  # the first process that fails says why; the others, which lose it, do not
        if store and store.add("failed", 1) > 1:
            sys.exit(1)
        raise
    finally:
        if store:
            dist.destroy_process_group()

if __name__ == "__main__":
    run(main)
