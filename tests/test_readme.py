"""The README's map is true, its commands and samples are the program's, and the paper is found.

python tests/test_readme.py      # put the map's line numbers right after an edit
"""

import ast
import re
import sys
from pathlib import Path

import pytest
from conftest import tiny_flags

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COLUMNS = [("imagenet_lt", "resnet10"), ("places_lt", "resnet152")]
COLUMNS += [("imagenet_lt", "resnet50"), ("places_lt", "resnet50")]
MODULES = "sampler", "model", "train", "evaluate", "data"
LINK = re.compile(r"\[(\w+\.py):(\d+)\]\(\1#L\2\) \| `([^`]+)`")


def place(file, code):
    """The number of the only line of `file` that holds `code`."""
    lines = (ROOT / file).read_text().splitlines()
    found = [n for n, line in enumerate(lines, 1) if code in line]
    assert len(found) == 1, f"{file}: {code!r} is on lines {found}"
    return found[0]


def test_map_points_at_the_marked_lines_of_the_code():
    rows = [row for row in README.read_text().splitlines() if LINK.search(row)]
    assert [int(row.split()[1].rstrip(":")) for row in rows] == list(range(1, 14))
    for number, row in enumerate(rows, 1):
        file, line, code = LINK.search(row).groups()
        assert int(line) == place(file, code)
        assert f"# line {number}" in (ROOT / file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    "item",
    ["Eq. 2", "Algorithm 1"]
    + [f"Sec. {s}" for s in ("3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "4.4")]
    + [f"Table {n}" for n in (1, 3, 5)]
    + [f"Fig. {n}" for n in range(1, 5)],
)
def test_docstrings_and_comments_name_the_paper(item):
    kind, number = item.rsplit(" ", 1)
    text = "".join((ROOT / f"{name}.py").read_text() for name in MODULES)
    lists = re.findall(rf"{kind.rstrip('.')}s?\.? [\d., and-]+", text)
    found = {n.strip(".") for part in lists for n in re.findall(r"[\d.]+", part)}
    ranges = [r for part in lists for r in re.findall(r"([\d.]+)-([\d.]+)", part)]
    assert number in found or any(a <= number <= b.strip(".") for a, b in ranges), item


def test_every_flag_of_the_readme_exists(capsys):
    import paper

    import data
    import evaluate
    import train

    for main in (data.main, evaluate.main, train.main, paper.main):
        with pytest.raises(SystemExit):
            main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out, re.I))
    used = set(re.findall(r"(?<![\w-])--[A-Za-z][A-Za-z_-]*", README.read_text()))
    assert used <= known | {"--nproc_per_node"}


def test_commands_of_the_readme_parse():
    import train

    commands = re.findall(r"python train\.py((?: [^\s`.]+)*)", README.read_text())
    columns = re.findall(r"^\| [A-D] \| .* \| `(.*)` \|", README.read_text(), re.M)
    assert len(commands) + len(columns) >= 7
    for command in commands:
        train.parse(command.replace("\\", "").split())
    settings = [train.parse(flags.split()) for flags in columns]
    assert [(args.data, args.arch) for args in settings] == COLUMNS
    assert [args.pretrained for args in settings] == [False, True, False, False]


def test_flags_and_figures_of_the_papers_rows():
    import paper

    from train import parse, task_names

    pattern = r"^\| ([^|]+) \| [1-5–, ]+ \| (?:`(--[^`]+)`|\(none\)) \| (.*) \|"
    rows = re.findall(pattern, README.read_text(), re.M)
    assert len(rows) == 8
    names = [
        "RRS-Only",
        "CBS-Only",
        "CBS+RRS",
        "CBS+RRS+SS",
        "ftRRS+CBS",
        "1:1",
        "1:0.5",
        "Rotation",
    ]
    for name, (title, flags, cells) in zip(names, rows, strict=True):
        args = parse([flag for flag in flags.split() if "last.pt" not in flag and flag != "--init"])
        if ratio := re.search(r"([\d.]+):([\d.]+)", title):
            assert args.lambdas == [float(ratio[1]), float(ratio[2]), 0]
        if name in ("CBS-Only", "RRS-Only", "CBS+RRS", "CBS+RRS+SS"):
            assert task_names(args) == name
        assert args.rotation_augmentation == (name == "Rotation")
        for column, cell in zip(COLUMNS, cells.split("|"), strict=True):
            theirs = paper.PAPER[column].get(name)
            assert cell.strip() == (str(theirs[3]) if theirs else "")


def test_sample_of_output_is_what_the_program_prints(tiny_root, script):
    """Figures aside."""

    def form(text):
        """Its lines, each number of any length and each row of epochs once."""
        lines = [re.sub(r"[\d,.]+|(?<= )-", "0", line).split() for line in text.splitlines()]
        return [line for i, line in enumerate(lines) if line and line not in lines[:i]]

    code, out, err = script("train", *tiny_flags(tiny_root, out="run"))
    assert code == 0 and not err
    block = re.search(r"The output ends with.*?```\n(.*?)```", README.read_text(), re.S)[1]
    sample = [line for line in block.splitlines() if not line.startswith("compare with")]
    printed = [line for line in form(out) if line[0] != "this"]  # CPU is busy
    assert form("\n".join(sample)) == printed[-len(form("\n".join(sample))) :]


def test_five_flat_modules_with_no_import_but_the_agreed_ones():
    assert {p.stem for p in ROOT.glob("*.py")} == set(MODULES)
    allowed = {"torch", "torchvision", "numpy", "PIL", *MODULES, *sys.stdlib_module_names}
    for name in MODULES:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
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
    images = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
    dataset = data.LongTailed(images, np.arange(1000) % 50)
    names = vars(data) | vars(evaluate) | vars(model) | vars(sampler)
    names |= {"dataset": dataset, "labels": dataset.labels, "images": images[:4]}
    names |= {"predictions": dataset.labels, "N_c": dataset.N_c}
    exec("\n".join(code), names)
    if name == "data":
        assert names["image"].shape == (3, 32, 32) and isinstance(names["label"], int)
    if name == "model":
        assert names["logits"].shape == (4, 1000)
    if name == "sampler":
        assert np.bincount(names["labels"]).tolist().count(4) == 32
    for line in lines:  # the commands' flags exist
        for script, rest in re.findall(r"(\w+)\.py(.*?)(?: {2,}|#|$)", line):
            helped = (ROOT / f"{script}.py").read_text()
            assert all(f'"{flag}"' in helped for flag in re.findall(r"--[a-z]+", rest)), line


if __name__ == "__main__":

    def mended(match):
        line = place(match[1], match[3])
        return f"[{match[1]}:{line}]({match[1]}#L{line}) | `{match[3]}`"

    README.write_text(LINK.sub(mended, README.read_text()))
