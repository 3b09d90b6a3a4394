"""A network whose first feature is the intensity itself: what it says, and where, is known beforehand."""

import torch
from torch import nn


class Intensity(nn.Module):
    """Gives back its input, by way of a layer of three features: the intensity, half of it, and its square's root."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, stride, stride=stride, bias=False), nn.ReLU())
        self.head = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.body[0].weight.copy_(torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1, 1).expand_as(self.body[0].weight))
            self.body[0].weight /= stride**2
            self.head.weight.copy_(torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1))

    def forward(self, x):
        return self.head(self.body(x))


def fine():
    return Intensity()


def coarse():
    return Intensity(2)


class Broken(nn.Module):
    """Says NaN in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 1)
        with torch.no_grad():
            self.body.weight.fill_(torch.nan)

    def forward(self, x):
        return self.body(x)


def broken():
    return Broken()


class Slow(Intensity):
    """Takes its time."""

    def forward(self, x):
        import time

        time.sleep(0.3)
        return super().forward(x)


def slow():
    return Slow()
