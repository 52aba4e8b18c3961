"""OpenVINO, imported so that it reports nothing.

Its Python package imports a model converter that identifies the user to a telemetry service (a
file in ~/intel, and events when models are converted), unless the package openvino_telemetry is
absent: then it does without. A car's computer must not report, so for the import it is absent.
"""

from __future__ import annotations

import sys

TELEMETRY = "openvino_telemetry"

if TELEMETRY in sys.modules or "openvino" in sys.modules:
    import openvino as ov
else:
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # documented: the import fails
    try:
        import openvino as ov
    finally:
        del sys.modules[TELEMETRY]

__all__ = ["ov"]
