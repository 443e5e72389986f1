"""Networks as a user might bring them."""

import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self, num_classes, width=4, kernels=(3, 3)):
        super().__init__()
        self.first = nn.Conv2d(3, width, kernels[0])
        self.second = nn.Conv2d(width, width, kernels[1])
        self.head = nn.Linear(width, num_classes)

    def forward(self, x, scale=None):
        x = F.dropout(self.second(F.relu(self.first(x))), 0.2, self.training)
        return self.head(x.mean((2, 3)))


class Fixed(Plain):
    def __init__(self):
        super().__init__(7)


class OneChannel(Plain):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.first = nn.Conv2d(1, 4, 3)


class Auxiliary(Plain):
    def forward(self, x):
        x = super().forward(x)
        return (x, x) if self.training else x


class Pixels(Plain):
    def forward(self, x):
        return self.head(self.first(x).movedim(1, -1)).movedim(-1, 1)


class LooksBack(Plain):
    """What follows its first layer looks at the images' values."""

    def forward(self, x):
        maps = self.first(x)
        return self.head(F.adaptive_avg_pool2d(maps if x.mean() > 0 else -maps, 1).flatten(1))


class InstanceNorms(Plain):
    def forward(self, x):
        return self.head(F.instance_norm(F.adaptive_avg_pool2d(self.first(x), 1)).flatten(1))


class Normed(Plain):
    """With batch norm over single values, which one sample alone has too few of."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.head(self.norm(self.second(self.first(x)).mean((2, 3))))
