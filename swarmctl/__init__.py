"""The command line of Shoal.

`cli` holds the root command, `commands` one module per command group; each is imported when it is
used, so that help and completion load neither gRPC nor the model. `parsing`, `edit`, `gotemplate`
and `render` are pure. `client` is the only module that knows the wire.
"""

VERSION = "0.1.0"
