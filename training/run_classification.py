"""Train a classifier: the command `cavmae-sync finetune`, as a script for launchers that take one.

    torchrun --nproc_per_node 8 training/run_classification.py RECIPE --train_data SHARDS
    accelerate launch --config_file training/accelerate/fsdp2.yaml training/run_classification.py RECIPE

`cavmae-sync recipes` lists the recipes; `--help` shows the most used flags, `--help-all` all of them.
"""

from cavmae_sync_command import main

if __name__ == "__main__":
    main("finetune")
