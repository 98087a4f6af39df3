"""`TernaryCallback` trains the ternary layers of a model, so that the model regains accuracy.

The weights of a ternary layer are -1, 0 or 1 times a scale.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_rmt.huggingface.training.trainer import check_alone, check_whole_weights
from hf_rmt.nn import LatentTernaryLinear, TernaryLinear
from hf_rmt.nn.swap import swap_module


class TernaryCallback(TrainerCallback):
    """Trains the weights of ternary layers with `Trainer`. Without it they do not change.

    The entries of a ternary weight are -1, 0 or 1 times a scale. When the Trainer is made, each
    `TernaryLinear` becomes a `LatentTernaryLinear` that computes the same. This layer trains a
    dense latent weight, which is rounded in each call. The gradient ignores the rounding. When
    training ends, after the best model was loaded, the layers are packed again, so that
    `trainer.save_model()` writes the compact model. Checkpoints hold the latent weights: they can
    resume the training, but `from_pretrained` cannot load them. If an error ends the training, the
    layers stay trainable. Then make a new Trainer, or call `TernaryCallback.pack(model)`.

    To train only a ternary head (the output layer), call `model.requires_grad_(False)` before the
    Trainer is made. The ternary weights train all the same. Take a larger learning rate than for
    dense layers, such as 1e-3. With 5e-5 few entries change. If only the other layers should adapt
    to a ternary head, no callback is needed.

    Attributes:
        flipped: For each layer, by name, the share of entries that training changed from one of the
            values -1, 0 and 1 to another. It is empty until training has ended.

    Raises:
        ValueError: When the Trainer is made, if the model has no ternary layer or is to be sharded
            (FSDP, DeepSpeed), or if the Trainer has two of these callbacks.
        RuntimeError: When training begins, if the optimizer does not have the latent weights.

    Examples:
        >>> TernaryCallback().flipped
        {}
    """

    def __init__(self) -> None:
        self.flipped: dict[str, float] = {}
        self._before: dict[str, TernaryLinear] = {}

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Make the ternary layers (entries -1, 0, 1) trainable before the optimizer is made."""
        check_alone(self, state)
        check_whole_weights(self, args, state, model)
        packed, latent = (_layers(model, kind) for kind in (TernaryLinear, LatentTernaryLinear))
        self._before = packed | {name: layer.freeze() for name, layer in latent.items()}
        if not self._before:
            raise ValueError(
                f"{type(model).__name__} has no ternary layer to train; call "
                "hf_rmt.compress(model, RMTConfig(method='ntk'), calibration=batches) first, or "
                "load a model that was saved after that"
            )
        for name, layer in packed.items():
            trainable = LatentTernaryLinear.from_ternary(layer)
            swap_module(model, name, trainable)
            trainable.weight.requires_grad_()  # also where the dense layer was frozen

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Refuse to train if the optimizer does not know the latent weights.

        These are dense weights that each call of a ternary layer rounds to -1, 0 or 1 (times a
        scale).
        """
        if not self._before or _layers(model, TernaryLinear):
            raise RuntimeError(
                "the optimizer does not know the latent weights of this model's ternary layers; "
                "make a new Trainer(model, ..., callbacks=[TernaryCallback()]) for each training, "
                "without add_callback or model_init, which come too late"
            )

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Pack the ternary layers into few bits again after training.

        The share of entries that changed (from -1, 0 or 1 to another of these) goes to `flipped`.
        """
        for name, before in self._before.items():
            layer = _packed(model, name, layout=before.layout)
            layer.scale = layer.scale.to(before.scale)
            old, new = before.dense().sign(), layer.dense().sign()
            self.flipped[name] = float((old.to(new) != new).float().mean())
        self._before = {}

    @staticmethod
    def pack(model: nn.Module) -> None:
        """Pack the ternary layers (entries -1, 0, 1) that an interrupted training left trainable.

        Args:
            model: The model, changed in place; its outputs stay the same.
        """
        for name in _layers(model, LatentTernaryLinear):
            _packed(model, name)


def _layers(model: nn.Module, kind: type[Any]) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if isinstance(part, kind)}


def _packed(model: nn.Module, name: str, *, layout: str = "packed") -> TernaryLinear:
    """Replace a trainable ternary layer by one with packed entries -1, 0 and 1, and return it.

    The number of its non-zero entries is recorded for the saved model.
    """
    latent: Any = model.get_submodule(name)
    layer: TernaryLinear = latent.freeze(layout=layout)
    swap_module(model, name, layer)
    _record(model, name, int(layer.dense().count_nonzero()))
    return layer


def _record(model: Any, name: str, nonzero: int) -> None:
    """Record how many entries of a layer are not zero after training, for the saved model."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    for config in (quantizer.quantization_config, model.config.quantization_config):
        if name in (config.layers or {}):
            config.layers[name] = {**config.layers[name], "nonzero": nonzero}
