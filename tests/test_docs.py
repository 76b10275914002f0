"""Every block of the README and of docs/ runs, and the ONNX example answers as ``predict`` does."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datamodules.decode import decode
from experiments.annotation.matching import read_mapping
from tests import docs_python
from tests.docs_sandbox import COUNT, HOUSE, TINY, furnish, give_data, give_table, read_blocks, run
from tests.runs import once, shared

PAGES = {
    str(path.relative_to(HOUSE)): path.read_text()
    for path in [HOUSE / "README.md", *sorted(HOUSE.glob("docs/**/*.md"))]
}
BLOCKS = {name: read_blocks(page) for name, page in PAGES.items()}
COMMAND = re.compile(r"^\s*(\$ |\.venv/|(make|python3?|pip|sbatch|wandb|git) )", re.MULTILINE)


def run_python(folder, text):
    (folder / "block.py").write_text(text)
    run(folder, "python block.py")


def read_table(folder, text):
    if ";" in text:
        return give_table(folder, text)
    (folder / "block.csv").write_text(text)
    read_mapping(folder / "block.csv")


# Output and layouts are no commands; all else is executed, or read by what it is for.
LANGUAGES = {"sh": run, "python": run_python, "csv": read_table, "text": None}


@pytest.mark.parametrize("name", PAGES)
def test_every_block_can_be_executed(name):
    for language, text in BLOCKS[name]:
        assert language in LANGUAGES
        assert language != "text" or not COMMAND.search(text), f"{text}: make it sh"


@pytest.fixture(scope="session")
def python():
    """The server that runs ``python``, at DOCS_PYTHON: a clone serves all workers."""
    with tempfile.TemporaryDirectory() as folder:  # short: a socket's path has 107 bytes at most
        os.environ["DOCS_PYTHON"] = f"{folder}/socket"
        with docs_python.start(Path(folder) / "socket", TINY):
            yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory, python):
    """A fresh clone in which the README's first block ran; made once for all processes."""

    def make(folder):
        furnish(folder)
        run(folder, BLOCKS["README.md"][0][1])
        give_data(folder, folder / "data" / f"phantom-{COUNT}-seed0")

    return once(shared(tmp_path_factory, "docs-template"), make)


@pytest.fixture
def run_page(tmp_path, trained):
    """Runs the blocks of a page in a folder of its own, which it returns."""

    def run_blocks(name):
        folder = Path(shutil.copytree(trained, tmp_path / "page", symlinks=True))
        for language, text in BLOCKS[name][name == "README.md" :]:
            if execute := LANGUAGES[language]:
                execute(folder, text)
        return folder

    return run_blocks


EXAMPLE = "docs/predict.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BLOCKS if BLOCKS[name] and name != EXAMPLE])
def test_blocks_run_as_printed(name, run_page):
    run_page(name)


IMPORTS = "import numpy as np\nfrom pathlib import Path\nfrom datamodules.decode import decode"


@pytest.mark.slow
def test_the_example_answers_as_predict_does(run_page):
    """The page's blocks, and what they leave, for images of each kind."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder = run_page(EXAMPLE)
    network = "RUN_DIR/checkpoints/last.ckpt"  # the last that the page exports
    run(folder, f"python -m experiments.predict {network} my-images --out answers")
    table = pd.read_csv(folder / "answers" / "predictions.csv").set_index("path")
    (recipe,) = re.findall(r'`(np\.save\("image\.npy", .*?)`', PAGES[EXAMPLE], re.DOTALL)
    for image, wanted in table.iterrows():
        square = f"my-images/{image}"
        if image != "grey8.png":  # which the example reads by itself
            run_python(folder, f"{IMPORTS}\n{recipe.replace('hand.png', square)}\n")
            square = "image.npy"
        script = f"python docs/square.py model.onnx {square} square.npy\n"
        output = run(folder, f"{script}python docs/ask.py model.onnx square.npy")
        answer, probability = re.search(r"(normal|abnormal): ([\d.]+)", output).groups()
        assert answer == ("normal", "abnormal")[int(wanted["predicted_abnormal"])]
        # The page: up to 5e-4 of a probability, 3e-3 of the map; what is written is rounded.
        assert float(probability) == pytest.approx(wanted["probability_abnormal"], abs=6e-4)
        shown = decode(folder / "answers" / "maps" / f"{image}.fcn.png") / 255
        assert shown.max() > shown.min()
        peak = dict(re.findall(r"^([xy]) of the image: (.*)$", output, re.MULTILINE))
        at = dict(re.findall(r"\b([xy]) (\d+)", output.rpartition("peak of fcn")[2]))
        x, y = (round(eval(peak[name], {name: int(at[name])})) for name in "xy")
        assert shown[y, x] == pytest.approx(shown.max(), abs=3e-3 + 1 / 255)
    assert {*table.index} == {"grey8.png", "grey16.png", "turned.jpg", "scan.dcm"}

    grey = Image.open(folder / "hand.png")
    grey.convert("RGB").save(folder / "RGB.png")
    np.save(folder / "float.npy", np.asarray(grey) / 255)
    refused = {
        "my-images/turned.jpg": "got L, EXIF orientation 6",
        "my-images/scan.dcm": "got a file that Pillow cannot read",
        "RGB.png": "got RGB,",
        "float.npy": "got float64 (",
    }
    command = "! python docs/square.py model.onnx {} refused.npy"
    output = run(folder, "\n".join(map(command.format, refused)))
    for image, got in refused.items():
        assert f"{image}: expected 8-bit grey and upright, {got}" in output
    assert output.count('Fix: np.save("image.npy", decode(Path(') == len(refused)
    assert not (folder / "refused.npy").exists()


def test_the_example_needs_neither_torch_nor_this_project():
    scripts = [(HOUSE / "docs" / name).read_text() for name in ("square.py", "ask.py")]
    imports = re.findall(r"^ *(?:import|from) (\w+)", "\n".join(scripts), re.MULTILINE)
    assert {*imports} == {"json", "sys", "numpy", "onnxruntime", "PIL"}
