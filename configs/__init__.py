"""Configurations that come with the package: `--config=quickstart` names one."""
