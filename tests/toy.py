"""A small dataset whose batches can be captured."""

import torch

from linearconv.engine.seeding import generator


class ToyBatches:
    """31 two-class images of (2, 6, 6) in batches of 4 and one of 3."""

    sizes = [4] * 7 + [3]

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        images = torch.randn(31, 2, 6, 6, dtype=torch.float64, generator=random)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = (self.images.mean(dim=(1, 2, 3)) > 0).long()
        self.order, self.taken = (
            torch.zeros(31, dtype=torch.int64),
            torch.zeros((), dtype=torch.int64),
        )
        self.state = [self.taken]

    def begin(self, epoch):
        self.order.copy_(torch.randperm(31, generator=generator("toy", epoch)))
        self.taken.zero_()

    def next(self, size):
        chosen = self.order[self.taken + torch.arange(size)]
        self.taken += size
        return self.images[chosen], self.labels[chosen]

    def train(self, epoch):
        self.begin(epoch)
        yield from (self.next(size) for size in self.sizes)
