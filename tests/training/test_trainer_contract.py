"""transformers' own Trainer takes the models as they are: training, evaluation and prediction."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification, CavMaeSyncForPreTraining
from helpers.tiny import tiny_config, tiny_inputs


class Clips(torch.utils.data.Dataset):
    def __init__(self, labels: bool):
        inputs = tiny_inputs(batch_size=5, num_frames=2)
        self.rows = [{name: value[row] for name, value in inputs.items()} for row in range(5)]
        if labels:
            self.rows = [row | {"labels": number % 5} for number, row in enumerate(self.rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


@pytest.mark.parametrize("model_class", [CavMaeSyncForPreTraining, CavMaeSyncForAudioVisualClassification])
def test_trainer__trains_evaluates_and_predicts(model_class, tmp_path):
    model = model_class(tiny_config())
    clips = Clips(labels=model_class is CavMaeSyncForAudioVisualClassification)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=2,
        eval_strategy="steps", eval_steps=1, use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=clips, eval_dataset=clips)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    predictions = trainer.predict(clips).predictions
    # The last batch of 5 holds one clip: every row of every output must still be there.
    if isinstance(model, CavMaeSyncForPreTraining):
        assert [array.shape for array in predictions] == [(5, 2, 32), (5, 2, 32)]
    else:
        assert predictions.shape == (5, 5)
