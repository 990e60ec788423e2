"""The network: feature extractor phi, linear heads h, h_a and h_s. Fig. 1, Secs. 3.2-3.4 and 4.3.

    model = Model("resnet10", C=1000)
    logits = model(images)     # prediction (Sec. 3.4): uint8 [B, 3, H, W] -> [B, C], by phi and h

`python model.py` counts the parameters of phi and of each head.
"""
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

ARCHS = ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]

class Normalise(nn.Module):
    """uint8 [B, 3, H, W] -> float by ImageNet's mean and deviation; channels-last."""
    def __init__(self):
        super().__init__()
        for name, rgb in ("mean", [0.485, 0.456, 0.406]), ("std", [0.229, 0.224, 0.225]):
            self.register_buffer(name, 255 * torch.tensor(rgb).view(3, 1, 1), persistent=False)

    def forward(self, x):
        return x.to(memory_format=torch.channels_last).float().sub_(self.mean).div_(self.std)

def feature_extractor(arch, pretrained=False, small_stem=False):
    """phi (Sec. 4.3): ResNet, average pooling, 512-d fully connected layer and ReLU.
    uint8 [B, 3, H, W] -> [B, 512]. pretrained: torchvision's weights of all but that layer.
    small_stem: 3 x 3 without max-pooling, for 32-pixel photographs. Raises ValueError."""
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}; there are {', '.join(ARCHS)}")
    if arch == "resnet10" and pretrained:
        raise ValueError("resnet10 has no pre-trained weights; leave them out or take another arch")
    weights = "IMAGENET1K_V1" if pretrained else None
    resnet = ResNet(BasicBlock, [1] * 4) if arch == "resnet10" else get_model(arch, weights=weights)
    if small_stem:
        resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    resnet.fc = nn.Sequential(nn.Linear(resnet.fc.in_features, 512), nn.ReLU())
    return nn.Sequential(Normalise(), resnet).to(memory_format=torch.channels_last)

class Model(nn.Module):
    """phi with heads h (trained on B_CBS), h_a (on B_RRS) and h_s (four angles, on B_theta).
    predict_with: "h", or "h_a" for RRS-Only, where h is not trained."""
    def __init__(self, arch, C, pretrained=False, small_stem=False, predict_with="h"):
        super().__init__()
        self.phi = feature_extractor(arch, pretrained, small_stem)
        self.h, self.h_a, self.h_s = nn.Linear(512, C), nn.Linear(512, C), nn.Linear(512, 4)
        self.predict_with = predict_with

    @property
    def classifier(self):
        return getattr(self, self.predict_with)

    def forward(self, x):
        """Class logits [B, C] of uint8 images [B, 3, H, W] (Sec. 3.4, prediction)."""
        return self.classifier(self.phi(x))

def has_bf16(device):
    """Whether the hardware computes in bfloat16, so that autocast pays."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))

if __name__ == "__main__":
    print(f"parameters, C = 1000{'phi':>12}{'h':>12}{'h_a':>12}{'h_s':>12}   test model: phi + h")
    for arch in ARCHS:
        parts = Model(arch, 1000).children()
        n = [sum(p.numel() for p in part.parameters()) for part in parts]
        print(f"{arch:20}" + "".join(f"{x:12,}" for x in n) + f"{n[0] + n[1]:22,}")
