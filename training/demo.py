"""From a video file to aligned embeddings: `make demo`, or

    python training/demo.py                                        # a made clip, a small random model
    python training/demo.py --video my.mp4 --model my/checkpoint   # your own

Decodes both tracks of the file in one pass, loads model and processor through `AutoModel` and `AutoProcessor`, embeds
every audio window and every frame, and draws their similarities to `outputs/demo/similarity.png`.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncModel, CavMaeSyncProcessor, save_for_hub
from cavmae_sync_hf.data.world import make_world

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="a video file with sound; made on the spot when absent")
    parser.add_argument("--model", help="folder or Hub name of a model; a small one with random weights when absent")
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    return parser.parse_args()


def made_video(folder: Path) -> Path:
    """One clip of SyncWorld: an mp4 with H.264 picture and AAC sound in which every source is known."""
    return make_world(folder / "world", clips=1, split="demo", size=224, fps=25, seed=1).folder / "000000.mp4"


def random_model(folder: Path) -> Path:
    """A folder as it lies on the Hub, with a small untrained model and its processor."""
    torch.manual_seed(0)
    config = CavMaeSyncConfig(
        hidden_size=96, num_attention_heads=4, intermediate_size=384, num_modality_layers=3, num_register_tokens=4
    )
    return save_for_hub(
        CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config), folder / "model", overwrite=True
    )


def draw_similarity(similarity: torch.Tensor, inputs: dict[str, torch.Tensor], processor: object, path: Path) -> None:
    """The window-by-frame matrix with the frames along its top and the spectrogram windows along its side."""
    frames, windows = inputs["pixel_values_videos"][0], inputs["input_values"][0]
    times = inputs["frame_times"][0].tolist()
    mean, std = (
        torch.tensor(getattr(processor.video_processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    pictures = ((frames * std + mean).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    count = len(times)
    figure = pyplot.figure(figsize=(11, 9.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=[1.3, count / 1.6, 0.35], height_ratios=[1, count / 1.6])
    top, side, middle = (figure.add_subplot(grid[place]) for place in ((0, 1), (1, 0), (1, 1)))
    top.imshow(np.concatenate(list(pictures[:, ::2, ::2]), axis=1), aspect="auto")
    top.set_title("frames")
    side.imshow(torch.cat(list(windows[:, ::8])).numpy(), aspect="auto", origin="upper", cmap="magma")
    side.set_title("windows")
    for axis in (top, side):
        axis.set(xticks=[], yticks=[])
    image = middle.imshow(similarity.numpy(), aspect="auto", cmap="viridis")
    labels = [f"{time:.1f}" for time in times]
    middle.set(
        xticks=range(count), yticks=range(count), xlabel="time of the frame (s)", ylabel="centre of the window (s)"
    )
    middle.set_xticklabels(labels, fontsize=8)
    middle.set_yticklabels(labels, fontsize=8)
    figure.colorbar(image, cax=figure.add_subplot(grid[1, 2]), label="cosine similarity")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    video = arguments.video or made_video(arguments.out)
    source = arguments.model or random_model(arguments.out)

    model, processor = AutoModel.from_pretrained(source).eval(), AutoProcessor.from_pretrained(source)
    inputs = processor(videos=str(video), return_tensors="pt", return_times=True)
    with torch.inference_mode():
        output = model(**inputs)

    similarity = output.similarity[0]
    draw_similarity(similarity, inputs, processor, arguments.out / "similarity.png")
    np.savez(
        arguments.out / "embeddings.npz",
        audio_embeds=output.audio_embeds[0].numpy(),
        video_embeds=output.video_embeds[0].numpy(),
        frame_times=np.asarray(inputs["frame_times"][0]),
    )
    others = similarity[~torch.eye(len(similarity), dtype=torch.bool)]
    print(f"video       {video}")
    print(
        f"model       {type(model).__name__} through AutoModel, {sum(p.numel() for p in model.parameters()):,} weights"
    )
    print(f"audio       {tuple(inputs['input_values'].shape)} -> audio_embeds {tuple(output.audio_embeds.shape)}")
    print(
        f"frames      {tuple(inputs['pixel_values_videos'].shape)} -> video_embeds {tuple(output.video_embeds.shape)}"
    )
    print(f"similarity  same moment {similarity.diagonal().mean():+.3f}, other moments {others.mean():+.3f}", end="")
    print("" if arguments.model else "   (random weights: the two must not differ)")
    print(f"written     {arguments.out / 'similarity.png'}, {arguments.out / 'embeddings.npz'}")


if __name__ == "__main__":
    main()
