"""`make tour STEP=n`: one promise at a time, shown on this machine with the demo's data (docs/tour.md)."""

from collections.abc import Callable, Mapping

from rich.console import Console

from sandbox.tour import bad_release, by_hand, dropped_users, encrypted_phones, tampered

# The second argument: whether the step answers its questions itself; else 3 and 5 wait for a person.
STEPS: Mapping[int, Callable[[Console, bool], None]] = {
    1: lambda console, _: by_hand.walk(console),
    2: lambda console, _: tampered.walk(console),
    3: encrypted_phones.walk,
    4: lambda console, _: dropped_users.walk(console),
    5: bad_release.walk,
}
