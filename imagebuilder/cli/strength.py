# SPDX-License-Identifier: Apache-2.0
"""How strong a new password is, in words that help to choose a better one.

Whoever has a disc can try passwords against it, each at the price of one run of Argon2id; so what
counts is how many a guesser tries who knows how people choose them.
"""

from __future__ import annotations

WEAK_BELOW = 10**8  # guesses: hours for one graphics card
_LONGEST = 72  # characters that are looked at: enough to be strong, and quick
_PACE = "offline_slow_hashing_1e4_per_second"


def weakness_of(password: str, user: str = "") -> str:
    """Return what is weak about a password and how to do better, or "" if it is strong enough.

    Args:
        password: not empty.
        user: the id, which is easily guessed as part of it.
    """
    from zxcvbn import zxcvbn

    found = zxcvbn(password[:_LONGEST], user_inputs=[user] if user else [])
    if found["guesses"] >= WEAK_BELOW:
        return ""
    time = found["crack_times_display"][_PACE]
    reason = found["feedback"]["warning"].rstrip(".")
    advice = " ".join(found["feedback"]["suggestions"]) or "Add another word or two."
    because = f" ({reason[:1].lower()}{reason[1:]})" if reason else ""
    return f"this password is weak{because}: a guesser who has a disc finds it in {time}. {advice}"
