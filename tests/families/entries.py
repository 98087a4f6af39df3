"""Model classes of many families with tiny configs: what is tried is in `steps`, the table in docs.

An entry names the class, its config and what it takes. Sizes are small enough for seconds and large
enough for layers that the default config compresses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers

from tests.families.family import (
    Family,
    both_tokens,
    pixels,
    pixels_and_decoder,
    pixels_and_tokens,
    sound,
    spectrogram,
    tokens,
)

WIDTH = 48
HEADS = {"num_hidden_layers": 1, "num_attention_heads": 4}
BODY = {"hidden_size": WIDTH, "intermediate_size": 80, **HEADS}
TEXT_BODY = {**BODY, "vocab_size": 60, "max_position_embeddings": 40}
CAUSAL = {**TEXT_BODY, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1} | {
    "eos_token_id": 2
}
PICTURE = {**BODY, "image_size": 32, "patch_size": 16}
SPEECH = {**BODY, "conv_dim": (32, 32), "conv_kernel": (5, 5), "conv_stride": (4, 4)} | {
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 60,
}
BOTH = {
    **{"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 80},
    **{"decoder_ffn_dim": 80, "max_position_embeddings": 40, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
T5 = {
    **{"d_model": WIDTH, "d_kv": 12, "d_ff": 80, "num_layers": 1, "num_heads": 4},
    **{"vocab_size": 60, "decoder_start_token_id": 0},
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
STATE = {"hidden_size": WIDTH, "num_hidden_layers": 1, "vocab_size": 60} | {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _config(name: str, **options: Any) -> Callable[[], Any]:
    return partial(getattr(transformers, name), **options)


def _bert(name: str, kind: str = "SequenceClassification", **more: Any) -> Family:
    return Family(f"{name}For{kind}", f"{name}Config", {**TEXT_BODY, **more})


def _causal(name: str, kind: str = "ForCausalLM", **more: Any) -> Family:
    return Family(f"{name}{kind}", f"{name}Config", {**CAUSAL, **more}, tokens, True)


def _picture(name: str, **more: Any) -> Family:
    return Family(f"{name}Model", f"{name}Config", {**PICTURE, **more}, pixels)


CLIP_PARTS = {
    "text_config": {**TEXT_BODY, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
    "vision_config": PICTURE,
    "projection_dim": 32,
}
RESNET = {"embedding_size": 32, "hidden_sizes": [32, 48], "depths": [1, 1], "layer_type": "basic"}

TEXT = [
    _bert("Bert"),
    _bert("Roberta"),
    _bert("XLMRoberta", "TokenClassification"),
    _bert("Electra", embedding_size=32),
    Family(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": WIDTH, "n_layers": 1, "n_heads": 4, "hidden_dim": 80, "vocab_size": 60},
    ),
    _bert("Albert", embedding_size=32),
    _bert("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _bert("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _bert("MPNet"),
    _bert("IBert"),
    _bert("Longformer", attention_window=4, max_position_embeddings=60),
    _bert(
        "ModernBert", pad_token_id=0, bos_token_id=1, cls_token_id=1, sep_token_id=2, eos_token_id=2
    ),
    Family("NomicBertModel", "NomicBertConfig", TEXT_BODY),
]
DECODERS = [
    Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": WIDTH, "n_layer": 1, "n_head": 4, "n_positions": 40, "vocab_size": 60}
        | {"bos_token_id": 1, "eos_token_id": 2},
        tokens,
        True,
    ),
    Family(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {"hidden_size": WIDTH, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 4}
        | {"max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 2},
        tokens,
        True,
    ),
    _causal("GPTNeoX"),
    Family(
        "OPTForCausalLM",
        "OPTConfig",
        {"hidden_size": WIDTH, "ffn_dim": 80, "vocab_size": 60, "word_embed_proj_dim": WIDTH}
        | {"max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | HEADS,
        tokens,
        True,
    ),
    Family(
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": WIDTH, "n_layer": 1, "n_head": 4, "vocab_size": 60},
        tokens,
        True,
    ),
    _causal("Falcon"),
    _causal("Llama"),
    _causal("Mistral"),
    _causal("Qwen2"),
    _causal("Qwen3", head_dim=12),
    _causal("Gemma", head_dim=12),
    _causal("Phi"),
    _causal("Mixtral", **MOE),
    _causal("Qwen2Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40),
    Family("MambaForCausalLM", "MambaConfig", {**STATE, "time_step_rank": 40}, tokens, True),
    Family(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {**STATE, "num_heads": 6, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 8},
        tokens,
        True,
    ),
    _causal(
        "RecurrentGemma",
        num_hidden_layers=3,
        num_key_value_heads=1,
        lru_width=WIDTH,
        attention_window_size=8,
    ),
    _causal(
        "Jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        num_hidden_layers=2,
        num_experts=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_dt_rank=40,
        use_mamba_kernels=False,
    ),
]

SEQUENCES = [
    Family("T5ForConditionalGeneration", "T5Config", T5, both_tokens, True),
    Family("MT5ForConditionalGeneration", "MT5Config", T5, both_tokens, True),
    Family(
        "LongT5ForConditionalGeneration",
        "LongT5Config",
        {**T5, "local_radius": 4, "global_block_size": 4},
        both_tokens,
        True,
    ),
    Family("BartForConditionalGeneration", "BartConfig", BOTH, both_tokens, True),
    Family("MBartForConditionalGeneration", "MBartConfig", BOTH, both_tokens, True),
    Family("PegasusForConditionalGeneration", "PegasusConfig", BOTH, both_tokens, True),
    Family("MarianMTModel", "MarianConfig", BOTH, both_tokens, True),
    Family(
        "LEDForConditionalGeneration",
        "LEDConfig",
        {**BOTH, "attention_window": 4, "max_encoder_position_embeddings": 40}
        | {"max_decoder_position_embeddings": 40},
        both_tokens,
        True,
    ),
    Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**BOTH, "num_mel_bins": 20, "max_source_positions": 20, "max_target_positions": 40}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
        spectrogram,
        True,
    ),
    Family(
        "EncoderDecoderModel",
        "EncoderDecoderConfig",
        {
            "maker": lambda: "from_encoder_decoder_configs",
            "encoder_config": _config("BertConfig", **TEXT_BODY),
            "decoder_config": _config("BertConfig", **TEXT_BODY),
        },
        both_tokens,
    ),
    Family(
        "VisionEncoderDecoderModel",
        "VisionEncoderDecoderConfig",
        {
            "maker": lambda: "from_encoder_decoder_configs",
            "encoder_config": _config("ViTConfig", **PICTURE),
            "decoder_config": _config("BertConfig", **TEXT_BODY),
        },
        pixels_and_decoder,
    ),
]
PICTURES = [
    _picture("ViT"),
    _picture("DeiT"),
    _picture("Beit"),
    Family(
        "SwinModel",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 32, "depths": [1, 1]}
        | {"num_heads": [2, 4], "window_size": 4},
        pixels,
    ),
    _picture("Dinov2"),
    Family(
        "Dinov2Model",
        "Dinov2Config",
        {**PICTURE, "use_swiglu_ffn": True},
        pixels,
        label=" (SwiGLU)",
    ),
    Family("DINOv3ViTModel", "DINOv3ViTConfig", {**PICTURE, "num_register_tokens": 2}, pixels),
    Family(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        {**PICTURE, "decoder_hidden_size": WIDTH, "decoder_num_hidden_layers": 1}
        | {"decoder_num_attention_heads": 4, "decoder_intermediate_size": 80, "mask_ratio": 0.5},
        pixels,
    ),
    Family("SiglipModel", "SiglipConfig", CLIP_PARTS, pixels_and_tokens),
    Family("CLIPModel", "CLIPConfig", CLIP_PARTS, pixels_and_tokens),
    Family("BlipModel", "BlipConfig", CLIP_PARTS, pixels_and_tokens),
    Family(
        "DetrForObjectDetection",
        "DetrConfig",
        {
            **{key: value for key, value in BOTH.items() if "layers" in key or "ffn" in key},
            **{"d_model": WIDTH, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
            **{"num_queries": 6, "use_timm_backbone": False, "use_pretrained_backbone": False},
            "backbone": None,
            "backbone_config": _config("ResNetConfig", **RESNET, out_features=["stage2"]),
        },
        partial(pixels, 64),
    ),
    Family(
        "YolosForObjectDetection",
        "YolosConfig",
        {**PICTURE, "image_size": [32, 32], "num_detection_tokens": 4},
        pixels,
    ),
    Family(
        "SegformerForImageClassification",
        "SegformerConfig",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 48]}
        | {"num_attention_heads": [2, 4], "patch_sizes": [7, 3], "strides": [4, 2]}
        | {"mlp_ratios": [2, 2], "decoder_hidden_size": 32},
        pixels,
    ),
    Family(
        "ConvNextModel",
        "ConvNextConfig",
        {"hidden_sizes": [32, 48], "depths": [1, 1], "num_stages": 2},
        pixels,
    ),
    Family("ResNetModel", "ResNetConfig", RESNET, pixels),
]
SOUNDS = [
    Family("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, sound),
    Family("HubertForCTC", "HubertConfig", SPEECH, sound),
]
FAMILIES = [*TEXT, *DECODERS, *SEQUENCES, *PICTURES, *SOUNDS]
BY_NAME = {str(family): family for family in FAMILIES}
