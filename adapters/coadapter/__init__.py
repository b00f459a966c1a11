"""CoAdapter: T2I-Adapters and a style adapter that were trained together, made aware of each other.

TencentARC/T2I-Adapter, `docs/coadapter.md` at 16bba674. ``config.py`` says what can be built, ``model.py``
is the fuser, ``checkpoint.py`` the weight files it is read from, ``control.py`` what it does during a run.
The adapters themselves are `T2IAdapter` and `StyleAdapter`.
"""

from __future__ import annotations

from controlkit.adapters.coadapter.config import CoAdapterFuserConfig
from controlkit.adapters.coadapter.model import CoAdapterFuser

__all__ = ["CoAdapterFuser", "CoAdapterFuserConfig"]
