"""What the expert would say: reasoning in four headed lines, from the true state of the world."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from autovla_rt.demo import road, state
from autovla_rt.demo.road import Array
from autovla_rt.demo.scenes import Scene
from autovla_rt.demo.state import (
    A_HEADING,
    A_SPEED,
    A_X,
    A_Y,
    ALONG,
    CAUSE_LIGHT,
    CAUSE_ZONE,
    CROSS_PATH,
    FRONT,
    HEADING,
    KIND,
    LENGTH,
    PATH,
    PEDESTRIAN,
    R_DRIFT,
    R_LEFT,
    SPEED,
    TRUCK,
    X,
    Y,
)
from autovla_rt.demo.world import World

LIGHTS = {state.GREEN: "green", state.AMBER: "amber", state.RED: "red"}
OBJECT = re.compile(r"^Object: (?P<kind>[a-z]+) (?P<metres>\d+) m", re.MULTILINE)
TURN, STANDING = 0.7, 0.5
"""Heading at the end of a plan that is called a turn, rad; speed that is called standing, m/s."""


@dataclass(frozen=True)
class Mention:
    """The object that a narration is about: what it is, and how far away in metres."""

    kind: str
    metres: int


def narrate(scene: Scene) -> str:
    """Return the reasoning about a scene: scene, object, intention, action.

    About a straightforward one it says that nothing is in the way.
    """
    critical, intention = "none", "clear"
    if scene.complex:
        mention = critical_object(scene)
        critical = f"{mention.kind} {mention.metres} m {_where(scene)}"
        intention = _intention(scene)
    return "\n".join(
        [
            f"Scene: {_surroundings(scene.now)}.",
            f"Object: {critical}.",
            f"Intent: {intention}.",
            f"Action: {_action(scene)}.",
        ]
    )


def critical_object(scene: Scene) -> Mention:
    """Return what the expert minds most in a complex scene, distances as a narrator says them."""
    world, cause = scene.now, scene.cause
    front = world.ego[ALONG] + FRONT
    if cause == CAUSE_LIGHT:
        return Mention("light", spoken_metres(world.facts[state.STOP] - front))
    if cause == CAUSE_ZONE:
        return Mention("roadworks", spoken_metres(_zone_ahead(world) - front))
    agent = world.agents[cause]
    kind = {PEDESTRIAN: "pedestrian", TRUCK: "truck"}.get(int(agent[KIND]), "car")
    ahead, left = _seen_from_ego(world, agent)
    return Mention(kind, spoken_metres(float(np.hypot(ahead, left)) - agent[LENGTH] / 2 - FRONT))


def spoken_metres(distance: float) -> int:
    """Round a distance as people say it: to 1 m below 6 m, to 2 m below 20 m, else to 5 m."""
    distance = max(distance, 0.0)
    step = 1 if distance < 6 else 2 if distance < 20 else 5
    return round(distance / step) * step


def read_mention(reasoning: str) -> Mention | None:
    """Return the object that a reasoning names, None where it names none."""
    found = OBJECT.search(reasoning)
    return None if found is None else Mention(found["kind"], int(found["metres"]))


def _surroundings(world: World) -> str:
    lanes = "two lanes" if world.facts[road.MAIN_HALF] > 4 else "one lane"
    ahead = world.facts[state.STOP] - world.ego[ALONG]
    if not world.layout.has_junction or not -12.0 < ahead < 60.0:
        return lanes
    colour = LIGHTS.get(world.light)
    return f"{lanes}, junction" + ("" if colour is None else f", light {colour}")


def _zone_ahead(world: World) -> float:
    starts = [zone[0] for zone in world.zones if zone[1] > world.ego[ALONG]]
    return float(min(starts, default=world.ego[ALONG]))


def _seen_from_ego(world: World, agent: Array) -> tuple[float, float]:
    """Return how far ahead and to the left of the ego's middle an agent is, m."""
    dx, dy = agent[A_X] - world.ego[X], agent[A_Y] - world.ego[Y]
    cos, sin = np.cos(world.ego[HEADING]), np.sin(world.ego[HEADING])
    return float(cos * dx + sin * dy), float(cos * dy - sin * dx)


def _where(scene: Scene) -> str:
    if scene.cause >= CAUSE_LIGHT:
        return "ahead"
    ahead, left = _seen_from_ego(scene.now, scene.now.agents[scene.cause])
    if abs(left) < max(1.5, 0.15 * ahead):
        return "ahead"
    return "ahead left" if left > 0 else "ahead right"


def _intention(scene: Scene) -> str:
    world, cause = scene.now, scene.cause
    if cause == CAUSE_LIGHT:
        return f"{LIGHTS.get(world.light, 'red')}, wait at the line"
    if cause == CAUSE_ZONE:
        shift = next((z[2] for z in world.zones if z[1] > world.ego[ALONG]), 0.0)
        return f"closed on the {'right' if shift > 0 else 'left'}"
    agent = world.agents[cause]
    side = "left" if agent[R_LEFT] > 0 else "right"
    if agent[KIND] == PEDESTRIAN:
        return f"crosses from the {side}" if agent[R_LEFT] * agent[R_DRIFT] < 0 else "on the road"
    if agent[PATH] == state.MAIN_PATH and agent[state.DIRECTION] < 0:
        return "comes towards us"
    if agent[PATH] == CROSS_PATH and abs(np.cos(agent[A_HEADING] - world.ego[HEADING])) < 0.5:
        return "crosses"
    if abs(agent[R_DRIFT]) > 0.15:
        return f"merges from the {side}"
    if agent[A_SPEED] < 0.5:
        return "stands"
    if agent[state.A_ACCELERATION] < -0.8:
        return f"brakes at {round(agent[A_SPEED])} m/s"
    return f"drives {round(agent[A_SPEED])} m/s"


def _action(scene: Scene) -> str:
    speed, final = scene.now.ego[SPEED], scene.final_speed
    metres = round(float(np.hypot(*scene.trajectory[-1, :2])))
    heading = float(scene.trajectory[-1, 2])
    if final < STANDING:
        verb = "wait" if speed < STANDING else "stop"
    elif abs(heading) > TURN:
        verb = "turn left" if heading > 0 else "turn right"
    elif scene.cause == CAUSE_ZONE:
        left = scene.trajectory - scene.undisturbed
        verb = "pass left" if left[:, 1].sum() > 0 else "pass right"
    elif final < speed - 1.0:
        verb = "slow down"
    else:
        verb = "follow" if 0 <= scene.cause < CAUSE_LIGHT else "go on"
    return f"{verb}, {round(final)} m/s, {metres} m"
