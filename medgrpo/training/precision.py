"""The type that training passes compute in, where the settings leave it to the machine."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.manifests import write_json

DECISION_FILE = "autocast.json"
"""What was decided for a training; a resumed one goes on with it."""
GAIN = 1.2
"""How many times as fast bfloat16 must be: what autocast converts back and forth costs something too."""
# A batch of tokens through a feed-forward layer of a small model.
SHAPE, REPEATS = (1024, 576, 1536), 8

logger = logging.getLogger(__name__)


def settle(config: RunConfig, directory: Path) -> RunConfig:
    """The settings with `policy.autocast` decided, if it is "auto"; the decision stays in the training's directory."""
    if config.policy.autocast != "auto":
        return config
    kept = directory / DECISION_FILE
    decision = _kept(kept)
    if not decision:
        decision = "bfloat16" if bfloat16_pays() else "none"
        write_json(kept, {"autocast": decision})
    logger.info("policy.autocast is %r on this machine", decision)
    return config.model_copy(update={"policy": config.policy.model_copy(update={"autocast": decision})})


def _kept(decision: Path) -> str | None:
    """What was decided before; None where nothing was, or where the file is damaged."""
    try:
        return str(json.loads(decision.read_bytes())["autocast"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning("%s cannot be read, so it is decided anew", decision)
        return None


def bfloat16_pays() -> bool:
    """Whether this machine multiplies bfloat16 matrices faster than float32 ones.

    A GPU does where it has bfloat16. Of processors that list AVX-512 BF16 some do and some take twice as long, so it
    is tried.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _seconds(torch.float32) > GAIN * _seconds(torch.bfloat16)


def _seconds(dtype: Any) -> float:
    """Shortest of several tries to multiply two matrices."""
    import torch

    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - started)
    return min(times)
