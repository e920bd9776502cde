"""What a client of the PyTorch peers does: ResNet-20, an epoch of SGD, augmentation."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

_FILTERS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False),
                nn.BatchNorm2d(filters),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet20() -> nn.Module:
    """Returns the network that `tff_fedmpq.resnet20` builds."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    channels = 16
    for stage, filters in enumerate(_FILTERS):
        for block in range(3):
            layers.append(Block(channels, filters, 2 if stage and not block else 1))
            channels = filters
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *pool)


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Pads by 4 pixels, crops at random, and mirrors half of the images."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    tops, lefts = torch.randint(0, 9, (2, count))
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    flips = torch.rand(count) < 0.5
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    picked = torch.arange(count)[:, None, None]
    cropped = padded[picked, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def load_client(path: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a client's images (count, 3, height, width), uint8, and int64 labels."""
    with np.load(path) as file:
        images, labels = file[f"images{number}"], file[f"labels{number}"]
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long()


def count_clients(path: str) -> int:
    """Returns how many clients a file holds."""
    with np.load(path) as file:
        return len(file.files) // 2


def train_epoch(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int
) -> None:
    """Trains a network for an epoch of SGD, on one core."""
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4
    )
    for chosen in torch.randperm(len(labels)).split(batch_size):
        batch = crop_and_flip(images[chosen]).float() / 127.5 - 1.0
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels[chosen]).backward()
        optimizer.step()
