"""Searches shortest ways through a grid with changing walls: tuples in sets, dictionaries and a heap, then all at once gone."""

import heapq
import random

SIDE = 300


def shortest(walls):
    start, goal = (0, 0), (SIDE - 1, SIDE - 1)
    best, came, queue = {start: 0}, {}, [(0, start)]
    while queue:
        cost, place = heapq.heappop(queue)
        if place == goal:
            break
        x, y = place
        for next_place in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            if not (0 <= next_place[0] < SIDE and 0 <= next_place[1] < SIDE) or next_place in walls:
                continue
            if cost + 1 < best.get(next_place, 10**9):
                best[next_place] = cost + 1
                came[next_place] = place
                heapq.heappush(queue, (cost + 1, next_place))
    return best.get(goal, -1), len(best)


def main():
    chance = random.Random(23)
    for _ in range(6):
        walls = {(chance.randrange(1, SIDE - 1), chance.randrange(1, SIDE - 1)) for _ in range(20000)}
        print(*shortest(walls))


main()
