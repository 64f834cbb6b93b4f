"""Plans the stream memory: what stays on chip, what is loaded for each picture, and where.

The groups' streams of all operators stay on chip if they can. Otherwise the largest operators are cut into *chunks*
that are loaded for each picture, while the run before computes, into the two halves of what is left of the stream
memory in turn; the others form *segments* of the stream memory. A run does one chunk or one segment.

Where there is no room for two places, each group has runs of its own, and while one is loaded the others compute.

Where steps are replaced by steps that read the same and have other weights, as those of a dense layer's next block, the
weights of two steps are loaded at a time:

    control  header  a b c d e f                 control  header  a b c d e f
    weights  header  . . . . . .     becomes     weights  header  , , , , , ,     |header|, ,|, ,|, ,|
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from sentei.host.compiler.pack import NO_PAGE, Packed, Streams, pack_empty
from sentei.host.network.ir import Network
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import LOAD_BITS, WEIGHT_BITS, Geometry
from sentei.overlay.instructions import STEP_WEIGHTS_OFFSET, Memory, load_words, stream_bits

FEWEST_PAIRS = 64  # that are loaded so: a LOAD more takes some ten cycles


@dataclass(frozen=True)
class Run:
    """One RUN instruction: the `layers` that it does, each group's tasks (none: the run is not for that group), and the
    epoch that the first header counts from. A chunk is a part of one layer and is loaded for each picture."""

    layers: range
    tasks: list[list[Packed]]
    chunk: bool

    @property
    def epoch(self) -> int:
        return min(tasks[0].epoch for tasks in self.tasks if tasks)

    @property
    def page(self) -> int:
        """The page of the tables that it needs."""
        return max(task.page for tasks in self.tasks for task in tasks)

    @property
    def words(self) -> int:
        """Stream words that it needs, the same addresses in every group."""
        return max(sum(task.words for task in tasks) for tasks in self.tasks)

    @property
    def groups(self) -> int:
        """A bit for each group that it is for; 0: for all."""
        return 0 if all(self.tasks) else sum(1 << group for group, tasks in enumerate(self.tasks) if tasks)

    def is_for(self, group: int) -> bool:
        return bool(self.tasks[group])

    def alone(self, group: int) -> Run:
        """One group's part."""
        return replace(self, tasks=[tasks if number == group else [] for number, tasks in enumerate(self.tasks)])

    def contents(self) -> list[bytes]:
        """Each group's stream."""
        streams = []
        for tasks in self.tasks:
            base, parts = self.epoch, []
            for index, task in enumerate(tasks):
                parts += [task.header(base, index == len(tasks) - 1), task.steps]
                base = task.epoch
            streams.append(b"".join(parts))
        return streams


@dataclass(frozen=True)
class StreamPlan:
    """The runs of a picture and the stream address of each; chunks take one of `buffers` places in turn: with two, a
    chunk is loaded while the run before it computes."""

    runs: list[Run]
    addresses: list[int]
    buffers: int


def plan_streams(streams: Streams, geometry: Geometry, network: Network, pictures: int = 1) -> StreamPlan:
    """Keep on chip what fits, the largest layers last. The last layer has a run of its own: it may not begin before
    the previous picture's result is stored. The layers may be those of several pictures, one after the other."""
    lengths = [max(sum(task.words for task in tasks) for tasks in shares) for shares in streams.tasks]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])

    def longest_task(layer: int) -> int:
        return max(task.words for tasks in streams.tasks[layer] for task in tasks)

    turning = {index for index, shares in enumerate(streams.tasks) if len(pages_of(shares)) > 1}
    for buffers, count in product((2, 1), range(len(lengths) + 1)):
        streamed = turning.union(order[:count])
        segments = make_segments(streams, streamed, len(lengths) // pictures)
        room = geometry.stream_words - sum(run.words for run in segments if not run.chunk)
        place = room // buffers
        if place >= max(map(longest_task, streamed), default=0):
            break
    else:
        worst = max(range(len(lengths)), key=longest_task)
        raise CapacityError(
            f"{network.name}: {network.ops[worst].name}: one block of output channels needs {longest_task(worst)} "
            f"stream words, the geometry has {geometry.stream_words}; use a geometry with more stream_words, or fewer "
            "input channels"
        )
    runs, addresses = [], []
    free, turn = buffers * place if streamed else 0, 0
    for segment in segments:
        if not segment.chunk:
            runs.append(segment)
            addresses.append(free)
            free += segment.words
            continue
        for chunk in make_chunks(segment, place, geometry, together=buffers > 1):
            parts = [chunk] if buffers > 1 else [chunk.alone(group) for group, of in enumerate(chunk.tasks) if of]
            runs += parts
            addresses += [turn * place] * len(parts)
            turn = (turn + 1) % buffers
    return StreamPlan(runs, addresses, buffers)


def pages_of(shares: list[list[Packed]]) -> set[int]:
    """The pages of the tables that a layer needs."""
    return {task.page for tasks in shares for task in tasks} - {NO_PAGE}


def make_segments(streams: Streams, streamed: set[int], of_picture: int) -> list[Run]:
    """Runs of consecutive layers that stay on chip, and streamed layers by themselves; so many layers are a picture."""
    runs: list[Run] = []
    begin = 0
    layers = len(streams.tasks)
    groups = range(len(streams.tasks[0]))
    for index in range(layers):
        last = (index + 1) % of_picture == 0
        alone = index in streamed
        own, following = (pages_of(streams.tasks[number]) for number in (index, min(index + 1, layers - 1)))
        turns = max(own, default=0) != max(following, default=0)
        ends = last or alone or turns or index + 1 in streamed or (index + 2) % of_picture == 0
        if ends:
            members = range(begin, index + 1)
            tasks = [[task for layer in members for task in streams.tasks[layer][group]] for group in groups]
            runs.append(Run(members, tasks, alone))
            begin = index + 1
    return runs


def make_chunks(run: Run, words: int, geometry: Geometry, together: bool) -> list[Run]:
    """Cut a streamed layer into runs of at most `words` on one page; each task whole. `together`: every group has a
    task in each of them."""
    waiting = [list(tasks) for tasks in run.tasks]
    chunks = []
    while any(waiting):
        taken: list[list[Packed]] = []
        pages = {tasks[0].page for tasks in waiting if tasks} - {NO_PAGE}
        now = {NO_PAGE, min(pages, default=NO_PAGE)}
        for tasks in waiting:
            taken.append([])
            used = 0
            while tasks and tasks[0].page in now and used + tasks[0].words <= words:
                used += tasks[0].words
                taken[-1].append(tasks.pop(0))
        epoch = min(tasks[0].epoch for tasks in taken if tasks)
        nothing = [pack_empty(0, epoch, False, geometry)] if together else []
        chunks.append(Run(run.layers, [tasks or nothing for tasks in taken], True))
    return chunks


def runs_since_address_was_used(plan: StreamPlan, index: int) -> int:
    """How many runs ago, this one included, of those for its groups, a chunk's address was used before, in this picture
    or the one before."""
    run = plan.runs[index]
    return min(_runs_since(plan, index, group) for group in range(len(run.tasks)) if run.is_for(group))


def _runs_since(plan: StreamPlan, index: int, group: int) -> int:
    runs = 0
    for distance in range(1, len(plan.runs) + 1):
        other = (index - distance) % len(plan.runs)
        runs += plan.runs[other].is_for(group)
        if plan.runs[other].chunk and plan.runs[other].is_for(group) and plan.addresses[other] == plan.addresses[index]:
            return runs
    raise AssertionError("a run uses its own address")


class StreamContent:
    """What is known of a group's stream memory, and the least that has to be loaded to change it."""

    def __init__(self, geometry: Geometry):
        self.bytes = stream_bits(geometry) // 8
        self.control = STEP_WEIGHTS_OFFSET // 8
        self.weights = WEIGHT_BITS * geometry.group_columns // 8  # bytes; 0 if a step's are no whole ones
        self.pair_bytes = load_words(Memory.WEIGHTS, geometry) * LOAD_BITS // 8
        self.worth = WEIGHT_BITS * geometry.group_columns % 8 == 0 and self.pair_bytes < 2 * self.bytes
        self.words = np.zeros((geometry.stream_words, self.bytes), np.uint8)
        self.known = np.zeros(geometry.stream_words, bool)

    def replaced(self, address: int, stream: bytes) -> Iterator[tuple[Memory, int, bytes]]:
        """The loads that bring `stream` to `address`: memory, first entry, content."""
        words = np.frombuffer(stream, np.uint8).reshape(-1, self.bytes)
        place = slice(address, address + len(words))
        alike = self.known[place] & (self.words[place, : self.control] == words[:, : self.control]).all(1)
        alike &= ~words[:, self.control + self.weights :].any(1)
        self.words[place], self.known[place] = words, True
        begin = 0
        for first, last in self._pairs(alike, address):
            if begin < first:
                yield Memory.STREAM, address + begin, words[begin:first].tobytes()
            yield Memory.WEIGHTS, (address + first) // 2, self._packed(words[first:last])
            begin = last
        if begin < len(words):
            yield Memory.STREAM, address + begin, words[begin:].tobytes()

    def _pairs(self, alike: np.ndarray, address: int) -> Iterator[tuple[int, int]]:
        """Ranges of words that are worth to be loaded by pairs, which begin at even addresses."""
        if not self.worth:
            return
        edges = np.flatnonzero(np.diff(alike, prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            first += (address + first) % 2
            last -= (address + last) % 2
            if last - first >= 2 * FEWEST_PAIRS:
                yield first, last

    def _packed(self, words: np.ndarray) -> bytes:
        weights = words[:, self.control : self.control + self.weights].reshape(len(words) // 2, -1)
        packed = np.zeros((len(weights), self.pair_bytes), np.uint8)
        packed[:, : weights.shape[1]] = weights
        return packed.tobytes()
