"""Measure how much of the classes can be read off a frozen model's features, by linear probes.

    python training/run_probe.py training/recipes/probe/syncworld.yaml --model MODEL
    python training/run_probe.py training/recipes/probe/vggsound.yaml --model MODEL \\
        --train_data SHARDS --eval_data '{"test": "SHARDS"}'
    torchrun --nproc_per_node 8 training/run_probe.py ...      # the processes share the extraction

Features are computed once and kept, so that other strengths or sums of features take seconds. The first argument may
be a recipe, a YAML file of settings; flags of the same names win over it. The most used ones:

    --model MODEL                     folder or Hub name of a model
    --output_dir FOLDER               where metrics.json and the features go
    --train_data, --eval_data         folders of shards with labels (`cavmae-sync prepare`), or of video files
    --syncworld JSON                  makes a synthetic world with known sound sources, to fit and evaluate on
    --features a v a+v av             what is probed: audio, video, both side by side, both fused
    --baselines random_weights shuffled_labels
    --overwrite                       replaces an earlier metrics.json; kept features are used again
    --refresh_cache true              replaces kept features of another model or set, which are refused otherwise

`--help-all` lists all of them: those of ProbeArguments.
"""

import sys


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0

    # Behind the help, which does not wait for torch.
    from accelerate import PartialState
    from rich.table import Table

    from cavmae_sync_hf.cli import terminal
    from cavmae_sync_hf.training import ProbeArguments, parse_arguments, run_probe

    (arguments,) = parse_arguments((ProbeArguments,), ["--help" if word == "--help-all" else word for word in words])
    process = PartialState(cpu=arguments.device == "cpu")
    with terminal.progress_bar("extracting") as show:
        rows = run_probe(arguments, process=process, progress=show if process.is_main_process else None)
    for name in dict.fromkeys(row["set"] for row in rows):
        table = Table("weights", "labels", "features", "mAP", "ROC area", "d'", "accuracy", "C")
        mine = [row for row in rows if row["set"] == name]
        for row in mine:
            values = (row[key] for key in ("mean_average_precision", "mean_roc_auc", "d_prime", "accuracy"))
            names = (row["weights"], row["labels"], row["features"])
            table.add_row(*names, *(f"{value:.3f}" for value in values), f"{row['strength']:g}")
        chance = mine[0]["chance"]
        terminal.say(
            f"{name}: {mine[0]['samples']} clips, {mine[0]['classes']} classes; chance: mAP "
            f"{chance['mean_average_precision']:.3f}, ROC area 0.5, accuracy {chance['accuracy']:.3f}"
        )
        terminal.console.print(table)
    unfinished = [row["features"] for row in rows if not row["converged"]]
    if unfinished:
        terminal.say(f"Not converged: {', '.join(dict.fromkeys(unfinished))}; raise --max_iterations.")
    return 0


if __name__ == "__main__":
    from cavmae_sync_command import run_script

    run_script(main, "Features that were cached are kept; run the same command again.")
