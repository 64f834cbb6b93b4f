"""Networks that others published: each compiles, and computes what qonnx does, or is refused as reports/zoo.json says.

They are not part of this project: SENTEI_ZOO names their folder, or they lie in shared/zoo beside the project; without
them these tests are skipped. `make zoo` tries them on the RTL, too.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.tiers import hardware

from sentei.host.compiler.compile import compile_network
from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import PRESETS

pytestmark = hardware
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("SENTEI_ZOO", ROOT.parent / "shared" / "zoo"))
REPORT = json.loads((ROOT / "reports" / "zoo.json").read_text())
LARGE = ("made/mobilenet025-64x64.onnx", "made/r20-seed1.onnx", "made/vww-mobilenet025-96.onnx")


@pytest.fixture(scope="module")
def zoo():
    pytest.importorskip("sentei.driver.quiet_pynq")
    specification = importlib.util.spec_from_file_location("zoo", ROOT / "scripts" / "zoo.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there; set SENTEI_ZOO")
@pytest.mark.parametrize("name", REPORT)
def test_a_published_network(zoo, name):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    if not REPORT[name]["compiles"]:
        with pytest.raises(SenteiError) as caught:
            compile_network(zoo.read(path)[0], PRESETS["32x32"])
        assert str(caught.value) == REPORT[name]["refused"]
        return
    network, _ = zoo.read(path)
    program = compile_network(network, PRESETS["32x32"])
    assert program.meaning == REPORT[name]["meaning"]
    expected, found = zoo.outputs_of_both(path, network, zoo.pictures(network, 1 if name in LARGE else 4, 5))
    if expected is None:
        return
    if program.doubts:
        assert np.abs(found - expected).max() <= max(1e-4, 4 * REPORT[name]["largest_difference"])
    else:
        assert np.array_equal(found, expected)
