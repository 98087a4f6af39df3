"""What fine-tuning added as a LoRA adapter, and LoRA on top of compressed layers."""
