"""Where bytes are kept: the only room that knows an address of another machine."""
