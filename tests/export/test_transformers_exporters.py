"""transformers' own exporters take the models as they are, with clips and frames in any number."""

import pytest
import torch
from transformers import exporters

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncModel
from helpers.tiny import tiny_config, tiny_inputs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("format", "model_class", "modality"),
    [
        pytest.param("Dynamo", CavMaeSyncModel, "multimodal", marks=pytest.mark.slow),
        pytest.param("Dynamo", CavMaeSyncForAudioVisualClassification, "video", marks=pytest.mark.slow),
        pytest.param("Onnx", CavMaeSyncForAudioVisualClassification, "multimodal", marks=pytest.mark.slow),
        ("Onnx", CavMaeSyncModel, "audio"),
    ],
)
def test_exporter__gives_a_program_for_any_number_of_clips_and_frames(format, model_class, modality, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "Onnx" else ():
        pytest.importorskip(package)
    model = model_class(tiny_config(modality=modality)).eval()
    left_out = {"audio": "pixel_values_videos", "video": "input_values"}.get(modality)

    def inputs(batch_size: int, num_frames: int) -> dict[str, torch.Tensor]:
        given = tiny_inputs(batch_size, num_frames)
        return {name: value for name, value in given.items() if name != left_out}

    exporter, config = getattr(exporters, f"{format}Exporter")(), getattr(exporters, f"{format}Config")(dynamic=True)
    exporter.export(model, inputs(2, 3), config=config).save_pretrained(tmp_path)
    exported = exporters.ExportedModel.from_pretrained(tmp_path, trust_remote_code=True)

    for sizes in ((2, 3), (3, 2)):
        with torch.no_grad():
            expected = model(**inputs(*sizes))
        found = exported(**inputs(*sizes))
        for name in ("logits", "audio_embeds", "video_embeds", "similarity"):
            assert (name in expected) == (name in found)
            if name in expected:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
