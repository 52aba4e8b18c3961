"""A reduced vocabulary as TensorRT Edge-LLM reads it: the LM head's rows that are kept.

Its exporter and its builder take the folder as --reduced-vocab-dir, cut the LM head to these rows
and leave the embedding whole. An answer without reasoning holds a few literals and the actions:
2,048 rows and some of 153,713.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MAP_FILE = "vocab_map.safetensors"
INFO_FILE = "reduced_vocab.json"


def emit_reduced_vocabulary(ids: Sequence[int], vocab_size: int, folder: Path) -> None:
    """Write the map and its description into a folder that is made.

    Args:
        ids: Token ids that are kept, in the order of the new rows.
        vocab_size: Rows of the whole head.
        folder: Where.
    """
    folder.mkdir()
    save_file({"vocab_map": np.array(ids, np.int32)}, folder / MAP_FILE)
    info = {"vocab_size": vocab_size, "reduced_vocab_size": len(ids), "method": "autovla-rt"}
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", "utf-8")
