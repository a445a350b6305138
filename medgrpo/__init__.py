"""medgrpo: data, prompts, rewards, GRPO training, evaluation and registration of small medical readers.

The library never imports Prefect; the flows and tasks at the project root orchestrate it.
"""

__version__ = "0.1.0"
