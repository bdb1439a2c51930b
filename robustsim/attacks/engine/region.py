"""The points that an attacker may reach: projections, starts and steps.

Everything here works on a batch whose first dimension is the images'. A norm is taken over the last three dimensions,
or over all but the first where there are fewer, so that in a batch (N, 3, C, H, W) of triplets each picture has the
radius for itself.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias, Union

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]
Shape: TypeAlias = Union[torch.Size, tuple[int, ...]]
Generators: TypeAlias = Union[torch.Generator, Sequence[torch.Generator], None]
ORDERS: dict[str, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}

# Where the loops that solve for a multiplier end: relative to the radius, and in any case after as many rounds.
_TOLERANCE = 1e-7
_ROUNDS = 60
# What a measured radius may exceed the wanted one by; a tenth of what is promised.
_ALLOWED = 1e-7
# A norm below this is that of a gradient whose squares vanish.
_UNDERFLOW = 1e-15
# On other devices than the CPU nobody asks whether they have converged, as the answer would have to travel.
_BLIND_ROUNDS = 12


def widest(images: Tensor) -> torch.dtype:
    """The type in which sizes are measured at the end."""
    return images.dtype if images.device.type == "mps" else torch.float64


def on_host(tensor: Tensor) -> bool:
    """Whether a number of it can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def dims(batch: Tensor) -> tuple[int, ...]:
    """The dimensions of one picture: the last three, or all but the first where there are fewer."""
    return tuple(range(max(1, batch.ndim - 3), batch.ndim))


def per_image(values: Tensor, batch: Tensor) -> Tensor:
    """(N,) as (N, 1, ..., 1), to be combined with a batch."""
    return values.view(-1, *(1,) * (batch.ndim - 1))


def fill_level(a: Tensor, b: Tensor, total: Tensor, over: tuple[int, ...], tolerance: float = _TOLERANCE) -> Tensor:
    """The least t >= 0 with sum(min(t * a, b)) = total, for a, b >= 0; where sum(b) < total, one that fills all of b.

    The sum is concave and piecewise linear in t, so Newton's method from below ends at the root after finitely many
    rounds and never oversteps it.
    """
    tiny = torch.finfo(a.dtype).tiny
    t = total / a.sum(over, keepdim=True).clamp_min(tiny)
    for index in range(_ROUNDS if on_host(a) else _BLIND_ROUNDS):
        filled = torch.minimum(t * a, b)
        missing = total - filled.sum(over, keepdim=True)
        free = filled.lt_(b).mul_(a).sum(over, keepdim=True)  # 0 and 1 as numbers: a mask costs many times as much
        if on_host(a) and index and not bool(((missing > tolerance * total) & (free > tiny)).any()):
            break
        # Where nothing is free, all is filled already.
        t = t + torch.where(free > tiny, missing.clamp_min(0) / free.clamp_min(tiny), 0)
    return t


def measure(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each row's perturbation, (N,); of several pictures in one row, the largest."""
    each: Tensor = torch.linalg.vector_norm(delta, ORDERS[norm], dim=dims(delta))
    return each if each.ndim == 1 else each.flatten(1).amax(1)


def steepest(gradient: Tensor, norm: Norm, share: Tensor | None = None) -> Tensor:
    """The direction of norm 1 with the largest inner product with the gradient; zero where the gradient is.

    Args:
        gradient: (N, ...).
        norm: linf gives the gradient's signs, l2 the normalised gradient, l1 its largest coordinates' signs.
        share: for l1, (N,), the share of coordinates that take part, as many steps along single ones would be lost
            time (Croce and Hein 2021, "Mind the box"); the single largest if not given.
    """
    if norm == "linf":
        return gradient.sign()
    over = dims(gradient)
    if norm == "l2":
        # Scaled first: squares of tiny gradients would vanish.
        scaled = gradient / gradient.abs().amax(over, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        length: Tensor = torch.linalg.vector_norm(scaled, dim=over, keepdim=True)
        return scaled / length.clamp_min(1e-12)
    size = gradient.flatten(over[0]).shape[-1]
    if share is None:
        count = torch.ones(len(gradient), dtype=torch.int64, device=gradient.device)
    else:
        count = (share * size).ceil().long().clamp(1, size)
    magnitude = gradient.abs()
    least = _nth_largest(magnitude.flatten(over[0]), count).view(*gradient.shape[: over[0]], *(1,) * len(over))
    signs = torch.where(magnitude >= least, gradient.sign(), 0)
    return signs / signs.abs().sum(over, keepdim=True).clamp_min(1)


def _nth_largest(rows: Tensor, n: Tensor) -> Tensor:
    """The n-th largest value of each row, n (N,) for rows (N, ..., D): (N, ...)."""
    if on_host(rows):  # where an unsorted selection for each is cheaper than sorting for the largest n
        each = [row.topk(count, sorted=False).values.amin(-1) for row, count in zip(rows, n.tolist(), strict=True)]
        return torch.stack(each)
    ordered = rows.sort(dim=-1, descending=True).values  # topk would have to know the largest n on the host
    place = (n - 1).view(-1, *(1,) * (ordered.ndim - 1)).expand(*ordered.shape[:-1], 1)
    return ordered.gather(-1, place).squeeze(-1)


class Region:
    """The points that an attacker may reach from a batch of images.

    Attributes:
        norm: see `ThreatModel`.
        originals: the images, (N, ...).
        exact: their radii in float64, (N,).
        eps: their radii in the images' type, (N,).
        bounds: see `ThreatModel`.
    """

    def __init__(
        self, norm: Norm, originals: Tensor, exact: Tensor, bounds: tuple[float, float], *, beyond: bool = False
    ) -> None:
        self.norm, self.originals, self.exact, self.bounds = norm, originals, exact, bounds
        self.eps = exact.to(originals.dtype)
        self._beyond = beyond  # whether rounding has left an original just outside the bounds
        self._over = dims(originals)

    def select(self, indices: Tensor) -> "Region":
        """The same for some of the images."""
        return Region(self.norm, self.originals[indices], self.exact[indices], self.bounds, beyond=self._beyond)

    def scaled(self, factor: float) -> "Region":
        """The same with other radii."""
        return Region(self.norm, self.originals, self.exact * factor, self.bounds, beyond=self._beyond)

    @cached_property
    def radius(self) -> Tensor:
        """The radii, (N, 1, ..., 1)."""
        return per_image(self.eps, self.originals)

    @cached_property
    def _limits(self) -> Any:
        """Least and greatest value of pixels; of each for itself where an original lies outside, which belongs too."""
        low, high = self.bounds
        return (self.originals.clamp(max=low), self.originals.clamp(min=high)) if self._beyond else (low, high)

    @cached_property
    def box(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value of each pixel in linf."""
        low, high = self._limits
        return (self.originals - self.radius).clamp_min_(low), (self.originals + self.radius).clamp_max_(high)

    @cached_property
    def _room(self) -> tuple[Tensor, Tensor]:
        """Least and greatest change of each pixel that the bounds leave: (at most 0, at least 0)."""
        low, high = self._limits
        return low - self.originals, high - self.originals

    @cached_property
    def _room_squares(self) -> tuple[Tensor, Tensor]:
        low, high = self._room
        return low.square(), high.square()

    def distance(self, points: Tensor) -> Tensor:
        """How far points are from their originals, (N,)."""
        return measure(points - self.originals, self.norm)

    def step(self, points: Tensor, gradient: Tensor, length: Tensor, share: Tensor | None = None) -> Tensor:
        """Points moved by `length`, (N,), along the steepest direction of the norm; see `steepest`."""
        if self.norm == "l2":
            norms = torch.linalg.vector_norm(gradient, dim=self._over, keepdim=True)
            if on_host(gradient) and bool((norms > _UNDERFLOW).all()):
                return torch.addcmul(points, gradient, per_image(length, points) / norms)
        return steepest(gradient, self.norm, share).mul_(per_image(length, points)).add_(points)

    def project(self, points: Tensor, *, tolerance: float = _TOLERANCE) -> Tensor:
        """The point of the set nearest to each point (in l2), (N, ...); a new tensor.

        Args:
            points: (N, ...); those inside keep their bits.
            tolerance: which share of the radius may stay unused where an exact solution would take longer. The result
                is in the set all the same.
        """
        if self.norm == "linf":
            return points.clamp(*self.box)
        delta = points - self.originals
        length = torch.linalg.vector_norm(delta, ORDERS[self.norm], dim=self._over, keepdim=True)
        outside = length > self.radius
        if on_host(delta) and not bool(outside.any()):
            return points.clamp(*self._limits)
        shrunk = self._shrink_l2(delta, length, tolerance) if self.norm == "l2" else self._shrink_l1(delta, tolerance)
        if on_host(delta) and bool(outside.all()):
            return shrunk
        return torch.where(outside, shrunk, points).clamp_(*self._limits)

    def _shrink_l2(self, delta: Tensor, length: Tensor, tolerance: float) -> Tensor:
        """Clipped multiples s * delta: the s of the nearest point solves sum(min(s^2 delta^2, room^2)) = eps^2."""
        factor = (self.radius / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max_(1)
        points = torch.addcmul(self.originals, delta, factor).clamp_(*self._limits)
        # Mostly hardly anything was clipped, and all is said.
        used = torch.linalg.vector_norm(points - self.originals, dim=self._over, keepdim=True)
        short = (used < (1 - tolerance) * self.radius) & (length > self.radius)
        if on_host(delta) and not bool(short.any()):
            return points
        low, high = self._room_squares
        up = torch.gt(delta, 0, out=torch.empty_like(delta))  # 1 or 0
        room = (up * high).addcmul_(up.neg().add_(1), low)
        square = fill_level(delta.square(), room, self.radius.square(), self._over, tolerance)
        return torch.addcmul(self.originals, delta, square.sqrt().clamp_max(1)).clamp_(*self._limits)

    def _shrink_l1(self, delta: Tensor, tolerance: float) -> Tensor:
        """Soft threshold, clipped: the t of the nearest point solves sum(clip(|delta| - t, 0, room)) = eps."""
        low, high = self._room
        size, room = delta.abs(), torch.where(delta > 0, high, -low)
        below = torch.zeros_like(self.radius)
        above = size.amax(self._over, keepdim=True)

        def used(t: Tensor) -> Tensor:
            return torch.minimum((size - t).clamp_min_(0), room).sum(self._over, keepdim=True)

        too_much, too_little = used(below), torch.zeros_like(self.radius)
        enough = too_much <= self.radius  # what the bounds leave is within the radius
        above = torch.where(enough, below, above)
        exact = on_host(delta)
        for index in range(_ROUNDS if exact else 2 * _BLIND_ROUNDS):
            gap = (self.radius - too_little > tolerance * self.radius) & (above - below > 1e-7 * above)
            if exact and not bool(gap.any()):
                break
            # The sum is linear between neighbouring kinks: the chord ends the search, bisection keeps it short.
            chord = below + (above - below) * ((too_much - self.radius) / (too_much - too_little).clamp_min(1e-30))
            middle = chord if index % 3 != 2 else (below + above) / 2
            now = used(middle)
            over = now > self.radius
            below, too_much = torch.where(over, middle, below), torch.where(over, now, too_much)
            above, too_little = torch.where(over | enough, above, middle), torch.where(over, too_little, now)
        change = torch.minimum((size - above).clamp_min_(0), room)
        return torch.addcmul(self.originals, change, delta.sign_()).clamp_(*self._limits)

    def beginning(self, start: Tensor) -> Tensor:
        """Points that a caller wants to begin at, (N, ...) like the images, brought into the set."""
        return self.project(start.detach().to(self.originals))

    def random_start(self, generator: Generators = None) -> Tensor:
        """A random point: uniform in the linf ball, on the l2 sphere, a sparse point of the l1 ball; within the box.

        Args:
            generator: of the random numbers; of several, one for each image.
        """
        x = self.originals
        if self.norm == "linf":
            return self.project(x + self.radius * (2 * uniform(x.shape, x, generator) - 1))
        noise = normal(x.shape, x, generator)
        if self.norm == "l2":
            noise *= self.radius / torch.linalg.vector_norm(noise, dim=self._over, keepdim=True).clamp_min(1e-12)
        return self.project(x + noise)

    def blocked(self, points: Tensor, gradient: Tensor) -> Tensor:
        """The gradient without those coordinates that are at a bound and would leave it."""
        low, high = self.bounds
        return torch.where(((points <= low) & (gradient < 0)) | ((points >= high) & (gradient > 0)), 0, gradient)

    def tightened(self, points: Tensor) -> Tensor:
        """`project`, until no rounding is left that would exceed a radius; NaN becomes the original.

        For the end of an attack: sums over many pixels gather rounding, and whoever re-measures must not find more
        than the radius.
        """
        points = self.project(torch.where(torch.isnan(points), self.originals, points))
        wide, eps = widest(points), per_image(self.exact, points)
        for attempt in range(_ROUNDS):
            delta = points.to(wide) - self.originals.to(wide)
            if self.norm == "linf":
                outside = delta.abs() - eps > _ALLOWED
                nearer = torch.nextafter(points, self.originals)
            else:
                length = torch.linalg.vector_norm(delta, ORDERS[self.norm], dim=self._over, keepdim=True)
                outside = length - eps > _ALLOWED
                # On a flat picture all pixels round alike, and back: more each time.
                factor = (1 - 2.0 ** (attempt + 1) * (length - eps) / length.clamp_min(1e-30)).clamp(0, 1)
                nearer = (self.originals.to(wide) + delta * factor).to(points.dtype).clamp_(*self._limits)
            if not bool(outside.any()):
                break
            points = torch.where(outside, nearer, points)
        return points


def on_device(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """A generator where the images are, seeded by the caller's: noise need not travel there at every step."""
    if generator is None or generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


def uniform(shape: Shape, like: Tensor, generator: Generators) -> Tensor:
    """Uniform in [0, 1), of the type and on the device of `like`, drawn where the generator is.

    Of several generators, each draws one row.
    """
    return _drawn(torch.rand, shape, like, generator)


def normal(shape: Shape, like: Tensor, generator: Generators) -> Tensor:
    """Standard normal numbers, otherwise as `uniform`."""
    return _drawn(torch.randn, shape, like, generator)


def _drawn(draw: Callable[..., Tensor], shape: Shape, like: Tensor, generator: Generators) -> Tensor:
    if isinstance(generator, Sequence):
        return torch.stack([_drawn(draw, shape[1:], like, one) for one in generator])
    place = like.device if generator is None else generator.device
    return draw(shape, generator=generator, device=place, dtype=like.dtype).to(like.device)
