"""Builds an XML tree, writes it, parses it back and turns it into CSV: elements with attributes and much text."""

import csv
import io
import random
from xml.etree import ElementTree


def main():
    chance = random.Random(5)
    root = ElementTree.Element("table")
    for number in range(60000):
        row = ElementTree.SubElement(root, "row", id=str(number), group="g%d" % chance.randrange(40))
        for name in ("price", "weight", "colour"):
            ElementTree.SubElement(row, name).text = "%s-%d" % (name, chance.randrange(10**6))
    text = ElementTree.tostring(root, encoding="unicode")
    root = ElementTree.fromstring(text)
    out = io.StringIO()
    writer = csv.writer(out)
    for row in root.iter("row"):
        writer.writerow([row.get("id"), row.get("group"), *(cell.text for cell in row)])
    groups = {}
    for record in csv.reader(io.StringIO(out.getvalue())):
        groups.setdefault(record[1], []).append(record)
    print(len(text), len(out.getvalue()), len(groups), max(map(len, groups.values())))


main()
