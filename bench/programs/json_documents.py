"""Serialises and parses nested documents: many short strings, dictionaries and lists that die together."""

import json
import random


def document(chance, depth):
    if depth == 0:
        return chance.choice([None, True, 3.25, chance.randrange(10**9), "word-%d" % chance.randrange(5000)])
    if chance.random() < 0.5:
        return [document(chance, depth - 1) for _ in range(4)]
    return {"key-%d" % chance.randrange(300): document(chance, depth - 1) for _ in range(4)}


def main():
    chance = random.Random(7)
    documents = [document(chance, 5) for _ in range(120)]
    size = 0
    for _ in range(8):
        texts = [json.dumps(each, sort_keys=True) for each in documents]
        documents = [json.loads(text) for text in texts]
        size += sum(map(len, texts))
    print(len(documents), size)


main()
