"""The small processes of the runtime: standard library and ctypes only, no heavy imports."""
