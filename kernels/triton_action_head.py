"""The action head in one launch: logits, the grammar's mask and the best actions, in Triton."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(1 << 63))
"""Below every key."""

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
HALF_1024 = tl.constexpr(0x6400)
"""The bits of 1024 in fp16, whose ten digits behind it are the integers up to 1023."""


@triton.jit
def action_head(
    hidden,
    weight,
    scales,
    allowed,
    logits,
    partial,
    arrived,
    best_ids,
    best_logits,
    rows,
    actions,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ACTIONS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TOP: tl.constexpr,
    CANDIDATES: tl.constexpr,
    FINAL_ROWS: tl.constexpr,
):
    """Write the logits of every action and the `TOP` best that the grammar allows.

    A program multiplies 16 actions' weights with all states: fp16 tensor cores, sums in fp32,
    integer weights made fp16 on the way (exactly) and scaled behind the product. It leaves its best
    in `partial`; the program that comes last chooses among all of them, as `best_actions` does.

    Args:
        hidden: fp16 [rows, WIDTH], final hidden states.
        weight: [actions, ...], see `action_layout`.
        scales: fp32, see there; not read for fp16 weights.
        allowed: int32 [rows, ceil(actions / 32)] of `pack_mask`.
        logits: fp32 [rows, actions], written; -inf where not allowed.
        partial: int64 of `scratch_shape`, left with anything.
        arrived: int32, 0 before and after.
        best_ids: int32 [rows, TOP], written.
        best_logits: fp32 [rows, TOP], written.
        rows: States, TILE_ROWS at most.
        actions: At most TILE_ACTIONS for each program of `CANDIDATES` / `TOP`.
        WIDTH: Of a state.
        BITS: Of a weight: 16, 8 or 4.
        BLOCK: Inputs that are multiplied at once, and that share a scale in int4.
        TILE_ACTIONS: Of one program.
        TILE_ROWS: States that one launch takes.
        TOP: How many best.
        CANDIDATES: Keys that the last program chooses from for each state, a power of two.
        FINAL_ROWS: States for which it does so at once.

    Moves, for 2,048 actions of width 2,048 and one state: fp16 8.4 MB, int8 4.2 MB, int4 2.2 MB
    (128 to a scale), the rest below 40 KB: at least 41, 21 and 11 µs on agx-orin-64 (204.8 GB/s,
    NVIDIA's Jetson AGX Orin data sheet, DS-10662-001). 134 M operations for any number of states up
    to 16: 3 µs there with 42 dense fp16 TFLOPS, a quarter of its 170 sparse INT8 TOPS.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    action = program * TILE_ACTIONS + tl.arange(0, TILE_ACTIONS)
    row = tl.arange(0, TILE_ROWS)
    real_action, real_row = action < actions, row < rows

    sums = tl.zeros((TILE_ACTIONS, TILE_ROWS), tl.float32)
    if BITS == 4:
        half: tl.constexpr = BLOCK // 2
        k = tl.arange(0, half)
        codes = weight + action[:, None] * (WIDTH // 2) + k[None, :]
        states = hidden + row[:, None] * WIDTH + k[None, :]
        scale = scales + action * (WIDTH // BLOCK)
        for block in range(WIDTH // BLOCK):
            packed = tl.load(codes + block * half, real_action[:, None], 0)
            first = tl.load(states + block * BLOCK, real_row[:, None], 0)
            second = tl.load(states + block * BLOCK + half, real_row[:, None], 0)
            part = tl.dot(_half((packed & 15).to(tl.int16), 8), tl.trans(first))
            part = tl.dot(_half((packed >> 4).to(tl.int16), 8), tl.trans(second), part)
            sums += part * tl.load(scale + block, real_action, 0)[:, None]
    else:
        k = tl.arange(0, BLOCK)
        codes = weight + action[:, None] * WIDTH + k[None, :]
        states = hidden + row[:, None] * WIDTH + k[None, :]
        for at in range(0, WIDTH, BLOCK):
            weights = tl.load(codes + at, real_action[:, None], 0)
            if BITS == 8:
                weights = _half(weights.to(tl.int16) + 128, 128)
            given = tl.load(states + at, real_row[:, None], 0)
            sums = tl.dot(weights, tl.trans(given), sums)
        if BITS == 8:
            sums *= tl.load(scales + action, real_action, 0)[:, None]

    real = real_action[:, None] & real_row[None, :]
    words = allowed + row[None, :] * ((actions + 31) // 32) + (action // 32)[:, None]
    legal = (tl.load(words, real, 0) >> (action % 32)[:, None]) & 1
    sums = tl.where(legal == 1, sums, float("-inf"))
    tl.store(logits + row[None, :] * actions + action[:, None], sums, real)

    keys = _keys(sums, action)
    for rank in tl.static_range(TOP):
        best = tl.max(keys, axis=0)
        tl.store(partial + (program * TOP + rank) * TILE_ROWS + row, best)
        keys = tl.where(keys == best[None, :], LOWEST, keys)

    # All of this program's keys are written before it is counted.
    tl.debug_barrier()
    if tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == programs - 1:
        candidate = tl.arange(0, CANDIDATES)
        for first_row in range(0, TILE_ROWS, FINAL_ROWS):
            final = first_row + tl.arange(0, FINAL_ROWS)
            source = partial + candidate[:, None] * TILE_ROWS + final[None, :]
            # From the cache that all programs share.
            inside = (candidate < programs * TOP)[:, None]
            left = tl.load(source, inside, LOWEST, cache_modifier=".cg")
            for rank in tl.static_range(TOP):
                winner = tl.max(left, axis=0)
                value = _logit(winner)
                index = (winner & MAGNITUDE).to(tl.int32) ^ MAGNITUDE
                index = tl.where(value == float("-inf"), -1, index)
                tl.store(best_ids + final * TOP + rank, index, final < rows)
                tl.store(best_logits + final * TOP + rank, value, final < rows)
                left = tl.where(left == winner[None, :], LOWEST, left)
        tl.store(arrived, 0)


@triton.jit
def _half(unsigned, zero_point: tl.constexpr):
    """Return int16 of 0..1023, less a zero point, as fp16: faster than a conversion, and exact."""
    return (unsigned | HALF_1024).to(tl.float16, bitcast=True) - (1024.0 + zero_point)


@triton.jit
def _keys(logits, ids):
    """Return int64 that order as [ids, rows] logits do; of equal ones the lowest id is greatest."""
    # Adding 0 makes one zero of two; NaN becomes +inf.
    known = tl.where(logits == logits, logits + 0.0, float("inf"))
    bits = known.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & MAGNITUDE)
    return (ordered.to(tl.int64) << 32) | (ids ^ MAGNITUDE).to(tl.int64)[:, None]


@triton.jit
def _logit(keys):
    """Return the logits of keys."""
    ordered = (keys >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & MAGNITUDE)).to(tl.float32, bitcast=True)
