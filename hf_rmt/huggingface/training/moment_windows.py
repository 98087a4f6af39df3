"""Windows: the few update steps before each choice of directions, in which batches are measured.

Directions are the parts of rank one that a weight keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.huggingface.training.batch_moments import TOKENS, BatchMoments
from hf_rmt.huggingface.training.start_weights import load_start, save_start

logger = logging.getLogger(__name__)

GATHERED = 24
"""The largest number of update steps that are measured before a choice of directions."""
TOKENS_AGAIN = 128
"""Largest number of tokens of a batch that are measured before the second and third choice.

The first choice uses more tokens, because it also finds the ranks. On SST-2, from the same state
and with the same batches, the KL divergence to plain training is 0.0221 with 128 tokens for the
later choices, 0.0217 with 256 and 0.0210 with 512. Without later choices it is 0.0286."""
MOMENTS_FILE = "_rmt_moments-{process}.safetensors"


class MomentWindows:
    """Measures batches before each choice of directions, and tells when the next choice is due.

    Directions are the parts of rank one that a weight keeps. The update steps that are measured
    before a choice are called a window. For each layer, the second moments of its inputs and of its
    output gradients are measured: the means of the products of each two entries.

    Args:
        model: The model that trains, without a wrapper such as `DistributedDataParallel`.
        names: Names of the layers to measure.
        choices: Update steps after which directions are chosen, ascending.
        chosen_at: Update step of the last choice that was made; None before the first choice.
        compiled: Whether the model is compiled.

    Attributes:
        choices: The update steps of the choices that are still to come.
        not_finite: Layers whose moments held nan or inf in the last window.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        choices: Sequence[int],
        *,
        chosen_at: int | None,
        compiled: bool = False,
    ) -> None:
        self.model, self.names, self.compiled = model, list(names), compiled
        self.choices = [step for step in choices if chosen_at is None or step > chosen_at]
        self._start = chosen_at or 0
        self.not_finite: list[str] = []
        self._moments: BatchMoments | None = None

    def gathers(self, step: int) -> bool:
        """Whether the next update step is measured, if `step` update steps are done already.

        The inputs of the layers are measured before each choice of directions (parts of rank one
        that a weight keeps), in at most `GATHERED` steps.
        """
        if not self.choices:
            return False
        return max(self._start, self.choices[0] - GATHERED) <= step < self.choices[0]

    def step_begins(self, step: int) -> None:
        """Start to measure the batches of this update step, if they are to be measured.

        A few update steps are measured before each choice of the parts of the weights to keep.
        """
        if self.gathers(step):
            self._opened().listen()

    def due(self, step: int) -> bool:
        """Whether it is time to choose the directions (parts of rank one) that weights keep."""
        return bool(self.choices) and step >= self.choices[0]

    def take(self, step: int) -> dict[str, LayerMoments]:
        """End the measurement; return a dict from layer names to moments (see `LayerMoments`).

        After update step `step`, these moments decide which parts the weights keep. The next
        measurement starts with new sums.
        """
        window = self._opened()
        found, self.not_finite = window.measured_moments(), window.not_finite
        self.stop()
        self._start = step
        self.choices = [later for later in self.choices if later > step]
        return found

    def stop(self) -> None:
        """Stop measuring batches, and free the memory of what was measured."""
        if self._moments is not None:
            self._moments.stop()
        self._moments = None

    def save(self, args: Any, step: int) -> None:
        """Save what this process has measured, if anything, in the folder of a checkpoint.

        The checkpoint is the one after update step `step`. The sums of `BatchMoments` are saved.
        """
        if self._moments is not None:
            save_start(
                {key: value.cpu() for key, value in self._moments.sums.items()},
                Path(args.output_dir, f"checkpoint-{step}"),
                name=MOMENTS_FILE.format(process=args.process_index),
            )

    def load(self, args: Any, began: str, step: int) -> None:
        """Load what this process had measured when a checkpoint was saved; warn if that is missing.

        The measurements are the sums of `BatchMoments`.

        Args:
            args: `TrainingArguments` of the resumed run.
            began: Output folder in which the run began; the checkpoint may be there.
            step: Update step of the checkpoint.
        """
        name = MOMENTS_FILE.format(process=args.process_index)
        places = [Path(base, f"checkpoint-{step}") for base in (args.output_dir, began)]
        for folder in dict.fromkeys(places):
            kept = load_start(folder, None, name=name) if (folder / name).is_file() else {}
            if set(kept) == set(self._opened().sums):
                for key, value in self._opened().sums.items():
                    value.copy_(kept[key])
                return
        logger.warning(
            "the file %s is missing in %s, or another version of hf_rmt wrote it, so only the "
            "batches after the checkpoint decide what weights keep; to continue exactly, put the "
            "file back, and use the version that wrote it",
            name,
            " or ".join(map(str, dict.fromkeys(places))),
        )

    def _opened(self) -> BatchMoments:
        """Return the `BatchMoments` that measures batches now.

        If there is none, make one; its sums are zero.
        """
        if self._moments is None:
            tokens = TOKENS_AGAIN if self._start else TOKENS
            self._moments = BatchMoments(self.model, self.names, tokens, compiled=self.compiled)
        return self._moments
