"""Look into a stopped manager's log, snapshots and objects: `python -m manager.inspect`.

Never writes and never talks to anybody. What opens doors (private keys, tokens, secrets) is left
out unless asked for.
"""
