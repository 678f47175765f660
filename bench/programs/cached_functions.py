"""Keeps results in bounded caches and ordered dictionaries: a steady population of blocks with steady turnover."""

import random
from collections import OrderedDict, deque
from functools import lru_cache


@lru_cache(maxsize=4096)
def describe(number):
    return "number %d is %s" % (number, "even" if number % 2 == 0 else "odd"), [number] * (number % 17)


def main():
    chance = random.Random(31)
    recent, window, total = OrderedDict(), deque(maxlen=60000), 0
    for step in range(700000):
        key = int(chance.paretovariate(0.35)) % 30000
        text, numbers = describe(key)
        total += len(text) + len(numbers)
        recent[text] = [step, *numbers]
        recent.move_to_end(text)
        if len(recent) > 6000:
            recent.popitem(last=False)
        window.append({"step": step, "key": key})
    print(total, len(recent), len(window), describe.cache_info().hits)


main()
