"""Seeded worlds: a road network, an event on the way that matters, and traffic that does not."""

from __future__ import annotations

import numpy as np

from autovla_rt.demo import expert, road, state, traffic
from autovla_rt.demo.background import draw_background
from autovla_rt.demo.draft import Draft
from autovla_rt.demo.events import DRAWERS, EVENT_SHARES, EVENTS
from autovla_rt.demo.road import Array, build_layout
from autovla_rt.demo.scenery import draw_scenery
from autovla_rt.demo.state import AGENT_COLUMNS, ALONG, EGO_COLUMNS, NUM_FACTS, SPEED
from autovla_rt.demo.world import World

ROUTE_START = 20.0
"""The ego never starts nearer to the beginning of the main road than this, m."""


def draw_world(
    seed: int, event: str | None = None, *, events: int = 1, spacing: float = 85.0
) -> World:
    """Draw a world whose ego is about to meet an event, or several in a row.

    Args:
        seed: Equal seeds give equal worlds.
        event: One of `EVENTS` for the first; None draws it.
        events: How many follow each other along the route.
        spacing: Metres between them.
    """
    rng = np.random.default_rng(seed)
    kinds = [str(rng.choice(EVENTS, p=EVENT_SHARES)) for _ in range(events)]
    if event is not None:
        kinds[0] = event
    places = [ROUTE_START + 95.0 + i * spacing + float(rng.uniform(-8, 8)) for i in range(events)]
    junction, turn = _choose_junction(rng, kinds, places)
    lanes = 2 if "cut_in" in kinds or rng.random() < 0.5 else 1
    zebra = next((s for k, s in zip(kinds, places, strict=True) if k == "pedestrian"), None)
    layout = build_layout(
        rng,
        junction=junction,
        zebra=zebra if rng.random() < 0.75 else None,
        turn=turn,
        lanes=lanes,
    )
    draft = Draft(rng, layout, float(rng.uniform(8, 14)))
    draft.start = places[0] - float(rng.uniform(30, 90))
    for kind, place in zip(kinds, places, strict=True):
        DRAWERS[kind](draft, place)
    draw_background(draft)
    return _assemble(draft, lit="light" in kinds)


def _choose_junction(
    rng: np.random.Generator, kinds: list[str], places: list[float]
) -> tuple[float | None, int]:
    """Return where a junction lies and which way the route goes there."""
    lit = next((s for k, s in zip(kinds, places, strict=True) if k == "light"), None)
    turn = int(rng.choice([-1, 0, 1], p=[0.36, 0.28, 0.36]))
    if lit is not None:
        return lit + 12.0, turn
    if rng.random() < 0.55:
        behind = places[-1] if kinds[-1] == "free" else places[-1] + float(rng.uniform(45, 80))
        return behind, turn
    return None, 0


def _assemble(draft: Draft, lit: bool) -> World:
    rng, layout = draft.rng, draft.layout
    facts = np.zeros(NUM_FACTS)
    facts[: len(layout.numbers)] = layout.numbers
    facts[state.ENTRY], facts[state.STOP] = layout.junction_on_route, layout.stop_on_route
    facts[state.TURN], facts[state.LIMIT] = layout.turn, draft.limit
    facts[state.LIGHT] = float(layout.has_junction and (lit or rng.random() < 0.5))
    green, red = float(rng.uniform(7, 14)), float(rng.uniform(9, 16))
    facts[[state.GREEN_TIME, state.AMBER_TIME, state.RED_TIME]] = green, 3.0, red
    # Where the light is the event, the ego mostly arrives at amber or red.
    arrival = (layout.stop_on_route - draft.start) / draft.limit if layout.has_junction else 0.0
    share = float(rng.uniform(-4, red + 3) if lit else rng.uniform(0, green + 3.0 + red))
    facts[state.PHASE] = (green + share - arrival) % (green + 3.0 + red)
    facts[state.FROZEN_LIGHT] = state.NO_LIGHT
    ego = _ego(draft)
    agents = np.array(draft.agents).reshape(-1, AGENT_COLUMNS)
    zones = np.array(draft.zones).reshape(-1, 3)
    traffic.locate_all(agents, layout.route, layout.main, layout.cross)
    look = int(rng.integers(1 << 31))
    return World(layout, facts, zones, agents, ego, 0.0, look, draw_scenery(layout, look))


def _ego(draft: Draft) -> Array:
    rng, route = draft.rng, draft.layout.route
    ego = np.zeros(EGO_COLUMNS)
    pose = np.array(road.place(route, draft.start, float(rng.normal(0, 0.3))))
    pose[2] += rng.normal(0, 0.02)
    ego[:3], ego[ALONG] = pose, draft.start
    allowed = float(expert.bend_speed(route, draft.start, draft.limit))
    ego[SPEED] = 0.0 if rng.random() < 0.1 else allowed * rng.uniform(0.5, 1.0)
    return ego
