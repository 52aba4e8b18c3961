import pytest

from autovla_rt.demo.scenes import record_scene


@pytest.fixture(scope="session")
def scenes():
    """Forty scenes of all kinds, straightforward and complex ones."""
    return [record_scene(seed) for seed in range(40)]


@pytest.fixture(scope="session")
def complex_scenes(scenes):
    return [scene for scene in scenes if scene.complex]
