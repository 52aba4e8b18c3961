"""Checkpoints written by torch and transformers themselves, for the tests of export."""

from __future__ import annotations

import base64
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from autovla_rt.config import Geometry

OMEGACONF_ALPHA_16 = zlib.decompress(
    base64.b85decode(
        b"c-mc&$#T;`5Qd!%+vAX!EfBMZO#x!|uxBA50YZGxNjKG49=ipy#x0Ff<-=6Lfhy+_;7xctdd7AkN2MzDNb2w"
        b"Z|Lz~tf$WM74`ke~x57Y~BJ8kTDtCq@7FK`al*VbtD;Ej{zbh1Pam8^a*V^Q%VAP;^7>nd^^b5mT>YdYg%JE"
        b"9nn~1ir`aOZgfF5DoVcT(^Vacn|N7?))0yX?z4t&3vg^>zl-)F`bLuL`Or$QO?2rC0`hR)wbALkq19F^^ecT"
        b"zm9alvEbqn}8raPin%u=1&ljzr=IJOF{!Adpc+ngmQ)OSE|wsiD>xV88IJi|4E+X$)<hhmto>FGM7|A|83Y0"
        b"Hv(y70qaRJfYXP)Ua(nO-7mXMU9uN!>(+J2$#W3w5IX012bSIbVcJ;2Z~UFGBBtNU>=r%f?R{eW2l04bKS)o"
        b"KnB3-!4gaXac??SIZFkpDO|~|Bqp)c47foB!&{_tTjL$lJh`|3>$*!n-P7od%ru5xR*aX`oR|A9KCm8Y-mD3"
        b"FMEiI+pedMBBomHnHe+4mqjAQ^8lRlVxMsLdbKGYxKA*@~GZ|kvcGHv**TKYisqvM;8n>@CzL|8pZm4f_)OR"
        b"kvx3oG~lV%e<>H)_Mi`&$=HO6gg{4j~zFu0u@Zr8<+W86V?wE9*edookFXNmh7KaGi>HGY{S?iu1ij`-EZ!!"
        b"dDx^Y3qS{mGh{z0<5&{|BG^9y$"
    )
)
"""omegaconf 2.4.0's pickle (protocol 2) of a config whose model.lora says use and alpha 16."""


def qwen_model(geometry: Geometry, **overrides: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Make a random model with transformers; overrides go into text_config."""
    torch.manual_seed(0)
    text = geometry.language.model_dump(exclude={"head_dim", "mrope_section"})
    text["rope_scaling"] = {
        "type": "mrope",
        "mrope_section": list(geometry.language.mrope_section),
    }
    vision = geometry.vision.model_dump()
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    text |= overrides
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as constants
            parameter.normal_()
    return model


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements as they lie in memory, whatever their type."""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a state_dict to the layout of transformers 4.49."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in state.items()
    }


def with_lora(
    state: dict[str, torch.Tensor], rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Rename as PEFT does and add pairs to q/k/v/o_proj; also return (A, B) by old module name."""
    torch.manual_seed(1)
    wrapped, pairs = {}, {}
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        if ".self_attn." not in name:
            wrapped[f"base_model.model.{name}"] = tensor
            continue
        wrapped[f"base_model.model.{module}.base_layer.{kind}"] = tensor
        if kind == "weight":
            a, b = torch.randn(rank, tensor.shape[1]), torch.randn(tensor.shape[0], rank)
            wrapped[f"base_model.model.{module}.lora_A.default.weight"] = a
            wrapped[f"base_model.model.{module}.lora_B.default.weight"] = b
            pairs[module] = (a, b)
    return wrapped, pairs


def save_lightning(path: Path, state: dict[str, Any], prefix: str, **extra: Any) -> Path:
    """Write a Lightning checkpoint with torch.save; `extra` are further top-level keys."""
    named = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"epoch": 1, "state_dict": named, **extra}, path)
    return path


def add_to_pickle(path: Path, key: str, pickled: bytes) -> None:
    """Add a top-level key with an object pickled elsewhere (protocol 2) to a torch.save file."""
    members = read_members(path)
    name = next(name for name in members if name.endswith("/data.pkl"))
    item = pickle.dumps(key, 2)[2:-1] + pickled[2:-1] + pickle.SETITEM
    members[name] = members[name][:-1] + item + pickle.STOP
    write_members(path, members)


def read_members(path: Path) -> dict[str, bytes]:
    """Return a zip's entries."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(
    path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Write a zip anew."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
