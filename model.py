"""The network: feature extractor phi, linear heads h, h_a and h_s. Fig. 1; Secs. 3.2-3.4 and 4.3.

    model = Model("resnet10", C=1000).eval()
    logits = model(images)     # prediction (Sec. 3.4): uint8 [B, 3, H, W] -> [B, C], by phi and h

`python model.py` counts the parameters of phi and of each head.
"""

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

ARCHS = ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class Model(nn.Module):
    """phi with heads h (trained on B_CBS), h_a (on B_RRS, Sec. 3.2) and h_s (on B_theta, Sec. 3.3:
    four angles). tied: h is h_a, where no B_CBS trains h: RRS-Only predicts by its one classifier.
    The other keyword arguments are those of FeatureExtractor."""

    def __init__(self, arch, C, tied=False, **kwargs):
        super().__init__()
        self.phi = FeatureExtractor(arch, **kwargs)
        self.h = nn.Linear(512, C)
        self.h_a = nn.Linear(512, C)
        self.h_s = nn.Linear(512, 4)
        if tied:  # after h was made: so, with one seed, h_a and h_s start alike, tied or not
            self.h = self.h_a

    def forward(self, x):
        """Class logits [B, C] of uint8 images [B, 3, H, W] (Sec. 3.4, prediction)."""
        return self.h(self.phi(x))


class FeatureExtractor(nn.Module):
    """phi (Sec. 4.3): ResNet, average pooling, 512-d fully connected layer; a ReLU, as in [19].
    uint8 [B, 3, H, W] -> float32 [B, 512].

    pretrained: torchvision's ImageNet weights, but for new layers. small_stem: a new first layer,
    a 3 x 3 convolution without max-pooling, for 32-pixel photographs. amp: compute in bfloat16.
    Raises ValueError for an unknown arch or weights that do not exist.
    """

    def __init__(self, arch, pretrained=False, small_stem=False, amp=False):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"unknown arch {arch!r}; there are {', '.join(ARCHS)}")
        if arch == "resnet10" and pretrained:
            raise ValueError("resnet10 has no pre-trained weights")
        if arch == "resnet10":
            self.resnet = ResNet(BasicBlock, [1, 1, 1, 1])
        else:
            self.resnet = get_model(arch, weights="IMAGENET1K_V1" if pretrained else None)
        if small_stem:
            self.resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.resnet.maxpool = nn.Identity()
        self.resnet.fc = nn.Sequential(nn.Linear(self.resnet.fc.in_features, 512), nn.ReLU())
        self.to(memory_format=torch.channels_last)
        self.amp = amp
        mean = 255 * torch.tensor([0.485, 0.456, 0.406])  # ImageNet's
        std = 255 * torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def forward(self, x):
        x = x.to(torch.float32, copy=True, memory_format=torch.channels_last)  # never the caller's
        x = x.sub_(self.mean).div_(self.std)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            f = self.resnet(x)
        return f.float()  # heads and losses in float32: in bfloat16 logits are often equal


def has_bf16(device):
    """Whether the hardware computes in bfloat16, so that autocast pays; of CPUs, AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # in older versions of PyTorch
        return False
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


if __name__ == "__main__":
    print(f"parameters, C = 1000{'phi':>12}{'h':>12}{'h_a':>12}{'h_s':>12}   test model: phi + h")
    for arch in ARCHS:
        n = [sum(p.numel() for p in part.parameters()) for part in Model(arch, 1000).children()]
        print(f"{arch:20}" + "".join(f"{x:12,}" for x in n) + f"{n[0] + n[1]:22,}")
