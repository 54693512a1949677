"""Likelihoods with their error bars."""
