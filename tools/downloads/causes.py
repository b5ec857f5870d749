"""Why a video could not be had: what yt-dlp and the sites say, sorted into causes that can be counted and acted on."""

from __future__ import annotations

import re
from typing import Literal, get_args

Cause = Literal[
    "bot_check",
    "rate_limited",
    "disk_full",
    "terminated_account",
    "copyright",
    "geo_blocked",
    "age_restricted",
    "members_only",
    "private",
    "removed",
    "not_started",
    "no_format",
    "too_short",
    "undecodable",
    "incomplete",
    "forbidden",
    "server_error",
    "network",
    "other",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)

BLOCKS: frozenset[Cause] = frozenset({"bot_check", "rate_limited"})
"""The site turns this machine away, whatever the video."""
PERMANENT: frozenset[Cause] = frozenset(
    {
        "terminated_account",
        "copyright",
        "geo_blocked",
        "age_restricted",
        "members_only",
        "private",
        "removed",
        "no_format",
        "too_short",
    }
)
"""What another try, from the same place with the same account, would answer again."""

OF_THE_CLIP: frozenset[Cause] = frozenset({"undecodable", "incomplete", "other"})
"""What may pass, or be this one video's fault for ever."""

# The order matters: the first match counts. Half of YouTube's answers begin with "Video unavailable" or "Sign in to
# confirm", so what says more comes first; a limit on requests is told as "this content isn't available" too.
_TEXTS: tuple[tuple[Cause, str], ...] = (
    ("disk_full", r"no space left|disk quota exceeded|errno 28\b|errno 122\b"),
    ("rate_limited", r"rate.?limit|http error 429|too many requests|isn.t available, try again later"),
    ("bot_check", r"not a bot|captcha|unusual traffic|automated queries|please sign in"),
    ("age_restricted", r"confirm your age|age.?restricted|age.?verif|inappropriate for some users"),
    (
        "terminated_account",
        r"account .*(terminated|suspended|closed)|closed their youtube account|channel .*terminated",
    ),
    ("copyright", r"copyright|content (owner|from .+), who has blocked"),
    (
        "geo_blocked",
        r"(in|from) your (country|region|location)|geo.?(restrict|block)|blocked it in|not made this video available",
    ),
    (
        "members_only",
        r"members.only|available to this channel.s members|join this channel|requires payment|\brental\b",
    ),
    ("private", r"private video|video is private"),
    ("not_started", r"premieres? in|will begin in|live event|is live|this live stream"),
    ("no_format", r"requested format is not available|no video formats|drm.?protected|unsupported url"),
    (
        "incomplete",
        r"more expected|bytes, expected|content too short|bytes read|incomplete|did not get any data|is empty|ffmpeg exited",
    ),
    ("forbidden", r"http error 403|not available on this app"),
    ("server_error", r"http error 5\d\d|internal server error|service unavailable|bad gateway"),
    (
        "removed",
        r"http error (404|410)|removed|deleted|no longer available|does not exist|isn.t available|not available|unavailable",
    ),
    (
        "network",
        r"timed? ?out|connection|network|name resolution|name or service|getaddrinfo|resolve|unreachable|\bssl|"
        r"remote end closed|broken pipe|unable to download",
    ),
)
# "ERROR: [youtube] ID: ": an id can spell anything, also the name of a cause.
_PREFIX = re.compile(r"^(ERROR: )?\[[^\]]+\] \S+: ")
_PATTERNS = tuple((cause, re.compile(text, re.IGNORECASE)) for cause, text in _TEXTS)


def cause_of(message: str) -> Cause:
    """The cause that an error text of yt-dlp tells; ``other`` if it is none of the known ones.

    The texts are YouTube's own, as yt-dlp passes them on [source yt-dlp extractors and issues #10798, #11426].
    """
    text = _PREFIX.sub("", message)
    return next((cause for cause, pattern in _PATTERNS if pattern.search(text)), "other")
