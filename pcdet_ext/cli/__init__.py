"""The command `pcdet` and its subcommands, one module each with `add_arguments(parser)` and `run(options) -> int`."""
