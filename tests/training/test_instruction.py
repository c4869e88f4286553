# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`cavmae-sync instruct`: chats become tokens with labels, and a model that answers; what it learns and refuses."""

import dataclasses
import json
import re
from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from cavmae_sync_hf import (
    CavMaeSyncForConditionalGeneration,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    TrainingError,
    make_world,
    save_for_hub,
)
from cavmae_sync_hf.cli.training import _answer_lines
from cavmae_sync_hf.syncworld import find_truth
from cavmae_sync_hf.syncworld.questions import PATTERNS, caption_parts, dense_captions, written_time
from cavmae_sync_hf.training.instruct import run_instruction
from cavmae_sync_hf.training.instruction_arguments import InstructionRunArguments
from cavmae_sync_hf.training.instruction_data import (
    Chat,
    ChatCollator,
    ChatWriter,
    ClipTokens,
    SyncWorldChats,
    apart_masks,
    media_inputs,
    read_chats,
)
from cavmae_sync_hf.training.instruction_metrics import CONTROLS, caption_accuracy, changed
from cavmae_sync_hf.training.recipe import RECIPES, read_recipe
from cavmae_sync_hf.training.settings import InstructionArguments
from helpers.clips import noise, write_clip
from helpers.lm import A, V, letters, lm_model, make
from helpers.tiny import tiny_config

LANGUAGE = {
    "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A model, a small world, and chats about three files."""
    folder = tmp_path_factory.mktemp("instruction")
    torch.manual_seed(0)
    config = tiny_config()
    save_for_hub(CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config), folder / "model")
    for split, preset in (("train", "mixed"), ("mixed", "mixed")):
        make_world(
            folder / "world", clips=4, seed=3, split=split, preset=preset, size=48, seconds=4.0, fps=5, workers=1
        )
    write_clip(folder / "both.mp4", seconds=2, audio=noise(2))
    write_clip(folder / "silent.mp4", seconds=2, audio=False)
    write_clip(folder / "sound.wav", seconds=2, video=False, audio=noise(2, seed=2), audio_codec="pcm_s16le")
    rows = [
        chat_row("both.mp4", "what is heard ?", "noise"),
        chat_row("silent.mp4", "what is heard ?", "nothing"),
        chat_row("sound.wav", "and here ?", "noise"),
    ]
    rows[2]["messages"] += [{"role": "user", "content": "sure ?"}, {"role": "assistant", "content": "yes"}]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def chat_row(path: str, question: str, answer: str) -> dict:
    kind = "audio" if path.endswith(".wav") else "video"
    content = [{"type": kind, "path": path}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def arguments(desk, output, **settings) -> tuple[InstructionArguments, InstructionRunArguments]:
    values = {
        "model": str(desk / "model"), "text_config": LANGUAGE, "train_data": str(desk / "world" / "train"),
        "lm_config": {"tokens_per_frame": 1, "tokens_per_window": 0}, "train": "full",
    }  # fmt: skip
    run = {"output_dir": str(output), "max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True}
    run |= {"disable_tqdm": True, "log_level": "error", "learning_rate": 1e-3}
    own = {item.name for item in dataclasses.fields(InstructionArguments)}
    values |= {name: value for name, value in settings.items() if name in own}
    run |= {name: value for name, value in settings.items() if name not in own}
    return InstructionArguments(**values), InstructionRunArguments(**run)


def test_chats_of_a_file__train_a_model_that_answers(desk, tmp_path):
    chats = str(desk / "chats.jsonl")
    run = arguments(
        desk, tmp_path / "out", train_data=chats, eval_data={"chats": chats}, max_steps=80, learning_rate=1e-2,
        per_device_train_batch_size=3,
    )  # fmt: skip
    status, record = run_instruction(*run)

    assert status == 0 and record["chats"] == {"train": 3}
    assert record["metrics"]["chats"] == {"exact": 100.0, "count": 3}
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out" / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "out" / "model")
    assert isinstance(model, CavMaeSyncForConditionalGeneration)
    said = []
    for name in ("both.mp4", "silent.mp4"):
        content = [{"type": "video", "path": str(desk / name)}, {"type": "text", "text": "what is heard ?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        given = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        said.append(processor.tokenizer.decode(given[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert [text.strip() for text in said] == ["noise", "nothing"]


def test_projector_lr_multiple__gives_the_projectors_a_rate_of_their_own(desk, tmp_path):
    run = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1}
    found = []
    for multiple in (1.0, 11.0, 21.0):
        output = tmp_path / str(multiple)
        run_instruction(
            *arguments(
                desk, output, train_data=str(desk / "chats.jsonl"), projector_lr_multiple=multiple, learning_rate=0.01,
                **run,
            )
        )  # fmt: skip
        found.append(CavMaeSyncForConditionalGeneration.from_pretrained(output / "model").state_dict())
    one, more, most = found
    moved = [name for name in one if not torch.equal(one[name], more[name])]
    assert {name.split(".")[1] for name in moved} == {"video_projector", "audio_projector"}
    for name in ("model.video_projector.linear_2.weight", "model.audio_projector.linear_1.weight"):
        torch.testing.assert_close(most[name] - one[name], 2 * (more[name] - one[name]), rtol=0.02, atol=1e-6)
    with pytest.raises(TrainingError, match="`projector_lr_multiple` is 0; it must be positive"):
        arguments(desk, tmp_path, projector_lr_multiple=0)


def test_syncworld__is_captioned_and_asked_beside_controls(desk, tmp_path):
    run = arguments(
        desk, tmp_path / "out", eval_data={"mixed": str(desk / "world" / "mixed")}, drop_modality=0.2,
        caption_prompt="tell every moment .", caption_epochs=1,
    )  # fmt: skip
    status, record = run_instruction(*run)

    metrics = record["metrics"]["mixed"]
    assert status == 0 and {"describe", "side"} <= set(metrics["seen"]) & set(metrics["unseen"])
    assert set(metrics["controls"]) == set(CONTROLS) and set(metrics["true captions"]) == set(metrics["seen"])
    assert set(metrics["captions"]) == {"moments", "begins", "seen"}
    printed = "\n".join(_answer_lines(metrics))
    for name in ("what", "no clip", "true captions", "captions", "both of temporal twins"):
        assert re.search(rf"^{name}\b", printed, re.MULTILINE), name
    processor = AutoProcessor.from_pretrained(tmp_path / "out" / "model")
    assert processor.caption_prompt == "tell every moment ." and "tell" in processor.tokenizer.get_vocab()
    for kind, row in metrics["seen"].items():
        assert set(row) == {"accuracy", "majority", "chance", "count"} and row["count"] > 0, kind
    assert 0 <= metrics["moments"]["scores"] <= 100 and metrics["twins"]
    before = CavMaeSyncModel.from_pretrained(desk / "model").state_dict()
    after = CavMaeSyncForConditionalGeneration.from_pretrained(tmp_path / "out" / "model").model.av_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_new_projectors__are_fitted_to_the_clips_and_trained_ones_are_kept(desk, tmp_path):
    settings = {"max_steps": 1, "controls": False, "eval_data": None}
    run_instruction(*arguments(desk, tmp_path / "first", learning_rate=0.0, **settings))
    first = weights_of(tmp_path / "first")
    again = {"model": str(tmp_path / "first" / "model"), "text_config": None, "lm_config": None}
    run_instruction(*arguments(desk, tmp_path / "second", learning_rate=0.0, **settings, **again))

    for name in ("video", "audio"):
        weight = first[f"model.{name}_projector.norm.weight"]
        assert (
            not torch.equal(weight, torch.ones_like(weight)) and first[f"model.{name}_projector.linear_1.bias"].any()
        )
    for name, value in weights_of(tmp_path / "second").items():
        assert torch.equal(value, first[name]), name


def weights_of(folder) -> dict[str, torch.Tensor]:
    return CavMaeSyncForConditionalGeneration.from_pretrained(folder / "model").state_dict()


def test_interrupted_and_resumed__is_as_if_it_had_not_been(desk, tmp_path):
    settings = {"max_steps": 4, "cache_dir": str(tmp_path / "clips"), "save_steps": 2, "controls": False}
    settings |= {"save_total_limit": None, "drop_modality": 0.3}
    run_instruction(*arguments(desk, tmp_path / "whole", **settings))
    run_instruction(*arguments(desk, tmp_path / "first", **settings))
    (tmp_path / "first" / "checkpoint-4").rename(tmp_path / "later")
    (tmp_path / "first" / "model").rename(tmp_path / "earlier-model")
    (tmp_path / "first" / "metrics.json").unlink()
    status, record = run_instruction(*arguments(desk, tmp_path / "first", resume_from_checkpoint="auto", **settings))

    assert status == 0 and record["steps"] == 4
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "first")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_projectors_then_lora__change_what_they_say_they_do(desk, tmp_path):
    torch.manual_seed(0)
    settings = {name: value for name, value in LANGUAGE.items() if name != "model_type"}
    tokenizer = letters()
    config = AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    chats = {"train_data": str(desk / "chats.jsonl")}
    run_instruction(
        *arguments(
            desk,
            tmp_path / "first",
            text_config=None,
            text_model=str(tmp_path / "language"),
            train="projectors",
            **chats,
        )  # fmt: skip
    )
    first = weights_of(tmp_path / "first")
    language = AutoModelForCausalLM.from_pretrained(tmp_path / "language").model.state_dict()
    kept = {f"model.language_model.{name}": value for name, value in language.items() if "embed" not in name}
    assert kept and all(torch.equal(first[name], value) for name, value in kept.items())

    pytest.importorskip("peft")
    run_instruction(
        *arguments(
            desk,
            tmp_path / "second",
            model=str(tmp_path / "first" / "model"),
            text_config=None,
            lm_config=None,
            train="lora",
            lora_rank=2,
            **chats,
        )  # fmt: skip
    )
    second = weights_of(tmp_path / "second")
    changed_names = {name for name, value in first.items() if not torch.equal(second[name], value)}
    assert set(first) == set(second)
    assert any("q_proj" in name for name in changed_names) and any("projector" in name for name in changed_names)
    assert not any("av_model" in name or "norm.weight" in name and "language" in name for name in changed_names)


@pytest.mark.parametrize("name", ["qwen3_projectors", "smollm2_projectors"])
def test_recipes_of_real_families__run_with_tiny_models(name, desk, tmp_path):
    family = {"qwen3_projectors": "qwen3", "smollm2_projectors": "llama"}[name]
    recipe = read_recipe(RECIPES / "instruction" / f"{name}.yaml", (InstructionArguments, InstructionRunArguments))
    assert recipe["text_model"].split("/")[1].lower().startswith(name.split("_")[0])
    tokenizer = letters()
    sizes = {name: value for name, value in LANGUAGE.items() if name != "model_type"}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    recipe |= {
        "text_model": str(tmp_path / "language"), "model": str(desk / "model"), "max_steps": 2, "text_config": None,
        "train_data": str(desk / "chats.jsonl"), "bf16": False,
    }  # fmt: skip
    recipe.pop("output_dir")

    status, record = run_instruction(*arguments(desk, tmp_path / "out", **recipe))

    assert status == 0 and record["steps"] == 2
    assert 0 < record["weights"]["trained"] < record["weights"]["all"]


def clip(moments: int = 2) -> ClipTokens:
    return ClipTokens(
        torch.tensor([0.5, 1.5][:moments]),
        {"video": torch.randn(moments, 1, 32), "audio": torch.randn(moments, 1, 32)},
        {"video": torch.ones(moments, dtype=torch.bool), "audio": torch.tensor([True, False][:moments])},
    )


def turns(*pairs: tuple[str, str]) -> list[dict]:
    messages: list[dict] = []
    for question, answer in pairs:
        content: list[dict] = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content if messages else [{"type": "video"}, *content]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def said(processor, written: dict[str, torch.Tensor]) -> list[str]:
    """What the labels ask for, in runs."""
    runs: list[list[int]] = [[]]
    for label in written["labels"].tolist():
        if label >= 0:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [processor.tokenizer.decode(run) for run in runs if run]


def test_labels__are_the_answers_alone():
    processor = make()
    written = ChatWriter(processor).write(Chat(turns(("who?", "dog"), ("when?", "now")), [0]), [clip()])

    assert said(processor, written) == ["dog\n", "now\n"]
    text = processor.tokenizer.decode(written["input_ids"])
    assert text == f"[user] 0.5s{V}{A}1.5s{V}who?\n[assistant] dog\n[user] when?\n[assistant] now\n"


@pytest.mark.parametrize("layer_types", [None, ["full_attention", "full_attention"]])
@pytest.mark.parametrize("captions", [[], [("tell all", "barks, nothing")]])
def test_questions_apart__are_answered_as_each_alone(layer_types, captions):
    model, processor = lm_model()
    asked = [("who?", "dog"), ("when is it?", "now"), ("where?", "there")]
    shown = clip()

    def chat(*pairs: tuple[str, str], apart: bool) -> Chat:
        return Chat(turns(*captions, *pairs), [0], apart=apart, captions=bool(captions))

    collate = ChatCollator(ChatWriter(processor), lambda number: shown, int(processor.tokenizer.pad_token_id))
    together = collate([chat(*asked, apart=True), chat(*asked[:2], apart=True)])
    alone = [collate([chat(pair, apart=False)]) for pair in asked]

    masks = apart_masks(together.pop("question_ids"), layer_types)
    with torch.no_grad():
        logits = model(**(together | {"attention_mask": masks})).logits
        lone = [model(**batch).logits[0] for batch in alone]

    # What all share and the first question, then what each of the others adds to it.
    lengths = [batch["input_ids"].shape[1] for batch in alone]
    assert torch.allclose(logits[0, : lengths[0]], lone[0], atol=1e-5)
    begin, start = lengths[0], int(together["position_ids"][0, lengths[0]])
    for length, single in zip(lengths[1:], lone[1:], strict=True):
        assert torch.allclose(logits[0, begin : begin + length - start], single[start:], atol=1e-5)
        begin += length - start
    labels = [said(processor, {"labels": together["labels"][row]}) for row in (0, 1)]
    told = ["barks, nothing\n"] * bool(captions)
    assert labels == [[*told, "dog\n", "now\n", "there\n"], [*told, "dog\n", "now\n"]]


def test_questions_after_captions__are_of_all_kinds_alike(desk):
    records = find_truth(desk / "world" / "train", ["000000", "000001"])
    chats = SyncWorldChats(records, per_chat=28, caption_prompt="describe every moment .")

    def described(chat: Chat) -> int:
        asked = [turn["content"][-1]["text"] for turn in chat.messages if turn["role"] == "user"]
        assert len(asked) <= 28 + chat.captions
        return sum(text in PATTERNS["describe"]["seen"] for text in asked)

    assert [described(chat) for chat in chats] == [4, 4]
    plain = SyncWorldChats(records, per_chat=28)
    assert [described(chat) for chat in plain] == [1, 1]


def test_caption_accuracy__counts_moments_and_both_lists():
    true = "0.5s left first bell , 1.5s nothing : bell 0.5s seen bell drum"
    for said, moments, begins, seen in (
        (true, 100, 100, 100),
        ("0.5s right first bell , 1.5s nothing : bell 0.5s seen bell", 50, 100, 0),
        ("0.5s nothing 1.5s nothing : nothing seen bell drum", 50, 0, 100),
        ("1.5s nothing", 50, 0, 0),
        ("", 0, 0, 0),
    ):
        assert caption_accuracy([true], [said]) == {"moments": moments, "begins": begins, "seen": seen}, said


def test_caption_epochs__show_no_clip_and_ask_about_made_up_captions(desk):
    records = find_truth(desk / "world" / "train", ["000000", "000001"])
    chats = SyncWorldChats(records, apart=True, caption_prompt="describe .", caption_epochs=1)
    told = []
    for chat in chats:
        assert chat.clips == [] and chat.captions and chat.apart and len(chat.messages) >= 2 + 2 * 8
        assert all(part["type"] == "text" for turn in chat.messages for part in turn["content"])
        told.append(chat.messages[1]["content"][0]["text"])
    assert len(set(told)) == 2 and not set(told) & {dense_captions(record) for record in records}
    chats.set_epoch(1)
    assert all(chat.clips and chat.captions for chat in chats)


def test_caption_epochs__begin_with_the_lists_of_when_classes_begin(desk):
    records = find_truth(desk / "world" / "train", ["000000", "000001"])
    chats = SyncWorldChats(records, apart=True, caption_prompt="describe .", caption_epochs=2, moment_epochs=3)
    for epoch, told_of_moments in ((1, False), (2, True)):
        chats.set_epoch(epoch)
        shown = [chat for chat in chats if not chat.clips]
        assert shown
        for chat in shown:
            told, *asked = [turn["content"][0]["text"] for turn in chat.messages[1:]]
            assert told.startswith(": ") != told_of_moments and " seen " in told
            # What follows from the moments is said, to its end.
            assert chat.follows == (f"{caption_parts(told)[1]} seen" if told_of_moments else "")
            about_moments = [text for text in asked[::2] if re.search(r"\d\.\ds", text)]
            assert asked and bool(about_moments) == told_of_moments


BATCHES = [(0, 3, 5), (1, 2), (2, 4, 0), (3,), (4, 1, 2), (5, 0)]


@pytest.mark.parametrize(("moments", "captions"), [(3, 2), (2, 2), (1, 3), (2, 0), (0, 2)])
def test_epochs_of_captions_and_moments__end_together_and_share_batches(desk, moments, captions):
    records = find_truth(desk / "world" / "train", ["000000", "000001"]) * 3
    chats = SyncWorldChats(
        records, apart=True, caption_prompt="describe .", caption_epochs=captions, moment_epochs=moments
    )
    count = max(moments, captions)

    def kind(chat: Chat) -> str:
        return "captions" if not chat.clips else "clip" if chat.moment is None else "moment"

    for epoch in range(count + 1):
        chats.set_epoch(epoch)
        of_moments, of_captions = (count - n <= epoch < count for n in (moments, captions))
        batches = [{kind(chat) for chat in chats.__getitems__([first, *others])} for first, *others in BATCHES]
        assert all(len(batch) == 1 for batch in batches)
        shown = ["moment"] * of_moments + ["captions"] * of_captions or ["clip"]
        expected = dict.fromkeys(shown, 6 // len(shown))
        assert Counter(name for batch in batches for name in batch) == expected
        assert [{kind(chats[index])} for index in range(6)] == batches  # alone as where it comes first


def test_caption_epochs__need_captions(desk, tmp_path):
    with pytest.raises(TrainingError, match="`caption_epochs` ask about captions.*set a `caption_prompt`"):
        run_instruction(*arguments(desk, tmp_path / "out", caption_epochs=1))


def test_captions_of_no_clip__are_given_not_said():
    processor, whole = make(), clip()
    writer = ChatWriter(processor)
    shown = Chat(turns(("describe", "dog"), ("who?", "cat")), [0], captions=True, apart=True)
    messages = [
        turn | {"content": [part for part in turn["content"] if part["type"] == "text"]} for turn in shown.messages
    ]
    told = dataclasses.replace(shown, messages=messages, clips=[])

    def said(chat: Chat, clips: list) -> str:
        labels = writer.write(chat, clips)["labels"]
        return processor.tokenizer.decode(labels[labels != -100])

    assert "dog" in said(shown, [whole]) and "cat" in said(shown, [whole])
    assert "dog" not in said(told, []) and "cat" in said(told, [])
    follows = dataclasses.replace(told, follows="dog")
    assert "dog" in said(follows, []) and "cat" in said(follows, [])


def test_moment_epochs__show_moments_alone_and_ask_about_each(desk):
    records = find_truth(desk / "world" / "train", ["000000", "000001"])
    chats = SyncWorldChats(records, per_chat=12, apart=True, caption_prompt="describe .", moment_epochs=1)
    for epoch in range(3):
        chats.set_epoch(epoch)
        found = chats.__getitems__([0, 1])
        assert [chats[index].messages for index in (0, 1)] == [
            next(chat.messages for chat in found if chat.clips == [index]) for index in (0, 1)
        ]
        for chat in found:
            assert chat.captions == (epoch > 0) == (chat.moment is None)
            if chat.moment is not None:
                (named,) = re.findall(r"\d+\.\ds", chat.messages[0]["content"][-1]["text"])
                assert named == written_time(records[chat.clips[0]]["frame_times"][chat.moment])
        if epoch == 0:
            kept = [(chat.clips[0], chat.moment, chat.messages[0]["content"][-1]["text"]) for chat in found]
            assert len(set(kept)) == len(kept) > 8 and {number for number, _, _ in kept} == {0, 1}
        else:
            assert len(found) == 2


def test_a_chat_of_one_moment__has_its_tokens_alone():
    processor, whole = make(), clip()
    writer = ChatWriter(processor)
    collate = ChatCollator(writer, lambda number: whole, 0)
    batch = collate([Chat(turns(("who?", "dog")), [0], moment=1)])

    (text,) = processor.tokenizer.batch_decode(batch["input_ids"])
    one = ClipTokens(
        whole.times[1:2], {name: values[1:2] for name, values in whole.tokens.items()},
        {name: mask[1:2] for name, mask in whole.present.items()},
    )  # fmt: skip
    assert writer.clip_text(one) in text and writer.clip_text(whole) not in text
    for name, values in media_inputs([one]).items():
        assert torch.equal(batch[name], values)


def test_questions_apart__need_a_language_model_that_can(desk, tmp_path):
    language = LANGUAGE | {"layer_types": ["sliding_attention"], "sliding_window": 8, "use_sliding_window": True}
    with pytest.raises(TrainingError, match="sliding_attention.*questions_apart: false"):
        run_instruction(*arguments(desk, tmp_path / "out", text_config=language))
    status, _ = run_instruction(*arguments(desk, tmp_path / "out", text_config=language, questions_apart=False))
    assert status == 0


def test_dropped_modalities__have_no_tokens():
    processor = make()
    torch.manual_seed(0)
    collate = ChatCollator(ChatWriter(processor), lambda number: clip(), 0, drop=0.5)

    batch = collate([Chat(turns(("who?", "dog")), [0]) for _ in range(40)])

    shown = [(V in text, A in text) for text in processor.tokenizer.batch_decode(batch["input_ids"])]
    assert set(shown) == {(True, False), (False, True)}


def test_a_chat_too_long__is_refused_with_its_length():
    with pytest.raises(TrainingError, match=r"\d+ tokens, more than `max_length` \(10\)"):
        ChatWriter(make(), max_length=10).write(Chat(turns(("who?", "dog")), [0]), [clip()])


def test_a_template_that_rewrites_earlier_turns__is_refused():
    template = "{%- for message in messages %}{{ messages|length }}{{ message.content }}{%- endfor %}"
    with pytest.raises(TrainingError, match="writes earlier turns in another way"):
        ChatWriter(make(letters(template))).write(Chat(turns(("who?", "dog"), ("when?", "now")), [0]), [clip()])


def test_a_tokenizer_without_a_template__is_refused():
    with pytest.raises(TrainingError, match="no chat template; set `chat_template`"):
        ChatWriter(make(letters(None)))


@pytest.mark.parametrize("control", CONTROLS)
def test_controls__take_away_what_they_name(control):
    clips = [clip() for _ in range(4)]
    shown = changed(clips, control)
    if control == "no clip":
        assert all(len(one.times) == 0 for one in shown)
    elif control.endswith("alone"):
        lost = "video" if control == "audio alone" else "audio"
        assert not any(one.present[lost].any() for one in shown)
        kept = "audio" if lost == "video" else "video"
        assert all(torch.equal(one.present[kept], two.present[kept]) for one, two in zip(shown, clips, strict=True))
    elif control == "another clip":
        assert all(one is not two for one, two in zip(shown, clips, strict=True)) and shown[0] is clips[2]
    else:
        orders = [changed(clips, control, seed)[0].tokens["video"] for seed in range(8)]
        assert all(torch.equal(one.times, two.times) for one, two in zip(shown, clips, strict=True))
        assert any(not torch.equal(tokens, clips[0].tokens["video"]) for tokens in orders)
        assert all(
            torch.equal(tokens.sum(dim=(0, 1)).sort()[0].round(decimals=3),
                        clips[0].tokens["video"].sum(dim=(0, 1)).sort()[0].round(decimals=3)) for tokens in orders
        )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 0 has no `messages`"),
        ({"messages": [{"role": "user"}]}, "a turn without `role` or `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a video without `path`"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "path": "a"}]}]}, "type 'image'"),
        ({"messages": [{"role": "user", "content": "who?"}]}, "ends with the user's turn"),
    ],
    ids=["no messages", "no content", "no path", "image", "no answer"],
)
def test_rows_that_are_no_chats__are_named(row, message, tmp_path):
    (tmp_path / "chats.json").write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(TrainingError, match=message):
        read_chats(tmp_path / "chats.json")


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet", "saved"])
def test_forms_of_a_file__give_the_same_chats(form, desk, tmp_path):
    import datasets

    rows = [json.loads(line) for line in (desk / "chats.jsonl").read_text(encoding="utf-8").splitlines()[:2]]
    for row in rows:  # columns of one type
        row["messages"][1]["content"] = [{"type": "text", "text": row["messages"][1]["content"]}]
    target = tmp_path / f"chats.{form}"
    if form == "json":
        target.write_text(json.dumps(rows), encoding="utf-8")
    elif form == "jsonl":
        target.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif form == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(target)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(target)

    found = read_chats(target)

    assert [turn["content"][-1]["text"] for turn in found[1]["messages"]] == ["what is heard ?", "nothing"]
    assert found[0]["messages"][0]["content"][0]["path"] == str(tmp_path / "both.mp4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_config": None}, "There is no language model"),
        ({"text_config": {"hidden_size": 8}}, 'needs "model_type"'),
        ({"text_model": "somewhere"}, "leave one out"),
        ({"train": "lora", "lora_targets": ["nobody"]}, "names none of the language model's layers"),
        ({"drop_modality": 0.7}, "use 0 to 0.5"),
    ],
    ids=["none", "no type", "two", "targets", "drop"],
)
def test_settings_that_cannot_work__are_refused(settings, message, desk, tmp_path):
    with pytest.raises(TrainingError, match=message):
        run_instruction(*arguments(desk, tmp_path / "out", **settings))
    assert not (tmp_path / "out" / "model").exists()


def test_a_file_without_clips__is_refused(desk, tmp_path):
    row = {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]}
    (tmp_path / "chats.json").write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(TrainingError, match="its chats have no clips"):
        run_instruction(*arguments(desk, tmp_path / "out", train_data=str(tmp_path / "chats.json")))
