"""Commands on a model or a program: compile, run, verify, bench, info, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from sentei.host.commands.console import (
    Batch,
    GeometryName,
    InputOption,
    JsonFile,
    MemoryName,
    Model,
    ModelOrProgram,
    Strict,
    Target,
    classes_of,
    console,
    opened,
    read_model,
    say,
    step,
    write_json,
    writing,
)
from sentei.overlay.program import Program
from sentei.overlay.registers import PROFILE_CAUSES

BEST = 5  # classes that `run` prints


def compile_model(
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="program file (default: MODEL.sentei)")] = None,
    geometry: GeometryName = "32x32",
    batch: Batch = None,
    strict: Strict = False,
    avoid_ties: Annotated[
        Path | None,
        typer.Option(help="compile, and write to this file, the model with offsets moved so far that float32 agrees"),
    ] = None,
    input: InputOption = None,
    json_file: JsonFile = None,
) -> None:
    """Compile a QONNX model to a program file.

    Every layer's integer arithmetic is proven equal to the model's own float32 arithmetic, for every input. Where
    float32 execution hangs on its rounding, the layer computes what the model means, its integers and scales as exact
    numbers; such layers are named, or with --strict the model is refused. --avoid-ties cures most of them: it adds to
    their sums what is less than one sum is worth.
    """
    from sentei.host.apps.target import geometry_named
    from sentei.host.compiler.compile import compile_network
    from sentei.host.frontend.importer import load

    classes, output = classes_of(model), output or model.with_suffix(".sentei")
    if avoid_ties is not None:
        import onnx

        from sentei.host.apps.ties import without_ties

        changed, moved = without_ties(model, input)
        with writing(avoid_ties):
            onnx.save(changed, avoid_ties)
        for name, offset in moved.items():
            say(f"moved: {name!r} by up to {offset:.3g}")
        say(f"model: {avoid_ties}")
        model = avoid_ties
    program = compile_network(load(model, strict, input), geometry_named(geometry), classes, batch or 1)
    program.save(output)
    describe_program(program)
    say(f"program: {output} ({output.stat().st_size} bytes)")
    write_json(json_file, program_figures(program))


def program_figures(program: Program) -> dict:
    """What `info` and `compile` say of a program."""
    macs, dense = (sum(getattr(layer, name) for layer in program.layers) for name in ("macs", "dense_macs"))
    return {
        "name": program.name,
        "geometry": program.geometry.to_dict(),
        "fingerprint": f"{program.fingerprint:#010x}",
        "data_bytes": len(program.data),
        "batch": program.pictures,
        "stages": [{"layers": len(stage.layers), "patches": stage.patches} for stage in program.stages],
        "jobs": program.jobs,
        "input_bytes": program.input_bytes,
        "output_bytes": program.output_bytes,
        "macs": macs,
        "dense_macs": dense,
        "bound_cycles": sum(layer.bound_cycles for layer in program.layers),
        "layers": [dict(layer.__dict__) for layer in program.layers],
        "meaning": program.meaning,
        "doubts": [dict(doubt.__dict__) for doubt in program.doubts],
    }


def describe_program(program: Program) -> None:
    table = Table(title=f"{program.name} for {program.geometry}", title_justify="left")
    for name in ("layer", "kind", "MACs", "of dense", "bound (cycles)"):
        table.add_column(name, justify="left" if name in ("layer", "kind") else "right", overflow="fold")
    for layer in program.layers:
        kept = f"{layer.macs / layer.dense_macs:.1%}" if layer.dense_macs else ""
        table.add_row(layer.name, layer.kind, str(layer.macs), kept, f"{layer.bound_cycles:.1f}")
    console.print(table)
    for number, stage in enumerate(program.stages, 1):
        _, height, width = stage.shape
        which = f"stage {number} ({stage.layers[0].name} to {stage.layers[-1].name}): " if program.stages[1:] else ""
        how = f"{stage.patches} patches of {stage.input.height} x {stage.input.width}, which overlap"
        if program.stages[1:] or stage.patches > 1:
            say(f"{which}a map of {height} x {width} is done {f'in {how}' if stage.patches > 1 else 'whole'}")
    say(f"arithmetic: {program.meaning}")


def run(
    model: ModelOrProgram,
    pictures: Annotated[list[Path], typer.Argument(help="image files, or .npy files of integers (N, C, H, W)")],
    target: Target = "sim",
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
    input: InputOption = None,
    fit: Annotated[
        str | None,
        typer.Option(help="how a picture of another size is made to fit: resize, crop or pad (default: resize)"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=".npy file for the model's outputs")] = None,
    json_file: JsonFile = None,
) -> None:
    """Run pictures of any size and format through a model and print the best five classes of each."""
    from sentei.host.apps.pictures import read_pictures

    program_for = read_model(model, input=input)
    with opened(target, geometry, memory) as overlay:
        program = program_for(overlay.manifest.geometry)
        images, names = read_pictures(pictures, program, fit, say)
        overlay.load(program)
        with step(f"running {len(images)} pictures") as progress:
            logits, outputs = [], []
            for number, of_picture in enumerate(overlay.stream(iter(images))):
                logits.append(of_picture.logits)
                outputs.append(of_picture.model)
                progress(number + 1, len(images))
        cycles = overlay.picture_cycles
    results = [
        {"picture": number, "file": name} | of_classes(program, sums) | {"outputs": own.reshape(-1).tolist()}
        for number, (name, sums, own) in enumerate(zip(names, logits, outputs, strict=True))
    ]
    if "best" in results[0]:
        table = Table()
        for name in ("file", "label", "confidence", "next best"):
            table.add_column(name, overflow="fold")
        for result in results:
            first, *others = result["best"]
            rest = ", ".join(f"{other['label']} {other['confidence']:.1%}" for other in others)
            table.add_row(result["file"], first["label"], f"{first['confidence']:.1%}", rest)
        console.print(table)
    else:
        say(f"the output is {outputs[0].shape}, not one number for each class: --output FILE.npy or --json FILE has it")
    say(f"{cycles:.0f} cycles a picture")
    if output is not None:
        with writing(output), output.open("wb") as file:
            np.save(file, np.stack(outputs))
        say(f"outputs: {output}")
    write_json(json_file, {"model": program.name, "cycles_per_image": cycles, "pictures": results})


def of_classes(program: Program, logits: np.ndarray) -> dict:
    """The best five classes, if a picture's numbers `logits` are one for each class."""
    from sentei.host.apps.demo import softmax

    if logits.ndim != 1 or len(logits) < 2:
        return {}
    chances = softmax(logits)
    order = np.argsort(-chances, kind="stable")[:BEST]
    names = program.classes
    best = [
        {
            "label": names[index] if index < len(names) else str(index),
            "index": int(index),
            "confidence": float(chances[index]),
        }
        for index in order
    ]
    return {**best[0], "best": best}


def verify(
    model: Model,
    images: Annotated[int, typer.Option(help="random pictures to compare")] = 4,
    seed: Annotated[int, typer.Option(help="seed of the random pictures")] = 0,
    target: Target = "sim",
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
    batch: Batch = None,
    strict: Strict = False,
    input: InputOption = None,
    json_file: JsonFile = None,
) -> None:
    """Compare a target with the integer reference, on every element of every layer.

    Exits with 1 and names the first layer, channel and pixel that differ.
    """
    from sentei.host.apps.measure import first_difference, random_images
    from sentei.host.compiler.compile import compile_network
    from sentei.host.frontend.importer import load

    network = load(model, strict, input)
    with opened(target, geometry, memory) as overlay:
        program = compile_network(network, overlay.manifest.geometry, classes_of(model), batch or 1)
        overlay.load(program)
        with step(f"comparing {len(network.ops)} layers of {images} pictures (seed {seed})") as progress:
            difference = first_difference(overlay, network, random_images(program, images, seed), progress)
    figures = {"model": program.name, "images": images, "seed": seed, "layers": len(network.ops)}
    figures |= {"meaning": program.meaning, "doubts": [dict(doubt.__dict__) for doubt in program.doubts]}
    write_json(json_file, figures | {"bit_exact": difference is None, "difference": difference and difference.__dict__})
    if difference is not None:
        say(f"different: {difference}", style="red")
        raise typer.Exit(1)
    say(f"equal: all {len(network.ops)} layers of {images} pictures", style="green")
    say(f"arithmetic: {program.meaning}")


def bench(
    model: ModelOrProgram,
    target: Annotated[
        str, typer.Option(help="'sim', 'predict' (as exact, ten times as fast), or an overlay's directory")
    ] = "sim",
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
    chart: Annotated[Path | None, typer.Option(help="PNG (default: build/bench/MODEL.png)")] = None,
    batch: Batch = None,
    input: InputOption = None,
    json_file: JsonFile = None,
) -> None:
    """Cycles of each layer beside its bound: surviving MACs / array size.

    Utilisation is bound / cycles. The columns after it say what the groups' cycles were spent on: steps are array
    cycles, drain waits for the result bus, waits are for results of other groups, setup reads headers and fills the
    pipeline, idle has nothing to do.
    """
    from sentei.host.apps.charts import cycles_chart
    from sentei.host.apps.measure import benchmark

    program_for = read_model(model, batch, input)
    with opened(target, geometry, memory, results=False) as overlay:
        program = program_for(overlay.manifest.geometry)
        overlay.load(program)
        result = benchmark(overlay)
        figures = result.to_dict(program, overlay)
    groups = program.geometry.groups
    table = Table(
        title=f"{program.name}, {program.geometry}, memory {figures['memory_model']['name']}", title_justify="left"
    )
    for name in ("layer", "kind", "cycles", "bound", "utilisation", "steps", "drain", "waits", "setup", "idle"):
        table.add_column(name, justify="left" if name in ("layer", "kind") else "right", overflow="fold")
    for layer in result.layers:
        spent = [f"{layer[cause] / groups / layer['cycles']:.0%}" for cause in PROFILE_CAUSES]
        figure = f"{layer['utilisation']:.0%}" if layer["bound_cycles"] else ""
        row = (layer["name"], layer["kind"], f"{layer['cycles']:.0f}", f"{layer['bound_cycles']:.1f}", figure)
        table.add_row(*row, *spent)
    table.add_section()
    totals = (f"{result.cycles:.0f}", f"{result.bound_cycles:.1f}", f"{result.utilisation:.0%}")
    table.add_row("whole picture", "", *totals)
    console.print(table)
    say(f"{figures['fps_100mhz']:.0f} pictures a second at 100 MHz; simulated at {result.simulated_khz:.0f} kHz")
    if not result.layers:
        room, records = program.geometry.profile_entries, len(program.layers) * groups
        say(f"no figures of the layers: the profile has room for {room} of {records} records")
        write_json(json_file, figures)
        return
    chart = chart or Path("build/bench") / f"{program.name}.png"
    with writing(chart):
        cycles_chart(result.layers, groups, f"{program.name}: {result.cycles:.0f} cycles", chart)
    say(f"chart: {chart}")
    write_json(json_file, figures)


def info(
    path: Annotated[Path, typer.Argument(help="program file (.sentei), QONNX model (.onnx) or overlay directory")],
    geometry: GeometryName = "32x32",
    input: InputOption = None,
    json_file: JsonFile = None,
) -> None:
    """Describe a program, a model or an overlay."""
    if path.is_dir() or path.name == "manifest.json":
        from sentei.overlay.manifest import Manifest

        manifest = Manifest.load(path)
        say(f"overlay {manifest.name}: {manifest.geometry}, fingerprint {manifest.fingerprint:#010x}")
        say(f"clock {manifest.clock_hz / 1e6:g} MHz, memory {manifest.memory}")
        write_json(json_file, {"name": manifest.name, "geometry": manifest.geometry.to_dict()})
        return
    from sentei.host.apps.target import geometry_named

    program = read_model(path, input=input)(geometry_named(geometry))
    describe_program(program)
    say(f"fingerprint {program.fingerprint:#010x}, {len(program.data)} bytes of instructions and weights")
    write_json(json_file, program_figures(program))


def doctor(
    target: Annotated[
        str | None,
        typer.Option(
            help="examine a board instead, as build/ulx3s-12F:/dev/ttyUSB0; without a port, this machine's are tried"
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say what is installed, and what is missing for which command, with the remedy: for bug reports.

    Programs are tried out, so that one that is there and does not work is found, too. With --target a board is
    examined, from its port to its results.
    """
    if target is not None:
        examine_target(target, json_file)
        return
    from sentei.host.apps.doctor import examine

    with step("looking"):
        report = examine()
    for name, value in report.system.items():
        say(f"{name}: {value}")
    table = Table(title="what is there", title_justify="left")
    for column in ("kind", "name", "version or place"):
        table.add_column(column, overflow="fold")
    for finding in report.findings:
        if not finding.wrong:
            table.add_row(finding.kind, finding.name, finding.found)
    console.print(table)
    for commands, lacks in report.commands().items():
        say(f"{commands}: {'ready' if not lacks else 'not ready'}", style="green" if not lacks else "yellow")
        for finding in lacks:
            say(f"  {finding.kind} {finding.name} {finding.wrong}: {finding.remedy}")
    write_json(json_file, report.to_dict())


def examine_target(target: str, json_file: Path | None) -> None:
    from sentei.host.apps.board_doctor import examine_board

    checks = []
    for found in examine_board(target, step):
        checks.append(found)
        say(f"{found.name}: {found.wrong or found.found}", style="red" if found.wrong else "green")
        if found.wrong:
            say(f"  {found.remedy}")
    write_json(json_file, {"target": target, "checks": [vars(found) for found in checks]})
    if checks[-1].wrong:
        raise typer.Exit(1)


def demo(
    models: Annotated[Path, typer.Option(help="folder of fmnist-ninth.onnx and fmnist-dense.onnx")] = Path("models"),
    output: Annotated[Path, typer.Option(help="folder for result.png and result.json")] = Path("build/demo"),
    images: Annotated[int, typer.Option(min=16, max=1000, help="test pictures to classify")] = 24,
) -> None:
    """Classify Fashion-MNIST test pictures on the simulated SoC, with a pruned network and with its dense twin."""
    from sentei.host.apps.demo import run_demo

    summary, results = run_demo(models, output, images, step)
    table = Table(title="fmnist-ninth on the Verilated SoC", title_justify="left")
    for name in ("picture", "truth", "label", "confidence", "cycles", "every layer = reference"):
        table.add_column(name)
    for number, result in enumerate(results):
        cells = (str(number), result.truth, result.label, f"{result.confidence:.0%}")
        style = None if result.right else "red"
        table.add_row(*cells, str(summary["cycles_per_image"]), "yes" if result.exact else "NO", style=style)
    console.print(table)
    console.print(
        f"{summary['correct']} of {summary['images']} right; bit exact: {'yes' if summary['bit_exact'] else 'NO'}\n"
        f"cycles a picture: {summary['cycles_per_image']}, dense twin {summary['dense_cycles_per_image']}: "
        f"speed-up {summary['speedup']:.2f}x\n"
        f"accuracy over 10,000 pictures: {summary['accuracy']:.2%}, dense twin {summary['dense_accuracy']:.2%}\n"
        f"{summary['clock_cycles_simulated']} clock cycles simulated at {summary['simulated_khz']:.0f} kHz\n"
        f"pictures: {output / 'result.png'}, figures: {output / 'result.json'}"
    )
    if not summary["bit_exact"]:
        raise typer.Exit(1)
