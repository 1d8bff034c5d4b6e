"""The address of a Ray cluster: its form, and whether anything answers there."""

from __future__ import annotations

import re
import socket

from sweeps.errors import ConfigError

AUTO = "auto"  # the cluster of RAY_ADDRESS, else the one that runs on this machine
ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
ANSWER_SECONDS = 5.0


def check_form(address: str, where: str = "resources.address") -> tuple[str, int] | None:
    """Return host and port of an address, None for "auto". Raises ConfigError."""
    if address == AUTO:
        return None
    found = ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise ConfigError(f"{where}: must be {AUTO}, host:port or ray://host:port, got {address[:60]!r}")
    return found["host"].strip("[]"), int(found["port"])


def check_answers(address: str) -> None:
    """Raise ConfigError unless something listens at the address of a cluster."""
    place = check_form(address)
    if place is None:
        from ray._private.services import get_ray_address_from_environment  # what ray.init does with "auto"

        try:
            found = get_ray_address_from_environment(AUTO, None)
        except ConnectionError as error:
            raise ConfigError(
                "resources.address: auto finds no Ray cluster: start one (ray start --head), set RAY_ADDRESS to "
                "host:port, or leave resources.address out to run on this machine"
            ) from error
        place = check_form(found, "RAY_ADDRESS")
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=ANSWER_SECONDS).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host no name server could know
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"resources.address: no Ray cluster answers at {place[0]}:{place[1]}: {why}") from error
