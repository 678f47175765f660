"""Builds and drops binary trees of two-element tuples, beside one tree that lives on."""


def tree(depth):
    if depth == 0:
        return (None, None)
    return (tree(depth - 1), tree(depth - 1))


def check(node):
    left, right = node
    return 1 if left is None else 1 + check(left) + check(right)


def main():
    longest = tree(18)
    for depth in range(4, 19, 4):
        rounds = 2 ** (18 - depth + 1)
        print(depth, rounds, sum(check(tree(depth)) for _ in range(rounds)))
    print(check(longest))


main()
