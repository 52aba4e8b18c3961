"""OpenVINO, imported so that it reports nothing.

Its Python package imports a model converter that identifies the user to a telemetry service (a
file in ~/intel, and events when models are converted), unless the package openvino_telemetry is
absent: then it does without. A car's computer must not report, so for the import it is absent.
"""

from __future__ import annotations

import sys

from autovla_rt.errors import DependencyError

TELEMETRY = "openvino_telemetry"

_absent = TELEMETRY not in sys.modules
if _absent:
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # documented: imports of it fail
try:
    import openvino as ov
except ModuleNotFoundError as error:
    raise DependencyError(
        "engines for the target x86 need openvino, which is not installed here.\n"
        "Install it: pip install 'autovla-rt[openvino]'"
    ) from error
finally:
    if _absent:
        del sys.modules[TELEMETRY]

__all__ = ["ov"]
