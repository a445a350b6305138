"""What verdict does a thought conclude, read without a model?

A thought that says in so many words what the answer is ("the answer is no") has concluded that. Otherwise the last of
its closing sentences that takes up the question is read: one that plainly negates ("did not", "no difference") says no,
one that plainly affirms ("is associated with", "reduced") and neither doubts, compares nor qualifies says yes. All else
is silence.

The rule is made to be silent rather than wrong. On gold completions of PubMedQA's 500 test records, whose thoughts end
in the expert's own words, it speaks against the expert in 2 %, and finds about one in five of the contradictions made
by turning the answer round (`docs/evaluation.md`). What it cannot see: a conclusion in words that the question
does not use; a negation that answers with yes ("no increase in harm" where safety was asked for); questions that
negate; and maybe, which it neither reads nor disputes unless it is stated.
"""

import re

from medgrpo.completions import stated_verdict
from medgrpo.rewards.agreement import NEGATIONS, split_sentences, stems
from medgrpo.rewards.grounding import MAX_CHARACTERS, tokenize

# Sentences at a thought's end that may conclude; what stands before is evidence.
CLOSING_SENTENCES = 2
# Share of the question's longer words that a sentence must take up to be about it.
TAKEN_UP = 0.35

_NEGATES = re.compile(
    r"\bno (?:[\w-]+ ){0,2}(?:difference|effect|benefit|association|evidence|correlation|relationship|impact|influence"
    r"|advantage|role|improvement|change|link|support)s?\b"
    r"|\b(?:did|do|does|was|were|is|are|has|have|had|could|should|can|would|will) not\b(?! only)|\bcannot\b"
    r"|\bfail(?:s|ed)? to\b|\b(?:unnecessary|ineffective|unrelated)\b",
    re.I,
)
_AFFIRMS = re.compile(
    r"\b(?:is|are|was|were|be) (?:[\w-]+ ){0,3}?(?:associated|related|correlated|effective|useful|safe|feasible"
    r"|beneficial|predictors?|valuable|reliable|predictive|possible|accurate|superior|different|necessary|helpful)\b"
    r"|\b(?:significant(?:ly)?|improve[sd]?|reduce[sd]?|increase[sd]?|decrease[sd]?|enhance[sd]?|predict(?:s|ed)?"
    r"|affect(?:s|ed)?|influence[sd]?|contribute[sd]?|prevent(?:s|ed)?|leads? to|can be)\b",
    re.I,
)
_QUALIFIES = re.compile(
    r"\b(?:but|although|though|only|despite|except|while|whereas|unless|whether|needs?|needed|if|alone|further)\b", re.I
)
_DOUBTS_OR_COMPARES = re.compile(
    r"\b(?:no|not|nor|neither|never|none|without|unclear|insufficient|lack\w*|little|few|less|lower|worse|poor\w*|low"
    r"|rare\w*|limited|regardless|similar\w*|same|equivalent|comparable|alternative|explained|rather|instead|either"
    r"|may|might|could|however|possibl[ey]|perhaps|some|seems?|appears?|suggest\w*|should"
    r"|aim\w*|evaluat\w*|investigat\w*|examine[sd]?)\b",
    re.I,
)


def concluded_verdict(thought: str, question: str) -> str | None:
    """The verdict that a thought plainly concludes; None where it does not.

    >>> ask = "Does drug A reduce pain after surgery?"
    >>> concluded_verdict("Scores fell by 2 points. Drug A reduced pain after surgery.", ask)
    'yes'
    >>> concluded_verdict("Scores were 4 and 4. Drug A did not reduce pain after surgery.", ask)
    'no'
    >>> concluded_verdict("Drug A may have reduced pain after surgery.", ask) is None
    True
    """
    stated = stated_verdict(thought)
    if stated:
        return stated
    words = tokenize(question)
    asked = set(stems(words))
    if not asked or NEGATIONS.intersection(words):
        return None
    for sentence in reversed(split_sentences(thought[-MAX_CHARACTERS:])[-CLOSING_SENTENCES:]):
        if len(asked.intersection(stems(tokenize(sentence)))) >= TAKEN_UP * len(asked):
            return _plain_verdict(sentence)
    return None


def disagrees(thought: str, verdict: str | None, question: str) -> bool:
    """Whether a thought concludes another verdict than the answer gives; False where that is unreadable.

    What reads as a plain yes or no does not dispute a maybe, only a stated verdict does.

    >>> disagrees("Drug A did not reduce pain.", "yes", "Does drug A reduce pain?")
    True
    >>> disagrees("Drug A did not reduce pain.", "maybe", "Does drug A reduce pain?")
    False
    >>> disagrees("The answer is no.", "maybe", "Does drug A reduce pain?")
    True
    """
    if verdict is None:
        return False
    if verdict == "maybe":
        return stated_verdict(thought) not in (None, "maybe")
    return concluded_verdict(thought, question) not in (None, verdict)


def _plain_verdict(sentence: str) -> str | None:
    if _QUALIFIES.search(sentence):
        return None
    if _NEGATES.search(sentence):
        return "no"
    return "yes" if _AFFIRMS.search(sentence) and not _DOUBTS_OR_COMPARES.search(sentence) else None
