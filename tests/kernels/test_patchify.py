import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from autovla_rt.config import Preprocessing, VisionGeometry
from autovla_rt.kernels.patchify import normalise, patchify

TOWER = {
    "depth": 1,
    "hidden_size": 64,
    "num_heads": 1,
    "intermediate_size": 64,
    "out_hidden_size": 64,
    "fullatt_block_indexes": (0,),
}


def transformers_patches(frames, preprocessing, vision):
    processor = Qwen2VLImageProcessor(
        do_resize=False,
        image_mean=list(preprocessing.image_mean),
        image_std=list(preprocessing.image_std),
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    batch = processor.preprocess(
        images=None, videos=[list(frames)], input_data_format="channels_last"
    )
    rows = batch["pixel_values_videos"]
    return rows.reshape(len(frames) // vision.temporal_patch_size, -1, rows.shape[1])


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((4, 56, 84, 3), {}),
        ((2, 28, 140, 3), {}),
        ((6, 96, 48, 3), {"patch_size": 8, "spatial_merge_size": 3, "temporal_patch_size": 3}),
    ],
)
def test_bit_for_bit_transformers(shape, changes):
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    vision = VisionGeometry(**TOWER, **changes)
    preprocessing = Preprocessing()
    patches = patchify(frames, preprocessing, vision)
    assert patches.dtype == np.float32
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(patches, transformers_patches(frames, preprocessing, vision))


def test_uses_the_checkpoints_normalisation():
    frames = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    preprocessing = Preprocessing(image_mean=(0.5, 0.1, 0.9), image_std=(0.5, 0.25, 2.0))
    vision = VisionGeometry(**TOWER)
    np.testing.assert_array_equal(
        patchify(frames, preprocessing, vision), transformers_patches(frames, preprocessing, vision)
    )


def test_every_level_of_every_channel_is_that_of_transformers():
    preprocessing = Preprocessing(image_mean=(0.1, 0.5, 0.9), image_std=(0.3, 0.7, 2))
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    rescaled = (levels * (1 / 255)).astype(np.float32)
    mean, std = (
        np.array(values, np.float32)
        for values in (preprocessing.image_mean, preprocessing.image_std)
    )
    np.testing.assert_array_equal(normalise(levels, preprocessing), (rescaled - mean) / std)


def test_strided_frames_are_read_correctly():
    frames = np.random.default_rng(2).integers(0, 256, (4, 28, 56, 3), dtype=np.uint8)
    vision, preprocessing = VisionGeometry(**TOWER), Preprocessing()
    mirrored = frames[:, :, ::-1]
    np.testing.assert_array_equal(
        patchify(mirrored, preprocessing, vision),
        patchify(np.ascontiguousarray(mirrored), preprocessing, vision),
    )
