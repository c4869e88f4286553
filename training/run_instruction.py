"""Train a language model on chats about clips: the command `cavmae-sync instruct`, as a script.

    python training/run_instruction.py RECIPE --model MODEL --text_model MODEL

`cavmae-sync recipes` lists the recipes; `--help` shows the flags.
"""

from cavmae_sync_command import main

if __name__ == "__main__":
    main("instruct")
