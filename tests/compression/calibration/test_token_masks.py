"""Each part of a model has the mask of its own tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5ForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_rmt.compression.calibration.moments import Moments
from hf_rmt.compression.calibration.token_masks import TokenMasks
from hf_rmt.huggingface.training.batch_moments import BatchMoments

LENGTH, REAL = 6, 4
ENCODER, DECODER = "encoder", "decoder"
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
VISION = {**SMALL, "image_size": 8, "patch_size": 4, "intermediate_size": 32}
TWO = {"decoder_layers": 1, "encoder_layers": 1, "d_model": 32, "vocab_size": 30}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


def mask(real: int, length: int = LENGTH) -> Tensor:
    return (torch.arange(length) < real).long().expand(2, length)


def ids(length: int = LENGTH) -> Tensor:
    return torch.arange(2 * length).view(2, length) % 20 + 3


ENDING = ids().index_fill(1, torch.tensor([LENGTH - 1]), 2)  # each text ends with one end token
TEXT = {"input_ids": ids(), "attention_mask": mask(REAL)}
BOTH = {**TEXT, "decoder_input_ids": ids()}


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=32))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32))


def bart() -> nn.Module:
    return BartForConditionalGeneration(
        BartConfig(**TWO, **HEADS, encoder_ffn_dim=32, decoder_ffn_dim=32)
    )


def bart_classifier() -> nn.Module:
    return BartForSequenceClassification(
        BartConfig(**TWO, **HEADS, encoder_ffn_dim=32, decoder_ffn_dim=32)
    )


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            d_model=32,
            d_kv=16,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            vocab_size=30,
            decoder_start_token_id=0,
        )
    )


def whisper() -> nn.Module:
    config = WhisperConfig(**TWO, **HEADS, num_mel_bins=8, max_source_positions=LENGTH)
    config.pad_token_id = 0
    return WhisperForConditionalGeneration(config)


def siglip() -> nn.Module:
    text = {**SMALL, "intermediate_size": 32, "max_position_embeddings": LENGTH}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))


def captioner() -> nn.Module:
    decoder = BertConfig(**SMALL, intermediate_size=32, is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.pad_token_id = config.decoder_start_token_id = 0
    return VisionEncoderDecoderModel(config)


PIXELS = torch.ones(2, 3, 8, 8)
SOUND = torch.ones(2, 8, 2 * LENGTH)
OWN = {"decoder_attention_mask": mask(3)}
ONE_HIDDEN = torch.arange(LENGTH) == 1  # a token without a loss in the middle is no padding
LABELLED = {**TEXT, "labels": ids().masked_fill(~mask(3).bool() | ONE_HIDDEN, -100)}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {
    "bert": (bert, TEXT, {"query": 2 * REAL, "classifier": 2}),
    "llama": (llama, TEXT, {"q_proj": 2 * REAL, "lm_head": 2 * REAL}),
    "bart": (bart, BOTH, {"encoder.layers.0.fc1": 2 * REAL, "decoder.layers.0.fc1": 12}),
    "bart, both masks": (
        bart,
        {**BOTH, **OWN},
        {
            "encoder.layers.0.fc1": 2 * REAL,
            "decoder.layers.0.fc1": 6,
            "encoder_attn.k_proj": 2 * REAL,
            "encoder_attn.q_proj": 6,
            "lm_head": 6,
        },
    ),
    "bart, labels": (
        bart,
        LABELLED,
        {
            "encoder.layers.0.fc1": 2 * REAL,
            "decoder.layers.0.fc1": 6,
            "encoder_attn.v_proj": 2 * REAL,
            "lm_head": 6,
        },
    ),
    "bart, labels of a class": (
        bart_classifier,
        {**TEXT, "input_ids": ENDING, "labels": torch.zeros(2).long()},
        {"encoder.layers.0.fc1": 2 * REAL, "decoder.layers.0.fc1": 12, "dense": 2},
    ),
    "t5": (t5, BOTH, {"encoder.block.0.layer.1": 2 * REAL, "decoder.block.0.layer.2": 12}),
    "t5, both masks": (
        t5,
        {**BOTH, **OWN},
        {
            "encoder.block.0.layer.1": 2 * REAL,
            "decoder.block.0.layer.2": 6,
            "EncDecAttention.k": 2 * REAL,
            "EncDecAttention.q": 6,
        },
    ),
    "t5, labels, no mask of the encoder": (
        t5,
        {"input_ids": ids(), "labels": LABELLED["labels"]},
        {
            "encoder.block.0.layer.1": 12,
            "decoder.block.0.layer.2": 6,
            "EncDecAttention.v": 12,
            "lm_head": 6,
        },
    ),
    "siglip": (
        siglip,
        {"input_ids": ids(4), "attention_mask": mask(2, 4), "pixel_values": PIXELS},
        {"text_model.encoder.layers.0.mlp.fc1": 4, "vision_model.encoder.layers.0.mlp.fc1": 8},
    ),
    "whisper": (
        whisper,
        {"input_features": SOUND, "decoder_input_ids": ids(), **OWN},
        {
            "encoder.layers.0.fc1": 12,
            "decoder.layers.0.fc1": 6,
            "encoder_attn.k_proj": 12,
        },
    ),
    "captions, labels": (
        captioner,
        {"pixel_values": PIXELS, "labels": ids(5).masked_fill(~mask(3, 5).bool(), -100)},
        {
            "encoder.layers": 10,
            "decoder.bert.encoder.layer.0.intermediate": 6,
            "crossattention.self.key": 10,
        },
    ),
    "captions": (
        captioner,
        {"pixel_values": PIXELS, "decoder_input_ids": ids(5), "decoder_attention_mask": mask(3, 5)},
        {"encoder.layers": 10, "decoder.bert.encoder.layer.0.intermediate": 6},
    ),
}


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]


def counted(name: str, wanted: dict[str, int], counts: dict[str, int]) -> None:
    for part, count in wanted.items():
        found = {layer: number for layer, number in counts.items() if part in layer}
        assert found, (name, part, list(counts))
        assert set(found.values()) == {count}, (part, found)


@pytest.mark.parametrize("name", CASES)
def test_calibration_counts_the_tokens_of_each_part(name: str) -> None:
    make, batch, wanted = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    moments = Moments(model, {layer: [layer] for layer in layers_of(model)}, gradients=False)
    moments.gather([batch])
    counts = {layer: int(sums.count) for layer, sums in moments.inputs.items()}
    counted(name, wanted, counts)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", CASES)
def test_a_training_counts_the_tokens_of_each_part(name: str) -> None:
    make, batch, wanted = CASES[name]
    torch.manual_seed(0)
    model = make().train()
    moments = BatchMoments(model, layers_of(model))
    moments.listen()
    model(**batch)
    moments.stop()
    counts = {layer: int(moments.sums[f"{layer} tokens"]) for layer in moments.names}
    counted(name, wanted, counts)


def test_a_layer_that_is_called_again_after_the_forward_keeps_its_mask() -> None:
    model = bert().eval()
    masks = TokenMasks(model)
    seen: list[Tensor | None] = []
    query = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    query.register_forward_hook(lambda *_: seen.append(masks.of("query")))
    with masks.followed():
        model(**TEXT)
        query(torch.ones(2, LENGTH, 32))  # as gradient checkpointing does
    assert seen[0] is seen[1] is TEXT["attention_mask"]


def test_an_error_in_a_forward_leaves_no_mask_behind() -> None:
    model = bart().eval()
    masks = TokenMasks(model)
    with masks.followed():
        with pytest.raises(IndexError):
            model(**{**BOTH, "decoder_input_ids": ids() + 90})
        assert masks.of("any") is None
