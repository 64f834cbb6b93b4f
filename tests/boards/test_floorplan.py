"""The floorplan of the largest ECP5: each cell a place of its own, what belongs together side by side."""

import json
import re

import pytest

pytest.importorskip("litex")

from sentei.boards import board_named
from sentei.boards.ecp5 import floorplan, presets
from sentei.boards.ecp5.flow import ECP5Flow, size_of
from sentei.gateware.engine.engine import Engine

DEVICE = presets.DEVICES["85F"]


def place_of(site: str) -> tuple[int, int]:
    """(column, row)"""
    column, row = re.match(r"X(\d+)/Y(\d+)/", site).groups()
    return int(column), int(row)


def platform_of(device: str, name: str = "ulx3s"):
    board = board_named(name)
    return board.parts(device, board.devices[device].geometry, board.devices[device].clock_hz)[0]


def places_of_multipliers(device: str) -> dict[int, list[str]]:
    """By the first of each pair of lanes."""
    flow, preset = ECP5Flow(), presets.DEVICES[device]
    engine = Engine(preset.geometry, flow.technology(preset.multipliers))
    flow.constrain(platform_of(device), preset, engine)
    found = {}
    for group in engine.core.groups:
        for lane, _, instance in group.array.pieces:
            found.setdefault(lane, []).extend(value for name, value in instance.attr if name == "BEL")
    return found


def test_the_multipliers_of_a_pair_of_lanes_lie_side_by_side():
    found = places_of_multipliers("85F")
    assert len({place for places in found.values() for place in places}) == DEVICE.multipliers
    for lane, places in found.items():
        columns, rows = zip(*map(place_of, places), strict=True)
        assert len(set(rows)) == 1 and max(columns) - min(columns) <= 22, f"lane {lane}: {places}"


@pytest.mark.parametrize("board", ["ulx3s", "orangecrab", "ecpix5"])
def test_every_board_with_the_largest_device_has_the_floorplan(board):
    assert size_of(platform_of("85F", board)) in floorplan.LARGEST


def test_smaller_devices_have_no_floorplan():
    assert not any(places_of_multipliers("45F").values())


def test_each_copy_of_the_activation_memory_lies_where_it_is_used(tmp_path):
    geometry = DEVICE.geometry
    readers = geometry.groups + geometry.requantizers
    names = [
        f"activations_{reader}_{bank}.0.{part}" for reader in range(readers) for bank in (0, 1) for part in range(8)
    ]
    cells = {name: {"type": "DP16KD", "attributes": {}} for name in [*names, "rom.0.0"]}
    netlist = tmp_path / "sentei.json"
    netlist.write_text(json.dumps({"modules": {"sentei": {"cells": cells | {"lut": {"type": "LUT4"}}}}}))
    floorplan.place_memories(netlist, geometry)
    placed = json.loads(netlist.read_text())["modules"]["sentei"]["cells"]
    assert placed["rom.0.0"]["attributes"] == {}
    sites = {name: placed[name]["attributes"]["BEL"] for name in names}
    assert len(set(sites.values())) == len(names)
    pairs = floorplan.lane_pairs(geometry)
    for name, site in sites.items():
        reader, part = int(name.split("_")[1]), int(name.rpartition(".")[2])
        column, row = place_of(site)
        if reader < geometry.groups:
            assert row == floorplan.MEMORY_ROWS[reader]
        else:
            of_pair = [place_of(place) for place in pairs[2 * part]]
            assert min(abs(column - other) for other, _ in of_pair) <= 20 and abs(row - of_pair[0][1]) <= 12, name
