# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The encoder for MTEB: what it makes of rows, and real MTEB tasks, made on the spot."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, MissingTrackError, ModelError, save_for_hub
from cavmae_sync_hf.evaluation.mteb import MtebEncoder
from cavmae_sync_hf.metrics import clip_similarity
from helpers.clips import noise, numbered_frame, write_clip, write_clips
from helpers.tiny import tiny_config
from helpers.words import save as save_words
from helpers.words import text_model

needs_mteb = pytest.mark.skipif(
    not (importlib.util.find_spec("mteb") and importlib.util.find_spec("datasets")), reason="mteb is not installed"
)
RATE = 16000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config()).eval()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> str:
    return str(save_for_hub(model, processor, tmp_path_factory.mktemp("saved") / "tiny"))


@pytest.fixture(scope="module")
def encoder(folder):
    return MtebEncoder(folder, device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("clips"), 4, loud=0.1)


@pytest.fixture(scope="module")
def embeds(model, processor, clips):
    """Every moment's embeddings of sound alone and of pictures alone."""
    with torch.no_grad():
        sounds = model.get_audio_features(processor(audio=clips, return_tensors="pt")["input_values"])
        pictures = model.get_video_features(processor(videos=clips, return_tensors="pt")["pixel_values_videos"])
    return sounds.audio_embeds, pictures.video_embeds


def loader(rows: list[dict], batch_size: int = 3) -> DataLoader:
    def collate(batch):
        return {name: [row[name] for row in batch] for name in batch[0]}

    return DataLoader(rows, batch_size=batch_size, collate_fn=collate)


def mean_vectors(moments: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(moments.mean(dim=1), dim=-1).numpy()


# Rows to vectors


def test_encode__one_vector_per_row_is_the_mean_of_its_moments(encoder, clips, embeds):
    found = encoder.encode(loader([{"audio": clip, "id": clip} for clip in clips]), batch_size=2)

    assert found.shape == (4, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, mean_vectors(embeds[0]), atol=1e-5)
    seen = encoder.encode(loader([{"video": clip} for clip in clips]))
    np.testing.assert_allclose(seen, mean_vectors(embeds[1]), atol=1e-5)


def test_encode__frames_give_the_published_similarity(folder, clips, embeds):
    encoder = MtebEncoder(folder, device="cpu", pooling="frames")
    heard = encoder.encode(loader([{"audio": clip} for clip in clips]))
    seen = encoder.encode(loader([{"video": clip} for clip in clips]))

    assert heard.shape == (4, 4 * 32)
    similarity = encoder.similarity(heard, seen)
    torch.testing.assert_close(similarity, clip_similarity(*embeds, "diagonal_mean"), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.similarity_pairwise(heard, seen), similarity.diagonal(), rtol=0, atol=1e-6)
    # A still picture is compared with every moment.
    still = encoder.encode(loader([{"image": Image.fromarray(numbered_frame(1))}]))
    moment = encoder.model.get_video_features(
        encoder.processor(videos=[Image.fromarray(numbered_frame(1))], return_tensors="pt")["pixel_values_videos"]
    ).video_embeds[0, 0]
    wanted = (embeds[0] @ moment).mean(dim=1).detach()
    torch.testing.assert_close(encoder.similarity(heard, still)[:, 0], wanted, rtol=0, atol=1e-5)


def test_encode__sound_and_picture_of_a_row_are_joined(encoder, model, clips):
    found = encoder.encode(loader([{"video": clip, "audio": clip} for clip in clips[:2]]))

    with torch.no_grad():
        output = model(**encoder.processor(videos=clips[:2], return_tensors="pt"))
    both = (mean_vectors(output.audio_embeds) + mean_vectors(output.video_embeds)) / 2
    np.testing.assert_allclose(found, both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-5)


def test_encode__forms_of_sound_and_pictures(encoder, model, processor):
    waveforms = [noise(seconds, rate=RATE, channels=1, seed=4)[0] for seconds in (1.0, 0.5)]
    rows = [{"audio": {"array": waveform, "sampling_rate": RATE}} for waveform in waveforms]
    with torch.no_grad():
        wanted = model.get_audio_features(
            processor(audio=waveforms, sampling_rate=RATE, return_tensors="pt")["input_values"]
        )
    np.testing.assert_allclose(encoder.encode(loader(rows)), mean_vectors(wanted.audio_embeds), atol=1e-5)

    frames = [np.stack([numbered_frame(number) for number in range(count)]) for count in (4, 2, 4)]
    found = encoder.encode(loader([{"video": pictures} for pictures in frames]))
    for vector, pictures in zip(found, frames, strict=True):
        pixels = processor(videos=[pictures], return_tensors="pt")["pixel_values_videos"]
        wanted = mean_vectors(model.get_video_features(pixels).video_embeds.detach())[0]
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_encode__rows_of_different_shapes_share_a_batch(encoder):
    image = Image.fromarray(numbered_frame(2))
    frames = np.stack([numbered_frame(number) for number in range(4)])

    together = encoder.encode(loader([{"video": frames}, {"video": image}]), batch_size=2)
    alone = [encoder.encode(loader([{name: value}])) for name, value in (("video", frames), ("image", image))]

    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_encode__what_cannot_be_embedded_is_named(encoder, folder, clips, tmp_path):
    class Task:
        name = "CaptionTask"

    with pytest.raises(ValueError, match="CaptionTask: a row has text, of which this model"):
        encoder.encode(loader([{"text": "a dog barks"}]), task_metadata=Task)
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        encoder.encode(loader([{"video": "nowhere.mp4"}]))
    silent = str(write_clip(tmp_path / "silent.mp4", audio=False))
    with pytest.raises(MissingTrackError, match=r"silent\.mp4"):
        encoder.encode(loader([{"audio": silent}]))
    with pytest.raises(ValueError, match="no rows"):
        encoder.encode(loader([]))
    frames = MtebEncoder(folder, device="cpu", pooling="frames")
    two = np.stack([numbered_frame(number) for number in range(2)])
    with pytest.raises(ValueError, match='2 frames, and pooling="frames" needs 4'):
        frames.encode(loader([{"video": two}]))


def test_encoder__bad_models_and_options(folder, tmp_path):
    with pytest.raises(ValueError, match="`pooling` is 'max'"):
        MtebEncoder(folder, pooling="max")
    with pytest.raises(ModelError, match="nofolder is not a folder"):
        MtebEncoder("nofolder")
    with pytest.raises(ModelError, match="no owner/name at revision v1"):
        MtebEncoder("owner/name", "v1")


# MTEB itself


def make_task(kind: str, category: str, clips: list[str]):
    """A task as MTEB's own are written, over files at hand."""
    from datasets import Audio, Dataset, Video
    from mteb.abstasks import AbsTaskClustering
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    columns = {"a": ("audio", Audio(decode=True)), "v": ("video", Video(decode=True))}
    facts = dict.fromkeys(
        ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect",
         "sample_creation", "bibtex_citation"),
    )  # fmt: skip
    names = [columns[letter][0] for letter in category.split("2")[0] + category.split("2")[1].strip("c")]
    described = TaskMetadata(
        name=f"Tiny{kind}",
        description="Made on the spot.",
        dataset={"path": "tiny/tiny", "revision": "1"},
        type="Any2AnyRetrieval" if kind == "Retrieval" else "VideoClustering",
        category=category,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10" if kind == "Retrieval" else "v_measure",
        modalities=sorted(set(names)),
        **facts,
    )
    ids = [str(place) for place in range(len(clips))]

    def rows(letters: str, **more):
        made = Dataset.from_dict({columns[letter][0]: clips for letter in letters} | more)
        for letter in letters:
            made = made.cast_column(*columns[letter])
        return made

    class TinyRetrieval(AbsTaskRetrieval):
        metadata = described

        def load_data(self, num_proc=None, **_):
            query, document = category.split("2")
            self.dataset = {
                "default": {
                    "test": {
                        "queries": rows(query, id=ids),
                        "corpus": rows(document, id=ids),
                        "relevant_docs": {name: {name: 1} for name in ids},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    class TinyClustering(AbsTaskClustering):
        metadata = described
        max_fraction_of_documents_to_embed = None
        input_column_name = tuple(names)
        label_column_name = "label"

        def load_data(self, num_proc=None, **_):
            self.dataset = {"test": rows(category.split("2")[0], label=[place % 2 for place in range(len(clips))])}
            self.data_loaded = True

    return TinyRetrieval() if kind == "Retrieval" else TinyClustering()


def run_task(encoder, task) -> dict:
    import mteb

    found = mteb.evaluate(
        encoder,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": 3, "show_progress_bar": False},
    )
    return found.task_results[0].scores["test"][0]


@needs_mteb
@pytest.mark.parametrize(("pooling", "strategy"), [("mean", "mean"), ("frames", "diagonal_mean")])
def test_mteb__retrieval_task_has_the_scores_of_the_embeddings(folder, clips, embeds, pooling, strategy):
    scores = run_task(MtebEncoder(folder, device="cpu", pooling=pooling), make_task("Retrieval", "a2v", clips))

    vectors = [torch.from_numpy(mean_vectors(side))[:, None] for side in embeds] if pooling == "mean" else embeds
    similarity = clip_similarity(*vectors, strategy)
    ranks = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    assert scores["recall_at_1"] == pytest.approx((ranks < 1).float().mean().item(), abs=1e-4)
    assert scores["ndcg_at_10"] == pytest.approx((1 / torch.log2(ranks + 2.0)).mean().item(), abs=1e-4)


@needs_mteb
def test_mteb__clustering_task_of_both_tracks_runs(encoder, clips):
    scores = run_task(encoder, make_task("Clustering", "va2c", clips))

    assert 0.0 <= scores["v_measure"] <= 1.0


@needs_mteb
def test_mteb__knows_the_encoder_and_its_modalities(encoder, folder, tmp_path):
    import mteb
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert meta.name == "local/tiny" and meta.embed_dim == 32 and set(meta.modalities) == {"audio", "video", "image"}
    assert meta.n_parameters == sum(parameter.numel() for parameter in encoder.model.parameters())
    assert MtebEncoder(folder, device="cpu", pooling="frames").mteb_model_meta.embed_dim == 4 * 32
    torch.manual_seed(0)
    alone = CavMaeSyncModel(tiny_config(modality="audio"))
    other = save_for_hub(alone, CavMaeSyncProcessor.from_config(alone.config), tmp_path / "heard")
    heard = MtebEncoder(str(other), device="cpu")
    assert heard.mteb_model_meta.modalities == ["audio"]
    with pytest.raises(ValueError, match="TinyClustering"):
        mteb.evaluate(heard, make_task("Clustering", "v2c", ["clip.mp4"]), cache=None, co2_tracker=False)


@pytest.mark.parametrize("settings", [{}, {"projection_dim": 20}], ids=str)
@pytest.mark.parametrize("pooling", ["mean", "frames"])
def test_encode__texts_are_compared_with_moments(clips, tmp_path, settings, pooling):
    words, tokenizing = text_model(**settings)
    encoder = MtebEncoder(str(save_words(words, tokenizing, tmp_path / "words")), device="cpu", pooling=pooling)
    texts = ["a dog barks", "rain", "a dog " * 40]

    found = encoder.encode(loader([{"text": text} for text in texts]))
    heard = encoder.encode(loader([{"audio": clips[0]}]))

    tokens = tokenizing(text=texts, text_kwargs={"truncation": True}, return_tensors="pt")
    queries = words.get_text_features(**tokens).pooler_output
    inputs = tokenizing(audio=[clips[0]], return_tensors="pt")
    moments = words.get_audio_features(inputs["input_values"]).audio_embeds[0]
    expected = queries @ (moments.mean(dim=0) if pooling == "frames" else torch.nn.functional.normalize(
        moments.mean(dim=0), dim=0))  # fmt: skip
    np.testing.assert_allclose(encoder.similarity(found, heard)[:, 0], expected.detach(), atol=1e-5)
    assert "text" in encoder.mteb_model_meta.modalities
    assert encoder.mteb_model_meta.embed_dim == found.shape[1]
