"""Training on the outputs of another model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

MARGIN = 0.125
"""Images are shifted by at most this share of their width."""


class DistillationTrainer(Trainer):
    """Trains on a teacher's soft targets (KL divergence at a temperature) and hidden states.

    With `augment` the images of a batch are flipped and shifted at random. Teacher and student see
    the same changed images, so the targets stay right (Beyer et al., CVPR 2022).
    """

    def __init__(
        self,
        *,
        teacher: Any,
        temperature: float,
        hidden_weight: float,
        augment: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.teacher = teacher.eval().to(self.args.device)
        self.temperature, self.hidden_weight, self.augment = temperature, hidden_weight, augment

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = {key: value for key, value in inputs.items() if key != "labels"}
        if self.augment:
            inputs["pixel_values"] = flipped_and_shifted(inputs["pixel_values"])
        outputs = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            wanted = self.teacher(**inputs, output_hidden_states=True)
        loss = self.temperature**2 * functional.kl_div(
            (outputs.logits / self.temperature).log_softmax(-1),
            (wanted.logits / self.temperature).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        mask = inputs.get("attention_mask")
        tokens = slice(None) if mask is None else mask.bool()
        pairs = list(zip(outputs.hidden_states[1:], wanted.hidden_states[1:], strict=True))
        for ours, theirs in pairs:
            ours, theirs = ours[tokens], theirs[tokens]
            distance = functional.mse_loss(ours, theirs) / theirs.var()
            loss = loss + self.hidden_weight / len(pairs) * distance
        return (loss, outputs) if return_outputs else loss


def flipped_and_shifted(images: Tensor) -> Tensor:
    """Flip half of the images, chosen at random, and shift each image at random.

    Args:
        images: Shape (n, channels, height, width).

    Returns:
        New images of the same shape. What a shift uncovers is filled by reflection.
    """
    count, _, height, width = images.shape
    chosen = torch.rand(count, 1, 1, 1, device=images.device) < 0.5
    margin = round(MARGIN * width)
    padded = functional.pad(torch.where(chosen, images.flip(3), images), [margin] * 4, "reflect")
    places = torch.randint(2 * margin + 1, (count, 2)).tolist()
    parts = zip(padded, places, strict=True)
    return torch.stack([part[:, y : y + height, x : x + width] for part, (y, x) in parts])
