"""The change by fine-tuning as a LoRA adapter, and LoRA on top of compressed layers."""
