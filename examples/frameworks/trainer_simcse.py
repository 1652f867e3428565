"""SimCSE in the Trainer of transformers: a small BERT with fresh weights learns from the sentences of Python's own documentation.

python trainer_simcse.py
"""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, Trainer, TrainingArguments, set_seed

from fastssl.methods import SimCSE, return_dict
from fastssl.train.sentences import SentenceData, sentences


def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Token ids (L,) of the sentences of a batch -> what the method's ``forward`` takes; 0 is padding."""
    tokens = torch.stack(rows)
    tokens = tokens[:, (tokens != 0).any(0)]
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}


@torch.no_grad()
def recall(method: SimCSE, data: SentenceData, device: torch.device) -> float:
    """The share of test sentences that are among the ten nearest to every third of their own words, of all test sentences."""
    method.eval()

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        parts = [method.embed(part, (part != 0).long()) for part in tokens.to(device).split(256)]
        return F.normalize(torch.cat(parts), dim=1)

    nearest = (embed(data.parts) @ embed(data.test.tokens).T).topk(10, dim=1).indices
    return nearest.eq(torch.arange(len(nearest), device=device)[:, None]).any(1).float().mean().item()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, prints the score of the encoder before and after, and returns both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the sentences (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="sentences of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate of AdamW (default: %(default)s)")
    args = parser.parse_args(argv)

    set_seed(0)
    data = sentences("sentences", pieces=True)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256}
    config = BertConfig(vocab_size=data.vocabulary, max_position_embeddings=64, **sizes)
    encoder = BertModel(config, add_pooling_layer=False)
    method = SimCSE(encoder, pooler="mean", temperature=0.1)  # the two views of a sentence are two draws of BERT's dropout

    with tempfile.TemporaryDirectory() as folder:
        training_args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=args.batch_size,
            num_train_epochs=args.epochs,
            learning_rate=args.lr,
            warmup_steps=0.1,  # a tenth of all steps
            dataloader_drop_last=True,
            remove_unused_columns=False,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        # The Trainer looks the loss up by its name.
        trainer = Trainer(return_dict(method), training_args, train_dataset=data.train.tokens, data_collator=collate)
        untrained = recall(method, data, training_args.device)
        trainer.train()
    trained = recall(method, data, training_args.device)
    print(f"recall@10 of held-out sentences from a third of their words: untrained {untrained:.3f}, trained {trained:.3f}")
    return {"untrained": untrained, "trained": trained}


if __name__ == "__main__":
    main()
