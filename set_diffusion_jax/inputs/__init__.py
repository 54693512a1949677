"""What comes from outside: checked here, by the rules of docs/inputs.md, before use."""
