"""`make tour STEP=n`: one promise at a time, shown on this machine with the demo's data (docs/tour.md)."""

from collections.abc import Callable, Mapping

from rich.console import Console

from sandbox.tour import by_hand, dropped_users, tampered

STEPS: Mapping[int, Callable[[Console], None]] = {1: by_hand.walk, 2: tampered.walk, 4: dropped_users.walk}
