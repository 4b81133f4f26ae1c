"""One registry per process, without prometheus-client's defaults.

A node serves one page made of the registries of its processes (swarmd, manager, worker), so the
families of each must not clash: every family is registered by one process only, but for
`shoal_process_*`, which carries the process's name as a label and is written by swarmd alone.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

# `_created` doubles every counter's series, and nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)


def exposition() -> bytes:
    """The registry in Prometheus text format."""
    return generate_latest(REGISTRY)
