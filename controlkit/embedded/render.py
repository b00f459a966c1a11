"""What does a world look like, exactly? Ray casting of four kinds of solids, in numpy.

One ray per pixel first; the pixels at which the surface changes get 4x4 rays. Rays are only tested
against a solid inside the rectangle that its bounding box covers. The camera never moves, so rays and
floor are computed once. Units: world units, colours in [0, 255]; x right, y up, z away from the camera.
Shading is a hemisphere ambient term, Lambert's cosine and, for shiny solids, Blinn's highlight
(SIGGRAPH 1977) and a reflection of a bright sky. Floor shadows are cast exactly and then blurred.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from controlkit.embedded.world import COLOURS, FLOORS, Solid, World

SIZE = 128
"""Height and width of a picture in pixels."""

_EYE = np.array([0.0, 3.3, -7.0], np.float32)
_TARGET = np.array([0.0, 0.72, 0.0], np.float32)
_HALF = math.tan(math.radians(16.0))
_LIGHT_HEIGHT = math.radians(50.0)
_NEAREST = 4.5
_FAR = np.float32(1e9)
_FINE = 4


@dataclass(frozen=True)
class Rendering:
    """A picture and what is exactly known about it.

    Attributes:
        image: (128, 128, 3) uint8 RGB.
        instances: (128, 128) uint8; 0 is the floor, i the i-th solid of the world.
        inverse_depth: (128, 128) float32 in [0, 1]; 4.5 world units from the camera's plane is 1, the
            infinitely far is 0, near is large.
    """

    image: np.ndarray
    instances: np.ndarray
    inverse_depth: np.ndarray


@dataclass(frozen=True)
class _Hits:
    """Per ray: distance along the camera's axis, unit normal, and which face (for anti-aliasing)."""

    distance: np.ndarray
    normal: np.ndarray
    face: np.ndarray


def render(world: World) -> Rendering:
    """Make the picture of a world and its exact maps; deterministic."""
    side = math.cos(_LIGHT_HEIGHT)
    light = np.array(
        [math.sin(world.light) * side, math.sin(_LIGHT_HEIGHT), -math.cos(world.light) * side], np.float32
    )
    floor_distance, floor = _floor(world.floor)
    shadow = _floor_shadow(world, light)
    background = floor * (1.0 - 0.58 * shadow[..., None])

    image = background.copy()
    depth = floor_distance.copy()
    instances = np.zeros((SIZE, SIZE), np.uint8)
    codes = np.zeros((SIZE, SIZE), np.int16)
    boxes = []
    for number, solid in enumerate(world.solids, 1):
        top, bottom, left, right = box = _pixel_box(_corners(solid))
        boxes.append(box)
        region = np.s_[top:bottom, left:right]
        rays = _rays()[region].reshape(-1, 3)
        hits = _intersect(solid, _EYE, rays)
        nearer = hits.distance < depth[region].reshape(-1)
        rows, columns = np.divmod(np.flatnonzero(nearer), right - left)
        rows, columns = rows + top, columns + left
        image[rows, columns] = _shade(solid, hits, nearer, rays, light)
        depth[rows, columns] = hits.distance[nearer]
        instances[rows, columns] = number
        codes[rows, columns] = number * 8 + hits.face[nearer]
    _refine(world, boxes, light, codes, image, background)
    return Rendering(
        image=np.clip(image + 0.5, 0.0, 255.0).astype(np.uint8),
        instances=instances,
        inverse_depth=np.clip(_NEAREST / depth, 0.0, 1.0),
    )


def _refine(
    world: World,
    boxes: list[tuple[int, int, int, int]],
    light: np.ndarray,
    codes: np.ndarray,
    image: np.ndarray,
    background: np.ndarray,
) -> None:
    """Replace the pixels at which the surface changes by the mean of 4x4 rays, in place."""
    edge = np.zeros((SIZE, SIZE), bool)
    down, across = codes[1:] != codes[:-1], codes[:, 1:] != codes[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    rows, columns = np.nonzero(edge)
    offsets = (np.arange(_FINE, dtype=np.float32) + 0.5) / _FINE - 0.5
    fine_rows = (rows[:, None] + np.repeat(offsets, _FINE)).ravel()
    fine_columns = (columns[:, None] + np.tile(offsets, _FINE)).ravel()
    rays = _directions(fine_rows.astype(np.float32), fine_columns.astype(np.float32))
    colour = np.repeat(background[rows, columns], _FINE * _FINE, axis=0)
    nearest = np.full(len(rays), _FAR, np.float32)
    for solid, (top, bottom, left, right) in zip(world.solids, boxes, strict=True):
        inside = np.flatnonzero(
            (fine_rows >= top - 1)
            & (fine_rows <= bottom)
            & (fine_columns >= left - 1)
            & (fine_columns <= right)
        )
        hits = _intersect(solid, _EYE, rays[inside])
        nearer = hits.distance < nearest[inside]
        colour[inside[nearer]] = _shade(solid, hits, nearer, rays[inside], light)
        nearest[inside[nearer]] = hits.distance[nearer]
    image[rows, columns] = colour.reshape(len(rows), _FINE * _FINE, 3).mean(1)


def _directions(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Rays through picture positions, scaled so that the parameter is the distance to the camera's plane."""
    forward = _TARGET - _EYE
    forward /= np.linalg.norm(forward)
    right = np.array([1.0, 0.0, 0.0], np.float32)
    up = np.cross(forward, right).astype(np.float32)
    u = ((columns + 0.5) * (2.0 / SIZE) - 1.0) * np.float32(_HALF)
    v = (1.0 - (rows + 0.5) * (2.0 / SIZE)) * np.float32(_HALF)
    return forward + u[..., None] * right + v[..., None] * up


@cache
def _rays() -> np.ndarray:
    grid = np.arange(SIZE, dtype=np.float32)
    return _directions(*np.broadcast_arrays(grid[:, None], grid[None, :]))


@cache
def _floor(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Distance (128, 128) and colour (128, 128, 3) of the empty floor, which fades into a bright haze."""
    distance = -_EYE[1] / _rays()[..., 1]
    tone = np.array(FLOORS[name], np.float32)
    haze = tone + 0.18 * (np.float32(255.0) - tone)
    share = np.clip((distance - 7.0) / 14.0, 0.0, 1.0)[..., None]
    return distance.astype(np.float32), (tone * (1.0 - share) + haze * share).astype(np.float32)


def _corners(solid: Solid) -> np.ndarray:
    reach = solid.reach
    return np.array(
        [
            (solid.x + i * reach, j * solid.height, solid.z + k * reach)
            for i in (-1, 1)
            for j in (0, 1)
            for k in (-1, 1)
        ],
        np.float32,
    )


def _pixel_box(points: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (exclusive) of the pixels that the hull of world points can cover."""
    forward = _TARGET - _EYE
    forward = forward / np.linalg.norm(forward)
    up = np.cross(forward, np.array([1.0, 0.0, 0.0], np.float32))
    relative = points - _EYE
    scale = relative @ forward * _HALF
    columns = (relative[:, 0] / scale + 1.0) * (SIZE / 2)
    rows = (1.0 - relative @ up / scale) * (SIZE / 2)
    top, left = int(max(0, math.floor(rows.min()))), int(max(0, math.floor(columns.min())))
    return top, int(min(SIZE, math.ceil(rows.max()))), left, int(min(SIZE, math.ceil(columns.max())))


def _floor_shadow(world: World, light: np.ndarray) -> np.ndarray:
    """Share of the light that the solids keep from each floor point, (128, 128) in [0, 1]."""
    shadow = np.zeros((SIZE, SIZE), np.float32)
    points = _EYE + _floor(world.floor)[0][..., None] * _rays()
    for solid in world.solids:
        corners = _corners(solid)
        cast = corners - corners[:, 1:2] / light[1] * light
        top, bottom, left, right = _pixel_box(np.concatenate([corners, cast]))
        region = np.s_[top:bottom, left:right]
        origin = points[region].reshape(-1, 3)
        hit = _intersect(solid, origin, np.broadcast_to(light, origin.shape)).distance < _FAR
        shadow[region] = np.maximum(shadow[region], hit.reshape(bottom - top, right - left))
    return _blur(_blur(shadow, 1.9, 1), 1.5, 0)


def _blur(values: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    taps = np.arange(-6, 7)
    weights = np.exp(-0.5 * (taps / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    pad = [(0, 0), (0, 0)]
    pad[axis] = (6, 6)
    padded = np.pad(values, pad, mode="edge")
    slices = [np.s_[k : k + SIZE] if axis == 0 else np.s_[:, k : k + SIZE] for k in range(13)]
    return sum((weights[k] * padded[slices[k]] for k in range(13)), np.zeros_like(values))


def _intersect(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> _Hits:
    """First hits of rays (n, 3) from one or n origins; a miss has the distance 1e9."""
    local = origin - np.array([solid.x, 0.0, solid.z], np.float32)
    if solid.kind == "sphere":
        return _sphere(local, rays, solid.radius)
    if solid.kind == "cube":
        return _cube(local, rays, solid.radius, solid.yaw)
    if solid.kind == "cylinder":
        return _cylinder(local, rays, solid.radius, solid.height)
    return _cone(local, rays, solid.radius, solid.height)


def _roots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smaller and larger solution of a t² + 2 b t + c = 0; 1e9 and -1e9 where there is none."""
    square = b * b - a * c
    real = (square >= 0) & (np.abs(a) > 1e-12)
    root = np.sqrt(np.where(real, square, 0.0))
    safe = np.where(real, a, 1.0)
    first, second = (-b - root) / safe, (-b + root) / safe
    return np.where(real, np.minimum(first, second), _FAR), np.where(real, np.maximum(first, second), -_FAR)


def _sphere(origin: np.ndarray, rays: np.ndarray, radius: float) -> _Hits:
    start = origin - np.array([0.0, radius, 0.0], np.float32)
    near, _ = _roots((rays * rays).sum(-1), (start * rays).sum(-1), (start * start).sum(-1) - radius * radius)
    distance = np.where(near > 1e-3, near, _FAR)
    normal = (start + np.where(distance < _FAR, distance, 0.0)[:, None] * rays) / np.float32(radius)
    return _Hits(distance, normal, np.zeros(len(rays), np.int16))


def _cube(origin: np.ndarray, rays: np.ndarray, half: float, yaw: float) -> _Hits:
    turn = np.array(
        [[math.cos(yaw), 0.0, math.sin(yaw)], [0.0, 1.0, 0.0], [-math.sin(yaw), 0.0, math.cos(yaw)]],
        np.float32,
    )
    start = (origin - np.array([0.0, half, 0.0], np.float32)) @ turn
    rays = rays @ turn
    inverse = 1.0 / np.where(np.abs(rays) < 1e-9, np.float32(1e-9), rays)
    one, two = (-half - start) * inverse, (half - start) * inverse
    entry, leave = np.minimum(one, two), np.maximum(one, two).min(-1)
    face = entry.argmax(-1)
    near = np.take_along_axis(entry, face[:, None], -1)[:, 0]
    distance = np.where((near < leave) & (near > 1e-3), near, _FAR).astype(np.float32)
    sign = -np.sign(np.take_along_axis(rays, face[:, None], -1))
    normal = np.zeros_like(rays)
    np.put_along_axis(normal, face[:, None], sign, -1)
    return _Hits(distance, normal @ turn.T, face.astype(np.int16))


def _cylinder(origin: np.ndarray, rays: np.ndarray, radius: float, height: float) -> _Hits:
    x, y, z = origin[..., 0], origin[..., 1], origin[..., 2]
    dx, dy, dz = rays[:, 0], rays[:, 1], rays[:, 2]
    near, _ = _roots(dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - radius * radius)
    level = y + near * dy
    side = (near > 1e-3) & (near < _FAR) & (level >= 0.0) & (level <= height)
    lid = (height - y) / np.where(np.abs(dy) < 1e-9, np.float32(1e-9), dy)
    on_lid = (lid > 1e-3) & ((x + lid * dx) ** 2 + (z + lid * dz) ** 2 <= radius * radius)
    by_side, by_lid = np.where(side, near, _FAR), np.where(on_lid, lid, _FAR)
    top = by_lid < by_side
    distance = np.minimum(by_side, by_lid).astype(np.float32)
    reached = np.where(distance < _FAR, distance, 0.0)
    normal = np.stack([(x + reached * dx) / radius, np.zeros_like(dx), (z + reached * dz) / radius], -1)
    normal[top] = (0.0, 1.0, 0.0)
    return _Hits(distance, normal.astype(np.float32), top.astype(np.int16))


def _cone(origin: np.ndarray, rays: np.ndarray, radius: float, height: float) -> _Hits:
    x, y, z = origin[..., 0], origin[..., 1] - height, origin[..., 2]
    dx, dy, dz = rays[:, 0], rays[:, 1], rays[:, 2]
    slope = (radius / height) ** 2
    near, far = _roots(
        dx * dx + dz * dz - slope * dy * dy, x * dx + z * dz - slope * y * dy, x * x + z * z - slope * y * y
    )
    distance = np.full(len(rays), _FAR, np.float32)
    for solution in (far, near):  # the nearer valid one is written last
        level = y + solution * dy
        valid = (solution > 1e-3) & (solution < _FAR) & (level >= -height) & (level <= 0.0)
        distance = np.where(valid & (solution < distance), solution, distance).astype(np.float32)
    reached = np.where(distance < _FAR, distance, 0.0)
    normal = np.stack([x + reached * dx, -slope * (y + reached * dy), z + reached * dz], -1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    return _Hits(distance, normal.astype(np.float32), np.zeros(len(rays), np.int16))


def _shade(solid: Solid, hits: _Hits, chosen: np.ndarray, rays: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Colour of the chosen rays' hits on one solid, (n, 3) float32 in [0, 255] and a little above."""
    normal, rays = hits.normal[chosen], rays[chosen]
    level = _EYE[1] + hits.distance[chosen] * rays[:, 1]
    tone = np.array(COLOURS[solid.colour], np.float32)
    diffuse = np.maximum(normal @ light, 0.0)
    brightness = 0.50 + 0.12 * normal[:, 1] + 0.50 * diffuse
    brightness *= 0.80 + 0.20 * np.clip(level / (0.35 * solid.height), 0.0, 1.0)
    colour = brightness[:, None] * tone
    if solid.shiny:
        view = -rays / np.linalg.norm(rays, axis=-1, keepdims=True)
        half = view + light
        half /= np.linalg.norm(half, axis=-1, keepdims=True)
        cosine = (normal * view).sum(-1)
        sky = np.clip(2.0 * cosine * normal[:, 1] - view[:, 1], 0.0, 1.0)
        gloss = 0.26 * sky + 0.95 * np.maximum((normal * half).sum(-1), 0.0) ** 48
        gloss = np.clip(gloss, 0.0, 1.0)[:, None]
        colour = colour * (1.0 - gloss) + 255.0 * gloss
    return colour
