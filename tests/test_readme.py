"""The README's map of Algorithm 1 is true, and its commands and samples are the program's.

python tests/test_readme.py      # correct the map's line numbers after an edit
"""

import re
from pathlib import Path

import paper
import pytest
from conftest import tiny_flags

import train

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COLUMNS = [("imagenet_lt", "resnet10"), ("places_lt", "resnet152")]
COLUMNS += [("imagenet_lt", "resnet50"), ("places_lt", "resnet50")]
MAP = re.compile(r"(\d+)\. (.*): \[(\w+\.py):\d+\]\(\3#L\d+\)")


def corrected(row):
    """A line of the map, with the first place in the file that is marked with its number."""
    number, text, file = row.groups()
    lines = (ROOT / file).read_text().splitlines()
    n = next(n for n, line in enumerate(lines, 1) if re.search(rf"# line {number}\b", line))
    return f"{number}. {text}: [{file}:{n}]({file}#L{n})"


def test_the_map_points_at_the_marked_lines_of_the_code():
    text = README.read_text()
    assert [int(row[1]) for row in MAP.finditer(text)] == list(range(1, 14))
    assert MAP.sub(corrected, text) == text


def test_commands_of_the_readme_parse():
    text = README.read_text()
    commands = re.findall(r"python train\.py((?: [^\s`.]+)*)", text)
    columns = re.findall(r"^- [A-D]: `(.*)`", text, re.M)
    assert len(commands) + len(columns) >= 7
    for command in commands:
        if "--resume" not in command and "--help" not in command:
            train.parse(command.replace("\\", "").split())
    settings = [train.parse(flags.split())[0] for flags in columns]
    assert [(args.data, args.arch) for args in settings] == COLUMNS
    # Sec. 4.4, and [19] (see RECIPES)
    assert [args.pretrained for args in settings] == [False, True, False, False]
    assert [args.epochs for args in settings] == [90, 30, 90, 90]
    for args in settings:
        assert (args.lambdas, args.Z, args.batch_size) == ([0.5, 1, 1], 4, 128)
        assert (args.lr, args.momentum, args.weight_decay, args.size) == (0.1, 0.9, 5e-4, 224)


def test_flags_and_figures_of_the_papers_rows():
    pattern = r"^- (.+): (?:`(--[^`]+)`|no flags).* \(([^()]+)\)$"
    rows = [row for row in re.findall(pattern, README.read_text(), re.M) if len(row[0]) > 1]
    assert len(rows) == len(paper.ROWS) == 8
    for (title, flags, theirs), (name, ours) in zip(rows, paper.ROWS.items(), strict=True):
        assert title.startswith(name)
        assert flags.replace("RRS/last.pt", "{RRS}") == (ours if name != "CBS+RRS+SS" else "")
        args, _ = train.parse(flags.split())
        if ratio := re.search(r"([\d.]+):([\d.]+)", title):
            assert args.lambdas == [float(ratio[1]), float(ratio[2]), 0]
        figures = [paper.PAPER[column].get(name, ["–"])[-1] for column in COLUMNS]
        assert theirs == ", ".join(map(str, figures))


def test_every_flag_of_the_readme_exists(capsys):
    import data
    import evaluate

    for main in data.main, evaluate.main, train.main, paper.main:
        with pytest.raises(SystemExit):
            main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out, re.I))
    used = set(re.findall(r"(?<![\w-])--[A-Za-z][A-Za-z_-]*", README.read_text()))
    assert used <= known | {"--nproc_per_node"}


def test_the_sample_of_output_is_what_the_program_prints(tiny_root, script):
    """Figures and folders aside."""
    status, out, err = script("train.py", *tiny_flags(tiny_root, out="runs/tiny"))
    assert status == 0 and not err
    block = re.search(r"The output ends with.*?```\n(.*?)```", README.read_text(), re.S)[1]

    def form(text):
        return [re.sub(r"[\d.]+|(?<= )-|runs/\S+", "0", line).split() for line in text.splitlines()]

    assert form(block) == form(out)[-3:]


if __name__ == "__main__":
    README.write_text(MAP.sub(corrected, README.read_text()))
