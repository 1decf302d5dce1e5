"""Muon: momentum whose update is made orthogonal, for the weight matrices of hidden layers.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Written out in
float32: `torch.optim.Muon` works in bfloat16, which CPUs without bfloat16 units emulate many times slower.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Coefficients of the quintic iteration in the paper: steepest at zero, so five rounds are enough.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: all singular values land in about [0.7, 1.2]."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.T if tall else x
    return result


class Muon:
    """Nesterov momentum, then `orthogonalise`; `rate` is set by the caller's schedule before each step."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], momentum: float = 0.95) -> None:
        self.matrices = list(matrices)
        self.momentum = momentum
        self._averages = [torch.zeros_like(matrix) for matrix in self.matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for matrix, average in zip(self.matrices, self._averages, strict=True):
            if matrix.grad is None:
                continue
            average.lerp_(matrix.grad, 1 - self.momentum)
            update = orthogonalise(matrix.grad.lerp(average, self.momentum))
            rows, columns = matrix.shape
            matrix.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)
            matrix.grad = None
