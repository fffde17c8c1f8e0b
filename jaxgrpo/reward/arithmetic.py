"""The built-in arithmetic task: a chain evaluated left to right modulo 10, answered by its running values ("5678")."""

# str.isdigit would also take other scripts' digits and superscripts
_DIGITS = frozenset("0123456789")


def grade(response: str, ground_truth: object, extra_info: object = None) -> float:
    """1.0 when the stripped response is digits only and its last digit is the ground truth, else 0.0.

    Raises ValueError when the ground truth is not one digit.
    """
    answer = str(ground_truth).strip()
    if len(answer) != 1 or answer not in _DIGITS:
        raise ValueError(f"arithmetic: the ground truth must be one digit 0-9, got {ground_truth!r}")
    values = response.strip()
    return float(bool(values) and values[-1] == answer and _DIGITS.issuperset(values))
