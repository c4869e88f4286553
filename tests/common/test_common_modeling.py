"""transformers' common model and configuration tests, over the three CAV-MAE Sync models."""

import unittest
from typing import Any

import torch
from common_harness import common_module, require_distribution

require_distribution()

from transformers import ASTConfig, ViTConfig  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig  # noqa: E402
from cavmae_sync_hf.model.modeling_cavmae_sync import (  # noqa: E402
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncModelOutput,
)

modeling_common = common_module("test_modeling_common")
configuration_common = common_module("test_configuration_common")

# The mixin asks these tables which class has no loss and which one takes labels; `register` fills others.
modeling_auto.MODEL_MAPPING_NAMES["cavmae_sync"] = "CavMaeSyncModel"
modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES["cavmae_sync"] = "CavMaeSyncForAudioVisualClassification"


class CavMaeSyncModelTester:
    """Tiny configuration and inputs in the form that the mixin asks for."""

    batch_size = 5
    num_frames = 2
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    num_labels = 3
    is_training = True
    audio_patches = 2 * 3
    video_patches = 2 * 2
    registers = 2
    attn_implementation = None
    # Tokens of a sample in the layer that the mixin looks at: global token, patches, registers.
    seq_length = 1 + video_patches + registers

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return CavMaeSyncConfig(
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            num_modality_layers=1,
            num_joint_layers=1,
            image_size=32,
            num_mel_bins=32,
            audio_length=48,
            num_frames=self.num_frames,
            num_register_tokens=self.registers,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=37,
            audio_mask_ratio=0.5,
            video_mask_ratio=0.5,
            num_labels=self.num_labels,
            attn_implementation=self.attn_implementation,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        frames = (self.batch_size, self.num_frames)
        floats = modeling_common.floats_tensor
        inputs = {
            "pixel_values_videos": floats([*frames, 3, config.image_size, config.image_size]),
            "input_values": floats([*frames, config.audio_length, config.num_mel_bins]),
            # The masks of pretraining must not be drawn anew in every call; the other models ignore them.
            "video_noise": floats([*frames, self.video_patches]),
            "audio_noise": floats([*frames, self.audio_patches]),
        }
        return config, inputs


class AudioView(CavMaeSyncModel):
    """The base model with the audio's hidden states and attentions under the names that the mixin reads.

    The model itself has two sequences per clip, of different lengths, and names them `audio_...` and `video_...`.
    """

    modality = "audio"

    def forward(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if return_dict is None:
            return_dict = self.config.return_dict
        output = super().forward(
            pixel_values_videos,
            input_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        recorded = ("hidden_states", "attentions")
        view = CavMaeSyncModelOutput(**{key: value for key, value in output.items() if not key.endswith(recorded)})
        for name in recorded:
            if f"{self.modality}_{name}" in output:
                view[name] = output[f"{self.modality}_{name}"]
        return view if return_dict else view.to_tuple()


class VideoView(AudioView):
    """As `AudioView`, of the frames."""

    modality = "video"


class PreTrainingView(CavMaeSyncForPreTraining):
    """Pretraining with its last tensors under `hidden_states`: the class gives none, the mixin compares that key."""

    def forward(self, pixel_values_videos: torch.Tensor | None = None, **kwargs: Any) -> Any:
        kwargs.pop("output_hidden_states", None)
        output = super().forward(pixel_values_videos, **kwargs)
        tensors = (output.audio_reconstruction, output.video_reconstruction, output.audio_embeds, output.video_embeds)
        output["hidden_states"] = (torch.cat([tensor.flatten(1) for tensor in tensors], dim=1),)
        return output


class CavMaeSyncModelTest(modeling_common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CavMaeSyncModel, CavMaeSyncForPreTraining, CavMaeSyncForAudioVisualClassification)
    additional_model_inputs = ("input_values", "video_noise", "audio_noise")
    test_resize_embeddings = False
    # The norms for one modality alone get no gradient where both are given, and the fused ones none in the encoder's
    # contrast; tests/test_modeling_contract.py pins the exact list.
    test_all_params_have_gradient = False

    def setUp(self):
        self.model_tester = CavMaeSyncModelTester(self)
        self.config_tester = configuration_common.ConfigTester(
            self, config_class=CavMaeSyncConfig, has_text_modality=False, hidden_size=32, num_attention_heads=4
        )
        if self._testMethodName.startswith("test_eager_matches_sdpa_inference"):
            self.all_model_classes = (AudioView, VideoView, PreTrainingView, CavMaeSyncForAudioVisualClassification)
            if "output_attentions" in self._testMethodName:
                # Ours: test_attentions__need_eager_attention in tests/test_modeling_contract.py.
                self.skipTest("sdpa gives no attention probabilities; asking for them is an error by design")

    def test_config(self):
        # Settings of encoders are left out of a configuration without them, as in folders that were saved before there
        # were any; the mixin looks for them in each.
        plain, sizes = self.config_tester, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        encoders = {"audio_encoder_config": ASTConfig(**sizes), "video_encoder_config": ViTConfig(**sizes)}
        configuration_common.ConfigTester(
            self, config_class=CavMaeSyncConfig, has_text_modality=False, **encoders
        ).create_and_test_config_from_and_save_pretrained_composite()
        plain.create_and_test_config_from_and_save_pretrained_composite = lambda: None
        plain.run_common_tests()
        config = self.model_tester.get_config()
        self.assertEqual(CavMaeSyncConfig.from_dict(config.to_dict()).to_dict(), config.to_dict())

    def _each_view(self, test, recorded):
        """Run a test of hidden states or attentions for each modality, with its number of tokens; gives what the view
        records in a call of its own. The mixin looks at the last sizes alone.
        """
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for view, patches in ((AudioView, "audio_patches"), (VideoView, "video_patches")):
            with self.subTest(view.__name__):
                self.all_model_classes = (view,)
                self.model_tester.seq_length = 1 + getattr(self.model_tester, patches) + self.model_tester.registers
                test()
                model = view._from_config(config, attn_implementation="eager").eval()
                yield model(**inputs, **{f"output_{recorded}": True})[recorded]

    def test_hidden_states_output(self):
        tester = self.model_tester
        for found in self._each_view(super().test_hidden_states_output, "hidden_states"):
            self.assertEqual(len(found), tester.num_hidden_layers + 1)
            self.assertEqual({values.shape[:2] for values in found}, {(tester.batch_size, tester.num_frames)})

    def test_attention_outputs(self):
        tester = self.model_tester
        for found in self._each_view(super().test_attention_outputs, "attentions"):
            self.assertEqual(len(found), tester.num_hidden_layers)
            self.assertEqual({values.shape[:2] for values in found}, {(tester.batch_size, tester.num_frames)})

    def test_model_outputs_equivalence(self):
        # Asks for attentions, which only eager attention gives (others are refused), so it runs with that.
        self.model_tester.attn_implementation = "eager"
        super().test_model_outputs_equivalence()
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = CavMaeSyncModel(config).eval()
        named, plain = model(**inputs), model(**inputs, return_dict=False)
        self.assertIsInstance(plain, tuple)
        torch.testing.assert_close(plain, named.to_tuple())

    def test_model_get_set_embeddings(self):
        # The mixin wants a table of tokens; patches are projected by a convolution.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            projection = model.get_input_embeddings()
            self.assertIsInstance(projection, torch.nn.Conv2d)
            other = torch.nn.Conv2d(3, self.model_tester.hidden_size, 16, 16)
            model.set_input_embeddings(other)
            self.assertIs(model.get_input_embeddings(), other)

    def test_retain_grad_hidden_states_attentions(self):
        # The mixin retains gradients on the returned tensors. Ours are batch-first copies of what the layers, which
        # see (batch * frames) samples, compute, and lie beside the graph. So: the layers' own outputs, got by hooks,
        # are what is returned, and do get gradients.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = CavMaeSyncModel._from_config(config, attn_implementation="eager")
        seen = {"audio": [], "video": []}

        def keep(modality, tensors):
            for tensor in tensors:
                tensor.retain_grad()
                seen[modality].append(tensor)

        for modality in seen:
            layer = model.tower(modality).layers[0]
            layer.register_forward_hook(lambda module, args, output, modality=modality: keep(modality, output))
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        (output.audio_embeds[0, 0, 0] + output.video_embeds[0, 0, 0]).backward()
        for modality, (hidden_states, attentions) in seen.items():
            torch.testing.assert_close(output[f"{modality}_hidden_states"][1].flatten(0, 1), hidden_states)
            torch.testing.assert_close(output[f"{modality}_attentions"][0].flatten(0, 1), attentions)
            self.assertGreater(hidden_states.grad.abs().sum(), 0)
            self.assertGreater(attentions.grad.abs().sum(), 0)
