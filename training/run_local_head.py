"""Train a model's local heads: the command `cavmae-sync local-head`, as a script.

    python training/run_local_head.py RECIPE --model MODEL

`cavmae-sync recipes` lists the recipes; `--help` shows the flags.
"""

from cavmae_sync_command import main

if __name__ == "__main__":
    main("local-head")
