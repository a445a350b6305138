"""Prompts computed once for all the completions that share them: attention, generation, and adapters folded in."""
