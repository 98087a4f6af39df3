"""Training adapters on a compressed model with PEFT."""

from __future__ import annotations

from torch import nn

from hf_rmt.nn import SpikedLinear


def lora_targets(model: nn.Module) -> dict[str, list[str]]:
    """Where LoRA fits on a compressed model: `LoraConfig(r=8, **lora_targets(model))`.

    PEFT adapts the factors of a compressed layer as one parameter, of shape (rank, in + out);
    ranks of LoRA above that of the layer add nothing. Layers that stayed dense are adapted as
    usual. `lora_dropout` must stay 0, since PEFT knows no dropout on parameters.

    Args:
        model: A compressed model.

    Returns:
        `target_modules` and `target_parameters`.

    Raises:
        TypeError: If the model is none.
        ValueError: If the model has no compressed layer with a signal.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lora_targets needs a loaded model, got {model!r}; load it first")
    spiked = {name: part for name, part in model.named_modules() if isinstance(part, SpikedLinear)}
    factors = [f"{name}.weight" for name, part in spiked.items() if part.rank]
    if not factors:
        raise ValueError(
            f"{type(model).__name__} has no compressed layer with a signal; "
            "load it with quantization_config=RMTConfig(), or use target_modules='all-linear'"
        )
    quantizer = getattr(model, "hf_quantizer", None)
    planned = quantizer.quantization_config.layers if quantizer is not None else {}
    return {
        "target_modules": [name for name in planned if name not in spiked],
        "target_parameters": factors,
    }
