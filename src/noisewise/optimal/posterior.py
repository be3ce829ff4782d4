"""Posterior means E[x_0 | x_t] over a whole data set, for the same (image, noise) pairs at many noise levels at once.

With x_t / signal = x_0 + sigma eps the logit of image y is -|x_0 - y|^2 u^2 / 2 + eps.(y - x_0) u, u = 1 / sigma: two
matrix products with the data serve every level, and each level then costs one softmax and one product with the data
(arXiv:2312.09181, section 3). The data is read twice, a chunk at a time. Where the weights collapse onto few images,
the last product is a sum over those few; elsewhere the levels are stacked, so that it is one large product per chunk.

Shapes: n = images, c = images of a chunk, B = queries, D = numbers of an image, L = noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

from noisewise.optimal.rows import Rows, wide

DROPPED = 2.0**-24  # share of a softmax's sum that may be left out: as much as float32 rounds away
SPARSE_BELOW = 0.05  # share of weights kept below which a sum over them is quicker than the matrix product
SAFE_LOGIT = 40.0  # exp of it, times 1e20, is still a float32
TINY_LOGIT = -80.0  # exp of less would be a denormal float32, which is slow, and weighs nothing beside one of 0


@torch.no_grad()
def posterior_means(
    rows: Rows, x_0: torch.Tensor, noise: torch.Tensor, u: torch.Tensor, chunk: int, sums: torch.Tensor
) -> None:
    """Write the posterior mean at every level into ``sums``, [L, B, D] float32, as numbers of images.

    Args:
        x_0, noise: [B, D] float32 on the rows' device; the query at level l is x_0 + noise / u[l].
        u: [L, B] float32, 1 / sigma, from data to noise: falling along the levels, 0 where there is no signal.
        chunk: images read at a time.
    """
    with _full_precision():
        distances = Distances(rows, x_0, noise, chunk)
        shifts = distances.shifts(u, chunk)  # [L, B]
        num_sparse = distances.num_sparse_levels(u)
        sums.zero_()
        totals = torch.zeros_like(u)  # [L, B]
        tables = u, shifts, sums, totals
        for start in range(0, len(rows), chunk):
            part = slice(start, min(start + chunk, len(rows)))
            y = rows.chunk(part.start, part.stop)  # [c, D]
            if num_sparse > 0:
                add_sparse(distances, part, y, *(table[:num_sparse] for table in tables))
            if num_sparse < len(u):
                add_dense(distances, part, y, *(table[num_sparse:] for table in tables))
        rows.image(sums.div_(totals[..., None]))


class Distances:
    """What all levels need to know of (x_0, eps) pairs: image i's logit at u is -d_i u^2 / 2 + e_i u.

    Both d and e are relative to the image nearest to x_0, whose logit is thus 0 at every level, so that the largest
    logit is never below 0.
    """

    def __init__(self, rows: Rows, x_0: torch.Tensor, noise: torch.Tensor, chunk: int) -> None:
        """First pass over the data; ``x_0`` and ``noise`` [B, D]."""
        anchor = rows.anchor(x_0)
        rest = x_0 - rows.image(anchor.clone())  # [B, D], rounding alone where x_0 is an 8-bit image
        has_rest = bool(rest.abs().max() > 1e-6)
        d = torch.empty(len(x_0), len(rows), dtype=wide(rows.device), device=rows.device)  # [B, n]
        self.e = torch.empty(len(x_0), len(rows), device=rows.device)  # [B, n]
        for start in range(0, len(rows), chunk):
            part = slice(start, min(start + chunk, len(rows)))
            y = rows.chunk(part.start, part.stop)  # [c, D]
            squares = rows.products(anchor, y).mul_(-2).add_(rows.squares(y))  # [B, c] |a - y|^2 - |a|^2
            d[:, part] = squares.mul_(rows.scale**2)
            if has_rest:  # |a + r - y|^2 = |a - y|^2 - 2 r.y + what does not depend on y
                d[:, part] -= (rest @ y.T).mul_(2 * rows.scale)
            self.e[:, part] = (noise @ y.T).mul_(rows.scale)
        nearest = d.argmin(1, keepdim=True)  # [B, 1]
        self.d = torch.sub(d, d.gather(1, nearest), out=torch.empty_like(self.e))  # [B, n], subtracted in float64
        self.e -= self.e.gather(1, nearest)
        self.e.masked_fill_(self.d == 0, 0.0)  # copies of the nearest image, free of rounding
        self.cut = -math.log(DROPPED / len(rows)) + 0.1  # logits below -cut weigh less than DROPPED in all

    def logits(self, part: slice, u: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Logits of a chunk's images at one level, ``u`` [B]: [B, c]."""
        torch.mul(self.d[:, part], (-0.5 * u * u)[:, None], out=out)
        return out.addcmul_(self.e[:, part], u[:, None])

    def last_u(self, part: slice) -> torch.Tensor:
        """The largest u at which an image still has a logit above -cut: [B, c]. Below it, always; above, never."""
        d, e = self.d[:, part], self.e[:, part]
        return (e.square() + 2 * self.cut * d).sqrt_().add_(e).div_(d).nan_to_num_(nan=math.inf, posinf=math.inf)

    def num_sparse_levels(self, u: torch.Tensor) -> int:
        """How many of the levels [L, B], from the data on, have so few weights that a sum over those is quicker."""
        last_u = self.last_u(slice(None))
        most = SPARSE_BELOW * last_u.numel()
        low, high = 0, len(u)
        while low < high:  # the number of weights grows along the levels
            middle = (low + high) // 2
            if int((last_u >= u[middle, :, None]).sum()) > most:
                high = middle
            else:
                low = middle + 1
        return low

    def shifts(self, u: torch.Tensor, chunk: int) -> torch.Tensor:
        """What to subtract from the logits at levels [L, B] lest their exponential overflows: [L, B]."""
        shifts = torch.zeros_like(u)
        # -d u^2 / 2 + e u is at most e^2 / 2 d. Few images are far beyond the nearest one in the direction of Gaussian
        # noise, so this is below SAFE_LOGIT unless x_t is nothing the data would give.
        highest = self.e.clamp(min=0).square_().div_(self.d).nan_to_num_(nan=0.0, posinf=math.inf).amax() / 2
        if highest > SAFE_LOGIT:
            for start in range(0, self.d.shape[1], chunk):
                part = slice(start, start + chunk)
                for level, shift in zip(u, shifts, strict=True):
                    logits = self.logits(part, level, torch.empty_like(self.d[:, part]))
                    torch.maximum(shift, logits.amax(1), out=shift)
        return shifts


def add_dense(
    distances: Distances,
    part: slice,
    y: torch.Tensor,
    u: torch.Tensor,
    shifts: torch.Tensor,
    sums: torch.Tensor,
    totals: torch.Tensor,
) -> None:
    """Add a chunk's weighted images [c, D] and weights to the levels ``u`` [L, B] by one matrix product."""
    weights = torch.empty(*u.shape, len(y), device=y.device)  # [L, B, c]
    for level, weight in enumerate(weights):
        distances.logits(part, u[level], weight).sub_(shifts[level, :, None]).clamp_(min=TINY_LOGIT).exp_()
        totals[level] += weight.sum(1)
    sums.view(-1, y.shape[1]).addmm_(weights.view(-1, len(y)), y)  # [L * B, D]


def add_sparse(
    distances: Distances,
    part: slice,
    y: torch.Tensor,
    u: torch.Tensor,
    shifts: torch.Tensor,
    sums: torch.Tensor,
    totals: torch.Tensor,
) -> None:
    """Add a chunk's images [c, D] that weigh anything at the levels ``u`` [L, B], and their weights."""
    last_u = distances.last_u(part)  # [B, c]
    query, image = (last_u >= u[-1, :, None]).nonzero(as_tuple=True)  # [K] each, sorted by query
    last_u, d, e = (table[query, image] for table in (last_u, distances.d[:, part], distances.e[:, part]))  # [K]
    for level in reversed(range(len(u))):  # from noise to data: what has lost its weight does not regain it
        keep = last_u >= u[level, query]
        query, image, last_u, d, e = (x[keep] for x in (query, image, last_u, d, e))
        if not len(query):
            return
        at = u[level, query]
        weight = (e * at).addcmul_(d, at.square(), value=-0.5).sub_(shifts[level, query]).exp_()  # [K]
        some, counts = query.unique_consecutive(return_counts=True)  # queries with a weight
        offsets = functional.pad(counts.cumsum(0), (1, -1))
        bags = functional.embedding_bag(image, y, offsets, mode="sum", per_sample_weights=weight)  # [some, D]
        sums[level].index_add_(0, some, bags)
        totals[level].index_add_(0, query, weight)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 throughout, whatever the user allowed for training."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
