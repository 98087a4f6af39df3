"""Training on the outputs of another model."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer


class DistillationTrainer(Trainer):
    """Trains on a teacher's soft targets (KL divergence at a temperature) and hidden states."""

    def __init__(self, *, teacher: Any, temperature: float, hidden_weight: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.teacher = teacher.eval().to(self.args.device)
        self.temperature, self.hidden_weight = temperature, hidden_weight

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = {key: value for key, value in inputs.items() if key != "labels"}
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
