# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Chats with videos and audio: templates of tokenizers, what users write, and what pipelines ask for."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, pipeline

from cavmae_sync_hf import CavMaeSyncForConditionalGeneration, CavMaeSyncLMProcessor, CavMaeSyncModel
from helpers.apart import run_apart
from helpers.clips import noise
from helpers.lm import MASKED, TEMPLATE, A, V, chat, letters, make, write_media, written
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def processor() -> CavMaeSyncLMProcessor:
    return make()


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, Path]:
    return write_media(tmp_path_factory.mktemp("media"))


def test_chat__reads_files(processor, media):
    shown = chat(media["both"], "What is heard?")

    batch = processor.apply_chat_template(
        shown, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )

    direct = processor(text=f"[user] {V}What is heard?\n[assistant] ", videos=media["both"], return_tensors="pt")
    assert batch.keys() == direct.keys() and all(torch.equal(batch[name], direct[name]) for name in batch)
    assert shown == chat(media["both"], "What is heard?")
    plain = processor.apply_chat_template(shown, add_generation_prompt=True)
    assert plain == f"[user] {V}What is heard?\n[assistant] "


def test_chats__make_a_batch(processor, media):
    chats = [
        chat(media["both"], "and", media["sound"], "?"),
        [{"role": "user", "content": "no media"}],
        [*chat(media["silent"]), *chat("Nothing.", role="assistant"), *chat({"type": "audio", "audio": noise(1)[0]})],
    ]

    batch = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"num_frames": 2, "sampling_rate": 48000},
    )

    first, second, third = written(processor, batch)
    assert first == f"[user] 0.5s{V}{A}1.5s{V}{A}and0.5s{A}1.5s{A}?\n" and second == "[user] no media\n"
    assert third == f"[user] 0.5s{V}1.5s{V}\n[assistant] Nothing.\n[user] 0.2s{A}0.8s{A}\n"
    assert batch["pixel_values_videos"].shape[:2] == (2, 2) and batch["input_values"].shape[:2] == (3, 2)
    silent = processor.apply_chat_template(
        chats[0][:1], tokenize=True, return_dict=True, load_audio_from_video=False, return_tensors="pt"
    )
    assert len(silent["input_values"]) == 1


@pytest.mark.parametrize("batched", [False, True])
def test_chat__marks_what_the_assistant_says(media, batched):
    processor = make(letters(MASKED))
    one = [
        *chat(media["both"], "Who?"),
        *chat("A dog.", role="assistant"),
        *chat("When?"),
        *chat("Now.", role="assistant"),
    ]
    other = [*chat("Hello."), *chat("Hi.", role="assistant")]

    batch = processor.apply_chat_template(
        [one, other] if batched else one,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )

    mask = batch["assistant_masks"].bool()
    assert mask.shape == batch["input_ids"].shape
    said = [processor.tokenizer.decode(ids[said]) for ids, said in zip(batch["input_ids"], mask, strict=True)]
    assert said == ["A dog.Now.", "Hi."][: 1 + batched]


@pytest.mark.parametrize(
    "template", ["\n {{ messages[0].content }}", "  {% if true %}{{ messages[0].content }}{% endif %}\n"]
)
def test_template_of_a_tokenizer__renders_as_by_itself(template):
    tokenizer = letters(template)
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)

    assert make(tokenizer).apply_chat_template(chat("hel", "lo")) == expected


def test_template__keeps_other_fields_and_messages_without_content():
    template = "{% for m in messages %}{{ m.role }}:{{ m.content if m.content else m.tool_calls }};{% endfor %}"
    processor = make(letters(template))
    chats = [{"role": "assistant", "content": None, "tool_calls": "t"}, *chat("a", "b")]
    assert processor.apply_chat_template(chats) == "assistant:t;user:ab;"


def test_template_for_lists__is_used_as_it_is(media):
    template = "{% for m in messages %}{% for part in m.content %}{{ '<|video|>' if part.type == 'video' else '!' }}"
    template += "{% endfor %}{% endfor %}"
    given = make(chat_template=template)

    assert given.chat_template == template
    assert given.apply_chat_template(chat(media["both"], "a")) == f"{V}!"
    assert make().apply_chat_template(chat(media["both"], "a"), template) == f"{V}!"


def test_several_templates__are_all_for_lists():
    processor = make(letters({"default": TEMPLATE, "short": "{{ messages[0].content }}"}))

    assert processor.apply_chat_template(chat("a", "b")) == "[user] ab\n"
    assert processor.apply_chat_template(chat("a", "b"), "short") == "ab"


def test_without_a_template__it_is_told_what_to_pass(media):
    with pytest.raises(
        ValueError, match="There is no chat template: the tokenizer has none.* Pass `chat_template=...`"
    ):
        make(letters(None)).apply_chat_template(chat(media["both"]))


def test_contents_of_other_kinds__are_refused(processor):
    with pytest.raises(Exception, match="A content is of type image; give text, video or audio"):
        processor.apply_chat_template(chat({"type": "image", "path": "a.png"}))


@pytest.mark.parametrize("token", [V, A])
def test_placeholder_in_what_a_user_writes__is_no_clip(processor, media, token):
    asked = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    written_by_hand = chat(media["both"], f"what is {token}?")

    with pytest.raises(ValueError, match="has . placeholders"):
        processor.apply_chat_template(written_by_hand, **asked)

    batch = processor.apply_chat_template(written_by_hand, sanitize_control_tokens=True, **asked)
    assert int((batch["input_ids"] == processor.video_token_id).sum()) == 4
    assert int((batch["input_ids"] == processor.audio_token_id).sum()) == 4
    assert written(processor, batch)[0].endswith(f"what is {token}?\n")


def test_placeholder_in_one_chat__takes_no_clip_of_another(processor, media):
    chats = [chat(f"what is {V}?"), chat("what is that?", media["both"])]
    with pytest.raises(ValueError, match="Text 0 has 1 placeholders .* for 0 clips"):
        processor.apply_chat_template(chats, tokenize=True)


def test_chat_without_the_file__is_refused(processor):
    with pytest.raises(ValueError, match="has 1 placeholders .* for 0 clips"):
        processor.apply_chat_template(chat({"type": "video"}, "a"), tokenize=True)


def test_last_message__can_be_continued(processor, media):
    begun = [*chat(media["silent"]), *chat("It is", role="assistant")]
    batch = processor.apply_chat_template(
        begun, continue_final_message=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert written(processor, batch)[0].endswith(f"{V}\n[assistant] It is")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    """A model that has learned nothing, with its processor."""
    torch.manual_seed(0)
    size = len(processor.tokenizer)
    language = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "qwen3", vocab_size=size, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, head_dim=8,
            num_key_value_heads=2, intermediate_size=48, pad_token_id=None, eos_token_id=None, bos_token_id=None,
        )
    )  # fmt: skip
    ids = {"video_token_id": processor.video_token_id, "audio_token_id": processor.audio_token_id}
    model = CavMaeSyncForConditionalGeneration.from_av_text_pretrained(
        CavMaeSyncModel(tiny_config()), language, tokens_per_frame=0, tokens_per_window=0, **ids
    )
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["any-to-any", "image-text-to-text"])
def test_pipelines__answer_chats(folder, processor, media, task):
    asked = [chat(media["both"], "What?"), chat(media["silent"], media["sound"], "And here?")]
    answer = pipeline(task, model=str(folder))
    sizes = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

    said = answer(text=asked, return_full_text=False, generate_kwargs=sizes)

    for one, given in zip(said, asked, strict=True):
        inputs = processor.apply_chat_template(
            given, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = answer.model.generate(**inputs, **sizes)[:, inputs["input_ids"].shape[1] :]
        assert one[0]["generated_text"] == processor.decode(ids[0], skip_special_tokens=True)


def test_pipeline__answers_texts_with_files(folder, processor, media):
    answer = pipeline("any-to-any", model=str(folder))
    sizes = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

    said = answer(
        text=f"{V}{A}What?", videos=str(media["both"]), audio=str(media["sound"]), generate_kwargs=sizes,
        return_full_text=False,
    )  # fmt: skip

    inputs = processor(text=f"{V}{A}What?", videos=media["both"], audio=media["sound"], return_tensors="pt")
    ids = answer.model.generate(**inputs, **sizes)[:, inputs["input_ids"].shape[1] :]
    assert said[0]["generated_text"] == processor.decode(ids[0], skip_special_tokens=True)


def test_saved__answers_without_the_package(folder, processor, media, tmp_path):
    script = tmp_path / "stranger.py"
    script.write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'cavmae_sync_hf': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "chat = [{'role': 'user', 'content': [{'type': 'video', 'path': sys.argv[2]}]}]\n"
        "inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors='pt')\n"
        "ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)\n"
        "assert 'cavmae_sync_hf' not in sys.modules\n"
        "print(type(processor).__module__, type(model).__module__, ids.tolist())\n"
    )

    done = run_apart(["-I", str(script), str(folder), str(media["both"])], tmp_path)

    assert done.returncode == 0, done.stderr
    of_processor, of_model, ids = done.stdout.split(" ", 2)
    assert of_processor.startswith("transformers_modules.") and of_model.startswith("transformers_modules.")
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video", "path": str(media["both"])}]}],
        tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    model = AutoModelForMultimodalLM.from_pretrained(folder)
    own = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert json.loads(ids) == own.tolist() and own.shape[1] == inputs["input_ids"].shape[1] + 4


def test_batch__answers_as_each_text_alone(folder, processor, media):
    model = AutoModelForMultimodalLM.from_pretrained(folder)
    texts, videos = [f"{V}What is heard?", f"{V}Who?", "Hello."], [media["both"], media["long"]]
    sizes = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}

    batch = processor(text=texts, videos=videos, fps=2, return_tensors="pt")
    together = model.generate(**batch, **sizes)[:, batch["input_ids"].shape[1] :]

    for text, given, ids in zip(texts, [*videos, None], together, strict=True):
        alone = processor(text=text, videos=given, fps=2, return_tensors="pt")
        assert torch.equal(model.generate(**alone, **sizes)[0, alone["input_ids"].shape[1] :], ids)


def test_pipelines__find_what_they_ask_for(processor, media):
    fetched = processor.feature_extractor.fetch_audio(str(media["sound"]))
    batch = processor(text=A, audio=fetched, return_tensors="pt")

    assert torch.equal(
        batch["input_values"], processor(text=A, audio=media["sound"], return_tensors="pt")["input_values"]
    )
    wave = noise(1)[0]
    assert processor.feature_extractor.fetch_audio([wave])[0] is wave
    told = processor.post_process_multimodal_output(batch["input_ids"])
    assert told == processor.post_process_image_text_to_text(batch["input_ids"]) and A not in told[0]
