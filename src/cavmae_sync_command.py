# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Entry point of the `cavmae-sync` script.

Importing `cavmae_sync_hf` registers its classes with transformers, which loads torch and takes seconds. The script
does not need that to parse its arguments or to print its help, so it starts here, outside the package, and asks for
the import without the registration; a subcommand that needs the registration does it. Nothing else asks for that:
neither a program that imports the package, nor this script's worker processes, which import this module but do not
run `main`.
"""

from typing import NoReturn

# Read by `cavmae_sync_hf` while it is imported.
defer_registration = False


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    global defer_registration
    defer_registration = True
    try:
        from cavmae_sync_hf.cli import main as run
    finally:
        defer_registration = False
    run()


__all__ = ["main"]
