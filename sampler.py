"""Index samplers: class-balanced (CBS) and regular random (RRS). Sec. 3.1; Algorithm 1, lines 2-8.

    loader = DataLoader(dataset, batch_sampler=ClassBalancedSampler(labels, S=128, Z=4))
    for images, labels in loader: ...     # each batch: 32 classes, 4 images of each

Both are batch samplers for any DataLoader. A pass over one is an epoch of floor(N / S) batches,
which depend on seed and epoch, not on what was drawn before. Each pass is a new epoch; `set_epoch`
chooses one.
`python sampler.py` shows how often each class is drawn.
"""

import numpy as np

CBS, RRS = 0, 1  # each sampler has its own stream of random numbers


class ClassBalancedSampler:
    """Lines 2-7: k = S / Z random classes, Z random images of each. labels: int [N], 0..C-1.
    Where k > C, classes repeat; where Z > N_y, images do. The paper does not say how many batches
    are an epoch of CBS; as many as of RRS is our choice. With S = 128 these are 905 on ImageNet-LT;
    [19]'s rule, N_max x C images an epoch, would give 10,000.

    Raises ValueError where a class has no image, S > N, or Z does not divide S.
    """

    def __init__(self, labels, S, Z=4, seed=0):
        if len(labels) < S:
            raise ValueError(f"S = {S} is more than the {len(labels)} training images")
        if S % Z:
            nearest = max(1, S // Z) * Z
            raise ValueError(
                f"Z = {Z} does not divide S = {S}; take S = {nearest} or {nearest + Z}"
            )
        N_c = np.bincount(labels)
        if not N_c.all():
            raise ValueError(f"class {N_c.argmin()} has no image")
        by_class = np.argsort(labels, kind="stable")
        self.Q = np.split(by_class, np.cumsum(N_c)[:-1])  # {Q_y}: the images of each class
        self.k = S // Z
        self.Z = Z
        self.length = len(labels) // S
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __iter__(self):
        rng = np.random.default_rng([self.seed, CBS, self.epoch])
        self.epoch += 1
        for _ in range(len(self)):
            Y_k = without_replacement(rng, len(self.Q), self.k)  # line 2
            B_CBS = []  # line 3
            for y in Y_k:  # line 4
                I_Z = self.Q[y][without_replacement(rng, len(self.Q[y]), self.Z)]  # line 5
                B_CBS.append(I_Z)  # line 6
            yield np.concatenate(B_CBS).tolist()  # line 7: end for


def without_replacement(rng, n, size):
    """`size` of the numbers 0..n-1: none twice where size <= n. Else, which the paper leaves open,
    whole random permutations follow one another: each number comes floor or ceil(size / n) times.
    """
    whole = [rng.permutation(n) for _ in range(size // n)]
    return np.concatenate([*whole, rng.choice(n, size % n, replace=False)])


class RegularRandomSampler:
    """Line 8: S random images. An epoch, as is usual, is one permutation of all N images, cut into
    batches; the last incomplete one is dropped. Raises ValueError where S > N."""

    def __init__(self, N, S, seed=0):
        if S > N:
            raise ValueError(f"S = {S} is more than the {N} training images")
        self.N = N
        self.S = S
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.N // self.S

    def __iter__(self):
        rng = np.random.default_rng([self.seed, RRS, self.epoch])
        self.epoch += 1
        order = rng.permutation(self.N)
        for i in range(len(self)):
            B_RRS = order[i * self.S : (i + 1) * self.S]  # line 8
            yield B_RRS.tolist()


class JointBatchSampler:
    """[B_CBS; B_RRS]: the batches of several samplers side by side, concatenated (Sec. 3.4).

    Of `world` processes each draws the same batches and takes its own share of every one.
    """

    def __init__(self, *samplers, rank=0, world=1):
        self.samplers = samplers
        self.rank = rank
        self.world = world

    def set_epoch(self, epoch):
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __len__(self):
        return len(self.samplers[0])

    def __iter__(self):
        for batches in zip(*self.samplers, strict=True):
            yield [i for B in batches for i in B[self.rank :: self.world]]


if __name__ == "__main__":
    N_c = np.array([1000, 400, 160, 60, 20, 5])  # a long tail
    labels = np.repeat(np.arange(len(N_c)), N_c)
    drawn = []
    for sampler in ClassBalancedSampler(labels, S=12, Z=4), RegularRandomSampler(len(labels), S=12):
        batches = np.concatenate(list(sampler))
        drawn.append(np.bincount(labels[batches], minlength=len(N_c)))
    print(f"{len(sampler)} batches of 12   drawn by CBS  by RRS   CBS/image  RRS/image")
    for y, (n, cbs, rrs) in enumerate(zip(N_c, *drawn, strict=True)):
        print(f"class {y}{n:6} images {cbs:13,} {rrs:7,} {cbs / n:11.1f} {rrs / n:10.1f}")
