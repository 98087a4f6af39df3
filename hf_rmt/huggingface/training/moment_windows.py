"""The few steps before each choice of directions whose batches are measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_rmt.compression.calibration.low_rank import LayerMoments
from hf_rmt.huggingface.training.batch_moments import TOKENS, BatchMoments
from hf_rmt.huggingface.training.start_weights import load_start, save_start

logger = logging.getLogger(__name__)

GATHERED = 24
"""At most so many update steps before a choice are measured. The first measured step of a training
only shows which layers share an input."""
TOKENS_AGAIN = 128
"""Most tokens of a batch that are measured before a choice that is not the first.

The first choice uses more, because it also finds the ranks. On SST-2, from one state and with the
same batches, the KL divergence to plain training is 0.0221 with 128 tokens for the later choices,
0.0217 with 256 and 0.0210 with 512. With the first choice alone it is 0.0286."""
MOMENTS_FILE = "_rmt_moments-{process}.safetensors"


class MomentWindows:
    """Moments of the batches before each choice, and the choices that are still to come.

    Args:
        model: The model that trains, without a wrapper.
        names: Its layers with a matrix.
        choices: Update steps after which directions are chosen, ascending.
        chosen_at: Step of the last choice that was made, None before the first.
        leaders: Which layers share an input, by name; empty if nothing was measured so far.

    Attributes:
        choices: The steps of the choices that are still to come.
        leaders: As above.
        not_finite: Layers whose moments held nan or inf in the last window.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        choices: Sequence[int],
        *,
        chosen_at: int | None,
        leaders: Mapping[str, str],
    ) -> None:
        self.model, self.names, self.leaders = model, list(names), dict(leaders)
        self.choices = [step for step in choices if chosen_at is None or step > chosen_at]
        self._start = chosen_at or 0
        self.not_finite: list[str] = []
        self._moments: BatchMoments | None = None

    def gathers(self, step: int) -> bool:
        """Whether the batches of the next update are measured, after this number of steps."""
        if not self.choices:
            return False
        return max(self._start, self.choices[0] - GATHERED) <= step < self.choices[0]

    def step_begins(self, step: int) -> None:
        """Start to measure the batches of a step that lies in a window."""
        if self.gathers(step):
            self._opened().listen()

    def step_ends(self) -> None:
        """Settle which layers share an input, after the first step that was measured."""
        if self._moments is not None:
            self._moments.end_step()
            self.leaders = self._moments.leaders

    def due(self, step: int) -> bool:
        """Whether it is time to choose."""
        return bool(self.choices) and step >= self.choices[0]

    def take(self, step: int) -> dict[str, LayerMoments]:
        """The moments of the window, by layer; the next window begins after this step."""
        window = self._opened()
        found, self.not_finite = window.measured_moments(), window.not_finite
        self.stop()
        self._start = step
        self.choices = [later for later in self.choices if later > step]
        return found

    def stop(self) -> None:
        """Stop measuring, and free the sums."""
        if self._moments is not None:
            self._moments.stop()
        self._moments = None

    def save(self, args: Any, step: int) -> None:
        """Save the sums of this process next to a checkpoint that is made within a window."""
        if self._moments is not None and self._moments.sums:
            save_start(
                {key: value.cpu() for key, value in self._moments.sums.items()},
                Path(args.output_dir, f"checkpoint-{step}"),
                name=MOMENTS_FILE.format(process=args.process_index),
            )

    def load(self, args: Any, began: str, step: int) -> None:
        """Load the sums of a run that was interrupted within a window.

        Args:
            args: `TrainingArguments` of the run that goes on.
            began: Output folder in which the run began.
            step: Of the checkpoint.
        """
        name = MOMENTS_FILE.format(process=args.process_index)
        places = [Path(base, f"checkpoint-{step}") for base in (args.output_dir, began)]
        found = [folder for folder in places if (folder / name).is_file()]
        if not found:
            logger.warning(
                "%s is neither in %s nor in %s, so the directions are chosen by the batches "
                "after the checkpoint only; to continue exactly, put the file beside the "
                "checkpoint",
                name,
                *places,
            )
            return
        sums = load_start(found[0], None, name=name)
        for key, value in self._opened().sums.items():
            value.copy_(sums[key])

    def _opened(self) -> BatchMoments:
        """The sums of the window, zeros where it has just begun."""
        if self._moments is None:
            tokens = TOKENS_AGAIN if self._start else TOKENS
            self._moments = BatchMoments(self.model, self.names, tokens)
            if self.leaders:
                self._moments.set_leaders(self.leaders)
        return self._moments
