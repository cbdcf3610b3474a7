"""One module per command: `configure(parser)` declares the arguments, `run(args)` does the work.

The modules import slow packages (MindSpore, matplotlib) inside `run`, so that `cswin --help` answers immediately.
"""
