"""CLIP, from random weights, in the Trainer of transformers.

python -m examples.transformers.clip [--fastssl | --compare]
"""

import tempfile

import torch

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits

args = arguments(__doc__, batch=512)
if args.fastssl:
    fastssl.patch("transformers")  # the one line

from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, Trainer, TrainerCallback, TrainingArguments

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
text = CLIPTextConfig(vocab_size=64, max_position_embeddings=8, eos_token_id=63, bos_token_id=62, pad_token_id=0, **sizes)
vision = CLIPVisionConfig(image_size=32, patch_size=16, **sizes)
model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))
images, labels = digits(args.steps * args.batch)
captions = torch.randint(1, 50, (len(labels), 6))  # words, of which the third says which digit it is
captions[:, 3], captions[:, 0], captions[:, -1] = 50 + labels, 62, 63
dataset = [{"pixel_values": image, "input_ids": words} for image, words in zip(augment(images), captions, strict=True)]


class Losses(TrainerCallback):
    """Notes the loss of each step, which the Trainer logs."""

    def on_log(self, arguments, state, control, logs=None, **kwargs):
        if "loss" in logs:
            run.step(logs["loss"])


def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    input_ids = torch.stack([example["input_ids"] for example in examples])
    return {"pixel_values": pixel_values, "input_ids": input_ids, "return_loss": True}


with tempfile.TemporaryDirectory() as folder, Run(args) as run:
    training_args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=args.batch,
        max_steps=args.steps,
        learning_rate=5e-4,
        weight_decay=0.1,
        warmup_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    Trainer(model, training_args, train_dataset=dataset, data_collator=collate_fn, callbacks=[Losses()]).train()
