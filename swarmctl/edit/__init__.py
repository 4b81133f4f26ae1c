"""Service specs edited by flags. Pure.

Creating a service is editing an empty spec, so that a flag means the same in `service create` and
`service update`. What is removed goes first: `--env-rm A --env-add A=1` ends with A=1.
"""
