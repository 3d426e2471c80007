"""Ray-casts a scene to an image, its true inverse depth and its true object mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probing.scenes.grammar import PALETTE
from probing.scenes.world import Camera, Picture, Plane, Scene, Solid, Surface, propose

SIZE = 128
"""pixels a side"""
INVERSE_DEPTH_LIMIT = 1.8
"""relative inverse depth is clipped here; otherwise a few near pixels would dominate every error"""
_FAR = 1e6


@dataclass(frozen=True)
class Render:
    """One rendered scene."""

    image: np.ndarray
    """uint8 (H, W, 3)"""
    depth: np.ndarray
    """float32 (H, W): relative inverse depth, clipped; 0 is the sky (see `relative_inverse`)"""
    mask: np.ndarray
    """float32 (H, W) in 0..1: share of the pixel that objects cover"""
    caption: str
    colours: tuple[str, ...]


def rays(camera: Camera, size: int) -> tuple[Tensor, Tensor]:
    """Origin (3,) and directions (3, size * size); a direction's forward part is 1, so t is z."""
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    row, column = torch.meshgrid(-grid, grid, indexing="ij")
    local = torch.stack([column.flatten(), row.flatten(), torch.ones(size * size)])
    local[:2] *= camera.tangent
    axes = torch.tensor(camera.axes(), dtype=torch.float32)
    return torch.tensor([0.0, camera.height, 0.0]), axes.T @ local


def _hit_plane(plane: Plane, origin: Tensor, direction: Tensor) -> Tensor:
    normal = _vector(plane.normal)
    speed = normal @ direction
    t = (plane.offset - normal @ origin) / speed
    return torch.where((speed < 0) & (t > 1e-4), t, _FAR)


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor([float(value) for value in values])


def _turn(solid: Solid) -> Tensor:
    """Rotation from the solid's own axes to the world's."""
    c, s = float(np.cos(solid.yaw)), float(np.sin(solid.yaw))
    return torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _local(solid: Solid, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Origin and direction in the solid's own axes, in units of its half extents."""
    turn = _turn(solid).T / _vector(solid.half)[:, None]
    start = origin - _vector(solid.centre).view(3, *([1] * (origin.dim() - 1)))
    return turn @ start, turn @ direction


def _interval_ball(o: Tensor, d: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The interval of t in which a ray is inside the unit ball over the given axes (two axes: an infinite cylinder)."""
    index = list(axes)
    a, b = (d[index] ** 2).sum(0), (o[index] * d[index]).sum(0)
    c = (o[index] ** 2).sum(0) - 1
    root = b * b - a * c
    wide = root.clamp_min(0).sqrt()
    miss = root <= 0
    near = torch.where(miss, _FAR, (-b - wide) / a)
    return near, torch.where(miss, -_FAR, (-b + wide) / a)


def _interval_slab(o: Tensor, d: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    left, right = (-1 - o[axis]) / d[axis], (1 - o[axis]) / d[axis]
    return torch.minimum(left, right), torch.maximum(left, right)


def _intervals(solid: Solid, o: Tensor, d: Tensor) -> list[tuple[Tensor, Tensor]]:
    o = o.view(3, -1).expand_as(d) if o.dim() == 1 else o
    if solid.shape == "sphere":
        return [_interval_ball(o, d, (0, 1, 2))]
    if solid.shape == "cylinder":
        return [_interval_ball(o, d, (0, 2)), _interval_slab(o, d, 1)]
    return [_interval_slab(o, d, axis) for axis in range(3)]


def _hit_solid(solid: Solid, origin: Tensor, direction: Tensor) -> Tensor:
    """First t > 0 at which each ray enters the solid, _FAR if it never does."""
    spans = _intervals(solid, *_local(solid, origin, direction))
    near, far = spans[0]
    for low, high in spans[1:]:
        near, far = torch.maximum(near, low), torch.minimum(far, high)
    return torch.where((near < far) & (near > 1e-3), near, _FAR)


def _normal(solid: Solid, point: Tensor) -> tuple[Tensor, Tensor]:
    """World normals (3, n) and coordinates in the solid's own axes (3, n) at surface points."""
    own, _ = _local(solid, point, point)
    if solid.shape == "sphere":
        local = own
    elif solid.shape == "cylinder":
        cap = own[1].abs() > 0.9995
        local = torch.where(cap, torch.stack([0 * own[0], own[1], 0 * own[0]]), own)
        local[1] = torch.where(cap, local[1], 0)
    else:
        face = own.abs().argmax(0)
        local = torch.zeros_like(own).scatter_(0, face[None], own.gather(0, face[None]).sign())
    local = local / _vector(solid.half)[:, None]
    world = _turn(solid) @ local
    return world / world.norm(dim=0).clamp_min(1e-9), own


def _paint(surface: Surface, u: Tensor, v: Tensor) -> Tensor:
    """Albedo (3, n) of a surface at texture coordinates."""
    colour = _vector(PALETTE[surface.colour])[:, None]
    if surface.checker == 0:
        return colour.expand(3, u.shape[0])
    odd = (torch.floor(u / surface.checker) + torch.floor(v / surface.checker)) % 2
    return colour * (1 - (1 - surface.shade) * odd)


def _plane_albedo(plane: Plane, picture: Picture | None, point: Tensor) -> Tensor:
    nx, ny, nz = plane.normal
    if abs(ny) > 0.7:
        return _paint(plane.surface, point[0], point[2])
    along = point[0] * -nz + point[2] * nx
    albedo = _paint(plane.surface, along, point[1])
    if picture is None:
        return albedo
    a = (along - picture.centre[0]) / picture.half[0]
    b = (point[1] - picture.centre[1]) / picture.half[1]
    inside = (a * a + b * b < 1) if picture.round else torch.maximum(a.abs(), b.abs()) < 1
    return torch.where(inside, _vector(PALETTE[picture.colour])[:, None], albedo)


def _solid_albedo(solid: Solid, own: Tensor) -> Tensor:
    if solid.surface.checker == 0:
        return _paint(solid.surface, own[0], own[1])
    if not solid.salient:
        return _paint(solid.surface, own[0] * solid.half[0], own[2] * solid.half[2])
    if solid.shape == "box":
        face = own.abs().argmax(0)
        u = torch.where(face == 0, own[2], own[0])
        return _paint(solid.surface, u + 1, torch.where(face == 1, own[2], own[1]) + 1)
    return _paint(solid.surface, torch.atan2(own[2], own[0]) * 0.95, own[1] + 1)


def first_hits(scene: Scene, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(origin, direction, t, owner) of the nearest surface per ray; owner: planes first, then solids, -1 is none."""
    origin, direction = rays(scene.camera, size)
    ts = [_hit_plane(plane, origin, direction) for plane in scene.planes]
    ts += [_hit_solid(solid, origin, direction) for solid in scene.solids]
    t, owner = torch.stack(ts).min(0)
    return origin, direction, t, torch.where(t < _FAR, owner, -1)


def _lit(scene: Scene, point: Tensor, normal: Tensor) -> Tensor:
    """Brightness (n,): ambient, plus the lamp unless a solid hides it."""
    light = _vector(scene.light)
    facing = (light @ normal).clamp_min(0)
    start = point + 2e-3 * normal
    toward = light[:, None].expand_as(point)
    for solid in scene.solids:
        facing = torch.where(_hit_solid(solid, start, toward) < _FAR, 0.0, facing)
    return scene.ambient + (1.05 - scene.ambient) * facing


def _shade(scene: Scene, direction: Tensor, point: Tensor, owner: Tensor) -> Tensor:
    """Colour (3, rays) of every ray."""
    height = (direction[1] / direction.norm(dim=0)).clamp(0, 1)
    colour = _vector(scene.sky)[:, None] * (1.08 - 0.25 * height)
    normal = torch.zeros_like(point)
    seen = owner >= 0
    for index in owner.unique().tolist():
        if index < 0:
            continue
        where = (owner == index).nonzero()[:, 0]
        spot = point[:, where]
        if index < len(scene.planes):
            plane = scene.planes[index]
            picture = scene.picture if index == 1 else None
            normal[:, where] = _vector(plane.normal)[:, None]
            colour[:, where] = _plane_albedo(plane, picture, spot)
        else:
            solid = scene.solids[index - len(scene.planes)]
            normal[:, where], own = _normal(solid, spot)
            colour[:, where] = _solid_albedo(solid, own)
    bright = _lit(scene, point[:, seen], normal[:, seen])
    colour[:, seen] *= bright
    return colour.clamp(0, 1)


def _mean_pool(values: Tensor, size: int, factor: int) -> Tensor:
    return values.view(-1, size, factor, size, factor).mean((2, 4))


def relative_inverse(camera: Camera, t: Tensor) -> Tensor:
    """Relative inverse depth of distances `t` along the viewing axis.

    The unit is the camera's height divided by the tangent of half its field of view, because absolute scale is not
    visible in a picture: on level ground the value is the number of half pictures below the horizon.
    """
    return (camera.height / camera.tangent / t).clamp_max(INVERSE_DEPTH_LIMIT)


def render(scene: Scene, size: int = SIZE, samples: int = 2) -> Render:
    """Render a scene with `samples` x `samples` rays a pixel."""
    fine = size * samples
    origin, direction, t, owner = first_hits(scene, fine)
    point = origin[:, None] + direction * t.clamp_max(1e4)
    colour = _mean_pool(_shade(scene, direction, point, owner), size, samples)
    inverse = relative_inverse(scene.camera, t) * (owner >= 0)
    solid = torch.where(owner >= len(scene.planes), owner - len(scene.planes), -1)
    salient = torch.tensor([s.salient for s in scene.solids] + [False])[solid]
    return Render(
        image=(colour.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(),
        depth=_mean_pool(inverse[None], size, samples)[0].numpy(),
        mask=_mean_pool(salient[None].float(), size, samples)[0].numpy(),
        caption=scene.caption,
        colours=scene.colours,
    )


def _foot_in_view(scene: Scene, solid: Solid) -> bool:
    """Whether the ground right below an object lies in the picture: its depth is visible there."""
    x, _, z = solid.centre
    ground = scene.planes[0]
    y = (ground.offset - ground.normal[0] * x - ground.normal[2] * z) / ground.normal[1]
    place = scene.camera.axes() @ np.array([x, y - scene.camera.height, z])
    return bool(np.abs(place[:2]).max() < place[2] * scene.camera.tangent)


def _visible(scene: Scene, size: int = 40) -> bool:
    """Whether depth can be inferred, and objects are visible enough: each for the most part, 6 to 45 % together."""
    origin, direction, _, owner = first_hits(scene, size)
    # without ground in view, or without anything that shows its slope, the picture has no depth cues
    ground = (owner == 0).float().mean().item()
    behind = ((owner < len(scene.planes)) & (owner != 0)).float().mean().item()
    if ground <= 0.15 or not (behind > 0.08 or scene.planes[0].surface.checker > 0):
        return False
    total = 0.0
    for index, solid in enumerate(scene.solids):
        if not solid.salient:
            continue
        shown = (owner == index + len(scene.planes)).float().mean().item()
        unoccluded = (_hit_solid(solid, origin, direction) < _FAR).float().mean().item()
        if shown < 0.02 or shown < 0.55 * unoccluded or not _foot_in_view(scene, solid):
            return False
        total += shown
    return 0.06 <= total <= 0.45


def draw_scene(seed: int) -> Scene:
    """The scene of a seed: the first proposal that is free of collisions and well visible."""
    rng = np.random.default_rng(seed)
    while True:
        scene = propose(rng)
        if scene is not None and _visible(scene):
            return scene
