"""The network: feature extractor phi and the linear heads h, h_a, h_s. Paper: Fig. 1, Secs. 3.2-3.4 and 4.3.

    model = Model("resnet10", C=1000)
    logits = model(images)        # prediction, uint8 [B, 3, H, W] -> [B, C]: phi and h alone (Sec. 3.4)

    python model.py --arch resnet10 --classes 1000      # the parameters of phi and of each head
"""
import argparse

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

ARCHS = ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class Normalise(nn.Module):
    """uint8 [B, 3, H, W] to float with ImageNet's mean and deviation, on the device, laid out channels-last."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, x):
        return x.to(memory_format=torch.channels_last).float().sub_(self.mean).div_(self.std)


def feature_extractor(arch, pretrained=False, small_stem=False):
    """phi (Sec. 4.3): ResNet, average pooling, then a 512-d fully connected layer and ReLU.

    uint8 [B, 3, H, W] -> [B, 512]. pretrained: torchvision's ImageNet weights below the 512-d layer.
    small_stem: 3 x 3 without max-pooling, for 32-pixel photographs. Raises ValueError for an unknown arch.
    """
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}; there are {', '.join(ARCHS)}")
    if arch == "resnet10" and pretrained:
        raise ValueError("resnet10 has no pre-trained weights; leave out --pretrained or take a larger --arch")
    resnet = (ResNet(BasicBlock, [1, 1, 1, 1]) if arch == "resnet10" else
              get_model(arch, weights="IMAGENET1K_V1" if pretrained else None))
    if small_stem:
        resnet.conv1, resnet.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    resnet.fc = nn.Sequential(nn.Linear(resnet.fc.in_features, 512), nn.ReLU())
    return nn.Sequential(Normalise(), resnet).to(memory_format=torch.channels_last)


class Model(nn.Module):
    """phi with heads h (trained on B_CBS), h_a (on B_RRS) and h_s (four angles, on B_theta).

    predict_with: "h", or "h_a" for RRS-Only, where h is not trained.
    """

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count the parameters of phi and of each head.")
    parser.add_argument("--arch", choices=ARCHS, default="resnet10", help="feature extractor (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=1000, metavar="C", help="classes (default: %(default)s)")
    args = parser.parse_args()
    model = Model(args.arch, args.classes)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    for name, n in count.items():
        print(f"{name:4} {n:12,}   {'training and test' if name in ('phi', 'h') else 'training only'}")
    print(f"training {sum(count.values()):,}, test model {count['phi'] + count['h']:,}")
