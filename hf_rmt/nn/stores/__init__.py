"""Packs weights into few bits and unpacks them: noise as codes with scales, and ternary signs."""
