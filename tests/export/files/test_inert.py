"""What real training runs leave in a checkpoint beside the weights, written by torch.save."""

from __future__ import annotations

import argparse
import base64
import collections
import datetime
import os
import pathlib
import pickle
import zlib

import numpy as np
import pytest
import torch

from autovla_rt.export.checkpoint import open_checkpoint
from autovla_rt.export.files.inert import plain
from autovla_rt.export.files.torch_file import TorchFile

OMEGACONF_NODES = zlib.decompress(
    base64.b85decode(
        b"c-m!^dz;fl6vkT?*zRn(cmo%2$f6d}DyZNMaRFIzmx{qlykJPuX(w!&^i3w~Rvft~%dYq9=kX7}h#$o>nWkjhK"
        b"7F3fq;uZ)cTP@DZf^7A9`Cw-9Ce!Qz?XUvblEvto;6EUj@&|3VOztVsZ=UXk4v}hN*7b5P|r;{qX6j!5l=1-k1"
        b"%Yf*c}Qx8+MIi6W(#;pwBVw(@zj}*+Mj6sM)jhXY5_$zBK>O_>SXcK`4XBahT>}V7Wxxmq8r4A!ax1DcY~_0qQ"
        b"M#2Q53H+fA`cVYkhSt&_yD#GXxicW$4?;VMrY-}ME@Uf++ykUU8+Wo_PZvrrnZ`vkj#`z<_>dy<F2dQjBtI$hu"
        b")@9}8J`jDt)o;|Hg({~fPjD4*<%%RFiz2C3!u)UM6nBrni=#m~#c%&hwgf7ve3Xe6!w5W+0!Nlx_sEav4nLIA`"
        b"Y>K@i$9clSK|ur}Hx&CsRgmzLdFs8m%|jf@b>|fh7rIX=JUym+Nb5dR(rs8cvPJiR)_t~-r<A3f(vUb>y4Mkzr"
        b"R+=`hun=?v|)ITyq;HRlJ9s^-0OuG=+KJ_#|UW4?e$2B;W!~4H;6|y;!7pOmo2=Kqs`mfbzxWO{-4;Os_&v5Q6"
        b"v%dl9RZS<KzVB`7m~+!F-hnUQ>8omq*jQq44H7O-CPRI7K+849-c7^HvGxw1u|~jySP+`oBv4AsWpVxjl}B35d"
        b"%wAw)xQhMdnToGU2aQ8+(Nkwt-@A6_JmMZ>Y6Io>UCT(Iz7!I3`<X-8s-Ky<Igne1m0%M&P<Tqz95MKW(GykCG"
        b"^QusiF^yx$xc=<^NiwG=3u&fC#mk2(z@KHf<FDy=jH52=BUXvt?QhZ`pX}Jb_9iLkGjH2q3JvER#HEf>~&ld_;"
        b"3brp5oQcNK#~H2?;8g=y*MM#b(6iu=03BUYKV>{JwQc7`tNi;9cwVy5CEa7_tfOl|P#yKWi?W{6k5ir^nBcuY&"
        b"v%z6hWHv$t|){BaZe!{Ck|tpd58%(Ho$=f?w5dJAt`{D*s!U>AX-5>VNb);SWB|Y6jlrCuN2mXkA2Jdq}pdt^7"
        b"-1r^-=H4k;mcdW;!+VS<)P(t?<o=B9%}j3VmVtzF4MZ@xJ($2yQ6cEQZi6h1)}#t;L`ihVKlZ(tzKW0Pk2>r?C"
        b"`|#?rjle+73NLMOYSuvsMggTjwnl3l83t)EI-KU?@E*SJANt<p+s{HpL<q4B%IA6qr5TI0`>#$OixE;L%1$1^X"
        b">yfptd{|DpVU5)"
    )
)
"""omegaconf 2.4.0's pickle (protocol 2) of config.model with one node of each typed kind."""

HARMLESS = {
    "Counter": collections.Counter("abca"),
    "PosixPath": pathlib.Path("/runs/x"),
    "PurePosixPath": pathlib.PurePosixPath("runs"),
    "PureWindowsPath": pathlib.PureWindowsPath(r"C:\runs"),
    "device": torch.device("cuda", 1),
    "Size": torch.Size((2, 3)),
    "Parameter": torch.nn.Parameter(torch.ones(3)),
    "generator state": torch.get_rng_state(),
    "datetime": datetime.datetime(2025, 1, 2, tzinfo=datetime.UTC),
    "date": datetime.date(2025, 1, 2),
    "time": datetime.time(3, 4),
    "timedelta": datetime.timedelta(seconds=3),
    "bytes": b"\x00\xff",
    "empty bytes": b"",
    "float64": np.float64(0.5),
    "int32": np.int32(5),
    "bool_": np.bool_(True),
    "str_": np.str_("a"),
    "numpy dtype": np.dtype("float32"),
    "structured numpy dtype": np.dtype([("a", "<f4")]),
    "ndarray": np.arange(6, dtype=np.int16).reshape(2, 3),
    "object ndarray": np.array([{"a": 1}, None], dtype=object),
    "numpy random state": np.random.RandomState(0).get_state(),
    "Namespace": argparse.Namespace(lr=np.float32(1)),
    **{
        name: getattr(torch, name)
        for name in ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool")
    },
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["optimizer_states", "hyper_parameters"])
def test_a_checkpoint_that_holds_everything_harmless_opens(
    torch_files, tiny_geometry, tiny_state, assert_equal_to_torch, tmp_path, place, protocol
):
    state = {f"autovla.vlm.{name}": tensor for name, tensor in tiny_state.items()}
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": state, place: HARMLESS}, path, pickle_protocol=protocol)
    with open_checkpoint(path, geometry=tiny_geometry) as checkpoint:
        assert_equal_to_torch(checkpoint, tiny_state)


@pytest.mark.parametrize("name", HARMLESS)
def test_each_harmless_value_is_read(tmp_path, name):
    torch.save({"x": HARMLESS[name]}, tmp_path / "x.pt")
    TorchFile(tmp_path / "x.pt").close()


def saved(folder, value):
    """Return what is read of a value that torch saved, in plain containers."""
    torch.save(value, folder / "x.pt")
    file = TorchFile(folder / "x.pt")
    file.close()
    return plain(file.root)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Counter", {"a": 2, "b": 1, "c": 1}),
        ("PosixPath", "/runs/x"),
        ("PureWindowsPath", "C:\\runs"),
        ("device", "cuda:1"),
        ("Size", [2, 3]),
        ("bfloat16", "torch.bfloat16"),
        ("datetime", "<datetime.datetime>"),
        ("ndarray", "<numpy._core.multiarray._reconstruct>"),
        ("Namespace", {"lr": "<numpy._core.multiarray.scalar>"}),
    ],
)
def test_stand_ins_are_plain_afterwards(tmp_path, name, wanted):
    assert saved(tmp_path, HARMLESS[name]) == wanted


def test_nodes_of_omegaconf_are_their_values(tmp_path, torch_files):
    torch.save({}, tmp_path / "x.pt")
    torch_files.add_to_pickle(tmp_path / "x.pt", "x", OMEGACONF_NODES)
    file = TorchFile(tmp_path / "x.pt")
    file.close()
    assert plain(file.root["x"])["config"]["model"] == {
        "use_cot": True,
        "learning_rate": 0.5,
        "name": "sft",
        "output": "runs/x",
        "key": "bytes",
        "num_poses": 10,
        "link": "${config.model.num_poses}",
        "list": [1, None],
    }


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "PosixPath"),
    ],
)
def test_names_of_other_versions_and_systems_are_known(
    torch_files, tiny_geometry, tiny_state, tmp_path, module, name
):
    path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.")
    call = f"\x80\x02c{module}\n{name}\n(U\x01atR.".encode("latin1")
    torch_files.add_to_pickle(path, "callbacks", call)
    open_checkpoint(path, geometry=tiny_geometry).close()


class Attack:
    """A value whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "shown"),
    [
        (os.system, ("true",), "posix.system"),
        (eval, ("1",), "eval"),
        (getattr, ("a", "upper"), "getattr"),
        (np.load, ("x.npy",), "numpy.load"),
        (torch.load, ("x.pt",), "torch.serialization.load"),
        (pathlib.os.remove, ("x",), "posix.remove"),
    ],
    ids=["os.system", "eval", "getattr", "numpy.load", "torch.load", "os.remove"],
)
def test_all_else_is_refused_by_name(
    refusal, torch_files, tiny_geometry, tiny_state, tmp_path, function, arguments, shown
):
    path = torch_files.save_lightning(tmp_path / "x.ckpt", tiny_state, "autovla.vlm.")
    torch_files.add_to_pickle(path, "callbacks", pickle.dumps(Attack(function, *arguments), 2))
    message = refusal(path, tiny_geometry)
    assert "the pickle asks for" in message
    assert shown in message.splitlines()[0]
