"""Simulates a post office: small objects with attributes on a heap queue, born and dying at different ages."""

import heapq
import random


class Letter:
    def __init__(self, number, weight, hops):
        self.number = number
        self.weight = weight
        self.hops = hops
        self.route = []


def main():
    chance = random.Random(3)
    queue = [(chance.random(), n, Letter(n, chance.random(), chance.randrange(1, 9))) for n in range(20000)]
    heapq.heapify(queue)
    born, steps, delivered, carried = len(queue), 0, 0, 0.0
    while queue and steps < 260000:
        now, number, letter = heapq.heappop(queue)
        steps += 1
        letter.route.append(round(now, 3))
        if len(letter.route) >= letter.hops:
            delivered += 1
            carried += letter.weight * len(letter.route)
            letter = Letter(born, chance.random(), chance.randrange(1, 9))
            number = born
            born += 1
        heapq.heappush(queue, (now + chance.expovariate(1.0), number, letter))
    print(steps, delivered, round(carried, 6), len(queue))


main()
