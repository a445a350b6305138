"""Rules that need no model: what a reader must beat before its score means anything."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from medgrpo import domains
from medgrpo.errors import InputError
from medgrpo.records import Record

_EFFECT = re.compile(
    r"(?<!not )(?<!no )(?<!non-)\bsignificant(?:ly)?\b|\b(?:improved|superior|effective|associated with)\b"
    r"|p\s*[<=]\s*0?\.0[0-4]\d*",
    re.I,
)
_NO_EFFECT = re.compile(
    r"\bno (?:significant |clear )?(?:difference|effect|benefit|association|evidence)\b|\bnot significant(?:ly)?\b"
    r"|\bnon-?significant(?:ly)?\b|\b(?:did|does|do|was|were) not (?:significantly )?(?:differ|improve|reduce|change)"
    r"|\b(?:was|were) similar\b|\bfailed to\b|p\s*[=>]\s*0?\.(?:0[5-9]|[1-9])\d*|\bp\s*=\s*ns\b",
    re.I,
)
_UNCLEAR = re.compile(
    r"\bunderpowered\b|\bwide (?:confidence )?interval|\bimprecise|\binconclusive\b|\bunclear\b|\buncertain\b"
    r"|\bnot clear(?:ly)?\b|\bstopped early\b|\bplanned sample\b|\bsmall sample\b|\bpossibly\b|\bconflicting\b",
    re.I,
)


def majority_rule(train: Sequence[Record]) -> Callable[[Record], str]:
    """A rule that always gives the most frequent verdict of `train`; ties go to the earlier of yes, no, maybe.

    Of open answers, to the one that `train` has first.

    Raises:
        InputError: `train` is empty, so there is no majority.
    """
    if not train:
        raise InputError("majority_rule: got no training records, so there is no majority verdict; pass at least one.")
    counts = Counter(record.verdict for record in train)
    verdict = max(domains.get(train[0].domain).form.labels or counts, key=counts.__getitem__)
    return lambda record: verdict


def keyword_rule(record: Record) -> str:
    """Count phrases and p-values in the abstract that speak for an effect, against one, and for doubt.

    Two or more signs of doubt that are not outnumbered give maybe; otherwise the larger side wins, and a tie is yes,
    the more frequent verdict. The question is not read, so direction is invisible to this rule.

    >>> from medgrpo.records import Record
    >>> def read(text): return keyword_rule(
    ...     Record(id="1", question="Does it help?", contexts=(text,), verdict="yes", long_answer="It does."))
    >>> read("Pain was significantly lower (p=0.01)."), read("Pain did not differ (p=0.6).")
    ('yes', 'no')
    >>> read("The trial was underpowered and stopped early; pain did not differ.")
    'maybe'
    """
    text = " ".join(record.contexts)
    effect, no_effect, unclear = (len(pattern.findall(text)) for pattern in (_EFFECT, _NO_EFFECT, _UNCLEAR))
    if unclear >= max(2, effect, no_effect):
        return "maybe"
    return "yes" if effect >= no_effect else "no"
