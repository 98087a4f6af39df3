"""Makes a LoRA adapter of the change by fine-tuning, and puts LoRA around compressed layers."""
