"""Join a text encoder to a model: the command `cavmae-sync text`, as a script.

    python training/run_text.py RECIPE --model MODEL --text_model MODEL

`cavmae-sync recipes` lists the recipes; `--help` shows the flags.
"""

from cavmae_sync_command import main

if __name__ == "__main__":
    main("text")
