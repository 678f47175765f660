"""Parses, rewrites, prints and compiles generated source code: what linters and build tools do all day."""

import ast
import tokenize
from io import StringIO

FUNCTION = '''
def function_{n}(a, b={n}, *rest, key="k{n}"):
    """Adds {n} things."""
    total = [x * {n} + len(key) for x in rest if x % 3 != {n} % 3]
    while a > b and total:
        a, b = b - {n}, a + total.pop()
    return {{"a": a, "b": (b, {n}, key), "total": sum(total) / {n}.5}}
'''


class Rename(ast.NodeTransformer):
    def visit_Name(self, node):
        return ast.copy_location(ast.Name(node.id + "_", node.ctx), node)


def main():
    tokens = nodes = characters = 0
    for part in range(4):
        source = "".join(FUNCTION.format(n=n) for n in range(part * 300, part * 300 + 300))
        tokens += sum(1 for _ in tokenize.generate_tokens(StringIO(source).readline))
        tree = Rename().visit(ast.parse(source))
        nodes += sum(1 for _ in ast.walk(tree))
        characters += len(ast.unparse(tree))
        compile(ast.fix_missing_locations(tree), "generated", "exec")
    print(tokens, nodes, characters)


main()
