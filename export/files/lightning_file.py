"""The weights and the hyper-parameters of a Lightning checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autovla_rt.errors import CheckpointError
from autovla_rt.export.files.binary_file import BinaryFile
from autovla_rt.export.files.inert import plain
from autovla_rt.export.files.torch_file import TensorRef, TorchFile
from autovla_rt.export.tensors.tensor_info import TensorInfo


class LightningFile:
    """A `.ckpt` file: `infos` describes its state_dict, `hyper_parameters` holds plain data.

    Raises:
        CheckpointError: not a torch.save file (see TorchFile) or one without a state_dict.
    """

    def __init__(self, path: Path) -> None:
        self._file = TorchFile(path)
        try:
            self._refs = _state_dict(self._file)
            self.infos: dict[str, TensorInfo] = {name: ref.info for name, ref in self._refs.items()}
            self.hyper_parameters: Any = _hyper_parameters(self._file)
        except BaseException:
            self._file.close()
            raise

    @property
    def files(self) -> tuple[BinaryFile, ...]:
        """The one open file."""
        return (self._file.file,)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows `start` to `stop` of axis 0, in the stored element type."""
        return self._file.read_rows(self._refs[name], start, stop)

    def same_bytes(self, first: str, second: str) -> bool:
        """Tell whether two names are one view of one storage, as tied parameters are saved."""
        return self._refs[first] == self._refs[second]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _state_dict(file: TorchFile) -> dict[str, TensorRef]:
    state = file.root.get("state_dict") if isinstance(file.root, Mapping) else None
    if not isinstance(state, Mapping):
        found = ", ".join(map(str, file.root)) if isinstance(file.root, Mapping) else "no dict"
        raise CheckpointError(
            f"{file.path}: expected a Lightning checkpoint with the key state_dict, "
            f"got {found[:300]}. Save it with Lightning, or give a Hugging Face folder."
        )
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, TensorRef)):
            raise CheckpointError(
                f"{file.path}: state_dict[{name!r}] is {type(value).__name__}, expected a tensor. "
                "Save the checkpoint without extra state."
            )
    return dict(state)


def _hyper_parameters(file: TorchFile) -> Any:
    try:
        return plain(file.root.get("hyper_parameters", {}))
    except RecursionError:
        raise CheckpointError(
            f"{file.path}: hyper_parameters contain themselves. The file is forged or damaged."
        ) from None
