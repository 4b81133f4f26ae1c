"""The word with which a server begins to take in a stream that it might have refused.

gRPC's Python client loses a refusal that comes while it writes. So the first message of such a
stream says what it is about, and the client sends the rest only when this metadata has come.
"""

from __future__ import annotations

GO_ON_KEY = "shoal-go-on"
GO_ON = ((GO_ON_KEY, "yes"),)
"""The server's initial metadata."""
