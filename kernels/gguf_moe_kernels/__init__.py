"""Arithmetic on quantized weights: arrays and addresses, never models."""
