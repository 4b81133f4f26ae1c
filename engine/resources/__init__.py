"""One module per resource: reads a call, asks a part of the engine, words the answer."""
