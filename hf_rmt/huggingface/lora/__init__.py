"""Makes a LoRA adapter from what fine-tuning changed, and puts LoRA around compressed layers."""
