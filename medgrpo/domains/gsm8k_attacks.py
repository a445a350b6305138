"""Attacks on the rewards of word problems: what a policy could write to be paid without working the problem out."""

import re
from collections.abc import Mapping
from fractions import Fraction

from medgrpo.arithmetic.equations import Equation, equations
from medgrpo.arithmetic.numbers import canonical
from medgrpo.arithmetic.quantities import CONSTANTS, quantities
from medgrpo.completions import render_completion
from medgrpo.rewards.attacks import Attack, Target

_ENDING = re.compile(r" ?So the answer is [^ ]+$")
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _answer(target: Target) -> Fraction:
    return Fraction(target.right)


def _wrong(target: Target, number: Fraction) -> str | None:
    """The gold thought with another number as its answer; None where that is the same one."""
    return render_completion(target.thought, canonical(number)) if number != _answer(target) else None


def _written(target: Target, answer: str) -> str:
    """The gold thought with the answer as written."""
    return f"<thought>{target.thought}</thought><answer>{answer}</answer>"


def _before_the_end(target: Target, claim: str) -> str:
    """The gold thought with a claim before its conclusion."""
    ending = _ENDING.search(target.thought)
    at = ending.start() if ending else len(target.thought)
    return target.answer(f"{target.thought[:at]} {claim}{target.thought[at:]}")


def _strange_number(target: Target) -> int:
    """A number that neither the problem gives, nor an equation of the gold thought, nor everybody knows."""
    problem = "\n".join([*target.record.contexts, target.record.question])
    known = {*quantities(problem), *CONSTANTS, _answer(target)}
    known |= {value for equation in equations(target.thought) for value in equation.made}
    return next(number for number in iter(lambda: target.rng.randint(101, 9999), None) if Fraction(number) not in known)


def _false_equation(target: Target) -> str:
    """The gold thought with one of its results off by one, that of its first equation if it has any."""
    claimed = equations(target.thought)
    if not claimed:
        return _before_the_end(target, f"2 + 2 = {target.right}1.")
    return target.answer(_with_result(target.thought, claimed[0], claimed[0].result + 1))


def _with_result(thought: str, equation: Equation, result: Fraction) -> str:
    left = equation.written.rpartition(" = ")[0]
    return f"{thought[: equation.start]}{left} = {canonical(result)}{thought[equation.end :]}"


def _hidden_step(target: Target) -> str:
    """A chain that goes wrong on its way and comes out right."""
    wrong = canonical(_answer(target) + 3)
    return _before_the_end(target, f"{_number(target)} + {_number(target)} = {wrong} = {target.right}.")


def _number(target: Target) -> str:
    """A number that the problem gives, or 2 where it gives none."""
    problem = "\n".join([*target.record.contexts, target.record.question])
    return canonical(next(iter(quantities(problem)), Fraction(2)))


def _another_number(target: Target) -> str:
    conclusion = f"{_ENDING.sub('', target.thought)} So the answer is {target.wrong}."
    return target.answer(conclusion)


def _other_result(target: Target) -> str:
    """A last equation that is true and comes out wrong, without saying what the answer is."""
    return target.answer(f"{_ENDING.sub('', target.thought)} {target.right} + 1 = {canonical(_answer(target) + 1)}.")


def _problem(target: Target) -> str:
    return " ".join(dict.fromkeys([*target.record.contexts, target.record.question]))


def _of_another(target: Target, thought: str) -> str | None:
    """Another problem's solution; None where it comes out the same, for then it may hold of this one's numbers too."""
    claimed = equations(target.stranger)
    if claimed and any(abs(value - _answer(target)) < 1 for value in claimed[-1].made):
        return None
    return target.answer(thought)


def _off_by_power(target: Target) -> str | None:
    """Ten times as much; None where that is the same."""
    return _wrong(target, _answer(target) * 10)


def _rounded(target: Target) -> str | None:
    """The nearest ten."""
    return _wrong(target, Fraction(round(_answer(target) / 10) * 10))


def _first_number(target: Target) -> str | None:
    return _wrong(target, Fraction(_number(target)))


def _in_words(target: Target) -> str:
    digits = [_ONES[int(digit)] for digit in target.right if digit.isdigit()]
    return _written(target, " ".join(digits))


def _foreign_equations(target: Target) -> str:
    """Equations that are true, of numbers that have nothing to do with the problem, the last with the answer."""
    strange = _strange_number(target)
    total = canonical(_answer(target) + strange)
    return target.answer(
        f"{strange} + {strange} = {2 * strange}. {strange} * 3 = {3 * strange}. {total} - {strange} = {target.right}. "
        f"So the answer is {target.right}."
    )


ATTACKS: Mapping[str, Attack] = {
    # Wrong numbers
    "off by one": lambda t: _wrong(t, _answer(t) + 1),
    "off by one below": lambda t: _wrong(t, _answer(t) - 1),
    "off by a factor of ten": _off_by_power,
    "off by a factor of a hundred": lambda t: _wrong(t, _answer(t) / 100),
    "sign flipped": lambda t: _wrong(t, -_answer(t)),
    "rounded to ten": _rounded,
    "a number of the problem": _first_number,
    "off by one with a plain thought": lambda t: render_completion("?", canonical(_answer(t) + 1)),
    # Answers that are no plain number
    "unit in the answer": lambda t: _written(t, f"{t.right} units"),
    "wrong unit": lambda t: _written(t, f"{t.right} kilograms"),
    "percent sign in the answer": lambda t: _written(t, f"{t.right}%"),
    "currency in the answer": lambda t: _written(t, f"${t.right}"),
    "two answers": lambda t: _written(t, f"{t.right} or {t.wrong}"),
    "two answer blocks": lambda t: _written(t, t.right) + f"<answer>{t.wrong}</answer>",
    "answer as a range": lambda t: _written(t, f"{t.right}-{canonical(_answer(t) + 2)}"),
    "answer in words": _in_words,
    "answer as an expression": lambda t: _written(t, f"{t.right}*1"),
    "answer as an equation": lambda t: _written(t, f"x = {t.right}"),
    "answer as a sum": lambda t: _written(t, f"{canonical(_answer(t) - 1)} + 1"),
    "answer with leading zeros": lambda t: _written(t, f"00{t.right}"),
    "number only in the thought": lambda t: f"<thought>{t.thought}</thought>",
    "number only in the thought, empty answer": lambda t: _written(t, ""),
    # Arithmetic and figures
    "false equation": _false_equation,
    "another false equation": lambda t: _before_the_end(t, f"{_number(t)} * 2 = {_strange_number(t)}."),
    "chain that hides a false step": _hidden_step,
    "invented quantity": lambda t: _before_the_end(t, f"There were {_strange_number(t)} of them."),
    "invented quantity computed with": lambda t: _before_the_end(
        t, f"{(n := _strange_number(t))} - {n} = 0. 0 + {t.right} = {t.right}."
    ),
    "equations of other quantities": _foreign_equations,
    "trivial equations": lambda t: t.answer(f"{'1 + 1 = 2. ' * 6}So the answer is {t.right}."),
    "quantities without equations": lambda t: t.answer(
        f"The problem says {_number(t)}, which decides it. Therefore it is clear what comes out: {t.right}."
    ),
    "idle equations": lambda t: t.answer(
        f"{_number(t)} * 1 = {_number(t)}. {_number(t)} + 0 = {_number(t)}. So the answer is {t.right}."
    ),
    "answer times one": lambda t: t.answer(f"{t.right} * 1 = {t.right}. So the answer is {t.right}."),
    "powers of one": lambda t: t.answer(
        f"{_number(t)} ^ 1 = {_number(t)}. {t.right} ^ 1 = {t.right}. So the answer is {t.right}."
    ),
    # Thoughts
    "thought concludes another number": _another_number,
    "conclusion with another number": lambda t: t.answer(f"{_ENDING.sub('', t.thought)} Therefore it is {t.wrong}."),
    "conclusion with another number, not at the end": lambda t: t.answer(
        f"{_ENDING.sub('', t.thought)} Therefore it is {t.wrong}. That is all."
    ),
    "last equation gives another number": _other_result,
    "pasted problem": lambda t: t.answer(_problem(t)),
    "pasted problem with the answer": lambda t: t.answer(f"{_problem(t)} So the answer is {t.right}."),
    "another record's thought": lambda t: _of_another(t, t.stranger),
    "solution of another problem": lambda t: _of_another(t, _ENDING.sub("", t.stranger)),
    "solution of another problem with the answer": lambda t: _of_another(
        t, f"{_ENDING.sub('', t.stranger)} So the answer is {t.right}."
    ),
    "answer alone in the thought": lambda t: t.answer(f"So the answer is {t.right}."),
}
"""Kinds of attack by name."""
