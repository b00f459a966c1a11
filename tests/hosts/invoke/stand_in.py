"""Stand-ins for ``invokeai.invocation_api``: the contract of 6.14 that our nodes touch, and nothing more."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model

REGISTERED: dict[str, Any] = {}


class Names(str, Enum):
    Connection = "connection"
    Textarea = "textarea"
    Main = "main"
    ControlNet = "controlnet"
    T2IAdapter = "t2i_adapter"
    Diffusers = "diffusers"
    StableDiffusion1 = "sd-1"
    StableDiffusion2 = "sd-2"
    StableDiffusionXL = "sdxl"


class BaseInvocation(ABC, BaseModel):
    model_config = ConfigDict(validate_assignment=True, protected_namespaces=())
    id: str = "node"

    @abstractmethod
    def invoke(self, context: Any) -> Any: ...


class BaseInvocationOutput(BaseModel):
    pass


class ImageField(BaseModel):
    image_name: str


class ModelIdentifierField(BaseModel):
    key: str


class MetadataField(RootModel[dict[str, Any]]):
    pass


class WithMetadata(BaseModel):
    metadata: MetadataField | None = None


class WithBoard(BaseModel):
    board: str | None = None


class StringOutput(BaseInvocationOutput):
    value: str


class ImageOutput(BaseInvocationOutput):
    image: ImageField
    width: int
    height: int

    @classmethod
    def build(cls, dto: Any) -> ImageOutput:
        return cls(image=ImageField(image_name=dto.image_name), width=dto.width, height=dto.height)


class InvocationContext:
    """Named in annotations only."""


def field(default: Any = None, *, description: str = "", ge: Any = None, le: Any = None, **_: Any) -> Any:
    return Field(default=default, description=description, ge=ge, le=le)


def invocation(kind: str, **about: Any) -> Any:
    def register(cls: Any) -> Any:
        result = inspect.signature(cls.invoke).return_annotation
        assert isinstance(result, type), "InvokeAI takes no text for it"
        assert issubclass(result, BaseInvocationOutput)
        assert cls.__module__ in sys.modules
        assert kind not in REGISTERED, f"{kind} overridden"
        made: dict[str, Any] = {
            name: (info.annotation if info.default is not None else info.annotation | None, info)
            for name, info in cls.model_fields.items()
        }
        made["type"] = (Literal[kind], kind)
        new = create_model(cls.__qualname__, __base__=cls, __module__=cls.__module__, **made)
        new.about = about
        REGISTERED[kind] = new
        return new

    return register


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where InvokeAI would be."""
    api = ModuleType("invokeai.invocation_api")
    vars(api).update(
        {
            cls.__name__: cls
            for cls in (BaseInvocation, BaseInvocationOutput, ImageField, ImageOutput, InvocationContext)
        }
    )
    vars(api).update(
        ModelIdentifierField=ModelIdentifierField,
        MetadataField=MetadataField,
        WithMetadata=WithMetadata,
        WithBoard=WithBoard,
        StringOutput=StringOutput,
        InputField=field,
        OutputField=field,
        invocation=invocation,
        invocation_output=lambda kind: lambda cls: cls,
        choose_torch_device=lambda: "cpu",
        **dict.fromkeys(("Input", "UIComponent", "ModelType", "ModelFormat", "BaseModelType"), Names),
    )
    monkeypatch.setitem(sys.modules, "invokeai", ModuleType("invokeai"))
    monkeypatch.setitem(sys.modules, "invokeai.invocation_api", api)


class Canceled(Exception):
    """What InvokeAI's queue takes for a cancelled item."""


class Context:
    """InvokeAI's context of one node.

    Args:
        models: Its models folder.
    """

    def __init__(self, models: Any = None) -> None:
        self.pictures: dict[str, Image.Image] = {}
        self.data: dict[str, MetadataField | None] = {}
        self.progress: list[tuple[str, float | None]] = []
        self.cancelled = False
        self.images = SimpleNamespace(get_pil=self._pil, save=self._save, get_metadata=self.data.get)
        self.places: dict[str, tuple[str, Any]] = {}
        """Models of its model manager by key: name and place."""
        self.models = SimpleNamespace(get_config=self._config, get_absolute_path=lambda config: config.path)
        self.logger = SimpleNamespace(info=lambda text: None)
        self.config = SimpleNamespace(get=lambda: SimpleNamespace(models_path=models or "models"))
        self.util = SimpleNamespace(
            is_canceled=lambda: self.cancelled,
            signal_progress=lambda text, share=None: self.progress.append((text, share)),
            sd_step_callback=self._callback,
        )

    def put(self, picture: Image.Image) -> ImageField:
        """A picture of the gallery."""
        name = f"{len(self.pictures)}.png"
        self.pictures[name] = picture
        return ImageField(image_name=name)

    def _config(self, key: str) -> Any:
        name, place = self.places[key]
        return SimpleNamespace(name=name, path=str(place))

    def _pil(self, name: str, mode: str | None = None) -> Image.Image:
        return self.pictures[name].convert(mode) if mode else self.pictures[name].copy()

    def _save(self, image: Image.Image, metadata: MetadataField | None = None) -> Any:
        name = self.put(image).image_name
        self.data[name] = metadata
        return SimpleNamespace(image_name=name, width=image.width, height=image.height)

    def _callback(self, state: Any, base: Any) -> None:
        if self.cancelled:
            raise Canceled
        raise AssertionError("called without need")
