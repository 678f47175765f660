"""Splits generated text into words and builds an index of their places: strings, lists and a growing dictionary."""

import random
from collections import Counter, defaultdict


def main():
    chance = random.Random(11)
    syllables = ["ka", "to", "mi", "ren", "sol", "va", "ne", "du", "pe", "lis"]
    vocabulary = ["".join(chance.choices(syllables, k=chance.randrange(1, 5))) for _ in range(9000)]
    lines = [" ".join(chance.choices(vocabulary, k=14)) for _ in range(45000)]
    index = defaultdict(list)
    pairs = Counter()
    for number, line in enumerate(lines):
        words = line.title().split()
        for place, word in enumerate(words):
            index[word].append((number, place))
        pairs.update(a + " " + b for a, b in zip(words, words[1:]))
    print(len(index), max(map(len, index.values())), len(pairs), pairs.most_common(2))


main()
