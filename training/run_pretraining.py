"""Pretrain CAV-MAE Sync or CAV-MAE, on one CPU, one GPU or many.

    python training/run_pretraining.py training/recipes/pretraining/syncworld_tiny.yaml
    torchrun --nproc_per_node 8 training/run_pretraining.py training/recipes/pretraining/audioset.yaml --train_data DIR
    accelerate launch --config_file training/accelerate/fsdp2.yaml training/run_pretraining.py RECIPE

The first argument may be a recipe, a YAML file of settings; flags of the same names win over it. The most used ones:

    --output_dir FOLDER               where checkpoints, the final model and metrics.json go
    --train_data, --eval_data         folders of shards (`cavmae-sync prepare`), or of video files
    --syncworld JSON                  makes a synthetic world with known sound sources, to train and evaluate on
    --init_from MODEL                 a model folder or Hub name, a published .pth file, an ImageNet MAE file
    --model_config JSON               settings of CavMaeSyncConfig, such as '{"contrastive_loss_weight": 1.0}'
    --max_steps, --num_train_epochs, --per_device_train_batch_size, --learning_rate, --bf16, --torch_compile
    --resume_from_checkpoint auto     goes on from the newest whole checkpoint of output_dir, if there is one
    --overwrite                       starts anew in an output_dir that holds an earlier run
    --push_to_hub --hub_model_id NAME uploads model, processor, code and card at the end

`--help-all` lists all of them: those of ModelArguments, DataArguments and PretrainingArguments, and with the latter
all of transformers' TrainingArguments.
"""

import sys


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0

    # Behind the help, which does not wait for torch.
    from transformers.utils import logging

    from cavmae_sync_hf.training import (
        CavMaeSyncTrainer,
        DataArguments,
        ModelArguments,
        PretrainingArguments,
        build_for_pretraining,
        build_sets,
        check_output,
        parse_arguments,
        run_to_end,
    )

    kinds = (ModelArguments, DataArguments, PretrainingArguments)
    model_arguments, data_arguments, training_arguments = parse_arguments(
        kinds, ["--help" if word == "--help-all" else word for word in words]
    )
    logging.set_verbosity(training_arguments.get_process_log_level())
    check_output(training_arguments)  # before the work, not after it

    model, processor = build_for_pretraining(model_arguments, training_arguments.seed)
    with training_arguments.main_process_first(desc="data preparation"):
        train_set, evaluation_sets = build_sets(
            data_arguments,
            processor,
            seed=training_arguments.seed,
            batch_size=training_arguments.per_device_train_batch_size,
            is_main=training_arguments.process_index == 0,
        )
    trainer = CavMaeSyncTrainer(
        model, training_arguments, processor=processor, train_dataset=train_set, evaluation_sets=evaluation_sets
    )
    return run_to_end(trainer)


if __name__ == "__main__":
    from cavmae_sync_command import run_script

    run_script(main, "Whole checkpoints in output_dir are kept; --resume_from_checkpoint auto goes on from the last.")
