"""The README's map is true, its commands parse, and the modules stay what the project says they are.

    python tests/test_readme.py      # put the map's line numbers right after an edit
"""
import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODULES = "sampler", "model", "train", "evaluate", "data"
LINK = re.compile(r"\[(\w+\.py):(\d+)\]\(\1#L\2\) \| `([^`]+)`")


def place(file, code):
    """The number of the only line of `file` that holds `code`."""
    found = [n for n, line in enumerate((ROOT / file).read_text().splitlines(), 1) if code in line]
    assert len(found) == 1, f"{file}: {code!r} is on lines {found}"
    return found[0]


def test_map_points_at_the_code_it_quotes():
    links = LINK.findall(README.read_text())
    assert len(links) > 30
    assert [(file, int(n)) for file, n, _ in links] == [(file, place(file, code)) for file, _, code in links]


def test_map_holds_every_line_equation_section_table_and_figure():
    rows = [row.split("|")[1].strip() for row in README.read_text().splitlines() if LINK.search(row)]
    expected = [f"Line {n}" for n in range(1, 14)] + ["Eq. 1", "Eq. 2"] + [f"Sec. {s}" for s in (
        "3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "4.4")] + [f"Table {n}" for n in range(1, 6)] + [
        f"Figure {n}" for n in range(1, 5)]
    for item in expected:
        assert any(re.match(rf"{re.escape(item)}\b", row) for row in rows), item


def test_map_of_algorithm_1_agrees_with_the_marks_in_the_code():
    for row in README.read_text().splitlines():
        if match := re.match(r"\| Line (\d+)\b.*", row):
            file, number, _ = LINK.search(row).groups()
            line = (ROOT / file).read_text().splitlines()[int(number) - 1]
            first, last = re.search(r"# lines? (\d+)(?:-(\d+))?", line).groups()
            assert int(first) <= int(match[1]) <= int(last or first), row


def test_every_flag_of_the_readme_exists(capsys):
    import data
    import evaluate
    import train
    for main in (data.main, evaluate.main, train.main):
        with pytest.raises(SystemExit):
            main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out, re.I)) | {"--quiet"}
    torchrun = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}
    assert set(re.findall(r"(?<![\w-])--[A-Za-z][A-Za-z_-]*", README.read_text())) <= known | torchrun


def test_flags_of_the_papers_rows_parse_to_what_they_say():
    from train import DEFAULTS, flags, method
    rows = re.findall(r"^\| ([^|]+) \| [1-5–, ]+ \| (?:`(--[^`]+)`|\(none\)) \|", README.read_text(), re.M)
    assert len(rows) == 8
    for name, argv in rows:
        recipe = DEFAULTS | vars(flags().parse_args(argv.split()))
        if ratio := re.search(r"([\d.]+):([\d.]+)", name):
            assert recipe["lambdas"] == [float(ratio[1]), float(ratio[2]), 0]
        elif name.startswith("Rotation"):
            assert recipe["rotation_augmentation"]
        else:
            assert method(recipe) == name


def test_five_flat_modules_with_no_import_but_the_agreed_ones():
    assert {p.stem for p in ROOT.glob("*.py")} == set(MODULES)
    allowed = {"torch", "torchvision", "numpy", "PIL", *MODULES, *sys.stdlib_module_names}
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {n.partition(".")[0] for n in names} <= allowed, name


if __name__ == "__main__":
    README.write_text(LINK.sub(lambda m: "[{0}:{1}]({0}#L{1}) | `{2}`".format(m[1], place(m[1], m[3]), m[3]),
                               README.read_text()))
