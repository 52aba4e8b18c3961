"""Fused resize, normalisation and patches of the cameras' frames, as one Triton kernel."""

import triton
import triton.language as tl

PRECISION_BITS = tl.constexpr(22)
"""As in resample.py."""


@triton.jit
def resize_patchify(
    frames,
    byte_starts,
    byte_digits,
    byte_bias,
    row_starts,
    row_digits,
    row_bias,
    values,
    patches,
    height,
    pitch,
    byte_window,
    row_window,
    out_height,
    out_width,
    PATCH: tl.constexpr,
    MERGE: tl.constexpr,
    CLIP: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BYTE_CHUNK: tl.constexpr,
    ROW_CHUNK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Write the patches that `patchify(resample(frames))` gives, bit for bit, rounded to fp16.

    A program makes 10 x 32 pixels of a frame (its tables: `ResizePlan`). Both directions are
    products of a coefficient matrix, banded and mostly zeros, with a window of levels: int8 tensor
    cores, three digits a coefficient, sums in int32. Between them the levels are rounded to 8 bits
    and stay on the chip. A last look-up turns a level into its normalised value.

    Args:
        frames: uint8 [F, height, pitch].
        byte_starts: As all tables, see `ResizePlan`.
        byte_digits: See there.
        byte_bias: See there.
        row_starts: See there.
        row_digits: See there.
        row_bias: See there.
        values: [3, 256] of `level_values`, in the patches' type.
        patches: [F / CLIP, tokens of a clip, 3 * CLIP * PATCH²], written.
        height: Rows of a frame.
        pitch: Bytes from row to row, a multiple of 16.
        byte_window: Bytes that a tile reads of a row, a multiple of BYTE_CHUNK.
        row_window: Rows that a tile reads, a multiple of ROW_CHUNK.
        out_height: Pixels of a side after resizing, multiples of PATCH * MERGE.
        out_width: See `out_height`.
        PATCH: Pixels of a patch's side.
        MERGE: Patches of a merge block's side.
        CLIP: Frames of a temporal patch.
        TILE_PIXELS: As the other tiles, see `resize_plan`.
        TILE_CHANNELS: See there.
        TILE_ROWS: See there.
        BYTE_CHUNK: See there.
        ROW_CHUNK: See there.
        ALIGNMENT: See there.

    Moves, for twelve frames of 1920x1080 to 420x224: 74.6 MB of frames, 6.8 MB of fp16 patches and
    1.2 MB of tables, 82.6 MB: at least 0.40 ms on agx-orin-64 (204.8 GB/s). Does 37.5 G int8
    operations, of which the bands need 0.8 G times three digits: at least 0.44 ms there, with 85
    dense INT8 TOPS. Peaks are of NVIDIA's Jetson AGX Orin data sheet (DS-10662-001): 170 sparse
    INT8 TOPS for the GPU, half of that dense. Of the module's 275 sparse (138 dense) two DLAs
    give 105, which no kernel reaches.
    """
    tile_column, tile_row, frame = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    out = tl.arange(0, TILE_CHANNELS)
    y = tl.arange(0, TILE_ROWS)
    row = tl.arange(0, ROW_CHUNK)
    byte = tl.arange(0, BYTE_CHUNK)

    first_byte = tl.multiple_of(tl.load(byte_starts + tile_column), ALIGNMENT)
    byte_plane = TILE_CHANNELS * byte_window
    byte_digit = byte_digits + tile_column * 3 * byte_plane
    byte_digit += out[:, None] * byte_window + byte[None, :]
    bias = tl.load(byte_bias + tile_column * TILE_CHANNELS + out)
    first_row = tl.load(row_starts + tile_row)
    row_plane = TILE_ROWS * row_window
    row_digit = row_digits + tile_row * 3 * row_plane
    row_digit += y[:, None] * row_window + row[None, :]
    source = frames + frame * height * pitch

    low = tl.zeros((TILE_CHANNELS, TILE_ROWS), tl.int32)
    middle = tl.zeros((TILE_CHANNELS, TILE_ROWS), tl.int32)
    high = tl.zeros((TILE_CHANNELS, TILE_ROWS), tl.int32)
    for at_row in range(0, row_window, ROW_CHUNK):
        rows = first_row + at_row + row
        across_low = tl.zeros((TILE_CHANNELS, ROW_CHUNK), tl.int32)
        across_middle = tl.zeros((TILE_CHANNELS, ROW_CHUNK), tl.int32)
        across_high = tl.zeros((TILE_CHANNELS, ROW_CHUNK), tl.int32)
        for at in range(0, byte_window, BYTE_CHUNK):
            place = first_byte + at + byte
            inside = (rows < height)[:, None] & (place < pitch)[None, :]
            levels = tl.load(source + rows[:, None] * pitch + place[None, :], inside, 0)
            # Less 128, so that they are signed; the bias makes up for it.
            signed = tl.trans((levels ^ 128).to(tl.int8, bitcast=True))
            digit = byte_digit + at
            across_low = _add_products(digit, signed, across_low)
            across_middle = _add_products(digit + byte_plane, signed, across_middle)
            across_high = _add_products(digit + 2 * byte_plane, signed, across_high)
        levels = _levels(across_low, across_middle, across_high, bias[:, None])
        signed = (levels - 128).to(tl.int8)
        digit = row_digit + at_row
        low = tl.dot(signed, tl.trans(tl.load(digit)), low, out_dtype=tl.int32)
        digit += row_plane
        middle = tl.dot(signed, tl.trans(tl.load(digit)), middle, out_dtype=tl.int32)
        digit += row_plane
        high = tl.dot(signed, tl.trans(tl.load(digit)), high, out_dtype=tl.int32)
    bias = tl.load(row_bias + tile_row * TILE_ROWS + y)
    # Channels of a pixel row last: what lies together in a patch is written together.
    levels = tl.trans(_levels(low, middle, high, bias[None, :]))

    channel = out // TILE_PIXELS
    out_x = tile_column * TILE_PIXELS + out % TILE_PIXELS
    out_y = tile_row * TILE_ROWS + y
    keep = (out_y < out_height)[:, None] & ((out_x < out_width) & (channel < 3))[None, :]
    value = tl.load(values + channel[None, :] * 256 + levels, keep)

    across, down = out_x // PATCH, out_y // PATCH
    blocks = out_width // (PATCH * MERGE)
    block = (down // MERGE * blocks)[:, None] + (across // MERGE)[None, :]
    token = (block * MERGE + (down % MERGE)[:, None]) * MERGE + (across % MERGE)[None, :]
    token += frame // CLIP * (out_height // PATCH) * (out_width // PATCH)
    plane = (channel * CLIP + frame % CLIP)[None, :] * PATCH + (out_y % PATCH)[:, None]
    inner = plane * PATCH + (out_x % PATCH)[None, :]
    tl.store(patches + token * (3 * CLIP * PATCH * PATCH) + inner, value, keep)


@triton.jit
def _add_products(digit, signed, sums):
    """Add the products of a tile's coefficients with levels [bytes, rows] to sums."""
    return tl.dot(tl.load(digit), signed, sums, out_dtype=tl.int32)


@triton.jit
def _levels(low, middle, high, bias):
    """Put the digits' sums together and round them to 0..255."""
    return tl.clamp((low + (middle << 8) + (high << 16) + bias) >> PRECISION_BITS, 0, 255)
