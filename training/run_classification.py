"""Fine-tune CAV-MAE Sync or CAV-MAE to classify clips by audio, video or both.

    python training/run_classification.py training/recipes/classification/syncworld.yaml
    torchrun --nproc_per_node 4 training/run_classification.py training/recipes/classification/audioset_20k.yaml \\
        --train_data SHARDS --eval_data '{"eval": "SHARDS"}' --init_from MODEL

The first argument may be a recipe, a YAML file of settings; flags of the same names win over it. The most used ones:

    --output_dir FOLDER               where checkpoints, the final model and metrics.json go
    --train_data, --eval_data         folders of shards with labels (`cavmae-sync prepare`), or of video files
    --init_from MODEL                 a pretrained model: folder or Hub name, published .pth file, ImageNet MAE file
    --modality audio                  a model for audio alone (or video); default: both
    --classifier frame_attention      a head that attends over all frames of a clip; with --frames_per_clip 16
    --problem_type, --label_names     which loss; the classes, where they are not stored with the shards
    --freeze encoder                  train the head alone
    --lora_rank 8                     train low-rank changes to the encoder instead of its weights
    --head_lr_multiple 100            the head's learning rate over the encoder's
    --balanced_sampling true          rare classes come as often as common ones
    --augmentation JSON               masks, noise, mixup, label smoothing; or the preset cavmae_classification
    --average_epochs 3 15             the final weights are the mean of those after these epochs
    --load_best_model_at_end true --metric_for_best_model eval_NAME_mean_average_precision
    --resume_from_checkpoint auto     goes on from the newest whole checkpoint of output_dir, if there is one
    --push_to_hub --hub_model_id NAME uploads model, processor, code and card at the end

`--help-all` lists all of them: those of ClassificationModelArguments, DataArguments and ClassificationArguments, and
with the latter all of transformers' TrainingArguments.
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
        CavMaeSyncClassificationTrainer,
        ClassificationArguments,
        ClassificationModelArguments,
        DataArguments,
        augmentation_options,
        build_classifier,
        build_sets,
        check_output,
        find_labels,
        parse_arguments,
        run_to_end,
        starting_point,
    )

    kinds = (ClassificationModelArguments, DataArguments, ClassificationArguments)
    model_arguments, data_arguments, training_arguments = parse_arguments(
        kinds, ["--help" if word == "--help-all" else word for word in words]
    )
    logging.set_verbosity(training_arguments.get_process_log_level())
    check_output(training_arguments)  # before the work, not after it

    start = starting_point(model_arguments)
    with training_arguments.main_process_first(desc="data preparation"):
        train_set, evaluation_sets = build_sets(
            data_arguments,
            start.processor,
            seed=training_arguments.seed,
            batch_size=training_arguments.per_device_train_batch_size,
            is_main=training_arguments.process_index == 0,
        )
    labels = find_labels(train_set, evaluation_sets, model_arguments.class_names, model_arguments.problem_type)
    model = build_classifier(start, labels, model_arguments, training_arguments.seed)
    trainer = CavMaeSyncClassificationTrainer(
        model,
        training_arguments,
        processor=start.processor,
        augmentation=augmentation_options(data_arguments.augmentation),
        base_model=model_arguments.init_from,
        train_dataset=train_set,
        evaluation_sets=evaluation_sets,
    )
    return run_to_end(trainer)


if __name__ == "__main__":
    from cavmae_sync_command import run_script

    run_script(main, "Whole checkpoints in output_dir are kept; --resume_from_checkpoint auto goes on from the last.")
