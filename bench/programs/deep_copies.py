"""Copies and pickles object graphs with shared parts: containers and their bookkeeping in waves."""

import copy
import pickle
from dataclasses import dataclass, field


@dataclass
class Part:
    name: str
    size: float
    children: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)


def build(depth, shared):
    part = Part("part-%d" % depth, depth * 1.5, tags={"shared": shared, "depth": depth})
    if depth:
        part.children = [build(depth - 1, shared) for _ in range(3)]
    return part


def count(part):
    return 1 + sum(map(count, part.children))


def main():
    graph = build(9, ["a", "b", {"c": 1}])
    size = 0
    for _ in range(2):
        graph = copy.deepcopy(graph)
        data = pickle.dumps(graph, protocol=4)
        graph = pickle.loads(data)
        size += len(data)
    print(count(graph), size, graph.tags["shared"] is graph.children[0].tags["shared"])


main()
