"""The method `ntk`: it makes the head of a model ternary.

The head is the layers after the repeated blocks. A ternary weight holds only -1, 0 and 1, times a
scale. Activations of the head may become step activations, piecewise constant functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_rmt.checks import check_choice, check_number
from hf_rmt.settings import CompressionSettings, Method, Option, register_method

if TYPE_CHECKING:
    from torch import Tensor

    from hf_rmt.compression.decision import Decision
    from hf_rmt.report import CompressionReport

WEIGHTS = ("trained", "random")
ACTIVATIONS = ("auto", "matched", "keep")


def _choice(allowed: tuple[str, ...]) -> Any:
    def check(name: str, value: Any) -> str:
        check_choice(name, value, allowed)
        return str(value)

    return check


SPARSITY = Option(
    "sparsity",
    None,
    lambda name, value: None if value is None else check_number(name, value, high="1)"),
    "For ntk: the share of zeros in each row of a ternary weight, in [0, 1). None takes the share "
    "with the smallest error, or 1/3 if `weights` is `random`.",
    parse=float,
)
WEIGHTS_OPTION = Option(
    "weights",
    "trained",
    _choice(WEIGHTS),
    "For ntk: `trained` makes the trained weights ternary; `random` gives the hidden layers "
    "random ternary weights of the same scale. Random weights keep nothing of the training, so "
    "calibration must refit the last layer.",
    choices=WEIGHTS,
)
ACTIVATION = Option(
    "activation",
    "auto",
    _choice(ACTIVATIONS),
    "For ntk: `matched` replaces activations between layers by steps. A step takes only a few "
    "values and has the Gaussian moments of the activation: the same means over normally "
    "distributed inputs. `keep` keeps the activations. `auto` fits the head both ways, to three of "
    "every four calibration rows, and takes the way that predicts the last layer's outputs on the "
    "other rows better. Without calibration, `auto` keeps the activations.",
    choices=ACTIVATIONS,
)


class TernaryHead(Method):
    """Makes the linear layers of a model's head ternary, with weights of -1, 0 and 1 times a scale.

    The head is the layers after the repeated blocks. Activations between these layers may become
    step activations, which take a few values.
    """

    name = "ntk"
    help = (
        "Makes the head of a model ternary and turns its activations into steps; in the limit of "
        "large widths, the head's kernel (how similar the head finds two inputs) stays the same "
        "(Gu et al. 2022)."
    )
    options = (SPARSITY, WEIGHTS_OPTION, ACTIVATION)
    accepted = "linear layer, the only kind that method='ntk' takes"
    takes_heads = True

    def accepts(self, module: Any) -> bool:
        """Whether a module is a linear layer, the only kind that can become ternary."""
        from hf_rmt.nn.dense_matrix import is_linear

        return is_linear(module)

    def default_targets(self, layers: Mapping[str, Any], model: Any) -> list[str]:
        """Names of the linear layers after the repeated blocks; see `after_blocks`."""
        from hf_rmt.compression.targets.blocks import after_blocks

        return after_blocks(list(layers), model)

    def why_no_default(self) -> str:
        """The reason that an error message gives if `default_targets` returned no layer."""
        return "no linear layer comes after its blocks"

    def why_data(self, settings: CompressionSettings) -> str:
        """Why the settings need calibration data; empty if they do not.

        `activation="matched"` and `weights="random"` need data.
        """
        if settings.activation != "matched" and settings.weights == "trained":
            return ""
        return (
            f"method={self.name!r} with activation={settings.activation!r} and weights="
            f"{settings.weights!r} needs the inputs of the layers; set activation='keep' and "
            "weights='trained', or load the model and call hf_rmt.compress(model, config, "
            "calibration=batches)"
        )

    def why_no_filter(self) -> str:
        """Why `RMTCallback` cannot use this method, and which callback to use instead."""
        return (
            f"RMTCallback filters spectra, but method={self.name!r} uses no spectra; call "
            "hf_rmt.compress(model, config, calibration=batches), and train the result with "
            "hf_rmt.TernaryCallback() instead of RMTCallback"
        )

    def decide(self, name: str, weight: Tensor, settings: CompressionSettings) -> Decision:
        """Decide on one weight without data: it is rounded to -1, 0 and 1, times a scale."""
        from hf_rmt.ternary.weight import ternarize_weight

        return ternarize_weight(name, weight, settings)

    def compress_model(
        self,
        model: Any,
        names: Sequence[str],
        settings: CompressionSettings,
        *,
        calibration: Iterable[Mapping[str, Any]] | None = None,
        size: float | None = None,
        dry_run: bool = False,
    ) -> CompressionReport:
        """Make the weights of layers ternary: -1, 0 and 1, times a scale.

        With calibration data, the last of the layers is fitted again; see `compress_head`.
        """
        from hf_rmt.ternary.head import compress_head

        if size is not None:
            raise ValueError(
                f"size={size} distributes ranks over layers, but method={self.name!r} has no "
                "ranks; leave size out"
            )
        return compress_head(model, names, settings, calibration, dry_run=dry_run)


register_method(TernaryHead())
