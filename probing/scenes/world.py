"""Draws random scenes of the scenes world: camera, ground, walls, objects, light, caption."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from probing.scenes import grammar
from probing.scenes.grammar import PALETTE, SHAPES, Thing, caption

RENDER_SEEDS = {"train": 0, "held_out": 10_000_000}
"""first scene seed of the renders that the scenes model is trained and measured on; no two ranges of seeds overlap"""
TRUTH_SEED = 15_000_000
"""first scene seed of the truth experiment's renders"""
CARD_SEED = 30_000_000
"""first scene seed of the model card's prompts; those of sweeps are in probing.dataset.prompts"""


@dataclass(frozen=True)
class Surface:
    """Colour and texture of a surface."""

    colour: str
    checker: float
    """edge of one checker square in scene units (objects: in radii); 0 is plain"""
    shade: float
    """brightness of the dark squares relative to the bright ones"""


@dataclass(frozen=True)
class Plane:
    """An infinite plane: points p with normal . p = offset; the camera sees its front side."""

    normal: tuple[float, float, float]
    offset: float
    surface: Surface


@dataclass(frozen=True)
class Solid:
    """A sphere, an upright box or an upright cylinder."""

    shape: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    """half extents along its own axes, scene units (sphere and cylinder: radius, height, radius)"""
    yaw: float
    surface: Surface
    salient: bool
    """true for objects; false for the step, which counts as ground"""


@dataclass(frozen=True)
class Picture:
    """A flat coloured rectangle or disc painted on the first wall: no depth, not salient."""

    colour: str
    centre: tuple[float, float]
    half: tuple[float, float]
    round: bool


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, height, 0) looking along +z, then pitched and rolled."""

    height: float
    pitch: float
    """radians, positive looks down"""
    roll: float
    tangent: float
    """tangent of half the field of view"""

    def axes(self) -> np.ndarray:
        """Rows right, up, forward in world coordinates, shape (3, 3)."""
        cp, sp = math.cos(self.pitch), math.sin(self.pitch)
        cr, sr = math.cos(self.roll), math.sin(self.roll)
        right, up = np.array([1.0, 0, 0]), np.array([0, cp, sp])
        return np.stack([cr * right + sr * up, cr * up - sr * right, np.array([0, -sp, cp])])


@dataclass(frozen=True)
class Scene:
    """Everything that the renderer needs, and the caption that the diffusion model is trained on."""

    camera: Camera
    planes: tuple[Plane, ...]
    """ground first, then walls, then ceiling; only the ground under an open sky"""
    solids: tuple[Solid, ...]
    picture: Picture | None
    light: tuple[float, float, float]
    ambient: float
    sky: tuple[float, float, float]
    caption: str

    @property
    def colours(self) -> tuple[str, ...]:
        """Colours of the objects; within a scene they differ."""
        return tuple(s.surface.colour for s in self.solids if s.salient)


def _camera(rng: np.random.Generator) -> Camera:
    return Camera(
        height=float(np.exp(rng.uniform(math.log(0.9), math.log(3.6)))),
        pitch=math.radians(rng.uniform(-8, 30)),
        roll=math.radians(rng.uniform(-20, 20)),
        tangent=math.tan(math.radians(rng.uniform(45, 70)) / 2),
    )


def _surface(rng: np.random.Generator, colour: str, chance: float, low: float, high: float) -> Surface:
    """A surface that is checkered with the given chance, its squares low to high wide."""
    checker = float(rng.uniform(low, high)) if rng.random() < chance else 0.0
    return Surface(colour, checker, float(rng.uniform(0.66, 0.82)))


def _ground(rng: np.random.Generator, colour: str, height: float) -> Plane:
    tilt = math.radians(rng.uniform(4, 16)) if rng.random() < 0.25 else 0.0
    around = rng.uniform(0, 2 * math.pi)
    normal = (math.sin(tilt) * math.cos(around), math.cos(tilt), math.sin(tilt) * math.sin(around))
    return Plane(normal, 0.0, _surface(rng, colour, 0.85, 0.5 * height, 1.1 * height))


def _walls(rng: np.random.Generator, surface: Surface, camera: Camera) -> list[Plane]:
    angle = math.radians(rng.uniform(-62, 62))
    distance = float(np.exp(rng.uniform(math.log(2.6), math.log(11))))
    walls = [Plane((math.sin(angle), 0.0, -math.cos(angle)), -distance, surface)]
    if rng.random() < 0.5:
        side = 1 if angle < 0 else -1
        turned = angle + side * math.pi / 2
        far = float(rng.uniform(1.8, 7))
        walls.append(Plane((math.sin(turned), 0.0, -math.cos(turned)), -far, surface))
    if rng.random() < 0.4:
        top = camera.height + float(rng.uniform(0.6, 3))
        walls.append(Plane((0.0, -1.0, 0.0), -top, surface))
    return walls


def _ground_height(ground: Plane, x: float, z: float) -> float:
    return (ground.offset - ground.normal[0] * x - ground.normal[2] * z) / ground.normal[1]


def _half(rng: np.random.Generator, shape: str, radius: float) -> tuple[float, float, float]:
    if shape == "sphere":
        return radius, radius, radius
    if shape == "cylinder":
        wide = radius * rng.uniform(0.6, 0.95)
        return wide, radius * rng.uniform(0.6, 1.15), wide
    return tuple(radius * rng.uniform(0.6, 1.0, size=3))


def _solid(rng: np.random.Generator, camera: Camera, ground: Plane, colour: str, large: bool) -> tuple[Solid, bool]:
    """One object, and whether it floats; its size in the picture is independent of its distance."""
    shape = str(rng.choice(SHAPES))
    distance = float(np.exp(rng.uniform(math.log(2.0), math.log(8.0))))
    apparent = rng.uniform(0.42, 0.66) if large else rng.uniform(0.23, 0.36)
    half = _half(rng, shape, float(apparent * distance * camera.tangent))
    floating = bool(rng.random() < 0.18)
    right, up, forward = camera.axes()
    column, row = rng.uniform(-0.65, 0.65), rng.uniform(-0.6, 0.6)
    place = distance * (forward + camera.tangent * (column * right + row * up))
    x, y, z = place + np.array([0, camera.height, 0])
    base = _ground_height(ground, x, z) + half[1]
    y = max(y, base + 0.15 * half[1]) if floating else base
    surface = _surface(rng, colour, 0.35, 0.6, 1.0)
    return Solid(shape, (x, y, z), half, float(rng.uniform(0, math.pi)), surface, True), floating


def _step(rng: np.random.Generator, ground: Plane) -> Solid:
    x, z = rng.uniform(-2, 2), rng.uniform(3, 7)
    half = (rng.uniform(0.8, 2.5), rng.uniform(0.12, 0.4), rng.uniform(0.6, 1.5))
    y = _ground_height(ground, x, z) + half[1]
    return Solid("box", (x, y, z), half, float(rng.uniform(0, math.pi)), ground.surface, False)


def _view(camera: Camera, solid: Solid) -> tuple[float, float]:
    """(column 0..1, distance) of an object's centre in the camera's view."""
    right, _, forward = camera.axes()
    offset = np.array(solid.centre) - np.array([0, camera.height, 0])
    distance = float(offset @ forward)
    return float(offset @ right) / max(distance, 1e-3) / camera.tangent / 2 + 0.5, distance


def _fits(camera: Camera, planes: list[Plane], solids: list[Solid]) -> bool:
    """Whether no object intersects a wall, another object or the camera."""
    for index, solid in enumerate(solids):
        centre, radius = np.array(solid.centre), max(solid.half)
        if solid.salient and _view(camera, solid)[1] - radius < 1.1:
            return False
        for plane in planes[1:]:
            if np.dot(plane.normal, centre) - plane.offset < radius * 0.98:
                return False
        for other in solids[:index]:
            apart = np.linalg.norm(centre - np.array(other.centre))
            if solid.salient and other.salient and apart < 0.85 * (radius + max(other.half)):
                return False
    return True


def propose(rng: np.random.Generator) -> Scene | None:
    """One random scene, or None if its objects collide; visibility is not checked here."""
    names = list(rng.permutation(list(PALETTE)))
    camera = _camera(rng)
    ground = _ground(rng, names.pop(), camera.height)
    wall = _surface(rng, names.pop(), 0.6, 0.8, 2.4) if rng.random() < 0.75 else None
    planes = [ground, *(_walls(rng, wall, camera) if wall else [])]
    picture = None
    if wall and rng.random() < 0.15:
        spot, size = rng.uniform((-1.5, 0.5), (1.5, 2.5)), rng.uniform(0.35, 0.9, size=2)
        picture = Picture(names.pop(), tuple(spot), tuple(size), bool(rng.random() < 0.5))
    count = int(rng.choice((1, 2, 3), p=(0.42, 0.38, 0.20)))
    chance = (0.75, 0.5, 0.35)[count - 1]
    large = [bool(rng.random() < chance) for _ in range(count)]
    made = [_solid(rng, camera, ground, names.pop(), big) for big in large]
    solids = [solid for solid, _ in made]
    if not _fits(camera, planes, solids):
        return None
    views = [_view(camera, solid) for solid in solids]
    things = [
        Thing(s.shape, s.surface.colour, big, s.surface.checker > 0, floats, *view)
        for (s, floats), big, view in zip(made, large, views, strict=True)
    ]
    step = [_step(rng, ground)] if rng.random() < 0.12 else []
    wall_words = None
    if wall:
        inverse = camera.height / camera.tangent / -planes[1].offset
        wall_words = (wall.colour, wall.checker > 0, grammar.wall_distance(inverse))
    text = caption(
        things,
        (ground.surface.colour, ground.surface.checker > 0),
        wall_words,
        picture.colour if picture else None,
        grammar.view(math.degrees(camera.pitch)),
    )
    sky = tuple(np.array((0.62, 0.76, 0.92)) * rng.uniform(0.75, 1.05))
    around, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(45, 80))
    flat = math.cos(elevation)
    light = (flat * math.cos(around), math.sin(elevation), flat * math.sin(around))
    ambient = float(rng.uniform(0.5, 0.7))
    return Scene(camera, tuple(planes), (*solids, *step), picture, light, ambient, sky, text)
