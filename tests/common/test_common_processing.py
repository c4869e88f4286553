"""transformers' common tests of feature extractors, video processors and processors, over ours."""

import unittest

import numpy as np
import torch
from common_harness import common_module, require_distribution

require_distribution()

from cavmae_sync_hf.model.feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor  # noqa: E402
from cavmae_sync_hf.model.processing_cavmae_sync import CavMaeSyncProcessor  # noqa: E402
from cavmae_sync_hf.model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor  # noqa: E402

sequence_common = common_module("test_sequence_feature_extraction_common")
video_common = common_module("test_video_processing_common")
processing_common = common_module("test_processing_common")


class CavMaeSyncFeatureExtractionTester:
    """Waveforms and settings in the form that the mixin asks for."""

    batch_size = 7
    min_seq_length = 400
    max_seq_length = 2000
    feature_size = 1
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"feature_size": 1, "num_frames": 4, "audio_length": 32, "num_mel_bins": 16, "padding_value": 0.0}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        generator = np.random.default_rng(0)
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        waveforms = [generator.random(self.max_seq_length if equal_length else length) for length in lengths]
        return waveforms if numpify else [waveform.tolist() for waveform in waveforms]


class CavMaeSyncFeatureExtractionTest(sequence_common.SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = CavMaeSyncFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = CavMaeSyncFeatureExtractionTester()

    # `pad` collects clips of windows: their mask is `padding_mask` unless `attention_mask` is asked for, and a length
    # that clips exceed is an error that names `truncation`, where the mixin wants the clips as they are. Ours, in
    # tests/model/test_feature_extraction.py: test_pad__fills_up_clips_with_fewer_windows, test_attention_mask__...
    test_attention_mask = None
    test_attention_mask_with_truncation = None
    test_padding_from_array = None
    test_padding_from_list = None
    test_truncation_from_array = None
    test_truncation_from_list = None


class CavMaeSyncVideoProcessingTester:
    """Random clips and settings in the form that the mixin asks for."""

    batch_size = 5
    num_frames = 8
    num_channels = 3

    def prepare_video_processor_dict(self):
        return {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}, "do_center_crop": True}

    def expected_output_video_shape(self, videos):
        return self.num_frames, self.num_channels, 18, 18

    def prepare_video_inputs(self, equal_resolution=False, return_tensors="pil"):
        return video_common.prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=80,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class CavMaeSyncVideoProcessingTest(video_common.VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = CavMaeSyncVideoProcessor
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        self.video_processor_tester = CavMaeSyncVideoProcessingTester()

    @property
    def video_processor_dict(self):
        return self.video_processor_tester.prepare_video_processor_dict()

    def test_call_sample_frames(self):
        # The mixin also samples by a rate, and refuses to take more frames than there are. The model takes a fixed
        # number of frames per clip: a rate is refused, and short clips repeat what is on screen.
        processor = CavMaeSyncVideoProcessor(**self.video_processor_dict)
        videos = self.video_processor_tester.prepare_video_inputs(return_tensors="torch")
        for given, number in ((videos[0], 1), (videos, self.video_processor_tester.batch_size)):
            for sample, wanted, expected in ((False, 3, 8), (True, 3, 3), (True, 10, 10)):
                pixels = processor(given, do_sample_frames=sample, num_frames=wanted, return_tensors="pt")
                self.assertEqual(pixels["pixel_values_videos"].shape[:2], (number, expected))
        with self.assertRaisesRegex(ValueError, "num_frames"):
            processor(videos, do_sample_frames=True, fps=3)
        for metadata in ({"fps": 4}, [{"fps": 4}], [[{"fps": 4}]], [video_common.VideoMetadata(8, fps=4)]):
            processor.alignment = "reference"  # which needs the rate
            processor(videos[0], do_sample_frames=True, video_metadata=metadata)


class ToldTheRate(CavMaeSyncProcessor):
    """The processor for inputs of the mixin, which names no sampling rate and hands out text settings.

    A missing rate is an error in ours, and unknown arguments are.
    """

    def __call__(self, videos=None, audio=None, text_kwargs=None, **kwargs):
        if audio is not None:
            kwargs.setdefault("sampling_rate", 16000)
        return super().__call__(videos, audio, **kwargs)


class CavMaeSyncProcessorTest(processing_common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = CavMaeSyncProcessor
    audio_input_name = "input_values"

    @classmethod
    def _setup_feature_extractor(cls):
        return CavMaeSyncFeatureExtractor(num_frames=8, audio_length=32, num_mel_bins=16)

    @classmethod
    def _setup_video_processor(cls):
        return CavMaeSyncVideoProcessor(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18})

    def get_processor(self, **kwargs):
        if "pretrained" in self._testMethodName:
            return super().get_processor(**kwargs)
        return ToldTheRate.from_pretrained(self.tmpdirname)

    def test_model_input_names(self):
        # The mixin wants every name every time. `padding_mask_videos` comes only when a frame is absent, so that the
        # model need not look for padding where there is none.
        processor = self.get_processor()
        videos, audio = self.prepare_videos_inputs(), self.prepare_audio_inputs()
        whole = processor(videos=videos, audio=audio, return_tensors="pt")
        names = set(processor.model_input_names)
        self.assertSetEqual(set(whole), names - {"padding_mask_videos"})
        partly = processor(videos=[videos, None], audio=audio * 2, missing="mask", return_tensors="pt")
        self.assertSetEqual(set(partly), names)

    def test_subprocessor_defaults_3_audio(self):
        # The mixin calls the feature extractor without a rate, which is an error here.
        processor, audio = self.get_processor(), self.prepare_audio_inputs()
        alone = processor.feature_extractor(audio, sampling_rate=16000, return_tensors="pt")
        together = processor(audio=audio, return_tensors="pt")
        self.assertSetEqual(set(alone), set(together))
        for name, values in alone.items():
            torch.testing.assert_close(values, together[name])

    def test_subprocessor_defaults_2_videos(self):
        # The mixin takes an exception of the processor for agreement; this does not.
        processor, videos = self.get_processor(), self.prepare_videos_inputs()
        alone = processor.video_processor(videos, do_sample_frames=False, return_tensors="pt")
        together = processor(videos=videos, return_tensors="pt")
        torch.testing.assert_close(alone["pixel_values_videos"], together["pixel_values_videos"])

    # The call spells out its arguments, `missing="error"` among them, so that each is documented; that they reach
    # their part is tested in tests/model/test_processing.py.
    # `audio_track` is a setting, which a call may set anew; the tokenizer is optional, and `None` where there is none.
    test_call_arguments_not_in_attributes = None
    test_init_arguments_not_in_class_attributes = None
    test_call_arguments_default_none = None
    test_call_arguments_not_in_processor_kwargs = None
