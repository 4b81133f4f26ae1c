"""Grammars of flag values: text in, model values out. Pure; a broken rule is InvalidArgument."""
