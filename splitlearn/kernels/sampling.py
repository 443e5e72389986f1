"""How a sample of many values is taken that lie in an order."""

import math


def stride(num: int, most: int) -> int:
    """Every which value, for about `most` of `num`, or fewer; 1 where there are not twice as many.

    It is odd and has no divisor in common with `num`, so that a sample does not run along a few columns of the maps.
    """
    found = max(1, num // most) | 1
    while math.gcd(found, num) > 1:
        found += 2
    return found
