"""A program whose first stage is another one."""

from dataclasses import replace

from sentei.overlay.program import Program


def with_stage(program: Program, **changes) -> Program:
    return replace(program, stages=(replace(program.stages[0], **changes), *program.stages[1:]))
