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
LINES = 1013  # of the five modules, blank ones included: the goal is 950
LINK = re.compile(r"\[(\w+\.py):(\d+)\]\(\1#L\2\) \| `([^`]+)`")


def place(file, code):
    """The number of the only line of `file` that holds `code`."""
    found = [n for n, line in enumerate((ROOT / file).read_text().splitlines(), 1) if code in line]
    assert len(found) == 1, f"{file}: {code!r} is on lines {found}"
    return found[0]


def test_map_points_at_the_code_it_quotes():
    links = LINK.findall(README.read_text())
    assert len(links) > 30
    assert [(file, int(n)) for file, n, _ in links] == [
        (file, place(file, code)) for file, _, code in links
    ]


def test_map_holds_every_line_equation_section_table_and_figure():
    rows = [
        row.split("|")[1].strip() for row in README.read_text().splitlines() if LINK.search(row)
    ]
    expected = (
        [f"Line {n}" for n in range(1, 14)]
        + ["Eq. 1", "Eq. 2"]
        + [f"Sec. {s}" for s in ("3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "4.4")]
        + [f"Table {n}" for n in range(1, 6)]
        + [f"Figure {n}" for n in range(1, 5)]
    )
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
    import paper
    import train

    for main in (data.main, evaluate.main, train.main, paper.main):
        with pytest.raises(SystemExit):
            main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out, re.I)) | {"--shm-size"}
    torchrun = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}
    assert (
        set(re.findall(r"(?<![\w-])--[A-Za-z][A-Za-z_-]*", README.read_text())) <= known | torchrun
    )


def test_flags_of_the_papers_rows_parse_to_what_they_say():
    from train import flags, method

    rows = re.findall(
        r"^\| ([^|]+) \| [1-5–, ]+ \| (?:`(--[^`]+)`|\(none\)) \|", README.read_text(), re.M
    )
    assert len(rows) == 8
    for name, argv in rows:
        args = flags().parse_args(argv.split())
        if ratio := re.search(r"([\d.]+):([\d.]+)", name):
            assert args.lambdas == [float(ratio[1]), float(ratio[2]), 0]
        elif name.startswith("Rotation"):
            assert args.rotation_augmentation
        else:
            assert method(args) == name


def test_five_flat_modules_with_no_import_but_the_agreed_ones():
    assert {p.stem for p in ROOT.glob("*.py")} == set(MODULES)
    allowed = {"torch", "torchvision", "numpy", "PIL", *MODULES, *sys.stdlib_module_names}
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert {n.partition(".")[0] for n in names} <= allowed, name


@pytest.mark.parametrize("name", MODULES)
def test_the_snippet_at_the_head_of_each_file_works_as_printed(name, tmp_path, monkeypatch):
    import numpy as np
    import torch

    import data
    import evaluate
    import model
    import sampler

    monkeypatch.chdir(tmp_path)
    text = ast.get_docstring(ast.parse((ROOT / f"{name}.py").read_text()), clean=False)
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    code = [line for line in lines if not line.startswith(("python", "torchrun"))]
    assert code or name == "train"
    dataset = data.LongTailed(
        torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8), np.arange(1000) % 50
    )
    names = (
        vars(data)
        | vars(evaluate)
        | vars(model)
        | vars(sampler)
        | dict(
            dataset=dataset,
            labels=dataset.labels,
            images=dataset.images[:4],
            torch=torch,
            predictions=dataset.labels,
            N_c=dataset.N_c,
        )
    )
    exec("\n".join(code), names)
    if name == "data":
        assert names["image"].shape == (3, 32, 32) and isinstance(names["label"], int)
    if name == "model":
        assert names["logits"].shape == (4, 1000)
    for line in lines:  # the commands' flags exist
        for script, rest in re.findall(r"(\w+)\.py(.*?)(?: {2,}|#|$)", line):
            helped = (ROOT / f"{script}.py").read_text()
            assert all(f'"{flag}"' in helped for flag in re.findall(r"--[a-z]+", rest)), line


def test_modules_stay_short_and_narrow():
    lines = {name: (ROOT / f"{name}.py").read_text().splitlines() for name in MODULES}
    assert sum(map(len, lines.values())) <= LINES
    assert max(len(line) for text in lines.values() for line in text) <= 100
    for name, text in lines.items():
        for node in ast.walk(ast.parse("\n".join(text))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{name}.{node.name}"


if __name__ == "__main__":
    README.write_text(
        LINK.sub(
            lambda m: "[{0}:{1}]({0}#L{1}) | `{2}`".format(m[1], place(m[1], m[3]), m[3]),
            README.read_text(),
        )
    )
