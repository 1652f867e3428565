"""ViTMAE in the Trainer of transformers.

python -m examples.transformers.vit_mae [--fastssl | --compare]
"""

import tempfile

import torch

import fastssl
from examples._compare import Run, arguments
from examples._digits import augment, digits

args = arguments(__doc__, batch=128)
if args.fastssl:
    fastssl.patch("transformers")  # the one line

from transformers import Trainer, TrainerCallback, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
decoder = {"decoder_hidden_size": 48, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
config = ViTMAEConfig(image_size=32, patch_size=4, norm_pix_loss=True, decoder_intermediate_size=96, **sizes, **decoder)
model = ViTMAEForPreTraining(config)
dataset = [{"pixel_values": image} for image in augment(digits(args.steps * args.batch)[0])]


class Losses(TrainerCallback):
    """Notes the loss of each step, which the Trainer logs."""

    def on_log(self, arguments, state, control, logs=None, **kwargs):
        if "loss" in logs:
            run.step(logs["loss"])


def collate_fn(examples):
    return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}


with tempfile.TemporaryDirectory() as folder, Run(args) as run:
    training_args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=args.batch,
        max_steps=args.steps,
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_steps=1,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    Trainer(model, training_args, train_dataset=dataset, data_collator=collate_fn, callbacks=[Losses()]).train()
