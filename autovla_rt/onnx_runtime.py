"""ONNX Runtime, imported so that it reports nothing.

Since 1.31 its Linux wheels write a device id and a database of events into the user's cache and
send them to Microsoft as soon as the library is imported. A car's computer must not. The library's
own switch, ORT_TELEMETRY_DISABLED=1, still lets one event and the id through in 1.31.1 (mended in
pull request 29843); under CI it collects nothing at all, so the import is told that this is CI.
Who wants the telemetry sets ORT_TELEMETRY_DISABLED=0.
"""

from __future__ import annotations

import os

SWITCH, SUPPRESSES = "ORT_TELEMETRY_DISABLED", "CI"

if os.environ.setdefault(SWITCH, "1") != "0" and SUPPRESSES not in os.environ:
    os.environ[SUPPRESSES] = "1"
    try:
        import onnxruntime as ort
    finally:
        del os.environ[SUPPRESSES]
else:
    import onnxruntime as ort

__all__ = ["ort"]
