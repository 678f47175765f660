"""Computes with fractions, decimals and long integers: short-lived blocks of every small size."""

from decimal import Decimal, getcontext
from fractions import Fraction


def main():
    total = Fraction(0)
    for n in range(1, 1200):
        total += Fraction(1, n * (n % 7 + 1))
    print(total.numerator % 10**12, len(str(total.denominator)))
    getcontext().prec = 60
    x = Decimal(2)
    for n in range(1, 400000):
        x = (x + Decimal(n) / x) / 2
    print(x)
    a, b = 0, 1
    for _ in range(40000):
        a, b = b, a + b
    print(a % 10**15, a.bit_length())
    squares = [n * n for n in range(2 * 10**6)]
    print(sum(square % 97 for square in squares))


main()
