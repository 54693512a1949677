"""Chips as their makers describe them, and what a step asks of them."""
