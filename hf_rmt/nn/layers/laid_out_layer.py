"""A compressed layer whose weight can lie in memory in several forms, called layouts.

The layout of a layer is never saved. When the tensors of the layer move or are loaded again, the
layout discards the tensors that it made from them.
"""

from __future__ import annotations

from typing import Any, Self

from hf_rmt.nn.layers.compressed_layer import CompressedLayer


class LaidOutLayer(CompressedLayer):
    """A compressed layer with a layout, the form in which its weight lies in memory.

    Attributes:
        layout_object: The `Layout` that computes the forward pass. None for the packed layout: then
            the layer computes the forward pass itself.
        mode_changes: Number of calls of `train` and `eval`. After each call the layout reads the
            signal (the low-rank part of the weight) again.
    """

    layout_object: Any = None
    mode_changes = 0

    @property
    def layout(self) -> str:
        """Name of the layout, the form of the weight in memory; `set_layout` changes the layout."""
        layout = self.layout_object  # read once: another thread may set it
        return "packed" if layout is None else layout.name

    def train(self, mode: bool = True) -> Self:
        """Do the same as `nn.Module.train`, and let the layout read the signal again.

        The layout is the form of the weight in memory. The signal is its low-rank part.
        """
        self.mode_changes += 1
        return super().train(mode)

    def _reset_layout(self) -> None:
        layout = self.layout_object
        if layout is not None:
            layout.reset()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._reset_layout()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._reset_layout()
        super()._load_from_state_dict(*args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.layout_object is not None:
            self.layout_object.bind(self)
