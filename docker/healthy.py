"""Health checks for images that have Python and no curl: `python healthy.py URL` and `python healthy.py services`."""

import asyncio
import os
import socket
import sys
import urllib.error
import urllib.request

# `prefect server services start` takes its work from the docket of this name.
DOCKET = "prefect"


def answers(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


async def services_beat(url: str) -> bool:
    """Whether the background services of this host have sent a heartbeat to the docket at the URL.

    They serve no port. Their event loop sends a heartbeat every two seconds; the docket forgets whoever missed five.
    """
    from docket import Docket

    async with Docket(name=DOCKET, url=url) as docket:
        return any(worker.name.startswith(f"{socket.gethostname()}#") for worker in await docket.workers())


def main(arguments: list[str]) -> int:
    """0 if healthy, 1 if not: what Docker reads."""
    if arguments == ["services"]:
        healthy = asyncio.run(services_beat(os.environ["PREFECT_SERVER_DOCKET_URL"]))
    else:
        healthy = answers(*arguments)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
