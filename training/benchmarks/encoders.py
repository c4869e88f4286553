"""What encoders of transformers cost and give in place of this package's towers.

    python training/benchmarks/encoders.py recall --world outputs/syncworld --seeds 0 1 --steps 300
    python training/benchmarks/encoders.py step
    python training/benchmarks/encoders.py context outputs/encoders/encoders_0 outputs/encoders/clips_0

`recall` trains on SyncWorld with the recipe `syncworld_tiny`, once with the towers and once with a ViT and an AST of
the same width, depth, patches and first positions from scratch, in as many steps, and prints the held-out recall of
each seed. The world is made where it is not there yet. The variant `clips` is the ViT and AST with
`audio_context="clip"`: the AST hears 2.56 s (`--clip-length`) at once. Such a model has no reconstruction.

`step` times a training step with a frozen DINOv2 and AST (random weights, ViT-B sizes unless `--small`) on clips, on
kept tokens, and with both trained. A step is forward, backward and Adam, on a batch in memory; the variants take
turns, and each value is the median over the rounds.

`context` asks of trained models what a moment's embedding owes to what surrounds its window: with all sound its own,
with another clip's sound in the window alone, and with another clip's sound everywhere but in the window.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForPreTraining, CavMaeSyncProcessor, load_model
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.model.modeling_cavmae_sync import sincos_positions
from cavmae_sync_hf.training.freezing import freeze_unused
from cavmae_sync_hf.training.pretrain import pretrain

# The sizes of `syncworld_tiny`.
TINY: dict[str, Any] = {
    "hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 384, "num_modality_layers": 3,
    "num_register_tokens": 4, "image_size": 96, "audio_length": 128, "decoder_hidden_size": 48,
    "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 192,
    "audio_mask_ratio": 0.5, "video_mask_ratio": 0.5, "contrastive_loss_weight": 1.0,
    "reconstruction_loss_weight": 0.1, "bidirectional_contrast": True,
}  # fmt: skip
# transformers draws ViT's weights with 0.02, which is for a width of 768; the towers start Xavier-uniform, 0.1 here.
_SIZES = {
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 384,
    "initializer_range": 0.1,
}  # fmt: skip
FROM_SCRATCH: dict[str, Any] = {
    "video_encoder_config": _SIZES | {"model_type": "vit", "image_size": 96},
    "audio_encoder_config": _SIZES
    | {"model_type": "audio-spectrogram-transformer", "max_length": 128, "frequency_stride": 16, "time_stride": 16},
    # As of a tower: the output of the last layer, without a norm behind it.
    "video_encoder_layer": 3,
    "audio_encoder_layer": 3,
    "encoder_training": "full",
}
METRICS = ("semantic_audio_to_video_r1", "semantic_video_to_audio_r1", "semantic_shift_accuracy")


def _with_positions(folder: Path, seed: int, settings: dict[str, Any]) -> Path:
    """A folder with ViT and AST of random weights, whose positions start as the towers' are: sines and cosines."""
    torch.manual_seed(seed)
    model = CavMaeSyncForPreTraining(CavMaeSyncConfig(**settings))
    for modality in ("audio", "video"):
        places = model.model.tower(modality).encoder.embeddings.position_embeddings
        grid = getattr(model.config, f"{modality}_grid")
        if modality == "audio":  # of all that it hears, which may be more than a window
            grid = (grid[0], grid[1] * model.config.heard_length // model.config.audio_length)
        with torch.no_grad():
            places[:, -grid[0] * grid[1] :] = sincos_positions(grid, places.shape[-1])
    model.save_pretrained(folder)
    CavMaeSyncProcessor.from_config(model.config, alignment="time").save_pretrained(folder)
    return folder


def recall(arguments: argparse.Namespace) -> None:
    """Train and print."""
    world = {"folder": arguments.world, "size": 96, "train": arguments.clips}
    world |= {"semantic": arguments.held_out, "temporal": arguments.held_out, "spatial": 0}
    for name in arguments.variants:
        for seed in arguments.seeds:
            out = Path(arguments.out) / f"{name}_{seed}"
            began = time.perf_counter()
            words = ["syncworld_tiny", "--output_dir", str(out), "--seed", str(seed), "--disable_tqdm", "true"]
            words += ["--max_steps", str(arguments.steps), "--overwrite", "true"]
            if name == "towers":
                words += ["--model_config", json.dumps(TINY)]
            else:
                settings = TINY | FROM_SCRATCH
                if name == "clips":
                    longer = {"max_length": arguments.clip_length}
                    settings |= {
                        "audio_context": "clip", "audio_clip_length": arguments.clip_length,
                        "audio_encoder_config": settings["audio_encoder_config"] | longer,
                        "reconstruction_loss_weight": 0.0,
                    }  # fmt: skip
                    names = ("audio_mask_ratio", "video_mask_ratio", "contrastive_loss_weight",
                             "reconstruction_loss_weight", "bidirectional_contrast")  # fmt: skip
                    words += ["--model_config", json.dumps({name: settings[name] for name in names})]
                words += ["--init_from", str(_with_positions(out.with_name(f"{out.name}_start"), seed, settings))]
            words += ["--syncworld", json.dumps(world), "--save_strategy", "no", "--log_level", "error"]
            if pretrain(words):
                sys.exit(1)
            found = json.loads((out / "metrics.json").read_text())
            shown = {key: value for key, value in found.items() if key.removeprefix("eval_") in METRICS}
            print(name, "seed", seed, shown, f"{time.perf_counter() - began:.0f} s", flush=True)


@torch.no_grad()
def context(arguments: argparse.Namespace) -> None:
    """Embed held-out clips with sound of other clips in and around the windows, and print what is still known."""
    for folder in arguments.models:
        model, processor = load_model(folder)
        dataset = CavMaeSyncDataset(arguments.data, processor, frames="all")
        batch = CavMaeSyncCollator(processor)([dataset[number] for number in range(len(dataset))])
        rows, count = batch["input_values"], batch["input_values"].shape[1]
        offsets = batch.get("window_offsets", torch.zeros(rows.shape[:2], dtype=torch.long))
        steps = torch.arange(rows.shape[2]) - offsets.unsqueeze(-1)
        within = ((steps >= 0) & (steps < model.config.audio_length)).unsqueeze(-1)
        other = rows.roll(1, dims=0)
        heard = {
            "all its own": rows,
            "another's in the window": torch.where(within, other, rows),
            "another's around the window": torch.where(within, rows, other),
            "all another's": other,
        }
        video = torch.cat(
            [model(pixel_values_videos=frames).video_embeds for frames in batch["pixel_values_videos"].split(10)]
        )
        times = batch["frame_times"]
        apart = (times.unsqueeze(1) - times.unsqueeze(2)).abs() >= 2.0  # (clips, moments, moments)
        for name, values in heard.items():
            parts = []
            for some, where in zip(values.split(10), offsets.split(10), strict=True):
                more = {"window_offsets": where} if "window_offsets" in batch else {}
                parts.append(model(input_values=some, **more).audio_embeds)
            audio = torch.cat(parts)
            similarity = audio @ video.transpose(1, 2)  # (clips, moments of audio, frames)
            own = similarity.diagonal(dim1=1, dim2=2).unsqueeze(-1)
            told = (own > similarity)[apart].float().mean().item()
            clips = torch.einsum("afh,vfh->av", audio, video)  # same moments, as the evaluation in training
            found = (clips.argmax(dim=1) == torch.arange(len(clips))).float().mean().item()
            print(
                f"{folder}, sound {name}: R@1 {found:.1%} of {len(clips)} clips, own frame above one 2 s or more "
                f"away {told:.1%} ({count} moments a clip)", flush=True,
            )  # fmt: skip


def step(arguments: argparse.Namespace) -> None:
    """Time and print."""
    small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
    sizes = small if arguments.small else {}
    encoders: dict[str, Any] = {
        "video_encoder_config": {"model_type": "dinov2"} | sizes,
        "audio_encoder_config": {"model_type": "audio-spectrogram-transformer"} | sizes,
    }
    settings = encoders | {
        "contrastive_loss_weight": 1.0, "audio_mask_ratio": 0.0, "video_mask_ratio": 0.0,
        "decoder_num_hidden_layers": 1,
    }  # fmt: skip
    if arguments.small:
        settings |= {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 384}
    batch, variants = arguments.batch_size, {}
    clips = {
        "pixel_values_videos": torch.randn(batch, 1, 3, 224, 224),
        "input_values": torch.randn(batch, 1, 416, 128),
    }
    for training in ("frozen", "full"):
        torch.manual_seed(0)
        model = CavMaeSyncForPreTraining(CavMaeSyncConfig(**settings, encoder_training=training)).train()
        model.to(arguments.device)
        freeze_unused(model)
        inputs = {name: value.to(arguments.device) for name, value in clips.items()}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        variants[f"{training}, clips" if training == "frozen" else "trained in full"] = (
            model, inputs, torch.optim.AdamW(trained, fused=True),
        )  # fmt: skip
        if training == "frozen":
            names = {"video": "pixel_values_videos", "audio": "input_values"}
            with torch.no_grad():
                kept = {
                    f"{modality}_tokens": model.model.encode_tokens(modality, inputs[name]).half()
                    for modality, name in names.items()
                }
            variants["frozen, kept tokens"] = (model, kept, torch.optim.AdamW(trained, fused=True))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(arguments.rounds + 1):
        for name, (model, inputs, optimizer) in variants.items():
            began = time.perf_counter()
            optimizer.zero_grad()
            model(**inputs).loss.backward()
            optimizer.step()
            if torch.device(arguments.device).type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first one warms up
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    slow = medians["frozen, clips"]
    for name, taken in medians.items():
        print(f"{name:<20} {1000 * taken:9.1f} ms a step of {batch} pairs, {slow / taken:5.2f} times the first's rate")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("recall")
    one.add_argument("--world", default="outputs/syncworld")
    one.add_argument("--out", default="outputs/encoders")
    one.add_argument("--clips", type=int, default=1500)
    one.add_argument("--held-out", type=int, default=200)
    one.add_argument("--steps", type=int, default=400)
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.add_argument("--variants", nargs="+", default=["towers", "encoders"], choices=["towers", "encoders", "clips"])
    one.add_argument("--clip-length", type=int, default=256, help="Of the variant `clips`, steps of 10 ms.")
    one.set_defaults(run=recall)
    two = commands.add_parser("step")
    two.add_argument("--batch-size", type=int, default=4)
    two.add_argument("--rounds", type=int, default=5)
    two.add_argument("--device", default="cpu")
    two.add_argument("--small", action="store_true", help="Narrow encoders, for a quick look.")
    two.set_defaults(run=step)
    three = commands.add_parser("context")
    three.add_argument("models", nargs="+", help="Folders of trained models, of `recall`.")
    three.add_argument("--data", default="outputs/syncworld/shards_time_16/semantic", help="Held-out clips.")
    three.set_defaults(run=context)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
