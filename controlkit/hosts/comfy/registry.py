"""Which nodes there are, by the names that workflows keep: these must not change."""

from __future__ import annotations

from typing import Any

from controlkit.hosts.comfy.detectors import detector_nodes, titles
from controlkit.hosts.comfy.guiding import GuideClass, GuidePicture
from controlkit.hosts.comfy.nodes import (
    Apply,
    ApplyUni,
    EmbeddedControl,
    EmbeddedModel,
    EmbeddedScene,
    LoadControl,
    ShowReport,
)
from controlkit.hosts.comfy.prompting import ApplyCoAdapter, ApplyIPAdapter, ApplyStyle, CoAdapterMember

_OWN: dict[str, tuple[Any, str]] = {
    "ControlKitLoad": (LoadControl, "Load control"),
    "ControlKitApply": (Apply, "Apply control"),
    "ControlKitApplyUni": (ApplyUni, "Apply Uni-ControlNet"),
    "ControlKitApplyIPAdapter": (ApplyIPAdapter, "Apply IP-Adapter"),
    "ControlKitApplyStyle": (ApplyStyle, "Apply style adapter"),
    "ControlKitApplyCoAdapter": (ApplyCoAdapter, "Apply CoAdapter"),
    "ControlKitCoAdapterMember": (CoAdapterMember, "CoAdapter member"),
    "ControlKitGuide": (GuidePicture, "Guide by colour, edges or region"),
    "ControlKitGuideClass": (GuideClass, "Guide by class"),
    "ControlKitReport": (ShowReport, "Report"),
    "ControlKitEmbeddedModel": (EmbeddedModel, "Embedded model"),
    "ControlKitEmbeddedControl": (EmbeddedControl, "Embedded control"),
    "ControlKitEmbeddedScene": (EmbeddedScene, "Embedded scene"),
}

NODE_CLASS_MAPPINGS: dict[str, Any] = {name: node for name, (node, _) in _OWN.items()} | detector_nodes()
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    name: f"{title} (ControlKit)"
    for name, title in ({name: title for name, (_, title) in _OWN.items()} | titles()).items()
}
