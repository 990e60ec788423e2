"""Index samplers: class-balanced (CBS) and regular random (RRS). Sec. 3.1, Algorithm 1, lines 2-8.

    sampler = JointBatchSampler(labels, S=128, Z=4, M=900)     # each batch is [B_CBS; B_RRS]
    for images, labels in torch.utils.data.DataLoader(dataset, batch_sampler=sampler): ...

`python sampler.py` shows how often each class is drawn. B_CBS and B_RRS are indices of images here.
A batch is a function of (seed, m) alone, m = 1 to M: a run can be resumed anywhere, and every
process of a distributed run draws the same batch.
"""
import numpy as np

CBS, RRS = 0, 1  # one stream of random numbers each

def without_replacement(rng, n, size):
    """`size` of the numbers 0..n-1, none twice. Where size > n (which the paper leaves open), whole
    random permutations follow one another: each number comes floor or ceil(size / n) times."""
    whole = [rng.permutation(n) for _ in range(size // n)]
    return np.concatenate([*whole, rng.choice(n, size % n, replace=False)])

class ClassBalancedSampler:
    """Lines 2-7: k = S / Z random classes, Z random images of each. labels: int [N], 0..C-1.
    Raises ValueError where a class is absent or Z does not divide S."""
    def __init__(self, labels, S, Z=4, seed=0):
        if S % Z:
            k = max(1, S // Z)
            raise ValueError(f"Z = {Z} does not divide S = {S}; take S = {k * Z} or {k * Z + Z}")
        N_c = np.bincount(labels)
        if not N_c.all():
            raise ValueError(f"class {N_c.argmin()} has no image")
        by_class = np.argsort(labels, kind="stable")
        self.Q = np.split(by_class, np.cumsum(N_c)[:-1])  # {Q_y}: the images of each class
        self.k, self.Z, self.seed = S // Z, Z, seed

    def batch(self, m):
        """B_CBS of iteration m: int [S] indices, class by class."""
        rng = np.random.default_rng([self.seed, CBS, m])
        Y_k = without_replacement(rng, len(self.Q), self.k)                           # line 2
        B_CBS = []                                                                    # line 3
        for y in Y_k:                                                                 # line 4
            I_Z = self.Q[y][without_replacement(rng, len(self.Q[y]), self.Z)]         # line 5
            B_CBS.append(I_Z)                                                         # line 6
        return np.concatenate(B_CBS)                                                  # line 7

class RegularRandomSampler:
    """Line 8: S of N images; an epoch is one permutation of all, its last incomplete batch dropped.
    Raises ValueError where S > N."""
    def __init__(self, N, S, seed=0):
        if S > N:
            raise ValueError(f"S = {S} is more than the {N} training images; make it smaller")
        self.N, self.S, self.seed, self.epoch = N, S, seed, None

    def batch(self, m):
        """B_RRS of iteration m: int [S] indices."""
        epoch, i = divmod(m - 1, self.N // self.S)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, RRS, epoch]).permutation(self.N)
        return self.order[i * self.S:(i + 1) * self.S]                                # line 8

class JointBatchSampler:
    """Yields [B_CBS; B_RRS], 2S indices, for iterations start + 1 to M; S where either is off."""
    def __init__(self, labels, S, Z, M, seed=0, start=0, cbs=True, rrs=True):
        regular = RegularRandomSampler(len(labels), S, seed)
        self.samplers = [ClassBalancedSampler(labels, S, Z, seed)] if cbs else []
        self.samplers += [regular] if rrs else []
        self.start, self.M = start, M

    def __iter__(self):
        for m in range(self.start + 1, self.M + 1):
            yield np.concatenate([sampler.batch(m) for sampler in self.samplers]).tolist()

    def __len__(self):
        return self.M - self.start

if __name__ == "__main__":
    N_c, S, M = np.array([1000, 400, 160, 60, 20, 5]), 24, 1000  # a long tail
    labels, drawn = np.repeat(np.arange(len(N_c)), N_c), []
    for sampler in ClassBalancedSampler(labels, S), RegularRandomSampler(len(labels), S):
        batches = np.concatenate([sampler.batch(m) for m in range(1, M + 1)])
        drawn.append(np.bincount(labels[batches]))
    print(f"{M} batches of {S}  drawn by CBS  by RRS   per image  by RRS")
    for y, (n, cbs, rrs) in enumerate(zip(N_c, *drawn)):
        print(f"class {y}{n:6} images {cbs:13,} {rrs:7,} {cbs / n:11.1f} {rrs / n:7.1f}")
