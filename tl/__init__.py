"""Tools in scanpy's manner: `mclst.tl.predict(adata, slide, bundle)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.tl.prediction import predict

__all__ = ["predict"]


def __getattr__(name: str) -> Any:
    # Resolved on first use, so that importing the package stays cheap.
    if name == "predict":
        from mclst.tl.prediction import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
