"""Every picture that this package draws; only here is matplotlib imported."""
