"""A model in the shape of bert-base whose weights have known spectra, for benchmarks."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_rmt.spectra.ensembles import double_bulk_matrix

SPIKES = tuple(float(value) for value in range(60, 20, -2))


def spiked_bert(layers: int, width: int) -> BertModel:
    """A model in the shape of bert-base; each weight is noise of two variances plus twenty spikes.

    Args:
        layers: Number of blocks.
        width: Size of the hidden states, a multiple of 64.

    Returns:
        The model, the same at each call.
    """
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        vocab_size=1000,
    )
    model = BertModel(config)
    for seed, linear in enumerate(linears(model)):
        weight = double_bulk_matrix(
            tuple(linear.weight.shape), mixing=0.5, variances=(3.0, 0.6), spikes=SPIKES, seed=seed
        )
        linear.weight.data.copy_(torch.from_numpy(weight))
    return model


def linears(model: BertModel) -> list[nn.Linear]:
    """The linear layers of the encoder."""
    return [part for part in model.encoder.modules() if isinstance(part, nn.Linear)]
